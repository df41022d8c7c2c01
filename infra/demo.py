"""What `shrk up` puts into an empty network, so that a first request has a model, a node and a key to go with.

Everything here can be repeated: what is there stays as an operator has changed it.
"""

import json
from dataclasses import dataclass
from typing import Any

from infra import accounts
from infra.errors import MachineUnfit
from infra.state import StateFolder, write_private
from schemas.keys import Tier

SANDBOX_WALLET = "sandbox"
TEST_WALLET = "demo"
OWNER = "demo"
TEST_CREDIT_NANO = 10_000 * accounts.NANO

# SHIVER per million tokens, prompt and completion: the product's price list, and below it a toy.
_PRICES: dict[str, tuple[int, int]] = {
    "shark-llama-3.3-70b": (3500, 7000),
    "shark-llama-3.3-70b-vision": (3500, 7000),
    "shark-mistral-24b-cold": (800, 1600),
    "shark-gemma-9b": (300, 600),
    "shark-gemma-9b-vision": (300, 600),
    "shark-embed-large-v1": (150, 0),
}
_TOY_PRICES = (100, 200)
_NANO_PER_TOKEN = 1000  # of a price of 1 per million
# Nano USD for one SHIVER: 3,500 SHIVER for a million tokens of the 70B model is then $0.35.
_RATES = {"SHIVER": 100_000, "USDC": 1_000_000_000}


@dataclass(frozen=True, slots=True)
class DemoKeys:
    """Two keys in clear: `dev` pays nothing up to the day's cap, `pro` pays from the wallet with test credit."""

    dev: str
    pro: str


async def register(db: Any, node_ids: dict[str, str], models: list[str]) -> None:
    """Makes the provider of each node (`node_ids`: node id to provider id), the nodes, prices and rates if new."""
    async with db.transaction():
        for node_id, provider_id in node_ids.items():
            await db.execute(
                "insert into state.providers (provider_id, name) values ($1, $1) on conflict do nothing", provider_id
            )
            await db.execute(
                "insert into state.nodes (node_id, provider_id) values ($1, $2) on conflict do nothing",
                node_id,
                provider_id,
            )
        for model in models:
            price_in, price_out = _PRICES.get(model, _TOY_PRICES)
            await db.execute(
                "insert into state.models (model, owned_by, in_nano, out_nano) values ($1, 'shiver', $2, $3) "
                "on conflict do nothing",
                model,
                price_in * _NANO_PER_TOKEN,
                price_out * _NANO_PER_TOKEN,
            )
        for asset, nano_usd in _RATES.items():
            await db.execute(
                "insert into state.rates (asset, nano_usd, source) values ($1, $2, 'shrk up') on conflict do nothing",
                asset,
                nano_usd,
            )


async def ensure_keys(db: Any, state: StateFolder, ledger_partitions: int) -> DemoKeys:
    """The keys of the last run where this database still knows them, else new ones, kept in keys.json (0600)."""
    kept = _read(state)
    keys = {}
    wallets: dict[Tier, str] = {"dev": SANDBOX_WALLET, "pro": TEST_WALLET}
    for tier, wallet_id in wallets.items():
        await accounts.create_wallet(db, wallet_id, OWNER, ledger_partitions)
        text = kept.get(tier, "")
        if not await accounts.key_is_good(db, text):
            text = await accounts.create_key(db, wallet_id, tier, name="made by shrk up")
        keys[tier] = text
    if keys != kept:
        write_private(state.keys_file, json.dumps(keys, indent=1) + "\n")
    return DemoKeys(**keys)


async def ensure_credit(db: Any, append: accounts.Append) -> None:
    """Credits the test wallet, once in the life of the ledger."""
    reference = f"shrk-up:{TEST_WALLET}"
    if not await accounts.credit_is_booked(db, TEST_WALLET, reference):
        await accounts.credit(db, append, TEST_WALLET, TEST_CREDIT_NANO, reference, operator="shrk up")


def _read(state: StateFolder) -> dict[str, str]:
    if not state.keys_file.exists():
        return {}
    try:
        return dict(json.loads(state.keys_file.read_text()))
    except ValueError as error:
        raise MachineUnfit(f"{state.keys_file} is damaged: remove it, and new keys are made") from error
