"""The streams as a process: killed under load, stopped, and given a log that is not the one it has read."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from aiokafka import AIOKafkaProducer
from click.testing import CliRunner
from ledger_kit import credited, drop_topic, load, make_topic, wallet_in
from streams_kit import StreamsProcess, read_up_to, shared_by

from infra.process import LogFile
from ledger import commands
from ledger.log import LedgerWriter
from ledger.reader import LedgerReader
from schemas import topics
from schemas.events import dump

P = 4


@pytest.fixture
def streams(ledger_log: str, books_url: str, tmp_path: Path) -> Iterator[StreamsProcess]:
    process = StreamsProcess(ledger_log, books_url, P, tmp_path / "streams.log")
    yield process
    process.close()


async def append(kafka: str, many: list[Any]) -> None:
    writer = LedgerWriter(kafka, P, client_id="test")
    await writer.start()
    for at in range(0, len(many), 1000):
        await asyncio.gather(*(writer.append(event) for event in many[at : at + 1000]))
    assert await writer.stop() == 0


async def log_ends(kafka: str) -> dict[int, int]:
    async with LedgerReader(kafka, P, client_id="test") as reader:
        return await reader.ends()


#: Of each round: how many processes share the partitions, how many of them are killed in it, and whether they start at
#: a full log in place of waiting for what comes.
ROUNDS = [(1, 1, False), (2, 2, False), (2, 1, True), (1, 1, True), (2, 2, True)]


async def test_kill_9_at_random_leaves_300000_events_exact(
    ledger_log: str, books: asyncpg.Pool, books_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each round has its share of the events, so that every kill comes in the middle of work, on any machine."""
    seed = random.randrange(2**32)
    rng, began_s, kills = random.Random(seed), time.monotonic(), 0
    with capsys.disabled():
        print(f"\nkill -9 at random: seed {seed}")
    many = load(seed, 116_000, wallets=200)
    assert len(many) >= 300_000
    share = len(many) // len(ROUNDS)
    pair = [StreamsProcess(ledger_log, books_url, P, tmp_path / f"streams-{n}.log") for n in range(2)]
    feeding: asyncio.Task[None] | None = None
    try:
        for number, (workers, victims, backlog) in enumerate(ROUNDS):
            at, last = number * share, number == len(ROUNDS) - 1
            part = many[at : len(many) if last else at + share]
            if backlog:  # the second comes a little later: what the first has read ahead of it is then given to it
                await _run(pair, 0)
                await append(ledger_log, part)
                await _run(pair, workers)
            else:
                await _run(pair, workers)
                await shared_by(ledger_log, workers)
                feeding = asyncio.create_task(append(ledger_log, part))
            dead: list[StreamsProcess] = []
            for victim in rng.sample(pair[:workers], victims):
                at = rng.randrange(at + 1, number * share + share * 4 // 5)
                await _until_applied(books, at)
                await asyncio.sleep(rng.random() * 0.1)
                victim.kill()
                kills += 1
                dead.append(victim)
                assert await victim.ended(5) == -signal.SIGKILL, victim.text()
            if feeding is not None:
                await feeding
            for process in pair[:workers]:
                assert process in dead or process.runs(), process.text()  # nobody ends of another's death, or birth
        await _run(pair, 1)
        ends = await log_ends(ledger_log)
        await read_up_to(books, ends, 120)
        assert sum(ends.values()) >= len(many)
        assert kills >= 5
    finally:
        if feeding is not None:
            feeding.cancel()
        for process in pair:
            process.close()
    env = {"SHRK_KAFKA": ledger_log, "SHRK_DATABASE_URL": books_url, "SHRK_LEDGER_PARTITIONS": str(P)}
    result = await asyncio.to_thread(CliRunner(env=env).invoke, commands.group, ["replay", "--compare"])
    assert result.exit_code == 0, f"seed {seed}: {result.output}"
    assert "PostgreSQL is the same at these offsets" in result.output
    with capsys.disabled():
        print(f"{len(many):,} events, {kills} SIGKILLs, exact, {time.monotonic() - began_s:.0f} s")


async def _run(pair: list[StreamsProcess], workers: int) -> None:
    """That many of the pair, the others stopped in good order."""
    for process in pair[:workers]:
        if not process.runs():
            process.start()
    for process in pair[workers:]:
        if process.runs():
            process.kill(signal.SIGTERM)
            assert await process.ended(15) in (0, -signal.SIGTERM), (
                process.text()
            )  # one that has barely begun dies of it


async def _until_applied(db: Any, events: int) -> None:
    async with asyncio.timeout(60):
        while await applied(db) < events:
            await asyncio.sleep(0.01)


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


@pytest.mark.parametrize("change", [(b'"wallet.credited"', b'"wallet.gifted"'), (b'"version":1', b'"version":9')])
async def test_an_event_of_unknown_type_or_version_stops_the_process_loudly_and_every_later_one(
    ledger_log: str, books: asyncpg.Pool, streams: StreamsProcess, change: tuple[bytes, bytes]
) -> None:
    wallet = wallet_in(2, P)
    await append(ledger_log, [credited(wallet)])
    streams.start()
    await read_up_to(books, {2: 1}, 30)
    poison = dump(credited(wallet, ref="poison")).replace(*change)
    async with AIOKafkaProducer(bootstrap_servers=ledger_log) as producer:
        await producer.send_and_wait(topics.LEDGER, poison, wallet.encode(), partition=2)
    await append(ledger_log, [credited(wallet, ref="behind")])
    for _ in range(2):
        assert await streams.ended(30) not in (0, -signal.SIGKILL), streams.text()
        last = LogFile(streams.log).last_line()  # what the supervisor shows of it
        assert "streams stopped: ledger.events partition 2 offset 1: not a known event" in last
        assert "a gap" not in streams.text()
        rows = await books.fetch('select "offset" from derived.entries where partition = 2')
        assert {row["offset"] for row in rows} == {0}
        assert await books.fetchval("select next from derived.offsets where partition = 2") == 1
        streams.start()


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
