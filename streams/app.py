"""The streams process: one Faust agent over ledger.events, and beside it what must run once for the network.

    agent       bundles of records -> Pipeline -> Projection.apply -> PostgreSQL, one transaction for each slice
    readiness   after a restart of the database, admission waits until the books have caught up (C7)
    expiry      closes the requests of ingresses that died, and removes their reply topics
    epochs      reads closed epochs back from the log, and closes the next one when it is due

Any error that is not known to pass ends the process: the supervisor starts it again, and it goes on from PostgreSQL.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import tempfile
import threading
from typing import Any

import asyncpg
import faust

from ledger.errata import Errata
from ledger.errata_store import stored
from schemas import topics
from schemas.settings import Settings
from streams import epoch_schedule, expiry, readiness
from streams.bundles import transport_of
from streams.epoch_schedule import EpochSettings
from streams.pipeline import AT_ONCE, SLICE_MAX, Pipeline
from streams.projection import Projection
from streams.starts import start_offsets

log = logging.getLogger(__name__)

GROUP = "shiver-projection"
SESSION_TIMEOUT_S = 8.0
#: A process that was told to crash and has not gone after this long is ended: it must not linger as a zombie.
CRASH_GRACE_S = 8.0
#: One for each transaction of the pipeline, one for readiness, one for what an assignment asks.
POOL_MAX = AT_ONCE + 2
TIDY_S = 10.0
#: Bundles that Faust keeps for us. Its default is 4,096, which is a whole log of bundles in memory.
BUNDLES_MAX = 8


async def open_pool(database_url: str) -> asyncpg.Pool:
    """Connections that let go by themselves: a worker that is stopped must not hold its locks for ever (S3)."""
    return await asyncpg.create_pool(
        database_url,
        min_size=1,
        max_size=POOL_MAX,
        timeout=5,
        command_timeout=10,
        server_settings={
            "application_name": "shiver-streams",
            "idle_in_transaction_session_timeout": "5000",
            "transaction_timeout": "5000",
            "lock_timeout": "4000",
        },
    )


class Streams:
    """Wires the process. `app` is the Faust application to run."""

    def __init__(self, settings: Settings, epochs: EpochSettings) -> None:
        self._settings = settings
        self._epoch_settings = epochs
        self._pool: asyncpg.Pool | None = None
        self._cause: BaseException | None = None
        self.app = faust.App(
            GROUP,
            broker=f"kafka://{settings.kafka}",
            web_enabled=False,
            autodiscover=False,
            topic_disable_leader=True,
            topic_allow_declare=False,
            table_standby_replicas=0,
            stream_wait_empty=False,
            broker_session_timeout=SESSION_TIMEOUT_S,
            broker_heartbeat_interval=1.0,
            broker_request_timeout=30.0,
            broker_max_poll_records=SLICE_MAX,
            stream_buffer_maxsize=BUNDLES_MAX,
            consumer_max_fetch_size=4 * topics.MIB,
            # The group's own offsets decide nothing: transport_of seeks to PostgreSQL's. With "none" Faust would stop
            # before that seek on a new group. A log that was lost or made anew is found by start_offsets and by the
            # projection's check of the record before `next`.
            consumer_auto_offset_reset="earliest",
            datadir=tempfile.mkdtemp(prefix="shiver-streams-"),
        )
        transport = transport_of(self._starts, self.die)
        self.app.transport = transport(self.app.conf.broker_consumer, self.app)
        ledger = self.app.topic(
            topics.LEDGER, key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw"
        )
        self.app.agent(ledger, concurrency=1, name="projection")(self._project)
        self.app.task(self._ready)
        self.app.task(self._expire)
        self.app.task(self._epochs)
        self.app.task(self._tidy)

    async def pool(self) -> asyncpg.Pool:
        """Made in the loop that uses it."""
        if self._pool is None:
            self._pool = await open_pool(self._settings.database_url)
        return self._pool

    async def die(self, error: BaseException) -> None:
        """End the process, with a word why; by force where Faust does not get there."""
        if isinstance(error, asyncio.CancelledError):
            return
        if self._cause is None:  # what fails behind it is no cause
            self._cause = error
            log.critical("streams stops: %s", _said(error))
            timer = threading.Timer(CRASH_GRACE_S, self._end)
            timer.daemon = True
            timer.start()
        await self.app.crash(error)

    def last_word(self) -> None:
        """Say why the process ends, if it was an error, below everything that Faust said while it stopped."""
        if self._cause is not None:
            log.critical("streams stopped: %s", _said(self._cause))

    def _end(self) -> None:
        self.last_word()
        os._exit(1)

    async def _starts(self, partitions: list[int]) -> dict[int, int]:
        async with (await self.pool()).acquire() as db:
            return await start_offsets(db, self._settings.kafka, self._settings.ledger_partitions, partitions)

    async def _project(self, stream: Any) -> None:
        if self._cause is not None:  # Faust starts an agent that failed once more while the process ends
            await asyncio.Event().wait()
        pipeline: Pipeline | None = None
        try:
            projection = await self._projection()
            pipeline = Pipeline(projection.apply, self.die)
            async for event in stream.noack().events():
                await pipeline.put(event.message.partition, event.value, event.ack)
        except BaseException as error:
            await self.die(error)
            raise
        finally:
            if pipeline is not None:
                pipeline.close()

    async def _projection(self) -> Projection:
        """With the errata of now: a process that a record has stopped finds those that were added since."""
        pool, trusted = await self.pool(), self._settings.errata_keys
        async with pool.acquire() as db:
            errata = Errata(await stored(db) if trusted else (), trusted)
        return Projection(pool, self._settings.ledger_partitions, errata=errata)

    async def _ready(self) -> None:
        await self._forever(readiness.watch(await self.pool(), self._settings))

    async def _expire(self) -> None:
        await self._forever(expiry.watch(self._settings))

    async def _epochs(self) -> None:
        await self._forever(epoch_schedule.watch(self._settings, self._epoch_settings))

    async def _tidy(self) -> None:
        """In place of Python's own timing: slices are many objects and no cycles, and to walk them again and again
        took a fourth of the time (measured). What makes cycles is Faust and asyncio, and those make few."""
        while True:
            await asyncio.sleep(TIDY_S)
            gc.collect()

    async def _forever(self, work: Any) -> None:
        try:
            await work
        except BaseException as error:
            await self.die(error)
            raise

    async def close(self) -> None:
        if self._pool is not None:
            with contextlib.suppress(TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                await asyncio.wait_for(self._pool.close(), 3)


def _said(error: BaseException) -> str:
    return str(error) or repr(error)
