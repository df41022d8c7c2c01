"""Replies on their way to Kafka: in order per lane, never lost silently, never awaited by who generates.

Every record stays here until its ack. An idempotent producer that failed once is done for (C8: its sequence numbers
have a hole), so a failure replaces the producer, and every record without an ack goes through the new one again, in
order. The reader drops what it has seen (a `seq` below the one it expects), so nothing is doubled or missing.

One task, the pump, is the only one that sends. It must never wait inside a send, because that would hold up all lanes:
so lanes that the producer does not know are looked up beside it, and a lane has a bounded number of bytes in flight,
below what makes a batch full.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Set
from functools import partial
from typing import Any

from aiokafka.errors import KafkaError, ProducerClosed

from workers import kafka

log = logging.getLogger(__name__)

BATCH_BYTES_MAX = 768 * 1024  # below a topic's own default limit of 1 MiB
#: Bytes of one lane that are sent and not acked; what is more waits here. With one more record still below a batch.
IN_FLIGHT_BYTES_MAX = 128 * 1024
#: What one stream, and all together, may hold without an ack before generation stops.
STREAM_BYTES_MAX = 512 * 1024
ALL_BYTES_MAX = 64 * 1024 * 1024
#: A record without an ack for this long means that the broker is away: generation stops.
UNACKED_S_MAX = 30.0
#: A lane that Kafka does not have after this long has no reader.
LANE_UNKNOWN_S_MAX = 5.0
#: A lane whose records failed this often takes no more: the fault is its own.
LANE_FAILURES_MAX = 3
WARM_S_MAX = 10.0
_LATENCY_WEIGHT = 0.05


class Lane:
    """One attempt's records. Made by `Outbox.open`; a Sink.

    Attributes:
        held_bytes: what has no ack yet.
        lost: the lane does not exist (any more); its records are dropped.
    """

    __slots__ = (
        "_closed",
        "_key",
        "_on_lost",
        "_outbox",
        "failures",
        "held_bytes",
        "in_flight_bytes",
        "lost",
        "queued",
        "suspect",
        "topic",
        "unacked",
        "unsent",
    )

    def __init__(self, outbox: Outbox, topic: str, key: bytes, on_lost: Callable[[], None]) -> None:
        self._outbox = outbox
        self._key = key
        self._on_lost = on_lost
        self._closed = False
        self.topic = topic
        self.unsent: deque[tuple[bytes, float]] = deque()
        self.unacked: deque[tuple[bytes, float]] = deque()
        self.held_bytes = self.in_flight_bytes = self.failures = 0
        self.lost = self.queued = self.suspect = False

    @property
    def key(self) -> bytes:
        return self._key

    @property
    def done(self) -> bool:
        """Closed, and every record acked."""
        return self._closed and not self.unsent and not self.unacked

    def append(self, value: bytes) -> None:
        """Send a record after all before it. Kept until its ack; dropped where the lane is lost."""
        self._outbox.append(self, value)

    def close(self) -> None:
        """No record will follow."""
        self._closed = True
        self._outbox.forget_if_done(self)

    def stalled(self, now_s: float) -> bool:
        """Generation should stop: too much, or for too long, without an ack."""
        oldest = self.unacked[0][1] if self.unacked else self.unsent[0][1] if self.unsent else now_s
        return (
            now_s - oldest > UNACKED_S_MAX
            or self.held_bytes > STREAM_BYTES_MAX
            or (self.held_bytes > 0 and self._outbox.held_bytes > ALL_BYTES_MAX)
        )

    def lose(self) -> None:
        """Nobody reads here: drop the records and tell the attempt."""
        self.lost = True
        self.unsent.clear()
        self.unacked.clear()
        self._on_lost()


class Outbox:
    """All lanes and the one producer.

    Args:
        bootstrap: Kafka's `host:port`.
        client_id: shows in the broker's logs.

    Attributes:
        held_bytes: records without an ack, of all lanes.
        latency_s: moving average of append to ack.
    """

    def __init__(self, bootstrap: str, client_id: str) -> None:
        self._bootstrap = bootstrap
        self._client_id = client_id
        self._producer: Any = None
        self._epoch = 0
        self._broken: BaseException | None = None
        self._lanes: set[Lane] = set()
        self._ready: deque[Lane] = deque()
        self._wake = asyncio.Event()
        self._warm: Set[str] = frozenset()
        self._learning: dict[str, asyncio.Task[None]] = {}
        self._time = asyncio.get_running_loop().time
        self._empty: asyncio.Event | None = None  # for a flush
        self.held_bytes = 0
        self.latency_s = 0.0

    def open(self, topic: str, key: bytes, on_lost: Callable[[], None]) -> Lane:
        """A lane for one attempt's records.

        Args:
            topic: the lane's name.
            key: of its records.
            on_lost: called once if the topic turns out not to exist.
        """
        lane = Lane(self, topic, key, on_lost)
        self._lanes.add(lane)
        return lane

    def append(self, lane: Lane, value: bytes) -> None:
        """See Lane.append."""
        if lane.lost:
            return
        lane.unsent.append((value, self._time()))
        lane.held_bytes += len(value)
        self.held_bytes += len(value)
        self._enqueue(lane)

    def forget_if_done(self, lane: Lane) -> None:
        """See Lane.close."""
        if lane.done:
            self._lanes.discard(lane)

    async def start(self) -> Exception | None:
        """Connects; what went wrong, or None. To be repeated until it works."""
        producer = kafka.producer(self._bootstrap, self._client_id, BATCH_BYTES_MAX)
        if (error := await kafka.try_start(producer)) is not None:
            return error
        self._producer = producer
        return None

    async def warm(self, topics: Set[str]) -> None:
        """Know these lanes ahead, so that a first record waits for no metadata; forget those that are not in use.

        One refresh for all that are new. Raises TimeoutError where the broker does not answer.
        """
        self._warm = topics
        if self._producer is not None:
            tracked = topics | {lane.topic for lane in self._lanes}
            async with asyncio.timeout(WARM_S_MAX):
                await self._producer.client.set_topics(tracked)

    async def run(self) -> None:
        """The pump. Ends only by cancellation."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._broken is None:
                await self._send_ready()
            if self._broken is not None:
                await self._replace()

    async def flush(self, timeout_s: float) -> bool:
        """Waits until every record is acked; False if that took longer."""
        self._empty = asyncio.Event()
        if self.held_bytes:
            try:
                async with asyncio.timeout(timeout_s):
                    await self._empty.wait()
            except TimeoutError:
                return False
        return True

    async def stop(self) -> None:
        """Closes the producer. Cancel the pump first; what has no ack is dropped."""
        for task in list(self._learning.values()):
            task.cancel()
        if self._producer is not None:
            producer, self._producer = self._producer, None
            self._epoch += 1
            await kafka.stop(producer)

    def _enqueue(self, lane: Lane) -> None:
        if not lane.queued:
            lane.queued = True
            self._ready.append(lane)
            self._wake.set()

    async def _send_ready(self) -> None:
        known = self._producer.client.cluster.partitions_for_topic
        while self._ready:
            lane = self._ready.popleft()
            lane.queued = False
            if lane.lost or not lane.unsent:
                continue
            if known(lane.topic) is None:
                self._learn(lane.topic)
                continue
            while lane.unsent and lane.in_flight_bytes < IN_FLIGHT_BYTES_MAX:
                value, at_s = lane.unsent[0]
                try:
                    future = await self._producer.send(lane.topic, value, lane.key, 0)
                except (KafkaError, ProducerClosed, AssertionError) as error:
                    # AssertionError is how aiokafka says that the partition is unknown.
                    self._fail(lane, error)
                    return
                lane.unsent.popleft()
                lane.unacked.append((value, at_s))
                lane.in_flight_bytes += len(value)
                future.add_done_callback(partial(self._acked, lane, self._epoch))

    def _acked(self, lane: Lane, epoch: int, future: asyncio.Future[Any]) -> None:
        error = ProducerClosed() if future.cancelled() else future.exception()
        if epoch != self._epoch or lane.lost:
            return
        if error is not None:
            self._fail(lane, error)
            return
        if lane.suspect:
            return  # a record before this one failed: both go again, or the order would be gone
        value, at_s = lane.unacked.popleft()
        lane.in_flight_bytes -= len(value)
        lane.held_bytes -= len(value)
        self._release(len(value))
        self.latency_s += _LATENCY_WEIGHT * (self._time() - at_s - self.latency_s)
        if lane.unsent:
            self._enqueue(lane)
        elif lane.done:
            self._lanes.discard(lane)

    def _release(self, size_bytes: int) -> None:
        self.held_bytes -= size_bytes
        if not self.held_bytes and self._empty is not None:
            self._empty.set()

    def _fail(self, lane: Lane, error: BaseException) -> None:
        if not lane.suspect:
            lane.suspect = True
            lane.failures += 1
        if self._broken is None:
            self._broken = error
        self._wake.set()

    async def _replace(self) -> None:
        """A new producer, and every record without an ack again, in order."""
        log.warning("a reply failed (%s): replacing the producer", type(self._broken).__name__)
        self._epoch += 1
        for task in list(self._learning.values()):
            task.cancel()
        producer, self._producer = self._producer, None
        await kafka.stop(producer)
        backoff = kafka.Backoff()
        while (error := await self.start()) is not None:
            log.warning("Kafka is away (%s): trying again", type(error).__name__)
            await backoff.wait()
        try:
            await self.warm(self._warm)
        except TimeoutError:
            log.warning("Kafka did not describe the lanes in time: looking them up one by one")
        self._broken = None
        self._wake.set()  # for lanes that were queued before the failure, and are still
        for lane in list(self._lanes):
            lane.unsent.extendleft(reversed(lane.unacked))
            lane.unacked.clear()
            lane.in_flight_bytes = 0
            lane.suspect = False
            if lane.failures > LANE_FAILURES_MAX:
                self._lose(lane, "its records failed too often")
            elif lane.unsent:
                self._enqueue(lane)

    def _learn(self, topic: str) -> None:
        if topic not in self._learning:
            task = asyncio.create_task(self._look_up(topic))
            self._learning[topic] = task
            task.add_done_callback(lambda _: self._learning.pop(topic, None))

    async def _look_up(self, topic: str) -> None:
        why = None
        try:
            async with asyncio.timeout(LANE_UNKNOWN_S_MAX):
                await self._producer.partitions_for(topic)
        except (KafkaError, TimeoutError) as error:
            why = type(error).__name__
        for lane in [lane for lane in self._lanes if lane.topic == topic]:
            if why is not None:
                self._lose(lane, why)
            elif lane.unsent:
                self._enqueue(lane)

    def _lose(self, lane: Lane, why: str) -> None:
        log.warning("gave up on lane %s (%s)", lane.topic, why)
        self._release(lane.held_bytes)
        lane.held_bytes = lane.in_flight_bytes = 0
        self._lanes.discard(lane)
        lane.lose()
