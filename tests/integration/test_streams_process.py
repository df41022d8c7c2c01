"""The streams as a process: killed under load, stopped, and given a log that is not the one it has read."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from click.testing import CliRunner
from ledger_kit import credited, drop_topic, load, make_topic, wallet_in
from streams_kit import StreamsProcess, read_up_to

from ledger import commands
from ledger.log import LedgerWriter
from ledger.reader import LedgerReader

P = 4


@pytest.fixture
def streams(ledger_log: str, books_url: str, tmp_path: Path) -> Iterator[StreamsProcess]:
    process = StreamsProcess(ledger_log, books_url, P, tmp_path / "streams.log")
    yield process
    process.close()


async def append(kafka: str, many: list[Any], rate: float | None = None) -> None:
    writer = LedgerWriter(kafka, P, client_id="test", backlog_max=100_000)
    await writer.start()
    acks = []
    for at in range(0, len(many), 200):
        acks += [writer.append(event) for event in many[at : at + 200]]
        await asyncio.sleep(200 / rate if rate else 0)
    await asyncio.gather(*acks)
    assert await writer.stop() == 0


async def log_ends(kafka: str) -> dict[int, int]:
    async with LedgerReader(kafka, P, client_id="test") as reader:
        return await reader.ends()


async def test_kill_9_under_load_leaves_the_books_exact(
    ledger_log: str, books: asyncpg.Pool, books_url: str, streams: StreamsProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    many = load(11, 10_500)
    began_s = time.monotonic()
    streams.start()
    feeding = asyncio.create_task(append(ledger_log, many, rate=4_000))
    try:
        for _ in range(3):
            before = await applied(books)
            async with asyncio.timeout(40):  # a killed member blocks its partitions for the session timeout
                while await applied(books) < before + 500:
                    await asyncio.sleep(0.02)
            streams.kill()
            await streams.ended(5)
            streams.start()
        await feeding
    finally:
        feeding.cancel()
    ends = await log_ends(ledger_log)
    await read_up_to(books, ends, 60)
    assert sum(ends.values()) >= 19_000
    env = {"SHRK_KAFKA": ledger_log, "SHRK_DATABASE_URL": books_url, "SHRK_LEDGER_PARTITIONS": str(P)}
    result = await asyncio.to_thread(CliRunner(env=env).invoke, commands.group, ["replay", "--compare"])
    assert result.exit_code == 0, result.output
    assert "PostgreSQL is the same at these offsets" in result.output
    with capsys.disabled():
        print(f"\n{sum(ends.values()):,} events, 3 SIGKILLs, exact, {time.monotonic() - began_s:.0f} s")


async def applied(db: Any) -> int:
    return await db.fetchval("select coalesce(sum(next), 0) from derived.offsets")


async def test_sigterm_stops_it_cleanly_within_a_bound(
    ledger_log: str, books: asyncpg.Pool, streams: StreamsProcess
) -> None:
    streams.start()
    await append(ledger_log, [credited("w")])
    await read_up_to(books, await log_ends(ledger_log), 30)
    streams.kill(signal.SIGTERM)
    assert await streams.ended(10) == 0, streams.text()


async def test_poison_stops_the_process_loudly_and_it_stays_stopped(
    ledger_log: str, books: asyncpg.Pool, streams: StreamsProcess
) -> None:
    from aiokafka import AIOKafkaProducer

    wallet = wallet_in(2, P)
    await append(ledger_log, [credited(wallet)])
    async with AIOKafkaProducer(bootstrap_servers=ledger_log) as producer:
        await producer.send_and_wait("ledger.events", b'{"type":"nonsense"}', wallet.encode(), partition=2)
    streams.start()
    assert await streams.ended(30) != 0
    assert "ledger.events partition 2 offset 1: not a known event" in streams.text()
    assert await applied(books) <= 1


async def test_c9_a_log_made_anew_is_not_read(ledger_log: str, books: asyncpg.Pool, streams: StreamsProcess) -> None:
    await append(ledger_log, [credited("w", ref=str(n)) for n in range(5)])
    streams.start()
    await read_up_to(books, await log_ends(ledger_log), 30)
    streams.kill()
    await streams.ended(5)
    await drop_topic(ledger_log)
    await make_topic(ledger_log, P)
    await append(ledger_log, [credited("w", ref=f"other {n}") for n in range(50)])
    streams.start()
    assert await streams.ended(40) != 0
    assert "ledger.events was made anew" in streams.text()
    assert await applied(books) == 5


async def test_postgresql_away_at_start_ends_it_with_one_clear_exit(ledger_log: str, tmp_path: Path) -> None:
    process = StreamsProcess(ledger_log, "postgresql://u@127.0.0.1:1/x", P, tmp_path / "log")
    process.start()
    try:
        assert await process.ended(30) != 0
    finally:
        process.close()


async def test_kafka_away_at_start_ends_it(books_url: str, tmp_path: Path) -> None:
    process = StreamsProcess("127.0.0.1:1", books_url, P, tmp_path / "log")
    process.start()
    try:
        assert await process.ended(60) != 0
    finally:
        process.close()
