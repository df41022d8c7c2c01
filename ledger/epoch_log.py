"""The epochs that the log has: each `epoch.closed` that counts, found in the one partition that has all of them."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, NamedTuple

from ledger.epochs import counts
from ledger.errata import NO_ERRATA, Errata
from ledger.log import LedgerCorrupt, LedgerError
from ledger.reader import LedgerReader, Record, event_of
from schemas.events import EpochClosed
from schemas.settings import Settings
from schemas.topics import SETTLEMENT_KEY, partition_of

if TYPE_CHECKING:
    from ledger.archive import Archive  # whoever has none is spared pyarrow

_KEY = SETTLEMENT_KEY.encode()


class UnknownEpoch(LedgerError):
    """The log has no epoch of that number."""


class EpochPlace(NamedTuple):
    """An event that ends an epoch, and where it stands."""

    event: EpochClosed
    partition: int
    offset: int

    @property
    def ends(self) -> dict[int, int]:
        """The cut, as the next offset by partition."""
        return dict(enumerate(self.event.cut))


async def ends_of_epoch(
    settings: Settings, number: int, archive: Archive | None = None, errata: Errata = NO_ERRATA
) -> dict[int, int]:
    """Where epoch `number` ends: the next offset of each partition, by the first `epoch.closed` of that number.

    Raises UnknownEpoch, LedgerUnavailable, ArchiveUnavailable, LedgerCorrupt.
    """
    return (await places_of_epochs(settings, archive, up_to=number, errata=errata))[-1].ends


async def places_of_epochs(
    settings: Settings,
    archive: Archive | None = None,
    *,
    up_to: int | None = None,
    damaged: bool = False,
    errata: Errata = NO_ERRATA,
) -> list[EpochPlace]:
    """Every epoch of the log in order, up to the number `up_to`: one event each is all that is kept in memory.

    Raises as `ends_of_epoch` does. With `damaged`, what cannot be read only ends the list: others will name it.
    """
    home = partition_of(_KEY, settings.ledger_partitions)
    found = list[EpochPlace]()
    try:
        async with aclosing(_records(settings, archive, home, errata)) as batches:
            async for records in batches:
                collect(records, settings.ledger_partitions, found, errata)
                if up_to is not None and len(found) >= up_to:
                    return found[:up_to]
    except LedgerCorrupt:
        if not damaged:
            raise
    if up_to is not None:
        raise UnknownEpoch(
            f"the log has no epoch {up_to}: {f'its last is {len(found)}' if found else 'none is closed'}"
        )
    return found


def archived_epochs(archive: Archive) -> list[EpochPlace]:
    """Those in an archive alone. What cannot be read only ends the list."""
    partitions = archive.manifest.partitions
    home = partition_of(_KEY, partitions)
    found = list[EpochPlace]()
    try:
        for _, records in archive.read({}, {home: archive.ends()[home]}):
            collect(records, partitions, found, archive.errata)
    except LedgerCorrupt:
        pass
    return found


async def _records(
    settings: Settings, archive: Archive | None, home: int, errata: Errata
) -> AsyncGenerator[list[Record], None]:
    start = 0
    if archive is not None:
        archive.errata = errata
        for _, records in archive.read({}, {home: archive.ends()[home]}):
            yield records
            start = records[-1].offset + 1
    async with LedgerReader(
        settings.kafka, settings.ledger_partitions, client_id="shiver-epochs", errata=errata
    ) as reader:
        end = (await reader.ends())[home]
        async with aclosing(reader.read({home: start}, {home: end})) as batches:
            async for records in batches:
                yield records


def collect(records: list[Record], partitions: int, found: list[EpochPlace], errata: Errata = NO_ERRATA) -> None:
    """Adds what ends an epoch among the next records of that partition. Raises LedgerCorrupt."""
    for record in records:
        partition, offset, key, _ = record
        if key != _KEY:
            continue
        event = event_of(record, errata)
        last = found[-1].event if found else None
        if isinstance(event, EpochClosed) and counts(last, event, partition, offset, partitions):
            found.append(EpochPlace(event, partition, offset))
