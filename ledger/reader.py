"""The ledger log, read: plain records, checked for gaps and for keys in a wrong partition. Nothing is interpreted."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Mapping
from typing import Any, NamedTuple

from ledger.errata import NO_ERRATA, Errata
from ledger.log import (
    CLOSE_TIMEOUT_S,
    REQUEST_TIMEOUT_S,
    KafkaError,
    LedgerCorrupt,
    LedgerUnavailable,
    cached_partition_of,
    kafka,
    why,
)
from schemas.events import Event, UnreadableEvent, parse
from schemas.topics import LEDGER

_FETCH_TIMEOUT_MS = 200

_log = logging.getLogger(__name__)


class Record(NamedTuple):
    """One record of the log, as it stands there."""

    partition: int
    offset: int
    key: bytes
    value: bytes


def event_of(record: Record, errata: Errata = NO_ERRATA) -> Event:
    """The event in a record, `Unreadable` where it is none and an erratum says so.

    Raises LedgerCorrupt, naming the place, where it is none, or has another key.
    """
    try:
        return errata.event_of(*record)
    except UnreadableEvent as error:
        raise LedgerCorrupt(f"{place_of(record)}: {error}") from None


def event_or_none(record: Record) -> Event | None:
    """The event in a record; None where `event_of` refuses it."""
    try:
        event = parse(record.value)
    except UnreadableEvent:
        return None
    return event if event.key.encode() == record.key else None


def place_of(record: Record) -> str:
    """Where a record stands, in words."""
    return f"{LEDGER} partition {record.partition} offset {record.offset}"


class LedgerReader:
    """Reads the log as it stands: `async with LedgerReader(...) as reader`, then `reader.read(starts, ends)`."""

    def __init__(
        self,
        bootstrap: str,
        partitions: int,
        *,
        client_id: str,
        request_timeout_s: float = REQUEST_TIMEOUT_S,
        errata: Errata = NO_ERRATA,
        at_once: int | None = None,
    ) -> None:
        """`at_once`: how many records a list has at most, where others share the loop; None: all that were fetched."""
        self.errata = errata
        self._at_once = at_once
        self._bootstrap = bootstrap
        self._partitions = partitions
        self._client_id = client_id
        self._timeout_s = request_timeout_s
        self._places = [kafka.TopicPartition(LEDGER, partition) for partition in range(partitions)]
        self._consumer: Any = None

    async def __aenter__(self) -> LedgerReader:
        self._consumer = kafka.AIOKafkaConsumer(
            bootstrap_servers=self._bootstrap,
            client_id=self._client_id,
            auto_offset_reset="none",
            enable_auto_commit=False,
            request_timeout_ms=int(self._timeout_s * 1000),
            fetch_max_wait_ms=50,
            max_partition_fetch_bytes=4 * 1024 * 1024,
        )
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._consumer.start()
                # All that exist, as topics() asks: naming a missing topic would make aiokafka ask without a pause.
                # Its own topics() gives the names without the partitions.
                cluster = await self._consumer._client.fetch_all_metadata()
            found = cluster.partitions_for_topic(LEDGER)
            if not found:
                raise LedgerUnavailable(f"topic {LEDGER} does not exist at {self._bootstrap}")
            count = len(found)
            if count != self._partitions:
                raise LedgerUnavailable(
                    f"topic {LEDGER} has {count} partitions where {self._partitions} are configured"
                )
        except (KafkaError, OSError, TimeoutError) as error:
            await self._close()
            raise LedgerUnavailable(why(self._bootstrap, error)) from error
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._close()

    async def ends(self) -> dict[int, int]:
        """The next offset of each partition, now. Raises LedgerUnavailable."""
        return await self._offsets(self._consumer.end_offsets)

    async def beginnings(self) -> dict[int, int]:
        """The first offset of each partition that the log still has; 0 in a whole log. Raises LedgerUnavailable."""
        return await self._offsets(self._consumer.beginning_offsets)

    async def _offsets(self, ask: Any) -> dict[int, int]:
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = await ask(self._places)
        except (KafkaError, TimeoutError) as error:
            raise LedgerUnavailable(why(self._bootstrap, error)) from error
        return {place.partition: offset for place, offset in answer.items()}

    async def read(
        self, starts: Mapping[int, int], ends: Mapping[int, int], *, misplaced: bool = False
    ) -> AsyncGenerator[list[Record], None]:
        """Every record from `starts` up to, not with, `ends`, as lists of one partition's records in order.

        Partitions that `ends` does not name are left out; those that `starts` does not name begin at 0. Raises
        LedgerUnavailable after two request timeouts without a record, LedgerCorrupt at a gap or a misplaced key, unless
        `misplaced` ones are asked for.
        """
        expected = {partition: starts.get(partition, 0) for partition in ends}
        expected = {partition: start for partition, start in expected.items() if start < ends[partition]}
        if not expected:
            return
        # Only what has records to come: a partition without a place would be an error, as no reset policy is set.
        self._consumer.assign([self._places[partition] for partition in expected])
        for partition, start in expected.items():
            self._consumer.seek(self._places[partition], start)
        last_s = time.monotonic()
        while expected:
            try:
                async with asyncio.timeout(2 * self._timeout_s):
                    fetched = await self._consumer.getmany(timeout_ms=_FETCH_TIMEOUT_MS, max_records=self._at_once)
            except (KafkaError, TimeoutError) as error:
                raise LedgerUnavailable(f"reading {LEDGER} failed: {error!r}") from error
            for place, raws in fetched.items():
                partition = place.partition
                if partition not in expected:
                    continue
                records = [self._checked(partition, raw, misplaced) for raw in raws if raw.offset < ends[partition]]
                if records:
                    _contiguous(records, expected[partition])
                    expected[partition] = records[-1].offset + 1
                    last_s = time.monotonic()
                    yield records
                if expected[partition] >= ends[partition]:
                    del expected[partition]
                    self._consumer.pause(place)
            if time.monotonic() - last_s > 2 * self._timeout_s:
                raise LedgerUnavailable(f"{LEDGER} gave no record for {2 * self._timeout_s:g} s; awaited {expected}")

    def _checked(self, partition: int, raw: Any, misplaced: bool) -> Record:
        record = Record(partition, raw.offset, raw.key or b"", raw.value or b"")
        if not misplaced:
            check_place(record, self._partitions, self.errata)
        return record

    async def _close(self) -> None:
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._consumer.stop()
        except TimeoutError:
            _log.warning("a Kafka consumer did not close within %g s", CLOSE_TIMEOUT_S)


def check_place(record: Record, partitions: int, errata: Errata = NO_ERRATA) -> None:
    """Raises LedgerCorrupt for a key in another partition than its own: books are kept per partition.

    An unreadable record that has an erratum may lie anywhere.
    """
    belongs = cached_partition_of(record.key, partitions)
    if belongs != record.partition and not errata.covers(*record):
        raise LedgerCorrupt(
            f"{LEDGER} partition {record.partition} offset {record.offset}: its key belongs to partition {belongs}"
            + errata.why_not(record.partition, record.offset)
        )


def _contiguous(records: list[Record], expected: int) -> None:
    first, last = records[0].offset, records[-1].offset
    if first != expected or last - first + 1 != len(records):
        raise LedgerCorrupt(
            f"{LEDGER} partition {records[0].partition}: a gap, expected offset {expected} and {len(records)} records "
            f"in a row, got {first} to {last}"
        )
