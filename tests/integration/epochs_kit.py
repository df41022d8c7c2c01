"""Logs with epochs in them: what providers earn, who is registered, what the sandbox may pay."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from books_kit import P
from ledger_kit import T0_MS, accepted, credited, usage

from schemas.event_base import Asset
from schemas.events import Event, How, ProviderRegistered, SandboxFunded, Segment
from schemas.facts import Terms, Token
from schemas.ids import uuid7
from schemas.settings import Settings
from streams.epochs import Epochs, opened

HOUR_MS = 3_600_000
TERMS = Terms(
    chain_id=31337,
    contract="0x" + "c0" * 20,
    tokens=(
        Token(asset="SHIVER", token="0x" + "51" * 20, decimals=18),
        Token(asset="USDC", token="0x" + "0d" * 20, decimals=6),
    ),
)
OTHER_TERMS = TERMS.model_copy(update={"chain_id": 1})
PROVIDERS = ("p1", "p2", "p3")


def settings_for(kafka: str, url: str) -> Settings:
    return Settings(kafka, url, P)


@asynccontextmanager
async def epochs_of(kafka: str, url: str) -> AsyncGenerator[Epochs, None]:
    async with opened(settings_for(kafka, url), name="test") as epochs:
        yield epochs


def registered(provider: str, recipient: str | None, **more: Any) -> ProviderRegistered:
    return ProviderRegistered(
        **({"at_ms": T0_MS, "provider": provider, "name": provider, "recipient": recipient} | more)
    )


def funded(amount_nano: int, ref: str = "fund-1", asset: Asset = "SHIVER", **more: Any) -> SandboxFunded:
    fields: dict[str, Any] = {"at_ms": T0_MS, "reason": "grants", "operator": "ann"} | more
    return SandboxFunded(asset=asset, amount_nano=amount_nano, external_ref=ref, **fields)


def address_of(provider: str) -> str:
    return "0x" + f"{PROVIDERS.index(provider) + 1:040x}"


def earnings(seed: int, requests: int = 40) -> list[Event]:
    """Requests of wallets in both assets and of free keys, to one or two providers each."""
    rng = random.Random(seed)
    wallets = {f"w{n}": "USDC" if n % 5 == 4 else "SHIVER" for n in range(12)}
    out: list[Event] = [credited(w, 10**15, f"start-{seed}", asset=asset) for w, asset in wallets.items()]
    for number in range(requests):
        wallet = rng.choice(sorted(wallets))
        rid = uuid7(T0_MS + number, rng.randbytes(10))
        payer = rng.choice([f"wallet:{wallet}", "platform:sandbox"])
        segments = tuple(
            Segment(node=f"n{n}", provider=provider, attempt=n + 1, tokens=rng.randrange(1, 300))
            for n, provider in enumerate(rng.sample(PROVIDERS, rng.choice([1, 1, 2])))
        )
        how = rng.choice([How.STOP, How.STOP, How.OWNER_DIED])
        out += [
            accepted(rid, wallet, payer=payer, asset=wallets[wallet]),
            usage(rid, wallet=wallet, how=how, segments=segments),
        ]
    return out
