"""Owners, wallets, keys, credits, corrections: what an operator does by hand, and what `shrk up` prepares for the demo.

A credit is a fact of the ledger log: it is bound to its reference in PostgreSQL first, then appended, and counts when
the projection has read it. Repeating one is harmless. So is an adjustment.
"""

import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import Any, Literal

from infra.errors import AccountRefused, Unreachable
from infra.postgres import describe_url
from ledger import money
from ledger.rules import APPROVAL_ABOVE_NANO, approved
from schemas.events import (
    AMOUNT_NANO_MAX,
    AdjustmentPosted,
    Asset,
    ProviderRegistered,
    SandboxFunded,
    WalletCredited,
)
from schemas.keys import ENTROPY_BYTES, Tier, mint, parse
from schemas.topics import partition_of

Reason = Literal["top_up", "deposit", "grant"]

NANO = money.NANO
OPEN_MAX: dict[Tier, int] = {"dev": 10, "pro": 200, "ent": 1000}
"""Open requests that a key of a tier may have, unless it is made with another number."""

_TIMEOUT_S = 10

Append = Callable[[WalletCredited | AdjustmentPosted | SandboxFunded | ProviderRegistered], Awaitable[object]]
"""Appends an event to the ledger log and returns when it is acknowledged."""


@dataclass(frozen=True, slots=True)
class KeyRow:
    """A key as the database knows it: never the key itself."""

    key_id: str
    tier: str
    wallet_id: str
    name: str
    open_max: int
    open_requests: int
    created_at: datetime
    revoked_at: datetime | None


@dataclass(frozen=True, slots=True)
class WalletView:
    """A wallet and what is in it, in nano units of `asset`: `balance_nano` as the projection has it, `held_nano` of it
    reserved for open requests."""

    wallet_id: str
    owner_id: str
    asset: str
    balance_nano: int
    held_nano: int
    keys: int


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Any]:
    """A connection for one command. Raises Unreachable, and Unreachable too where the schema is missing."""
    import asyncpg

    try:
        connection = await asyncpg.connect(url, timeout=_TIMEOUT_S, command_timeout=_TIMEOUT_S)
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, ValueError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise Unreachable(f"PostgreSQL at {describe_url(url)} cannot be used: {why}") from error
    try:
        yield connection
    except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError) as error:
        raise Unreachable(f"PostgreSQL at {describe_url(url)} lacks our tables: `shrk up` migrates it") from error
    finally:
        await connection.close(timeout=_TIMEOUT_S)


async def create_wallet(
    db: Any, wallet_id: str, owner_id: str, ledger_partitions: int, asset: Asset = "SHIVER"
) -> bool:
    """Makes the wallet, and its owner if new; False if the same wallet is there already.

    Raises AccountRefused if it is there with another owner or asset, or the id is not allowed.
    """
    import asyncpg

    partition = partition_of(wallet_id.encode(), ledger_partitions)
    try:
        async with db.transaction():
            await db.execute("insert into state.owners (owner_id) values ($1) on conflict do nothing", owner_id)
            made = await db.fetchval(
                "insert into state.wallets (wallet_id, owner_id, asset, partition) values ($1, $2, $3, $4) "
                "on conflict do nothing returning true",
                wallet_id,
                owner_id,
                asset,
                partition,
            )
    except asyncpg.CheckViolationError as error:
        raise AccountRefused(f"{wallet_id!r} is no wallet id: letters, digits, '_', '.', '-', at most 64") from error
    if made:
        return True
    row = await db.fetchrow("select owner_id, asset from state.wallets where wallet_id = $1", wallet_id)
    if (row["owner_id"], row["asset"]) != (owner_id, asset):
        raise AccountRefused(f"wallet {wallet_id} exists, with owner {row['owner_id']} and asset {row['asset']}")
    return False


async def create_key(
    db: Any,
    wallet_id: str,
    tier: Tier,
    name: str = "",
    open_max: int | None = None,
    models: list[str] | None = None,
) -> str:
    """A new key on the wallet, in clear: it cannot be had again. It may use `models` (by their own names), or all.

    Raises AccountRefused if there is no such wallet or model.
    """
    import asyncpg

    text = mint(tier, secrets.token_bytes(ENTROPY_BYTES))
    key = parse(text)
    assert key is not None  # what mint makes, parse reads
    if models is not None:
        known = {row["model"] for row in await db.fetch("select model from state.models")}
        if unknown := set(models) - known:
            raise AccountRefused(f"no model {min(unknown)}; `shrk models list` shows them")
    try:
        await db.execute(
            "insert into state.keys (key_id, sha256, wallet_id, tier, name, open_max, models) "
            "values ($1, $2, $3, $4, $5, $6, $7)",
            key.key_id,
            key.sha256,
            wallet_id,
            tier,
            name,
            OPEN_MAX[tier] if open_max is None else open_max,
            models,
        )
    except asyncpg.ForeignKeyViolationError as error:
        raise AccountRefused(f"no wallet {wallet_id}; make it with `shrk wallet create {wallet_id}`") from error
    except asyncpg.CheckViolationError as error:
        raise AccountRefused("--open-max must be 0 to 100000") from error
    return text


async def list_keys(db: Any, wallet_id: str | None = None) -> list[KeyRow]:
    """Every key, or those of a wallet, oldest first."""
    rows = await db.fetch(
        "select key_id, tier, wallet_id, name, open_max, open_requests, created_at, revoked_at from state.keys "
        "where $1::text is null or wallet_id = $1 order by created_at, key_id",
        wallet_id,
    )
    return [KeyRow(*row.values()) for row in rows]


async def revoke_key(db: Any, key_or_id: str) -> str:
    """Revokes a key, given in clear or by its id, and returns the id. Raises AccountRefused if unknown or revoked."""
    key = parse(key_or_id)
    key_id = key.key_id if key else key_or_id
    state = await db.fetchrow("select revoked_at from state.keys where key_id = $1", key_id)
    if state is None:
        raise AccountRefused("no such key: give the key, or its id as `shrk keys list` shows it")
    if not await db.fetchval(
        "update state.keys set revoked_at = now() where key_id = $1 and revoked_at is null returning true", key_id
    ):
        raise AccountRefused(f"key {key_id} was revoked already, at {state['revoked_at']:%Y-%m-%d %H:%M} UTC")
    return key_id


async def key_is_good(db: Any, text: str) -> bool:
    """True if the key in clear is known to this database and not revoked."""
    key = parse(text)
    return key is not None and await db.fetchval(
        "select true from state.keys where key_id = $1 and sha256 = $2 and revoked_at is null", key.key_id, key.sha256
    )


async def show_wallet(db: Any, wallet_id: str) -> WalletView:
    """Raises AccountRefused if there is no such wallet."""
    row = await db.fetchrow(
        """
        select w.wallet_id, w.owner_id, w.asset,
               coalesce((select sum(a.balance_nano) from derived.accounts a
                         where a.account = 'wallet:' || w.wallet_id and a.asset = w.asset), 0) as balance_nano,
               w.held_nano,
               (select count(*) from state.keys k where k.wallet_id = w.wallet_id and k.revoked_at is null) as keys
        from state.wallets w where w.wallet_id = $1
        """,
        wallet_id,
    )
    if row is None:
        raise AccountRefused(f"no wallet {wallet_id}")
    view = WalletView(*row.values())
    return replace(view, balance_nano=int(view.balance_nano))  # from a Decimal: 64 bits are not enough


def parse_amount(text: str) -> int:
    """`12.5` as nano units. Raises AccountRefused if it is no positive amount with at most 9 decimals."""
    try:
        nano = Decimal(text) * NANO
    except InvalidOperation as error:
        raise AccountRefused(f"{text!r} is no amount") from error
    if not nano.is_finite() or nano <= 0 or nano > AMOUNT_NANO_MAX or nano != int(nano):
        raise AccountRefused(f"an amount is more than 0, at most {AMOUNT_NANO_MAX // NANO}, with at most 9 decimals")
    return int(nano)


def parse_signed_amount(text: str) -> int:
    """`12.5` or `-12.5` as nano units. Raises AccountRefused as `parse_amount` does; zero is no amount either."""
    return -parse_amount(text[1:]) if text.startswith("-") else parse_amount(text)


def format_amount(nano: int, asset: str) -> str:
    """`12.5 SHIVER`."""
    return f"{money.format_amount(nano)} {asset}"


async def credit(
    db: Any,
    append: Append,
    wallet_id: str,
    amount_nano: int,
    external_ref: str,
    operator: str,
    reason: Reason = "grant",
) -> None:
    """Credits a wallet once per `external_ref`, by an event in the ledger log; returns when that is acknowledged.

    Raises AccountRefused if there is no such wallet, or the reference stands for another wallet or amount.
    """
    asset = await _asset_of(db, wallet_id)
    await _bind(db, "state.credit_refs", external_ref, wallet_id, asset, amount_nano)
    await append(
        WalletCredited(
            wallet=wallet_id,
            at_ms=time.time_ns() // 1_000_000,
            asset=asset,
            amount_nano=amount_nano,
            external_ref=external_ref,
            reason=reason,
            operator=operator,
        )
    )


async def credit_is_booked(db: Any, wallet_id: str, external_ref: str) -> bool:
    """True once the projection has counted the credit."""
    return bool(
        await db.fetchval(
            "select true from derived.credits where wallet_id = $1 and external_ref = $2", wallet_id, external_ref
        )
    )


async def adjust(
    db: Any,
    append: Append,
    wallet_id: str,
    amount_nano: int,
    external_ref: str,
    operator: str,
    reason: str,
    approver: str | None = None,
) -> None:
    """Corrects a wallet once per `external_ref`, by an event in the ledger log; returns when that is acknowledged.

    Raises AccountRefused if there is no such wallet, the reference stands for another wallet or amount, or the amount
    needs an approver other than the operator.
    """
    asset = await _asset_of(db, wallet_id)
    event = _adjustment(wallet_id, asset, amount_nano, external_ref, operator, reason, approver)
    if not approved(event):
        limit = format_amount(APPROVAL_ABOVE_NANO[event.asset], asset)
        raise AccountRefused(f"above {limit} an adjustment needs --approver: someone other than {operator}")
    await _bind(db, "state.adjustment_refs", external_ref, wallet_id, asset, amount_nano)
    await append(event)


def _adjustment(
    wallet_id: str,
    asset: Asset,
    amount_nano: int,
    external_ref: str,
    operator: str,
    reason: str,
    approver: str | None,
) -> AdjustmentPosted:
    try:
        return AdjustmentPosted(
            wallet=wallet_id,
            at_ms=time.time_ns() // 1_000_000,
            asset=asset,
            amount_nano=amount_nano,
            reason=reason,
            operator=operator,
            external_ref=external_ref,
            approver=approver,
        )
    except ValueError as error:
        raise AccountRefused("reason, reference and approver have 1 to 200 characters each") from error


async def _asset_of(db: Any, wallet_id: str) -> Asset:
    """What the wallet is in. Raises AccountRefused if there is no such wallet."""
    asset = await db.fetchval("select asset from state.wallets where wallet_id = $1", wallet_id)
    if asset is None:
        raise AccountRefused(f"no wallet {wallet_id}; make it with `shrk wallet create {wallet_id}`")
    return asset


async def _bind(
    db: Any,
    table: Literal["state.credit_refs", "state.adjustment_refs"],
    external_ref: str,
    wallet_id: str,
    asset: Asset,
    amount_nano: int,
) -> None:
    """The reference stands for this wallet and amount from its commit on. It is bound before its event is appended: two
    events under one reference can never both be in flight (S6). Raises AccountRefused where it stands for another."""
    await db.execute(
        f"insert into {table} (external_ref, wallet_id, asset, amount_nano) values ($1, $2, $3, $4) "
        "on conflict do nothing",
        external_ref,
        wallet_id,
        asset,
        amount_nano,
    )
    bound = await db.fetchrow(
        f"select wallet_id, asset, amount_nano from {table} where external_ref = $1", external_ref
    )
    if (bound["wallet_id"], bound["amount_nano"]) != (wallet_id, amount_nano):
        was = format_amount(bound["amount_nano"], bound["asset"])
        raise AccountRefused(f"reference {external_ref} stands for {was} to {bound['wallet_id']}")
