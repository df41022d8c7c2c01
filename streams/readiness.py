"""C7: after a restart or promotion of PostgreSQL, admission refuses until the projection has read to the log's end.

Admissions commit without waiting for the disk, so a crash of the server may forget the newest ones. The log has not
forgotten their `request.accepted`: once the projection has passed the end that the log had after the restart, every
open request is in derived.requests, and the holds that are missing are made again from there.
"""

from __future__ import annotations

import asyncio
import logging

import asyncpg
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from schemas import topics
from schemas.settings import Settings

log = logging.getLogger(__name__)

QUIET_POLL_S = 1.0
CATCHING_UP_POLL_S = 0.05
RETRY_S = 0.5
KAFKA_TIMEOUT_S = 10.0
DATABASE_ERRORS = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError)


async def watch(pool: asyncpg.Pool, settings: Settings) -> None:
    """For ever: see a new server, wait for the books to catch up with the log, open admission."""
    while True:
        try:
            server_id = await pool.fetchval(
                "select state.server_id() where not exists "
                "(select from state.readiness where server_id = state.server_id())"
            )
            if server_id is None:
                await asyncio.sleep(QUIET_POLL_S)
                continue
            ends = await log_ends(settings)
            while not await caught_up(pool, ends):
                await asyncio.sleep(CATCHING_UP_POLL_S)
            restored = await pool.fetchval("select state.open_admission($1)", server_id)
            log.info("the books have caught up with the log: admission is open (%s holds made again)", restored)
        except (*DATABASE_ERRORS, KafkaError) as error:
            log.warning("readiness cannot be told, trying again: %r", error)
            await asyncio.sleep(RETRY_S)


async def log_ends(settings: Settings) -> dict[int, int]:
    """The end of each partition of ledger.events now. Raises KafkaError or TimeoutError."""
    consumer = AIOKafkaConsumer(bootstrap_servers=settings.kafka, enable_auto_commit=False)
    try:
        async with asyncio.timeout(KAFKA_TIMEOUT_S):
            await consumer.start()
            places = [TopicPartition(topics.LEDGER, partition) for partition in range(settings.ledger_partitions)]
            return {place.partition: end for place, end in (await consumer.end_offsets(places)).items()}
    finally:
        await asyncio.wait_for(consumer.stop(), 3)


async def caught_up(db: asyncpg.Pool | asyncpg.Connection, ends: dict[int, int]) -> bool:
    """Has the projection read every partition up to `ends`?"""
    rows = await db.fetch("select partition, next from derived.offsets where topic = $1", topics.LEDGER)
    places = {row["partition"]: row["next"] for row in rows}
    return all(places.get(partition, 0) >= end for partition, end in ends.items())
