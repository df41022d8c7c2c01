"""A topic read from a known place on, by hand: no group, no commits, no auto reset.

What aiokafka does by itself and must not: it spins on a topic that does not exist (68 % of a core), so existence is
checked first; it goes on silently when its fetch task dies, so that is looked at; and a lost position would be reset
behind our back, so the policy is `none` and the place is chosen here.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Literal

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError, OffsetOutOfRangeError

from schemas.topics import JOB_BYTES_MAX
from workers import kafka

log = logging.getLogger(__name__)

#: How long the broker holds a fetch open. It answers at once when a record arrives, so this costs no latency.
FETCH_MAX_WAIT_MS = 500
#: How long a poll waits here; it bounds how late a vanished topic or a dead fetcher is noticed.
POLL_MS = 1000
#: A topic may be missing from metadata for a moment while its leader moves; after this long it is gone.
MISSING_S_MAX = 10.0


class TopicMissing(Exception):
    """The topic does not exist; the text is one line."""


class Tail:
    """Reads all partitions of a topic.

    Args:
        bootstrap: Kafka's `host:port`.
        topic: has to exist.
        start: from where: what is there already ("beginning") or only what comes ("end").
        client_id: shows in the broker's logs.
    """

    def __init__(self, bootstrap: str, topic: str, start: Literal["beginning", "end"], client_id: str) -> None:
        self._bootstrap = bootstrap
        self._topic = topic
        self._start = start
        self._client_id = client_id
        self._consumer: Any = None
        self._next: dict[Any, int] = {}
        self._missing_since_s: float | None = None
        self._time = asyncio.get_running_loop().time
        self.end: dict[Any, int] = {}  # where the topic ended when it was opened

    async def open(self) -> None:
        """Connects and fixes the positions; retries while the broker is away. Raises TopicMissing."""
        backoff = kafka.Backoff()
        while (error := await self._try_open()) is not None:
            log.warning("topic %s: Kafka is away (%s): trying again", self._topic, type(error).__name__)
            await backoff.wait()

    async def poll(self) -> list[Any]:
        """The records since the last poll, in order per partition; none after about POLL_MS. Raises TopicMissing."""
        if self._consumer is None:
            await self.open()
        assert self._consumer is not None  # open() returns with one, or raises
        try:
            batches = await self._consumer.getmany(timeout_ms=POLL_MS)
        except OffsetOutOfRangeError as error:
            # Retention passed us by, or the topic was made anew. What is there is read from its beginning; whoever
            # reads has to know what is too old, and what was seen before.
            log.warning("topic %s: our position is gone; reading from its beginning", self._topic)
            await self._rewind(error)
            return []
        except KafkaError as error:
            log.warning("topic %s: fetch failed (%s)", self._topic, type(error).__name__)
            await asyncio.sleep(kafka.RETRY_FIRST_S)
            return []
        if not batches:
            await self._check()
            return []
        records = [record for batch in batches.values() for record in batch]
        for partition, batch in batches.items():
            self._next[partition] = batch[-1].offset + 1
        return records

    def caught_up(self) -> bool:
        """Everything that was there when the topic was opened has been returned by `poll`."""
        return all(self._next.get(partition, 0) >= end for partition, end in self.end.items())

    async def close(self) -> None:
        if self._consumer is not None:
            consumer, self._consumer = self._consumer, None
            await kafka.stop(consumer)

    async def _try_open(self) -> Exception | None:
        consumer: Any = AIOKafkaConsumer(
            bootstrap_servers=self._bootstrap,
            client_id=self._client_id,
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="none",
            fetch_max_wait_ms=FETCH_MAX_WAIT_MS,
            max_partition_fetch_bytes=JOB_BYTES_MAX,
            request_timeout_ms=kafka.REQUEST_TIMEOUT_MS,
        )
        if (error := await kafka.try_start(consumer)) is not None:
            return error
        try:
            async with asyncio.timeout(kafka.CONNECT_S_MAX):
                await self._place(consumer)
        except (KafkaError, TimeoutError) as error:
            await kafka.stop(consumer)
            return error
        except BaseException:
            await kafka.stop(consumer)
            raise
        self._consumer = consumer
        return None

    async def _place(self, consumer: Any) -> None:
        if self._topic not in await consumer.topics():
            raise TopicMissing(f"Kafka at {self._bootstrap} has no topic {self._topic}")
        if self._next:
            partitions = list(self._next)  # reopened: on from where we were
        else:
            # Asking for the end tells aiokafka of the topic; only then does it know the partitions.
            self.end = await consumer.end_offsets([TopicPartition(self._topic, 0)])
            count = len(consumer.partitions_for_topic(self._topic) or {0})
            partitions = [TopicPartition(self._topic, number) for number in range(count)]
            self.end = await consumer.end_offsets(partitions)
            self._next = self.end if self._start == "end" else await consumer.beginning_offsets(partitions)
            self._next = dict(self._next)
        consumer.assign(partitions)
        for partition, offset in self._next.items():
            consumer.seek(partition, offset)

    async def _rewind(self, error: OffsetOutOfRangeError) -> None:
        partitions = list(error.args[0]) if error.args else list(self._next)
        try:
            async with asyncio.timeout(kafka.CONNECT_S_MAX):
                beginnings = await self._consumer.beginning_offsets(partitions)
        except (KafkaError, TimeoutError) as failure:
            log.warning("topic %s: no position (%s); connecting again", self._topic, type(failure).__name__)
            await self.close()
            return
        for partition, offset in beginnings.items():
            self._next[partition] = offset
            self._consumer.seek(partition, offset)

    async def _check(self) -> None:
        if self._consumer._fetcher.error_future.done():  # no public call tells that the fetch task died
            log.warning("topic %s: the fetcher died; connecting again", self._topic)
            await self.close()
        elif self._consumer.partitions_for_topic(self._topic) is not None:
            self._missing_since_s = None
        elif self._missing_since_s is None:
            self._missing_since_s = self._time()
        elif self._time() - self._missing_since_s > MISSING_S_MAX:
            raise TopicMissing(f"topic {self._topic} is gone from Kafka at {self._bootstrap}")
