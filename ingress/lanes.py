"""The pool of reply topics of this process. A request leases one, alone, until its last record.

To make a topic costs tens of milliseconds, to lease one that exists costs nothing, so the pool is made ahead and grows
ahead, in small batches and never on the way of a request. Lanes lie in blocks; a block has one consumer whose
assignment never changes once it reads, and every lane without a lease is paused: a fetch lists leased lanes only. The
lowest free number is leased first, which keeps the work in few blocks.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError
from confluent_kafka import KafkaError as ConfluentError
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from ingress.turns import turn
from schemas import topics

log = logging.getLogger(__name__)

BLOCK_LANES = 64
POOL_START = 64
POOL_MAX = 1024
FREE_LOW = 16
#: How long the broker may hold a fetch that finds nothing: a lane that is resumed meanwhile waits for it.
FETCH_WAIT_MS = 10
ADMIN_TIMEOUT_S = 15.0
RETRY_S = 0.5


class Lane:
    """A leased reply topic: `first_offset` is where its request's records begin."""

    __slots__ = ("_block", "_inbox", "_waiter", "first_offset", "next_offset", "number", "partition", "topic")

    def __init__(self, block: Block, topic: str, number: int) -> None:
        self._block = block
        self.topic = topic
        self.number = number
        self.partition = TopicPartition(topic, 0)
        self.next_offset = 0
        self.first_offset = 0
        self._inbox: deque[bytes] = deque()
        self._waiter: asyncio.Future[None] | None = None

    def begin(self) -> None:
        """Start to read for a new lease."""
        self._inbox.clear()
        self.first_offset = self.next_offset
        self._block.consumer.resume(self.partition)

    def stop(self) -> None:
        self._block.consumer.pause(self.partition)
        self._inbox.clear()

    def deliver(self, records: list[ConsumerRecord]) -> None:
        self._inbox.extend(record.value or b"" for record in records)
        self.next_offset = records[-1].offset + 1
        self.wake()

    def wake(self) -> None:
        """Let `read` return, with or without records."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def read(self, timeout_s: float) -> list[bytes]:
        """Record values since the last call; waits up to `timeout_s` for the first. Empty after it, or when woken."""
        if not self._inbox:
            loop = asyncio.get_running_loop()
            self._waiter = loop.create_future()
            timer = loop.call_later(max(timeout_s, 0), self.wake)
            try:
                await self._waiter
            finally:
                timer.cancel()
                self._waiter = None
        values = list(self._inbox)
        self._inbox.clear()
        return values

    def fetched_since(self, wall_time_s: float) -> bool:
        """Has the broker answered a fetch of this lane that began after `wall_time_s`?

        Until it has, silence proves nothing: the broker may be away (S11).
        """
        answered_ms = self._block.consumer.last_poll_timestamp(self.partition)
        return answered_ms is not None and answered_ms > wall_time_s * 1000 + 2 * FETCH_WAIT_MS


class Block:
    """Lanes that share a consumer, and the task that reads it."""

    def __init__(self, bootstrap: str, on_end: Callable[[asyncio.Task[None]], None]) -> None:
        self._on_end = on_end
        self.lanes: dict[TopicPartition, Lane] = {}
        self.consumer = AIOKafkaConsumer(
            bootstrap_servers=bootstrap,
            client_id="shiver-ingress-lanes",
            fetch_max_wait_ms=FETCH_WAIT_MS,
            enable_auto_commit=False,
            auto_offset_reset="none",
            max_partition_fetch_bytes=topics.MIB,
            retry_backoff_ms=50,
            request_timeout_ms=10_000,
        )
        self._task: asyncio.Task[None] | None = None

    async def open(self, boot_id: str, first: int, count: int) -> list[Lane]:
        """Assign new, empty topics `first`... at offset 0, all paused, and begin to read."""
        lanes = [Lane(self, topics.lane(boot_id, number), number) for number in range(first, first + count)]
        await asyncio.wait_for(self.consumer.start(), ADMIN_TIMEOUT_S)
        self.lanes = {lane.partition: lane for lane in lanes}
        self.consumer.assign(list(self.lanes))
        for lane in lanes:
            self.consumer.seek(lane.partition, 0)
        self.consumer.pause(*self.lanes)
        self._task = asyncio.create_task(self._read(), name=f"lanes-{first}")
        self._task.add_done_callback(self._on_end)
        return lanes

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task], timeout=2)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.consumer.stop(), 5)

    async def _read(self) -> None:
        while True:
            try:
                for partition, records in (await self.consumer.getmany(timeout_ms=1000)).items():
                    self.lanes[partition].deliver(records)
            except KafkaError as error:
                log.warning("reading lanes failed, trying again: %s", error)
                await asyncio.sleep(RETRY_S)


class LanePool:
    """`announce(lanes)` is awaited after each growth, before the new lanes are leased: nodes look them up ahead. Where
    it fails they are leased all the same.

    `on_end` is called with every task of the pool that ends: none does while all is well.
    """

    def __init__(
        self,
        bootstrap: str,
        boot_id: str,
        announce: Callable[[int], Awaitable[None]],
        on_end: Callable[[asyncio.Task[None]], None],
    ) -> None:
        self._on_end = on_end
        self._bootstrap = bootstrap
        self._boot_id = boot_id
        self._announce = announce
        self._blocks: list[Block] = []
        self._free: list[tuple[int, Lane]] = []
        self._waiters: deque[asyncio.Future[Lane]] = deque()
        self._grow_wanted = asyncio.Event()
        self._grower: asyncio.Task[None] | None = None
        self.made = 0

    async def start(self, size: int = POOL_START) -> None:
        """Make the first lanes. Raises KafkaError, KafkaException or TimeoutError."""
        while self.made < size:
            await self._add_block()
        self._grower = asyncio.create_task(self._grow(), name="lanes-grow")
        self._grower.add_done_callback(self._on_end)

    async def stop(self) -> None:
        if self._grower is not None:
            self._grower.cancel()
            await asyncio.wait([self._grower], timeout=2)
        await asyncio.gather(*(block.close() for block in self._blocks))

    @property
    def free(self) -> int:
        return len(self._free)

    async def lease(self, timeout_s: float) -> Lane | None:
        """A lane of one's own, or None where none came free in time."""
        if len(self._free) <= FREE_LOW and self.made < POOL_MAX:
            self._grow_wanted.set()
        if self._free and not self._waiters:
            lane = heapq.heappop(self._free)[1]
            lane.begin()
            return lane
        future: asyncio.Future[Lane] = asyncio.get_running_loop().create_future()
        self._waiters.append(future)
        return await turn(future, timeout_s, self.release)

    def release(self, lane: Lane) -> None:
        """Give a lane back. Late records of its request are strays to the next one."""
        lane.stop()
        self._offer(lane)

    def _offer(self, lane: Lane) -> None:
        while self._waiters:
            future = self._waiters.popleft()
            if not future.done():
                lane.begin()
                future.set_result(lane)
                return
        heapq.heappush(self._free, (lane.number, lane))

    async def _grow(self) -> None:
        while True:
            await self._grow_wanted.wait()
            try:
                await self._add_block()
            except (KafkaError, KafkaException, OSError, TimeoutError) as error:
                log.warning("making more lanes failed, trying again: %s", error)
                await asyncio.sleep(RETRY_S)
            if len(self._free) > FREE_LOW or self.made >= POOL_MAX:
                self._grow_wanted.clear()

    async def _add_block(self) -> None:
        first = self.made
        await asyncio.to_thread(make_lanes, self._bootstrap, self._boot_id, first, BLOCK_LANES)
        block = Block(self._bootstrap, self._on_end)
        try:
            lanes = await block.open(self._boot_id, first, BLOCK_LANES)
        except BaseException:
            await block.close()
            raise
        self._blocks.append(block)
        self.made = first + len(lanes)
        try:
            await self._announce(self.made)
        finally:  # they exist and are read, whoever has heard of them
            for lane in lanes:
                self._offer(lane)


def make_lanes(bootstrap: str, boot_id: str, first: int, count: int) -> None:
    """Create reply topics, a few in each call: one large call would hold up every other creation (measured: 2.5 s).

    Blocks, so it runs in a thread. Raises KafkaException. The broker's default replication applies, which aiokafka's
    admin client has no way to ask for.
    """
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 2})
    began_s = time.monotonic()
    for start in range(first, first + count, topics.LANES_PER_CREATE_MAX):
        numbers = range(start, min(start + topics.LANES_PER_CREATE_MAX, first + count))
        specs = [topics.lane_topic(boot_id, number) for number in numbers]
        wanted = [NewTopic(spec.name, spec.partitions, -1, config=spec.config) for spec in specs]
        for made in admin.create_topics(
            wanted, operation_timeout=ADMIN_TIMEOUT_S, request_timeout=ADMIN_TIMEOUT_S
        ).values():
            try:
                made.result(ADMIN_TIMEOUT_S)
            except KafkaException as error:
                if error.args[0].code() != ConfluentError.TOPIC_ALREADY_EXISTS:
                    raise
    _wait_known(admin, {topics.lane(boot_id, number) for number in range(first, first + count)})
    log.info("made %d lanes in %.2f s", count, time.monotonic() - began_s)


def _wait_known(admin: AdminClient, names: set[str]) -> None:
    """Brokers learn of a topic a moment after its creation was answered; a consumer that is sooner asks in a loop."""
    deadline_s = time.monotonic() + ADMIN_TIMEOUT_S
    while missing := names - set(admin.list_topics(timeout=ADMIN_TIMEOUT_S).topics):
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"{len(missing)} new reply topics are not known to the broker")
        time.sleep(0.02)
