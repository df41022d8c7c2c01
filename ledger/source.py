"""Plain records of the log by place: from an archive as far as it goes, else from Kafka. Nothing is folded."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from typing import TYPE_CHECKING

from ledger.epoch_log import EpochPlace, collect
from ledger.errata import NO_ERRATA, Errata
from ledger.log import LedgerCorrupt, LedgerUnavailable, cached_partition_of
from ledger.reader import LedgerReader, Record
from schemas.topics import LEDGER, SETTLEMENT_KEY

if TYPE_CHECKING:
    from ledger.archive import Archive  # whoever has none is spared pyarrow

_SETTLEMENT = SETTLEMENT_KEY.encode()


class Source:
    """`async with Source(...) as source`; Kafka is connected to when it is first needed. Not for concurrent reads."""

    def __init__(self, partitions: int, kafka: str | None, archive: Archive | None, errata: Errata = NO_ERRATA) -> None:
        """`kafka` None: the archive alone."""
        self.partitions = partitions
        self.errata = errata
        if archive is not None:
            archive.errata = errata
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

    async def epochs(self, end: int | None = None) -> list[EpochPlace]:
        """Every epoch that is closed, in order.

        `end` is the next offset up to which to read the partition where they stand; None reads to its end. Raises
        as `read` does.
        """
        home = cached_partition_of(_SETTLEMENT, self.partitions)
        if end is None:
            end = (await self.ends()).get(home, 0)
        found = list[EpochPlace]()
        async with aclosing(self.read(home, 0, end)) as batches:
            async for records in batches:
                collect(records, self.partitions, found, self.errata)
        return found

    async def _connected(self) -> LedgerReader:
        if self._reader is None:
            assert self._kafka is not None
            reader = LedgerReader(self._kafka, self.partitions, client_id="shiver-source", errata=self.errata)
            self._reader = await self._open.enter_async_context(reader)
        return self._reader
