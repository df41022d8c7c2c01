"""The writer of the log against a producer that fails as Kafka's does (C8)."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

import ledger.log as log
from ledger.log import LedgerUnavailable, LedgerWriter
from schemas.events import WalletCredited, parse


class Builder:
    def __init__(self) -> None:
        self.values: list[bytes] = []

    def append(self, *, timestamp: None, key: bytes, value: bytes) -> object | None:
        assert timestamp is None
        if len(self.values) == 3:
            return None
        self.values.append(value)
        return object()

    def close(self) -> None: ...


class Broker:
    """What reached the log, and what becomes of the next batches: "ok", "lost", "written" (yet failed), "silent".

    A "late" one is written, and answered when the next one is on its way.
    """

    def __init__(self) -> None:
        self.records: list[bytes] = []
        self.script: list[str] = []
        self.up = True
        self.producers = 0
        self.partitions = 1
        self.in_flight = 0
        self.late: list[tuple[asyncio.Future[Any], int]] = []

    def make(self, **_: Any) -> Producer:
        self.producers += 1
        return Producer(self)


class Producer:
    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.dead = False
        self._message_accumulator = SimpleNamespace(fail_all=lambda error: None)

    async def start(self) -> None:
        if not self.broker.up:
            raise log.KafkaError("down")

    async def stop(self) -> None:
        self.dead = True

    async def partitions_for(self, _topic: str) -> set[int]:
        return set(range(self.broker.partitions))

    def create_batch(self) -> Builder:
        return Builder()

    async def send_batch(self, batch: Builder, _topic: str, *, partition: int) -> asyncio.Future[Any]:
        assert partition == 0
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        while self.broker.late:
            old, first = self.broker.late.pop()
            old.set_result(SimpleNamespace(offset=first))
        self.broker.in_flight += 1
        assert self.broker.in_flight == 1, "a second batch of one partition is on its way"
        what = self.broker.script.pop(0) if self.broker.script else "ok"
        asyncio.get_running_loop().call_later(0.005, self.answer, what, batch, answer)
        return answer

    def answer(self, what: str, batch: Builder, answer: asyncio.Future[Any]) -> None:
        self.broker.in_flight -= 1
        first = len(self.broker.records)
        if what in ("ok", "written", "unplaced", "late"):
            self.broker.records += batch.values
        if what == "ok":
            answer.set_result(SimpleNamespace(offset=first))
        elif what == "late":
            self.broker.late.append((answer, first))
        elif what == "unplaced":
            answer.set_result(SimpleNamespace(offset=-1))
        elif what in ("lost", "written"):
            answer.set_exception(log.KafkaError(what))


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Broker:
    found = Broker()
    monkeypatch.setattr(log, "kafka", SimpleNamespace(AIOKafkaProducer=found.make))
    monkeypatch.setattr(log, "_BACKOFF_FIRST_S", 0.01)
    return found


async def started(broker: Broker, **more: Any) -> LedgerWriter:
    writer = LedgerWriter("nowhere:0", 1, client_id="t", request_timeout_s=0.5, **more)
    await writer.start()
    return writer


def credit(ref: int) -> WalletCredited:
    return WalletCredited(
        wallet="w", at_ms=0, asset="SHIVER", amount_nano=1, external_ref=str(ref), reason="grant", operator="o"
    )


def first_copies(broker: Broker) -> list[int]:
    refs = [int(event.external_ref) for event in map(parse, broker.records) if isinstance(event, WalletCredited)]
    return list(dict.fromkeys(refs))


@pytest.mark.parametrize(
    "script", [["lost"], ["written"], ["ok", "lost", "written", "lost"], ["unplaced"], ["silent"], ["late"]]
)
async def test_c8_any_failure_replaces_the_producer_and_keeps_the_order(
    broker: Broker, script: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "_TICK_S", 0.05)
    monkeypatch.setattr(log, "_STUCK_AFTER_TIMEOUTS", 0.2)
    broker.script = list(script)
    failures = len([what for what in script if what != "ok"])
    writer = await started(broker)
    acks = [writer.append(credit(n)) for n in range(10)]
    async with asyncio.timeout(5):
        places = await asyncio.gather(*acks)
    assert first_copies(broker) == list(range(10))
    assert broker.producers == 1 + failures
    for n, place in enumerate(places):
        event = parse(broker.records[place.offset])
        assert isinstance(event, WalletCredited)
        assert event.external_ref == str(n)
    assert writer.unacked == 0
    assert writer.healthy
    assert await writer.stop() == 0


async def test_c8_a_waiter_that_leaves_does_not_unsend(broker: Broker) -> None:
    writer = await started(broker)
    ack = writer.append(credit(1))
    ack.cancel()
    await writer.append(credit(2))
    assert first_copies(broker) == [1, 2]
    assert await writer.stop() == 0


async def test_a_full_backlog_refuses_at_once(broker: Broker) -> None:
    broker.script = ["silent"]
    writer = await started(broker, backlog_max=2)
    left = [writer.append(credit(1)), writer.append(credit(2))]
    with pytest.raises(LedgerUnavailable, match="2 events wait"):
        writer.append(credit(3))
    assert await writer.stop(timeout_s=0.05) == 2
    for ack in left:
        with pytest.raises(LedgerUnavailable):
            await ack
    with pytest.raises(LedgerUnavailable, match="not running"):
        writer.append(credit(4))


async def test_it_waits_for_a_broker_that_is_away_and_says_so(broker: Broker) -> None:
    writer = await started(broker)
    broker.script, broker.up = ["lost"], False
    acks = [writer.append(credit(n)) for n in range(5)]
    await asyncio.sleep(0.2)
    assert not writer.healthy
    assert writer.unacked == 5
    assert broker.producers < 10  # it backs off
    broker.up = True
    async with asyncio.timeout(5):
        await asyncio.gather(*acks)
    assert first_copies(broker) == list(range(5))
    assert writer.healthy
    assert await writer.stop() == 0


async def test_start_refuses_a_log_of_another_shape(broker: Broker) -> None:
    broker.partitions = 3
    with pytest.raises(LedgerUnavailable, match="has 3 partitions where 1 are configured"):
        await started(broker)
    broker.up = False
    with pytest.raises(LedgerUnavailable, match="does not answer"):
        await started(broker)
