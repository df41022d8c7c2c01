"""The epochs that the log has: each `epoch.closed` that counts, in the one partition that has all of them.

`ledger.source.Source.epochs` reads them.
"""

from __future__ import annotations

from typing import NamedTuple

from ledger.epochs import counts
from ledger.errata import Errata
from ledger.log import LedgerError
from ledger.reader import Record, event_of
from schemas.events import EpochClosed
from schemas.topics import SETTLEMENT_KEY

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


def collect(records: list[Record], partitions: int, found: list[EpochPlace], errata: Errata) -> None:
    """Adds what ends an epoch among the next records of that partition. Raises LedgerCorrupt."""
    for record in records:
        partition, offset, key, _ = record
        if key != _KEY:
            continue
        event = event_of(record, errata)
        last = found[-1].event if found else None
        if isinstance(event, EpochClosed) and counts(last, event, partition, offset, partitions):
            found.append(EpochPlace(event, partition, offset))
