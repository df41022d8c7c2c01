"""Where the log is read: an archive as far as it goes, then Kafka, over one connection. Nothing is folded."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from typing import TYPE_CHECKING

from ledger.epoch_log import EpochPlace, UnknownEpoch, collect
from ledger.errata import NO_ERRATA, Errata
from ledger.log import LedgerCorrupt, LedgerUnavailable, cached_partition_of
from ledger.reader import LedgerReader, Record
from schemas.topics import LEDGER, SETTLEMENT_KEY

if TYPE_CHECKING:
    from ledger.archive import Archive  # whoever has none is spared pyarrow

_SETTLEMENT = SETTLEMENT_KEY.encode()


class Source:
    """`async with Source(...) as source`; Kafka is connected to when it is first needed. Not for concurrent reads."""

    def __init__(
        self, partitions: int, kafka: str | None, archive: Archive | None = None, errata: Errata = NO_ERRATA
    ) -> None:
        """`kafka` None: the archive alone."""
        self.partitions = partitions
        self.kafka = kafka
        self.archive = archive
        self.errata = errata
        if archive is not None:
            archive.errata = errata
        #: The next offset behind the archive, by partition; empty without one.
        self.held = {} if archive is None else archive.ends()
        self._reader: LedgerReader | None = None
        self._open = AsyncExitStack()

    async def __aenter__(self) -> Source:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._open.aclose()

    async def ends(self) -> dict[int, int]:
        """The next offset of each partition, now. Raises LedgerUnavailable."""
        return dict(self.held) if self.kafka is None else await (await self.log()).ends()

    async def beginnings(self) -> dict[int, int]:
        """The first offset of each partition that Kafka still has; without Kafka, where the archive ends."""
        return dict(self.held) if self.kafka is None else await (await self.log()).beginnings()

    async def read(self, partition: int, first: int, following: int) -> AsyncGenerator[list[Record], None]:
        """The records from `first` up to, not with, `following`.

        Raises LedgerUnavailable, ArchiveUnavailable and LedgerCorrupt.
        """
        held = min(self.held.get(partition, 0), following)
        if self.archive is not None and first < held:
            for _, records in self.archive.read({partition: first}, {partition: held}):
                yield records
            first = held
        if first >= following:
            return
        if self.kafka is None:
            raise LedgerUnavailable(f"the archive ends at offset {held} of partition {partition}, before {following}")
        reader = await self.log()
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

    async def epochs(
        self, end: int | None = None, *, up_to: int | None = None, damaged: bool = False
    ) -> list[EpochPlace]:
        """Every epoch that is closed, in order, up to the number `up_to`: one event each is all that is kept in memory.

        `end` is the next offset up to which to read the partition where they stand; None reads to its end. With
        `damaged`, what cannot be read only ends the list: others will name it. Raises UnknownEpoch where there is no
        epoch `up_to`, else as `read` does.
        """
        home = cached_partition_of(_SETTLEMENT, self.partitions)
        if end is None:
            end = (await self.ends()).get(home, 0)
        found = list[EpochPlace]()
        try:
            async with aclosing(self.read(home, 0, end)) as batches:
                async for records in batches:
                    collect(records, self.partitions, found, self.errata)
                    if up_to is not None and len(found) >= up_to:
                        return found[:up_to]
        except LedgerCorrupt:
            if not damaged:
                raise
        if up_to is not None:
            last = f"its last is {len(found)}" if found else "none is closed"
            raise UnknownEpoch(f"the log has no epoch {up_to}: {last}")
        return found

    async def log(self) -> LedgerReader:
        """Kafka's own, connected to. Raises LedgerUnavailable."""
        if self._reader is None:
            assert self.kafka is not None
            reader = LedgerReader(self.kafka, self.partitions, client_id="shiver-source", errata=self.errata)
            self._reader = await self._open.enter_async_context(reader)
        return self._reader
