"""A log with a load in it, its projection, and `shrk ledger` on both, for tests that read them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import asyncpg
from aiokafka import AIOKafkaProducer
from click.testing import CliRunner, Result
from ledger_kit import drop_topic, make_topic

from ledger import commands
from ledger.log import LedgerWriter
from ledger.reader import LedgerReader, Record
from schemas import topics
from schemas.events import Event
from streams.projection import Projection

P = 4


async def append_all(kafka: str, many: list[Event]) -> None:
    writer = LedgerWriter(kafka, P, client_id="test")
    await writer.start()
    acks = [writer.append(event) for event in many]
    async with asyncio.timeout(60):
        await asyncio.gather(*acks)
    assert await writer.stop() == 0


async def project(kafka: str, pool: asyncpg.Pool, only: int | None = None) -> None:
    """What PostgreSQL has not read yet; of one partition alone, if it is named."""
    await pool.execute(
        "insert into derived.offsets (topic, partition, next) select $1, g, 0 from generate_series(0, $2 - 1) g "
        "on conflict do nothing",
        topics.LEDGER,
        P,
    )
    projection = Projection(pool, P)
    async with LedgerReader(kafka, P, client_id="test") as reader:
        rows = await pool.fetch("select partition, next from derived.offsets")
        ends = {p: end for p, end in (await reader.ends()).items() if only in (None, p)}
        async for records in reader.read({r["partition"]: r["next"] for r in rows}, ends):
            await projection.apply(records[0].partition, records)


async def shrk(kafka: str, url: str, *arguments: str) -> Result:
    env = {"SHRK_KAFKA": kafka, "SHRK_DATABASE_URL": url, "SHRK_LEDGER_PARTITIONS": str(P)}
    return await asyncio.to_thread(CliRunner(env=env).invoke, commands.group, list(arguments))


async def all_records(kafka: str) -> list[list[Record]]:
    """The records of each partition."""
    found: list[list[Record]] = [[] for _ in range(P)]
    async with LedgerReader(kafka, P, client_id="test") as reader:
        async for records in reader.read({}, await reader.ends()):
            found[records[0].partition] += records
    return found


async def make_log_of(kafka: str, logs: list[list[Record]]) -> None:
    """The ledger topic anew, with these records; their offsets are those that the broker gives."""
    await drop_topic(kafka)
    await make_topic(kafka, P)
    async with AIOKafkaProducer(bootstrap_servers=kafka) as producer:
        for partition, records in enumerate(logs):
            for record in records:
                await producer.send(topics.LEDGER, record.value, record.key, partition=partition)
        await producer.flush()


def tree(folder: Path) -> dict[str, bytes]:
    """Every file of an archive but its lock."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}
