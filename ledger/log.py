"""The ledger log, written: `LedgerWriter` appends to it. `ledger.reader` reads it.

A shell around Kafka: everything else in this package is pure. Errors:

    LedgerError
      LedgerUnavailable   the log cannot be reached in time, or the backlog is full: try again later
      LedgerCorrupt       the log contradicts itself (a gap, a key in a wrong partition): a person must look
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections import deque
from typing import Any, NamedTuple

import aiokafka  # pyright: ignore[reportMissingTypeStubs]

from schemas.events import Event, dump
from schemas.topics import LEDGER, partition_of

BACKLOG_MAX = 10_000
REQUEST_TIMEOUT_S = 5.0
_BATCH_BYTES_MAX = 256 * 1024
_BACKOFF_FIRST_S, _BACKOFF_LAST_S = 0.1, 1.0
#: A batch without an answer for this many request timeouts is given up together with its producer.
_STUCK_AFTER_TIMEOUTS = 3
CLOSE_TIMEOUT_S = 2.0
_TICK_S = 1.0

_log = logging.getLogger(__name__)
kafka: Any = aiokafka  # ships no types
KafkaError: type[Exception] = kafka.errors.KafkaError
cached_partition_of = functools.lru_cache(maxsize=65_536)(partition_of)


class LedgerError(Exception):
    """What the log's shells raise."""


class LedgerUnavailable(LedgerError):
    """The log cannot take or give records now. Nothing is known to be wrong with it."""


class LedgerCorrupt(LedgerError):
    """The log breaks a rule that every writer keeps. Readers stop: nothing may be skipped."""


class Position(NamedTuple):
    """Where an event stands in the log."""

    partition: int
    offset: int


class _Pending(NamedTuple):
    key: bytes
    value: bytes
    done: asyncio.Future[Position]
    since_s: float


class _Batch(NamedTuple):
    """What one partition has on its way. There is never a second one, so its order cannot be broken."""

    items: list[_Pending]
    sent_s: float


class LedgerWriter:
    """Appends events: idempotent producer, all replicas, in the order of the calls per partition.

    An event that was taken is retried until it is acked, for ever, with backoff (C8): a failed idempotent batch leaves
    its producer unusable, so any failure replaces the producer, and all events without an ack are appended again in
    their order. The same event may thus stand twice in the log; the fold makes that harmless. The first copies of a
    partition's events always stand in order.
    """

    def __init__(
        self,
        bootstrap: str,
        partitions: int,
        *,
        client_id: str,
        backlog_max: int = BACKLOG_MAX,
        request_timeout_s: float = REQUEST_TIMEOUT_S,
    ) -> None:
        self._bootstrap = bootstrap
        self._partitions = partitions
        self._client_id = client_id
        self._backlog_max = backlog_max
        self._timeout_s = request_timeout_s
        self._waiting: list[deque[_Pending]] = [deque() for _ in range(partitions)]
        self._in_flight: dict[int, _Batch] = {}
        self._ready: dict[int, None] = {}  # partitions with something waiting and nothing in flight
        self._unacked = 0
        self._producer: Any = None
        self._generation = 0
        self._broken = False
        self._accepting = False
        self._backoff_s = 0.0
        self._wake = asyncio.Event()
        self._drained = asyncio.Event()
        self._drained.set()
        self._pump_task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Connects. Raises LedgerUnavailable, within about twice the request timeout, where that cannot be done."""
        self._producer = await self._connect()
        self._accepting = True
        self._pump_task = asyncio.create_task(self._pump(), name="ledger writer")
        self._pump_task.add_done_callback(self._pump_ended)

    async def stop(self, timeout_s: float = 5.0) -> int:
        """Takes no more, waits at most `timeout_s` for acks, closes. Returns how many events are without an ack.

        Those may still stand in the log; their futures raise LedgerUnavailable.
        """
        self._accepting = False
        try:
            async with asyncio.timeout(timeout_s):
                await self._drained.wait()
        except TimeoutError:
            _log.warning("%d events for the ledger log are without an ack at stop", self._unacked)
        if self._pump_task is not None:
            self._pump_task.cancel()
            await asyncio.wait([self._pump_task])
            self._pump_task = None
        self._generation += 1  # late answers no longer count
        left = [item for batch in self._in_flight.values() for item in batch.items]
        left += [item for queue in self._waiting for item in queue]
        for item in left:
            if not item.done.done():
                item.done.set_exception(LedgerUnavailable("the writer stopped before the log acked the event"))
                item.done.exception()  # a waiter that has left is no error
        self._in_flight.clear()
        self._waiting = [deque() for _ in range(self._partitions)]
        producer, self._producer = self._producer, None
        await _close_producer(producer)
        return len(left)

    def append(self, event: Event) -> asyncio.Future[Position]:
        """Takes the event at once and returns what its ack will fulfil.

        Cancelling the future, or no longer waiting for it, does not unsend the event. Several waiters of one future
        shield it. Raises LedgerUnavailable where the backlog is full or the writer is not running.
        """
        if not self._accepting:
            raise LedgerUnavailable("the ledger writer is not running")
        if self._unacked >= self._backlog_max:
            raise LedgerUnavailable(f"{self._unacked} events wait for the ledger log's ack; no more are taken")
        key = event.key.encode()
        partition = cached_partition_of(key, self._partitions)
        done: asyncio.Future[Position] = asyncio.get_running_loop().create_future()
        self._waiting[partition].append(_Pending(key, dump(event), done, time.monotonic()))
        self._unacked += 1
        self._drained.clear()
        if partition not in self._in_flight:
            self._ready[partition] = None
            self._wake.set()
        return done

    @property
    def unacked(self) -> int:
        """Events taken and not acked yet."""
        return self._unacked

    @property
    def healthy(self) -> bool:
        """Whether an append now can be expected to be acked soon: connected, nothing failing, nothing overdue."""
        if not self._accepting or self._producer is None or self._broken or self._backoff_s:
            return False
        if self._unacked == 0:
            return True
        oldest_s = min(
            [batch.items[0].since_s for batch in self._in_flight.values()]
            + [queue[0].since_s for queue in self._waiting if queue]
        )
        return time.monotonic() - oldest_s < self._timeout_s

    async def _pump(self) -> None:
        loop = asyncio.get_running_loop()
        tick = loop.call_later(_TICK_S, self._wake.set)
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                if tick.when() <= loop.time():
                    tick = loop.call_later(_TICK_S, self._wake.set)
                    self._broken = self._broken or self._is_stuck()
                try:
                    while self._ready and not self._broken:
                        await self._send(next(iter(self._ready)))
                except (KafkaError, TimeoutError, AssertionError) as error:
                    # An assertion is how aiokafka says that it no longer knows the partition.
                    self._fail(error)
                if self._broken:
                    await self._replace()
        finally:
            tick.cancel()

    def _pump_ended(self, pump: asyncio.Task[None]) -> None:
        """A fault of ours: whoever asks is refused from now on, rather than left waiting."""
        if not pump.cancelled() and (error := pump.exception()) is not None:
            self._accepting = False
            _log.error("the ledger writer has failed and takes no more events", exc_info=error)

    async def _send(self, partition: int) -> None:
        """Hands over what waits for `partition` as one batch. From here on its answer may come at any time."""
        queue, items = self._waiting[partition], list[_Pending]()
        builder = self._producer.create_batch()
        while queue:
            head = queue[0]
            if builder.append(timestamp=None, key=head.key, value=head.value) is None:
                break
            items.append(queue.popleft())
        builder.close()
        del self._ready[partition]
        self._in_flight[partition] = _Batch(items, time.monotonic())
        async with asyncio.timeout(self._timeout_s):
            answer = await self._producer.send_batch(builder, LEDGER, partition=partition)
        answer.add_done_callback(functools.partial(self._answered, partition, self._generation))

    def _answered(self, partition: int, generation: int, answer: asyncio.Future[Any]) -> None:
        error = None if answer.cancelled() else answer.exception()
        if generation != self._generation:
            return  # its events are on their way again with another producer
        if answer.cancelled() or error is not None:
            self._fail(error)
            return
        first = answer.result().offset
        if first < 0:
            # The broker knows the batch but no longer where it stands: append it again, to know the position.
            self._fail(None)
            return
        batch = self._in_flight.pop(partition)
        for index, item in enumerate(batch.items):
            if not item.done.done():
                item.done.set_result(Position(partition, first + index))
        self._unacked -= len(batch.items)
        self._backoff_s = 0.0
        if self._unacked == 0:
            self._drained.set()
        if self._waiting[partition]:
            self._ready[partition] = None
            self._wake.set()

    def _fail(self, error: BaseException | None) -> None:
        _log.warning("an append to the ledger log failed (%r); its producer is replaced", error)
        self._broken = True
        self._wake.set()

    def _is_stuck(self) -> bool:
        limit_s = time.monotonic() - _STUCK_AFTER_TIMEOUTS * self._timeout_s
        return any(batch.sent_s < limit_s for batch in self._in_flight.values())

    async def _replace(self) -> None:
        """Another producer, tried until there is one; everything without an ack waits again, in its order."""
        self._generation += 1
        for partition, batch in self._in_flight.items():
            self._waiting[partition].extendleft(reversed(batch.items))
        self._in_flight.clear()
        old, self._producer = self._producer, None
        await _close_producer(old)
        while self._producer is None:
            self._backoff_s = min(_BACKOFF_LAST_S, self._backoff_s * 2 or _BACKOFF_FIRST_S)
            await asyncio.sleep(self._backoff_s)
            try:
                self._producer = await self._connect()
            except LedgerUnavailable as error:
                _log.warning("%s; %d events wait", error, self._unacked)
        self._ready = {partition: None for partition, queue in enumerate(self._waiting) if queue}
        self._broken = False
        if self._unacked == 0:
            self._backoff_s = 0.0
        self._wake.set()

    async def _connect(self) -> Any:
        producer = kafka.AIOKafkaProducer(
            bootstrap_servers=self._bootstrap,
            client_id=self._client_id,
            acks="all",
            enable_idempotence=True,
            linger_ms=0,
            max_batch_size=_BATCH_BYTES_MAX,
            request_timeout_ms=int(self._timeout_s * 1000),
        )
        try:
            async with asyncio.timeout(self._timeout_s):
                await producer.start()
                found = len(await producer.partitions_for(LEDGER))
            if found != self._partitions:
                raise LedgerUnavailable(
                    f"topic {LEDGER} has {found} partitions where {self._partitions} are configured"
                )
        except (KafkaError, OSError, TimeoutError) as error:
            await _close_producer(producer)
            raise LedgerUnavailable(why(self._bootstrap, error)) from error
        except BaseException:
            await _close_producer(producer)
            raise
        return producer


def miscounted(found: int, configured: int) -> str:
    """What to say of a log with another number of partitions."""
    return f"topic {LEDGER} has {found} partitions where {configured} are configured"


def why(bootstrap: str, error: BaseException) -> str:
    """What to say where the log does not answer."""
    return f"the ledger log at {bootstrap} does not answer ({type(error).__name__}); is Kafka up, is {LEDGER} made?"


async def _close_producer(producer: Any) -> None:
    """Closes within a bound. aiokafka's own stop() first waits until all is sent, which here is others' business."""
    if producer is None:
        return
    producer._message_accumulator.fail_all(LedgerUnavailable("this producer is replaced"))
    try:
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            await producer.stop()
    except TimeoutError:
        _log.warning("a Kafka producer did not close within %g s", CLOSE_TIMEOUT_S)
        await _close_client(producer.client)


async def _close_client(client: Any) -> None:
    try:
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            await client.close()
    except TimeoutError:
        _log.warning("a Kafka client did not close within %g s", CLOSE_TIMEOUT_S)
