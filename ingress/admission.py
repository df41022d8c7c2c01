"""Admission's one round trip, and its counterparts when a request moves on or has ended. The rules stand in SQL:
0003_admission.sql, and `admit` as 0009_sessions_and_limits.sql has it.

Nobody knows the asset of a wallet before admission answers, so it is asked with the hold in each asset and takes the
wallet's own; the answer says which prices hold from then on.
"""

from __future__ import annotations

import hmac
import math
import time
from collections.abc import Awaitable, Mapping
from typing import Any, NamedTuple, TypeVar

import asyncpg

from ledger.money import format_amount
from schemas.errors import ApiError
from schemas.event_base import Asset
from schemas.ids import uuid7_ms
from schemas.keys import ApiKey

#: $5 a UTC day for the owner of a sandbox key (dialects.md A).
SANDBOX_CAP_NANO_USD = 5 * 10**9
#: Living sessions of one key.
SESSIONS_MAX = 1000
CALL_TIMEOUT_S = 2.0
POOL_MAX = 16

_REFUSALS = {
    "catching_up": "catching_up",
    "owner_lapsed": "catching_up",
    "invalid_key": "invalid_api_key",
    "key_revoked": "revoked_api_key",
    "session_expired": "session_expired",
    "origin_not_allowed": "origin_not_allowed",
    "session_cap": "session_cap",
    "model_not_allowed": "model_not_allowed",
    "rate_limit_exceeded": "rate_limit_exceeded",
    "monthly_tokens_exceeded": "monthly_tokens_exceeded",
    "open_request_cap": "open_request_cap",
    "daily_cap_exceeded": "daily_cap_exceeded",
    "insufficient_balance": "insufficient_balance",
}
#: What asyncpg raises where the database cannot answer.
DATABASE_ERRORS = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError)
_T = TypeVar("_T")
_DAY_S = 86_400
#: What the last request counts in the typical duration of one.
_RECENT = 0.1
_WAIT_S_MAX = 60


class Ask(NamedTuple):
    """What admission is asked for: a slot, and the hold of the wallet's asset, for a request that `lane` will answer.

    `models` are the one that will serve and its fallbacks, by their own names. What is not `counted` is a further part
    of a request that the key's limit a minute has counted.
    """

    request_id: str
    key: ApiKey
    holds_nano: Mapping[Asset, int]
    owner: str
    node_id: str
    models: tuple[str, ...]
    lane: str
    lane_offset: int
    counted: bool = True


class Admitted(NamedTuple):
    """`hold_nano` of `asset` is held against the account `payer`; `now_ms` is the database's clock. `key_id` is the
    key's, also where a session asked."""

    key_id: str
    wallet_id: str
    tier: str
    payer: str
    asset: Asset
    rate_nano_usd: int
    cap_day: str | None
    now_ms: int
    hold_nano: int


class Holder(NamedTuple):
    """Whose a key is; `models` are those that it, or the session, may use, None for all."""

    wallet_id: str
    owner_id: str
    models: list[str] | None


class Session(NamedTuple):
    """A session that was opened. `models` are those that it may use, None for all; `expires_s` is Unix time."""

    expires_s: int
    models: list[str] | None


_KEY = """
select k.sha256, k.revoked_at, k.models, w.wallet_id, w.owner_id, null::text[] as origins, null::text[] as own_models
from state.keys k join state.wallets w using (wallet_id) where k.key_id = $1
"""
_SESSION = """
select s.sha256, k.revoked_at, k.models, w.wallet_id, w.owner_id, s.origins, s.models as own_models
from state.sessions s join state.keys k using (key_id) join state.wallets w using (wallet_id)
where s.session_id = $1 and s.expires_at > clock_timestamp()
"""


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
        self._typical_s = 1.0  # how long a request is open, by those that ended here lately

    async def admit(self, ask: Ask, *, dry_run: bool = False) -> Admitted:
        """Open the hold and take the slot, or raise ApiError and have taken nothing.

        A dry run takes nothing either way. After `database_unavailable` the hold may stand: the expiry closes it.
        """
        row = await _answer(
            self._pool.fetchrow(
                "select * from state.admit($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)",
                ask.request_id,
                ask.key.key_id,
                ask.key.sha256,
                ask.holds_nano["SHIVER"],
                ask.holds_nano["USDC"],
                ask.owner,
                ask.node_id,
                list(ask.models),
                ask.lane,
                ask.lane_offset,
                SANDBOX_CAP_NANO_USD,
                dry_run,
                ask.key.is_session,
                ask.key.origin,
                ask.counted,
            )
        )
        if row["outcome"] != "ok":
            raise ApiError(_REFUSALS[row["outcome"]], _explain(row, ask), retry_after_s=self._wait_s(row))
        return Admitted(
            row["key_id"],
            row["wallet_id"],
            row["tier"],
            row["payer"],
            row["asset"],
            row["rate_nano_usd"],
            row["cap_day"].isoformat() if row["cap_day"] else None,
            row["now_ms"],
            row["hold_nano"],
        )

    async def move(self, request_id: str, owner: str, node_id: str, model: str, attempt: int) -> None:
        """Another node takes over: from its commit on the expiry counts that attempt.

        Raises ApiError `all_providers_failed` where the request is no longer `owner`'s: nothing may be sent for it.
        """
        moved = await _answer(
            self._pool.fetchval(
                "select state.move_admission($1, $2, $3, $4, $5)", request_id, owner, node_id, model, attempt
            )
        )
        if not moved:
            raise ApiError("all_providers_failed", "The request was given up meanwhile.")

    async def settle(self, request_id: str, charge_nano: int) -> None:
        """Shrink the hold to the charge and free the slot, once the end is acked in the log (S4)."""
        lasted_s = max(0.0, time.time() - uuid7_ms(request_id) / 1000)
        self._typical_s += _RECENT * (lasted_s - self._typical_s)
        await _answer(self._pool.fetchval("select state.settle($1, $2)", request_id, charge_nano))

    def _wait_s(self, row: Any) -> int | None:
        """How long until the same request may be taken, where that can be said: a limit a minute or a month says it to
        the second, a sandbox's cap ends with the UTC day, and of a key's open requests one ends in a typical one's time
        divided by their number."""
        if row["wait_s"] is not None:
            return row["wait_s"]
        if row["outcome"] == "daily_cap_exceeded":
            return _DAY_S - row["now_ms"] // 1000 % _DAY_S
        if row["outcome"] == "open_request_cap":
            return min(_WAIT_S_MAX, max(1, math.ceil(self._typical_s / max(1, row["open_max"]))))
        return None

    async def check_key(self, key: ApiKey, *, session_may: bool = True) -> Holder:
        """Whose the key, or the session, is. Raises ApiError unless it lives: a malformed body is only told to a caller
        with a key. What no `session_may` is told to a living one."""
        row = await _answer(self._pool.fetchrow(_SESSION if key.is_session else _KEY, key.key_id))
        if row is None or not hmac.compare_digest(row["sha256"], key.sha256):
            raise ApiError("session_expired" if key.is_session else "invalid_api_key")
        if row["revoked_at"] is not None:
            raise ApiError("revoked_api_key")
        if row["origins"] is not None and key.origin not in row["origins"]:
            raise ApiError("origin_not_allowed")
        if key.is_session and not session_may:
            raise ApiError("session_not_allowed")
        return Holder(
            row["wallet_id"], row["owner_id"], row["models"] if row["own_models"] is None else row["own_models"]
        )

    async def open_session(
        self, key: ApiKey, token: ApiKey, expires_in_s: int, models: list[str] | None, origins: list[str] | None
    ) -> Session:
        """A session of `key` by `token`, whose secret only the caller has. Raises ApiError, and then there is none.

        After `database_unavailable` there may be one that nobody has the token of, until it expires.
        """
        row = await _answer(
            self._pool.fetchrow(
                "select * from state.open_session($1, $2, $3, $4, $5, $6, $7, $8)",
                key.key_id,
                key.sha256,
                token.key_id,
                token.sha256,
                expires_in_s,
                models,
                origins,
                SESSIONS_MAX,
            )
        )
        if row["outcome"] != "ok":
            message = "This key may not use all of these models." if row["outcome"] == "model_not_allowed" else None
            raise ApiError(_REFUSALS[row["outcome"]], message, retry_after_s=row["wait_s"])
        return Session(row["expires_s"], row["models"])

    async def month_tokens(self, wallet_id: str) -> tuple[str, int]:
        """The UTC month as YYYY-MM by the database's clock, and the tokens that the wallet's requests came to in it, as
        far as the projection has read the log."""
        row = await _answer(self._pool.fetchrow("select * from state.month_tokens($1)", wallet_id))
        return f"{row['month']:%Y-%m}", row["tokens"]


async def _answer(call: Awaitable[_T]) -> _T:
    try:
        return await call
    except DATABASE_ERRORS as error:
        raise ApiError("database_unavailable") from error


def _explain(row: Any, ask: Ask) -> str | None:
    if row["outcome"] == "insufficient_balance":
        most, free = format_amount(row["hold_nano"]), format_amount(max(row["available_nano"], 0))
        return (
            f"The wallet's balance does not cover this request: it may cost up to {most} {row['asset']}, {free} are "
            "free. A smaller max_tokens needs less."
        )
    if row["outcome"] == "rate_limit_exceeded":
        return f"This key may send {row['rpm']} requests a minute: the next one in {row['wait_s']} s."
    if row["outcome"] == "monthly_tokens_exceeded":
        return f"The wallet's {row['tokens_month_max']} tokens of this UTC month are used up."
    if row["outcome"] == "open_request_cap":
        return f"This key has {row['open_max']} requests open, its greatest number."
    if row["outcome"] == "model_not_allowed":
        return f"This {'session' if ask.key.is_session else 'key'} may not use all of: {', '.join(ask.models)}."
    return None
