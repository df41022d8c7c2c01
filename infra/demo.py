"""What `shrk up` puts into an empty network, so that a first request has a model, a node and a key to go with.

Everything here can be repeated: what is there stays as an operator has changed it.
"""

import json
from dataclasses import dataclass
from typing import Any

from infra import accounts, catalog
from infra.errors import MachineUnfit
from infra.state import StateFolder, write_private
from schemas.keys import Tier

SANDBOX_WALLET = "sandbox"
TEST_WALLET = "demo"
OWNER = "demo"
TEST_CREDIT_NANO = 10_000 * accounts.NANO

_RATES = {"SHIVER": catalog.REFERENCE_NANO_USD, "USDC": 1_000_000_000}


@dataclass(frozen=True, slots=True)
class DemoKeys:
    """Two keys in clear: `dev` pays nothing up to the day's cap, `pro` pays from the wallet with test credit."""

    dev: str
    pro: str


async def register(db: Any, node_ids: dict[str, str | None], models: list[str]) -> dict[str, str]:
    """Makes the nodes, the models and the rates if new; returns the provider of each node (see `register_nodes`)."""
    async with db.transaction():
        providers = await catalog.register_nodes(db, node_ids)
        await catalog.publish(db, models)
        for asset, nano_usd in _RATES.items():
            await db.execute(
                "insert into state.rates (asset, nano_usd, source) values ($1, $2, 'shrk up') on conflict do nothing",
                asset,
                nano_usd,
            )
    return providers


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
