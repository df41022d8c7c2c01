"""The published price list, and what an operator may do to it: models, aliases, trust in providers, a key's models.

Prices are decimals per million tokens in steps of 0.001, so nano units per token are whole numbers. Where no USDC price
is given it is the SHIVER price at REFERENCE_NANO_USD, rounded up to the next step.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, Literal, NamedTuple

from infra.errors import AccountRefused
from schemas.droppable import DROPPABLE

Kind = Literal["chat", "embedding"]
#: Which of the small models that ship serves a published name on `make up`.
Weights = Literal["text", "vision", "embed"]

#: Nano USD for one SHIVER, by which the USDC prices are made: 3,500 SHIVER for a million tokens is then $0.35.
REFERENCE_NANO_USD = 100_000
_NANO_USD = 10**9
#: Nano units a token, of a price of 1 per million tokens.
NANO_PER_TOKEN = 1000
_PRICE_MAX = Decimal(10**9)


class Price(NamedTuple):
    """What a model costs, in nano units per prompt token and per answered one, in SHIVER and in USDC."""

    in_nano: int
    out_nano: int
    in_nano_usdc: int
    out_nano_usdc: int


class Published(NamedTuple):
    """A model of the price list. `context_tokens` None: no limit is published."""

    name: str
    price: Price
    context_tokens: int | None
    kind: Kind = "chat"
    takes_images: bool = False
    weights: Weights = "text"


def price(shiver_in: str, shiver_out: str, usdc_in: str | None = None, usdc_out: str | None = None) -> Price:
    """From decimals per million tokens. Raises AccountRefused."""
    in_nano, out_nano = _per_token(shiver_in), _per_token(shiver_out)
    return Price(
        in_nano,
        out_nano,
        _usdc(in_nano) if usdc_in is None else _per_token(usdc_in),
        _usdc(out_nano) if usdc_out is None else _per_token(usdc_out),
    )


def _per_token(text: str) -> int:
    try:
        nano = Decimal(text) * NANO_PER_TOKEN
    except InvalidOperation as error:
        raise AccountRefused(f"{text!r} is no price") from error
    if not nano.is_finite() or not 0 <= nano <= _PRICE_MAX * NANO_PER_TOKEN or nano != int(nano):
        raise AccountRefused(f"a price is 0 to {_PRICE_MAX} per million tokens in steps of 0.001, not {text}")
    return int(nano)


def _usdc(nano: int) -> int:
    return -(-nano * REFERENCE_NANO_USD // _NANO_USD)


PUBLISHED: tuple[Published, ...] = (
    Published("shark-llama-3.3-70b", price("3500", "7000"), 131_072),
    Published("shark-llama-3.3-70b-vision", price("3500", "7000"), 131_072, takes_images=True, weights="vision"),
    Published("shark-mistral-24b-cold", price("800", "1600"), 32_768),
    Published("shark-gemma-9b", price("300", "600"), 8192),
    Published("shark-gemma-9b-vision", price("300", "600"), 8192, takes_images=True, weights="vision"),
    Published("shark-embed-large-v1", price("150", "0"), None, kind="embedding", weights="embed"),
    Published("shark-mini", price("100", "200"), 1024),
)
#: Names of other products that their users may go on using. The operator decides which model answers for them.
ALIASES: dict[str, str] = {
    "gpt-5.4-mini": "shark-mini",
    "qwen/qwen3-4b-fp8": "shark-mini",
    "llama-3.2-1b-instruct": "shark-mini",
    "claude-sonnet-4-20250514": "shark-mini",
}
#: Of a model that is served and on no list.
TOY = price("100", "200")


_SHIPPED = Path(__file__).resolve().parent.parent / "workers" / "models" / "shark-mini"
_FILES: dict[Weights, str] = {
    "text": "shark-mini.gguf",
    "vision": "shark-mini-vision.gguf",
    "embed": "shark-embed-mini.gguf",
}


def shipped_models() -> tuple[str, ...]:
    """Every published model, served by the small one of its kind that ships: `name=path`, as SHRK_MODELS has them."""
    return tuple(f"{entry.name}={_SHIPPED / _FILES[entry.weights]}" for entry in PUBLISHED)


async def publish(db: Any, models: list[str]) -> None:
    """Puts those of `models` into the catalog that are not there yet, each as it is published or at the toy's price,
    and the published aliases of them. What an operator has changed stays."""
    known = {entry.name: entry for entry in PUBLISHED}
    for name in models:
        entry = known.get(name, Published(name, TOY, None))
        await db.execute(
            "insert into state.models (model, owned_by, in_nano, out_nano, in_nano_usdc, out_nano_usdc, kind, "
            "takes_images, context_tokens) values ($1, 'shiver', $2, $3, $4, $5, $6, $7, $8) on conflict do nothing",
            name,
            *entry.price,
            entry.kind,
            entry.takes_images,
            entry.context_tokens,
        )
    for alias, model in ALIASES.items():
        if model in models:
            await db.execute(
                "insert into state.model_aliases (alias, model) values ($1, $2) on conflict do nothing", alias, model
            )


async def set_model(
    db: Any, name: str, cost: Price, kind: Kind = "chat", takes_images: bool = False, context_tokens: int | None = None
) -> None:
    """Makes a model or changes all of it. Requests that are open keep the prices they were accepted at."""
    if not 1 <= len(name) <= 200 or name == "auto":
        raise AccountRefused("a model's name has 1 to 200 characters and is not auto, which chooses among all")
    await db.execute(
        "insert into state.models (model, owned_by, in_nano, out_nano, in_nano_usdc, out_nano_usdc, kind, "
        "takes_images, context_tokens) values ($1, 'shiver', $2, $3, $4, $5, $6, $7, $8) "
        "on conflict (model) do update set "
        "in_nano = excluded.in_nano, out_nano = excluded.out_nano, in_nano_usdc = excluded.in_nano_usdc, "
        "out_nano_usdc = excluded.out_nano_usdc, kind = excluded.kind, takes_images = excluded.takes_images, "
        "context_tokens = excluded.context_tokens",
        name,
        *cost,
        kind,
        takes_images,
        context_tokens,
    )


async def remove_model(db: Any, name: str) -> None:
    """Takes a model and its aliases out of the catalog. Raises AccountRefused where there is none."""
    if not await db.fetchval("delete from state.models where model = $1 returning true", name):
        raise AccountRefused(f"no model {name}; `shrk models list` shows them")


async def set_alias(db: Any, alias: str, model: str, drops: Collection[str] = ()) -> None:
    """`alias` is another name of `model` from now on, and of requests under it these parameters are dropped.

    Raises AccountRefused for an unknown model, a name in use, or a parameter that must not be dropped.
    """
    if not 1 <= len(alias) <= 200 or alias == "auto":
        raise AccountRefused("an alias has 1 to 200 characters and is not auto, which chooses among all")
    if wrong := sorted(set(drops) - DROPPABLE):
        raise AccountRefused(
            f"{wrong[0][:80]!r} cannot be dropped: the answer would not be what was asked for; "
            f"these can: {', '.join(sorted(DROPPABLE))}"
        )
    names = {row["model"] for row in await db.fetch("select model from state.models")}
    if alias in names:
        raise AccountRefused(f"{alias} is a model of its own")
    if model not in names:
        raise AccountRefused(f"no model {model}; `shrk models list` shows them")
    await db.execute(
        "insert into state.model_aliases (alias, model, drops) values ($1, $2, $3) "
        "on conflict (alias) do update set model = excluded.model, drops = excluded.drops",
        alias,
        model,
        sorted(set(drops)),
    )


async def remove_alias(db: Any, alias: str) -> None:
    """Raises AccountRefused where there is none."""
    if not await db.fetchval("delete from state.model_aliases where alias = $1 returning true", alias):
        raise AccountRefused(f"no alias {alias}")


async def set_trust(db: Any, provider_id: str, trust: str) -> None:
    """0 to 1; above 0.8 a provider serves `trusted_only` requests. Raises AccountRefused."""
    try:
        value = Decimal(trust)
    except InvalidOperation as error:
        raise AccountRefused(f"{trust!r} is no number") from error
    if not value.is_finite() or not 0 <= value <= 1 or value != round(value, 3):
        raise AccountRefused("trust is 0 to 1 with at most three decimals")
    if not await db.fetchval(
        "update state.providers set trust = $2 where provider_id = $1 returning true", provider_id, value
    ):
        raise AccountRefused(f"no provider {provider_id}; `shrk providers list` shows them")


async def register_nodes(db: Any, node_ids: dict[str, str | None]) -> dict[str, str]:
    """The provider of each node. A node without one keeps the provider that the database has for it, as books of before
    name it, or gets a new one, whose id is a UUID."""
    found: dict[str, str] = {}
    for node_id, wanted in node_ids.items():
        known = await db.fetchval("select provider_id from state.nodes where node_id = $1", node_id)
        provider_id = wanted or known or str(uuid.uuid4())
        await db.execute(
            "insert into state.providers (provider_id, name) values ($1, $2) on conflict do nothing",
            provider_id,
            node_id,
        )
        await db.execute(
            "insert into state.nodes (node_id, provider_id) values ($1, $2) on conflict do nothing",
            node_id,
            provider_id,
        )
        found[node_id] = provider_id
    return found
