"""Plain records of the log by place: from an archive as far as it goes, else from Kafka. Nothing is folded."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from contextlib import AsyncExitStack, aclosing
from typing import TYPE_CHECKING, NamedTuple

from ledger.epochs import counts
from ledger.log import LedgerCorrupt, LedgerUnavailable, cached_partition_of
from ledger.reader import LedgerReader, Record
from schemas.events import EpochClosed, UnreadableEvent, parse
from schemas.topics import LEDGER, SETTLEMENT_KEY

if TYPE_CHECKING:
    from ledger.archive import Archive  # whoever has none is spared pyarrow

_SETTLEMENT = SETTLEMENT_KEY.encode()


class Closed(NamedTuple):
    """A record that ended an epoch, and what it says."""

    record: Record
    event: EpochClosed


class Source:
    """`async with Source(...) as source`; Kafka is connected to when it is first needed. Not for concurrent reads."""

    def __init__(self, partitions: int, kafka: str | None, archive: Archive | None) -> None:
        """`kafka` None: the archive alone."""
        self.partitions = partitions
        self._kafka = kafka
        self._archive = archive
        self._held = {} if archive is None else archive.ends()
        self._reader: LedgerReader | None = None
        self._open = AsyncExitStack()

    async def __aenter__(self) -> Source:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._open.aclose()

    async def ends(self) -> dict[int, int]:
        """The next offset of each partition. Raises LedgerUnavailable."""
        if self._kafka is None:
            return dict(self._held)
        return await (await self._connected()).ends()

    async def read(self, partition: int, first: int, following: int) -> AsyncGenerator[list[Record], None]:
        """The records from `first` up to, not with, `following`.

        Raises LedgerUnavailable, ArchiveUnavailable and LedgerCorrupt.
        """
        held = min(self._held.get(partition, 0), following)
        if self._archive is not None and first < held:
            for _, records in self._archive.read({partition: first}, {partition: held}):
                yield records
            first = held
        if first >= following:
            return
        if self._kafka is None:
            raise LedgerUnavailable(f"the archive ends at offset {held} of partition {partition}, before {following}")
        reader = await self._connected()
        if (await reader.beginnings())[partition] > first:
            raise LedgerCorrupt(f"{LEDGER} partition {partition} no longer has offset {first}: records were deleted")
        if (there := (await reader.ends())[partition]) < following:
            raise LedgerCorrupt(f"{LEDGER} partition {partition} ends at {there}, before {following}")
        async with aclosing(reader.read({partition: first}, {partition: following})) as batches:
            async for records in batches:
                yield records

    async def one(self, partition: int, offset: int) -> Record:
        """A single record. Raises as `read` does."""
        async with aclosing(self.read(partition, offset, offset + 1)) as batches:
            async for records in batches:
                return records[0]
        raise LedgerCorrupt(f"{LEDGER} partition {partition} has nothing at offset {offset}")

    async def closings(self, end: int | None = None) -> list[Closed]:
        """The records that ended epochs, in order: the first of each number that `ledger.epochs.counts` lets count.

        `end` is the next offset up to which to read the partition where they stand; None reads to its end. Raises
        as `read` does.
        """
        home = cached_partition_of(_SETTLEMENT, self.partitions)
        if end is None:
            end = (await self.ends()).get(home, 0)
        found = list[Closed]()
        async with aclosing(self.read(home, 0, end)) as batches:
            async for records in batches:
                found = self._with_closings(found, records)
        return found

    def _with_closings(self, found: list[Closed], records: Iterable[Record]) -> list[Closed]:
        for record in records:
            if record.key != _SETTLEMENT:
                continue
            try:
                event = parse(record.value)
            except UnreadableEvent as error:
                place = f"{LEDGER} partition {record.partition} offset {record.offset}"
                raise LedgerCorrupt(f"{place}: {error}") from None
            last = found[-1].event if found else None
            if isinstance(event, EpochClosed) and counts(last, event, record.partition, record.offset, self.partitions):
                found.append(Closed(record, event))
        return found

    async def _connected(self) -> LedgerReader:
        if self._reader is None:
            assert self._kafka is not None
            reader = LedgerReader(self._kafka, self.partitions, client_id="shiver-source")
            self._reader = await self._open.enter_async_context(reader)
        return self._reader
