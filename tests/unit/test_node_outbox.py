"""Replies through producers that fail (C8): every record once in its reader's eyes, in order, or the lane is lost."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Any, ClassVar

import pytest
from aiokafka.errors import OutOfOrderSequenceNumber

from workers import kafka
from workers.outbox import IN_FLIGHT_BYTES_MAX, LANE_FAILURES_MAX, STREAM_BYTES_MAX, UNACKED_S_MAX, Outbox

KNOWN = {"replies.a.0", "replies.a.1"}


class Producer:
    """What the outbox uses of aiokafka's, with failures on demand. `log` is the broker's and outlives producers."""

    log: ClassVar[defaultdict[str, list[bytes]]] = defaultdict(list)
    made: ClassVar[list[Producer]] = []
    fail_topics: ClassVar[set[str]] = set()
    hold = False

    def __init__(self) -> None:
        self.client = self
        self.cluster = self
        self.failed: set[str] = set()
        self.held: list[asyncio.Future[Any]] = []
        self.tracked: set[str] = set()
        self.stopped = False
        Producer.made.append(self)

    def partitions_for_topic(self, topic: str) -> set[int] | None:
        return {0} if topic in KNOWN else None

    async def partitions_for(self, topic: str) -> set[int]:
        await asyncio.sleep(60)
        return {0}

    async def set_topics(self, topics: set[str]) -> None:
        self.tracked = topics

    async def start(self) -> None: ...

    async def stop(self) -> None:
        self.stopped = True

    async def send(self, topic: str, value: bytes, key: bytes, partition: int) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if Producer.hold:
            self.held.append(future)
        elif topic in Producer.fail_topics or topic in self.failed:
            self.failed.add(topic)  # as the broker does: after a hole nothing of this producer is taken any more
            future.set_exception(OutOfOrderSequenceNumber())
        else:
            Producer.log[topic].append(value)
            future.set_result(None)
        return future


@pytest.fixture
async def outbox(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Outbox]:
    Producer.log, Producer.made, Producer.fail_topics, Producer.hold = defaultdict(list), [], set(), False
    monkeypatch.setattr(kafka, "producer", lambda *_: Producer())
    monkeypatch.setattr("workers.outbox.LANE_UNKNOWN_S_MAX", 0.05)
    outbox = Outbox("k:1", "test")
    assert await outbox.start() is None
    pump = asyncio.create_task(outbox.run())
    yield outbox
    pump.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await pump
    await outbox.stop()


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_records_arrive_in_order_and_are_let_go(outbox: Outbox) -> None:
    lane = outbox.open("replies.a.0", b"k", lambda: None)
    for number in range(5):
        lane.append(b"%d" % number)
    lane.close()
    assert outbox.held_bytes == 5
    assert await outbox.flush(1)
    assert Producer.log["replies.a.0"] == [b"0", b"1", b"2", b"3", b"4"]
    assert (outbox.held_bytes, outbox._lanes) == (0, set())


async def test_a_failure_replaces_the_producer_and_sends_all_again_in_order(outbox: Outbox) -> None:
    lane = outbox.open("replies.a.0", b"k", lambda: None)
    other = outbox.open("replies.a.1", b"k", lambda: None)
    lane.append(b"0")
    await settle()
    Producer.fail_topics = {"replies.a.0"}
    lane.append(b"1")
    lane.append(b"2")
    other.append(b"x")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    Producer.fail_topics = set()
    lane.append(b"3")
    assert await outbox.flush(1)
    assert Producer.log["replies.a.0"] == [b"0", b"1", b"2", b"3"]
    assert Producer.log["replies.a.1"][-1] == b"x"
    assert Producer.made[0].stopped
    assert len(Producer.made) == 2


async def test_a_lane_that_always_fails_is_lost_and_no_other(outbox: Outbox) -> None:
    lost: list[bool] = []
    bad = outbox.open("replies.a.0", b"k", lambda: lost.append(True))
    good = outbox.open("replies.a.1", b"k", lambda: None)
    Producer.fail_topics = {"replies.a.0"}
    bad.append(b"0")
    good.append(b"x")
    assert await outbox.flush(1)
    assert lost == [True]
    assert len(Producer.made) == LANE_FAILURES_MAX + 2
    bad.append(b"1")  # dropped
    good.append(b"y")
    assert await outbox.flush(1)
    assert Producer.log["replies.a.1"][-1] == b"y"
    assert Producer.log["replies.a.0"] == []


async def test_an_unknown_lane_holds_up_nobody(outbox: Outbox) -> None:
    lost: list[bool] = []
    unknown = outbox.open("replies.b.0", b"k", lambda: lost.append(True))
    unknown.append(b"0")
    good = outbox.open("replies.a.0", b"k", lambda: None)
    good.append(b"x")
    await settle()
    assert Producer.log["replies.a.0"] == [b"x"]
    assert lost == []
    await asyncio.sleep(0.1)
    assert lost == [True]
    assert outbox.held_bytes == 0


async def test_what_is_in_flight_and_held_is_bounded(outbox: Outbox) -> None:
    Producer.hold = True
    lane = outbox.open("replies.a.0", b"k", lambda: None)
    assert not lane.stalled(outbox._time())
    value = b"x" * 1024
    for _ in range(STREAM_BYTES_MAX // 1024):
        lane.append(value)
    await settle()
    assert len(Producer.made[0].held) == IN_FLIGHT_BYTES_MAX // 1024
    assert not lane.stalled(outbox._time())
    assert lane.stalled(outbox._time() + UNACKED_S_MAX + 1)
    lane.append(value)
    assert lane.stalled(outbox._time())
    # Acks let the rest out, in order.
    Producer.hold = False
    for future in Producer.made[0].held:
        future.set_result(None)
    assert await outbox.flush(1)
    assert not lane.stalled(outbox._time() + UNACKED_S_MAX + 1)


async def test_lanes_in_use_stay_known(outbox: Outbox) -> None:
    outbox.open("replies.a.0", b"k", lambda: None)
    await outbox.warm(frozenset({"replies.a.1"}))
    assert Producer.made[0].tracked == {"replies.a.0", "replies.a.1"}
