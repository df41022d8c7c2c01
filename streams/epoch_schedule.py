"""When epochs are closed: once in an interval, once for the network. And the settings of epochs, from the environment.

One process of the network holds the lock; it reads epochs back from the log every POLL_S, and closes one when a new
hour or day (UTC, by PostgreSQL's clock) has begun since the last. Where several were missed, one closes them all; where
nothing has happened since, none is closed until something has and another interval begins.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

import asyncpg
from pydantic import ValidationError

from ledger.log import KafkaError, LedgerError
from schemas.facts import Terms, Token
from schemas.locks import Lock
from schemas.settings import Settings
from streams.epochs import EpochError, EpochRefused, Epochs, NothingToClose, opened
from streams.readiness import DATABASE_ERRORS

log = logging.getLogger(__name__)

POLL_S = 2.0
RETRY_S = 5.0
#: After a contradiction, which no waiting mends: said again, but not every moment.
REFUSED_RETRY_S = 300.0
INTERVALS_MS: dict[str, int] = {"hour": 3_600_000, "day": 86_400_000, "off": 0}

_NOBODY = "0x" + 40 * "0"
_DECIMALS = {"SHIVER": 18, "USDC": 6}

#: Tells the time, in milliseconds since 1970.
Clock = Callable[[Any], Awaitable[int]]


class EpochSettings(NamedTuple):
    """`SHRK_EPOCH_INTERVAL` in milliseconds, 0 for off; and where epochs are paid."""

    interval_ms: int
    terms: Terms

    @staticmethod
    def from_environment(environ: Mapping[str, str] | None = None) -> EpochSettings:
        """Raises SystemExit with one clear line where a setting is wrong."""
        env = os.environ if environ is None else environ
        interval = env.get("SHRK_EPOCH_INTERVAL", "hour")
        if interval not in INTERVALS_MS:
            raise SystemExit(f"SHRK_EPOCH_INTERVAL must be hour, day or off, not {interval!r}")
        chain_id = env.get("SHRK_CHAIN_ID", "31337")
        if not chain_id.isdecimal() or not 1 <= int(chain_id) <= 2**53:
            raise SystemExit(f"SHRK_CHAIN_ID must be a number from 1 to 2^53, not {chain_id!r}")
        contract = _address(env, "SHRK_SETTLEMENT_CONTRACT")
        tokens = tuple(
            Token(asset=asset, token=_address(env, f"SHRK_TOKEN_{asset}"), decimals=_DECIMALS[asset])
            for asset in ("SHIVER", "USDC")
        )
        return EpochSettings(INTERVALS_MS[interval], Terms(chain_id=int(chain_id), contract=contract, tokens=tokens))


def _address(env: Mapping[str, str], name: str) -> str:
    text = env.get(name, _NOBODY)
    try:
        Token(asset="SHIVER", token=text, decimals=18)
    except ValidationError:
        raise SystemExit(f"{name} must be 0x and 40 hexadecimal digits, not {text!r}") from None
    return text


def due(interval_ms: int, since_ms: int | None, now_ms: int) -> bool:
    """Whether another interval has begun since the last epoch, or since the log began; None where it has not."""
    return bool(interval_ms) and since_ms is not None and since_ms // interval_ms < now_ms // interval_ms


async def database_clock(db: Any) -> int:
    """PostgreSQL's, which all processes of the network share."""
    return int(await db.fetchval("select floor(extract(epoch from clock_timestamp()) * 1000)::bigint"))


class Schedule:
    """One holder of the lock. `step()` does what is due now."""

    def __init__(self, epochs: Epochs, settings: EpochSettings, clock: Clock = database_clock) -> None:
        self._epochs = epochs
        self._settings = settings
        self._clock = clock
        self._idle_in = -1  # the interval in which there was nothing to close

    async def step(self) -> int | None:
        """Reads epochs back, and closes one where it is due: its number, else None. Raises as `Epochs.close`."""
        state = await self._epochs.follow()
        interval_ms = self._settings.interval_ms
        now_ms = await self._clock(self._epochs.db)
        since_ms = await self._first_ms() if state.last is None else state.last.at_ms
        if not due(interval_ms, since_ms, now_ms) or now_ms // interval_ms == self._idle_in:
            return None
        try:
            closed = await self._epochs.close(self._settings.terms, now_ms)
        except NothingToClose:
            self._idle_in = now_ms // interval_ms
            return None
        return closed.event.epoch

    async def _first_ms(self) -> int | None:
        """When the log began, by its first entries."""
        return await self._epochs.db.fetchval(
            "select min(first.at_ms) from derived.offsets o cross join lateral "
            '(select at_ms from derived.entries e where e.partition = o.partition order by "offset" limit 1) first'
        )


async def watch(settings: Settings, epoch_settings: EpochSettings) -> None:
    """For ever: hold the lock, step. Errors that pass end the lock and are tried again."""
    while True:
        pause_s = RETRY_S
        try:
            await _hold_and_step(settings, epoch_settings)
        except EpochRefused as error:
            log.critical("no epoch can be closed: %s", error)
            pause_s = REFUSED_RETRY_S
        except (*DATABASE_ERRORS, KafkaError, LedgerError, EpochError) as error:
            log.warning("epochs are interrupted, trying again: %r", error)
        await asyncio.sleep(pause_s)


async def _hold_and_step(settings: Settings, epoch_settings: EpochSettings) -> None:
    # The lock's own connection: that of the work may be busy for long.
    db = await asyncpg.connect(
        settings.database_url, timeout=5, command_timeout=10, server_settings={"application_name": "shiver-epochs-lock"}
    )
    try:
        while not await db.fetchval("select pg_try_advisory_lock($1)", Lock.EPOCH_SCHEDULE):
            await asyncio.sleep(POLL_S)
        async with opened(settings, name="shiver-epochs") as epochs:
            schedule = Schedule(epochs, epoch_settings)
            while True:
                await schedule.step()
                await asyncio.sleep(POLL_S)
    finally:
        await db.close(timeout=3)
