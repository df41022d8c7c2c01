"""The writer and the reader of the log on a real broker that goes away and comes back."""

from __future__ import annotations

import asyncio
import resource
import time
from pathlib import Path

import pytest
from books_kit import append_all
from ledger_kit import credited, make_topic

from infra.kafka.broker import Broker
from infra.kafka.jars import ensure_jars
from infra.kafka.java import find_java
from infra.process import LogFile, running
from ledger.log import LedgerUnavailable, LedgerWriter, Position
from ledger.reader import LedgerReader
from schemas.events import WalletCredited, parse
from schemas.topics import partition_of

P = 4


@pytest.fixture
def own_broker(scratch: Path) -> Broker:
    """A broker that a test may stop."""
    broker = Broker(scratch / "own-kafka", ensure_jars(), find_java())
    broker.prepare()
    return broker


async def refs(bootstrap: str) -> list[str]:
    async with LedgerReader(bootstrap, P, client_id="test") as reader:
        found = [record async for records in reader.read({}, await reader.ends()) for record in records]
    events = [parse(record.value) for record in found]
    return [event.external_ref for event in events if isinstance(event, WalletCredited)]


async def test_a_reader_in_a_shared_loop_takes_a_few_records_at_a_time(ledger_log: str) -> None:
    await append_all(ledger_log, [credited(f"w{n}", ref=str(n)) for n in range(40)])
    sizes = dict[int | None, list[int]]()
    for at_once in (None, 3):
        async with LedgerReader(ledger_log, P, client_id="test", at_once=at_once) as reader:
            sizes[at_once] = [len(records) async for records in reader.read({}, await reader.ends())]
    assert sum(sizes[3]) == sum(sizes[None]) == 40
    assert max(sizes[None]) > max(sizes[3]) == 3


async def test_c8_appends_while_the_broker_is_away_are_acked_later_in_order(own_broker: Broker, scratch: Path) -> None:
    log = LogFile(scratch / "own-kafka.log")
    writer = LedgerWriter(own_broker.bootstrap, P, client_id="test", request_timeout_s=2.0)
    with running(own_broker.spec(), log):
        await make_topic(own_broker.bootstrap, P)
        await writer.start()
        assert await writer.append(credited("w", ref="0")) == Position(_place("w"), 0)
    # Down: two appends, one of them with a waiter that gives up, and the CPU stays quiet.
    acks = [writer.append(credited("w", ref=str(n))) for n in (1, 2)]
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(acks[0]), 0.5)
    began_cpu_s, began_s = _cpu_s(), time.monotonic()
    await asyncio.sleep(3)
    assert not writer.healthy
    assert writer.unacked == 2
    assert (_cpu_s() - began_cpu_s) / (time.monotonic() - began_s) < 0.2
    with running(own_broker.spec(), log):
        async with asyncio.timeout(40):
            places = await asyncio.gather(*acks)
        assert places[0] < places[1]
        assert writer.healthy
        assert list(dict.fromkeys(await refs(own_broker.bootstrap))) == ["0", "1", "2"]
        assert await writer.stop() == 0


async def test_start_says_what_is_wrong_within_a_bound(kafka: str, ledger_log: str) -> None:
    with pytest.raises(LedgerUnavailable, match="does not answer"):
        await LedgerWriter("127.0.0.1:1", P, client_id="test", request_timeout_s=1).start()
    with pytest.raises(LedgerUnavailable, match="has 4 partitions where 7 are configured"):
        await LedgerWriter(kafka, 7, client_id="test").start()
    with pytest.raises(LedgerUnavailable, match="has 4 partitions where 7 are configured"):
        async with LedgerReader(ledger_log, 7, client_id="test"):
            pass


async def test_a_missing_topic_is_said(kafka: str) -> None:
    began_s = time.monotonic()
    with pytest.raises(LedgerUnavailable):
        await LedgerWriter(kafka, P, client_id="test", request_timeout_s=1).start()
    with pytest.raises(LedgerUnavailable, match="does not exist"):
        async with LedgerReader(kafka, P, client_id="test"):
            pass
    assert time.monotonic() - began_s < 8


async def test_an_empty_log_reads_as_nothing(ledger_log: str) -> None:
    assert await refs(ledger_log) == []


async def test_many_appends_go_in_few_batches(ledger_log: str, capsys: pytest.CaptureFixture[str]) -> None:
    writer = LedgerWriter(ledger_log, P, client_id="test")
    await writer.start()
    began_s = time.monotonic()
    acks = [writer.append(credited(f"w{n % 40}", ref=str(n))) for n in range(5_000)]
    await asyncio.gather(*acks)
    rate = len(acks) / (time.monotonic() - began_s)
    single = []
    for n in range(200):
        began_s = time.monotonic()
        await writer.append(credited("w", ref=f"s{n}"))
        single.append(time.monotonic() - began_s)
    assert await writer.stop() == 0
    with capsys.disabled():
        print(f"\nledger log: {rate:,.0f} appends/s, one alone {sorted(single)[100] * 1000:.1f} ms p50")
    assert len(await refs(ledger_log)) == 5_200


def _place(wallet: str) -> int:
    return partition_of(wallet.encode(), P)


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
