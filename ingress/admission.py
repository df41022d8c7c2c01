"""Admission's one round trip, and its counterpart when a request has ended. The rules stand in 0003_admission.sql."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, NamedTuple, TypeVar

import asyncpg

from schemas.errors import ApiError
from schemas.keys import ApiKey

#: $5 a UTC day for the owner of a sandbox key (dialects.md A).
SANDBOX_CAP_NANO_USD = 5 * 10**9
CALL_TIMEOUT_S = 2.0
POOL_MAX = 16

_REFUSALS = {
    "catching_up": "catching_up",
    "owner_lapsed": "catching_up",
    "invalid_key": "invalid_api_key",
    "key_revoked": "revoked_api_key",
    "open_request_cap": "open_request_cap",
    "daily_cap_exceeded": "daily_cap_exceeded",
    "insufficient_balance": "insufficient_balance",
}
#: What asyncpg raises where the database cannot answer.
DATABASE_ERRORS = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError)
_T = TypeVar("_T")


class Ask(NamedTuple):
    """What admission is asked for: a hold of `hold_nano` and a slot, for a request that `lane` will answer."""

    request_id: str
    key: ApiKey
    hold_nano: int
    owner: str
    node_id: str
    model: str
    lane: str
    lane_offset: int


class Admitted(NamedTuple):
    """`now_ms` is the database's clock; `payer` is the account that the hold stands against."""

    wallet_id: str
    tier: str
    payer: str
    asset: str
    rate_nano_usd: int
    cap_day: str | None
    now_ms: int


async def open_pool(database_url: str) -> asyncpg.Pool:
    """The ingress's connections. They let go of locks by themselves where this process hangs."""
    return await asyncpg.create_pool(
        database_url,
        min_size=2,
        max_size=POOL_MAX,
        timeout=5,
        command_timeout=CALL_TIMEOUT_S,
        reset=_keep,
        server_settings={
            "application_name": "shiver-ingress",
            "lock_timeout": "1500",
            "idle_in_transaction_session_timeout": "5000",
        },
    )


async def _keep(_: asyncpg.Connection) -> None:
    """Our calls are single statements that leave no session state: asyncpg's reset would be a second round trip."""


class Admission:
    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def admit(self, ask: Ask, *, dry_run: bool = False) -> Admitted:
        """Open the hold and take the slot, or raise ApiError and have taken nothing.

        A dry run takes nothing either way. After `database_unavailable` the hold may stand: the expiry closes it.
        """
        row = await _answer(
            self._pool.fetchrow(
                "select * from state.admit($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
                ask.request_id,
                ask.key.key_id,
                ask.key.sha256,
                ask.hold_nano,
                ask.owner,
                ask.node_id,
                ask.model,
                ask.lane,
                ask.lane_offset,
                SANDBOX_CAP_NANO_USD,
                dry_run,
            )
        )
        if row["outcome"] != "ok":
            raise ApiError(_REFUSALS[row["outcome"]], _explain(row, ask))
        return Admitted(
            row["wallet_id"],
            row["tier"],
            row["payer"],
            row["asset"],
            row["rate_nano_usd"],
            row["cap_day"].isoformat() if row["cap_day"] else None,
            row["now_ms"],
        )

    async def settle(self, request_id: str, charge_nano: int) -> None:
        """Shrink the hold to the charge and free the slot, once the end is acked in the log (S4)."""
        await _answer(self._pool.fetchval("select state.settle($1, $2)", request_id, charge_nano))

    async def check_key(self, key: ApiKey) -> None:
        """Raise ApiError unless the key lives: a malformed body is only told to a caller with a key."""
        row = await _answer(
            self._pool.fetchrow("select sha256, revoked_at from state.keys where key_id = $1", key.key_id)
        )
        if row is None or row["sha256"] != key.sha256:
            raise ApiError("invalid_api_key")
        if row["revoked_at"] is not None:
            raise ApiError("revoked_api_key")


async def _answer(call: Awaitable[_T]) -> _T:
    try:
        return await call
    except DATABASE_ERRORS as error:
        raise ApiError("database_unavailable") from error


def _explain(row: Any, ask: Ask) -> str | None:
    if row["outcome"] == "insufficient_balance":
        return (
            f"The wallet's balance does not cover this request: it may cost up to {ask.hold_nano} nano {row['asset']}, "
            f"{max(row['available_nano'], 0)} are free. A smaller max_tokens needs less."
        )
    if row["outcome"] == "open_request_cap":
        return f"This key has {row['open_max']} requests open, its greatest number."
    return None
