"""What is exported: one transaction for each event of the log that moved money. Others moved none and are left out.

A transaction's day is that of its event's own time, in UTC. Times in a partition are not monotonic, so transactions are
sorted by day, then partition, then offset: the same file for the same events, whatever order they were read in. Epochs
cut the log by offsets, so hledger's journal, which has balances at each cut, is sorted by epoch first.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from ledger.books import Posting
from ledger.decide import Decision
from ledger.exports.dates import END_MS, LAST_YEAR, day_of
from schemas.events import Event

#: Tag: the field of an event that it shows, in the order of the tags. An event has those that it has.
TAGS: dict[str, str] = {
    "wallet": "wallet",
    "request": "request_id",
    "ref": "external_ref",
    "reason": "reason",
    "operator": "operator",
    "approver": "approver",
    "how": "how",
    "model": "model",
}


class ExportError(Exception):
    """An export or a statement cannot be made of this log. Its text is one line."""


class Transaction(NamedTuple):
    """An event that moved money. The amounts of its postings sum to zero per asset."""

    at_ms: int
    partition: int
    offset: int
    event: str
    tags: tuple[tuple[str, str], ...]
    postings: tuple[Posting, ...]
    epoch: int = 0  # in which it lies; 0 behind the last one, or where epochs are not looked at

    @property
    def day(self) -> int:
        """Days since 1970-01-01, in UTC."""
        return day_of(self.at_ms)


def transaction_of(partition: int, offset: int, event: Event, decision: Decision) -> Transaction | None:
    """The transaction that an event came to, None where it moved nothing. Raises ExportError for an absurd time."""
    if not decision.postings:
        return None
    check_time(partition, offset, event.at_ms)
    return Transaction(event.at_ms, partition, offset, event.type, tags_of(event), decision.postings)


def check_time(partition: int, offset: int, at_ms: int) -> None:
    """Raises ExportError for a time that no tool can write as a date."""
    if at_ms >= END_MS:
        raise ExportError(f"partition {partition} offset {offset}: its time is after the year {LAST_YEAR}")


def tags_of(event: Event) -> tuple[tuple[str, str], ...]:
    """What is said of an event beside its time and place."""
    found: list[tuple[str, str]] = []
    for tag, field in TAGS.items():
        value: object = getattr(event, field, None)
        if value is not None:
            found.append((tag, str(value)))
    return tuple(found)


def by_day(transaction: Transaction) -> tuple[int, ...]:
    """The order of an export."""
    return transaction.day, transaction.partition, transaction.offset


def by_epoch(transaction: Transaction) -> tuple[int, ...]:
    """The order of an export with balances at every cut: what lies behind the last epoch comes last."""
    return not transaction.epoch, transaction.epoch, *by_day(transaction)


SortKey = Callable[[Transaction], tuple[int, ...]]


class Cut(NamedTuple):
    """Where an epoch ended: the next offset of each partition, and when and over which log root it was closed."""

    epoch: int
    at_ms: int
    next_offsets: tuple[int, ...]
    log_root: str  # empty for an epoch that had none

    @property
    def day(self) -> int:
        """Days since 1970-01-01, in UTC, of the closing."""
        return day_of(self.at_ms)


class Epochs:
    """The epochs that are closed, in order."""

    def __init__(self, cuts: Sequence[Cut] = ()) -> None:
        self.cuts = cuts
        self._offsets = [list(offsets) for offsets in zip(*(cut.next_offsets for cut in cuts), strict=True)]

    def of(self, partition: int, offset: int) -> int:
        """The number of the epoch that a place lies in; 0 where that is not closed."""
        if not self.cuts:
            return 0
        behind = bisect_right(self._offsets[partition], offset)
        return self.cuts[behind].epoch if behind < len(self.cuts) else 0


class Tally:
    """What is known of an export's transactions only when all were seen, and must be written before them."""

    def __init__(self) -> None:
        self.transactions = 0
        self.balances: dict[tuple[str, str], int] = {}
        self.first_day_of: dict[str, int] = {}  # by account
        self.next_offsets: dict[int, int] = {}  # by partition, behind the last transaction
        self.days_of: dict[int, tuple[int, int]] = {}  # by epoch: the first and the last

    def add(self, transaction: Transaction) -> None:
        """Counts one more, in any order of partitions and days."""
        self.transactions += 1
        day = transaction.day
        for account, asset, amount_nano in transaction.postings:
            key = (account, asset)
            self.balances[key] = self.balances.get(key, 0) + amount_nano
            if day < self.first_day_of.get(account, day + 1):
                self.first_day_of[account] = day
        first, last = self.days_of.get(transaction.epoch, (day, day))
        self.days_of[transaction.epoch] = min(first, day), max(last, day)
        behind = transaction.offset + 1
        if behind > self.next_offsets.get(transaction.partition, 0):
            self.next_offsets[transaction.partition] = behind

    def assets(self) -> list[str]:
        """Every asset that was moved, in order."""
        return sorted({asset for _, asset in self.balances})

    def accounts(self) -> list[tuple[str, list[str]]]:
        """Every account with its assets, in order."""
        found: dict[str, list[str]] = {}
        for account, asset in sorted(self.balances):
            found.setdefault(account, []).append(asset)
        return list(found.items())


class Head(NamedTuple):
    """What an export says of itself. `until_day` is None for a cut by offsets, which has the `digest` of its books."""

    next_offsets: Mapping[int, int]
    digest: str | None
    until_day: int | None
    tally: Tally
    cuts: Sequence[Cut] = ()


class Balance(NamedTuple):
    """What an account has of an asset."""

    account: str
    asset: str
    nano: int


def cut_days(head: Head) -> dict[int, int]:
    """By epoch, the day that a file in the order of epochs has at its cut, when no day may follow a later one.

    The UTC day on which it was closed; or the last day of what lies before the cut, where that is later.
    """
    found: dict[int, int] = {}
    day = 0
    for cut in head.cuts:
        _, last = head.tally.days_of.get(cut.epoch, (0, 0))
        found[cut.epoch] = day = max(day, cut.day, last)
    return found


def clean_days(head: Head) -> dict[int, int]:
    """By epoch, the day that parts what lies before its cut from what lies behind, where there is one.

    All transactions before the cut are of earlier days; all others are of that day or later ones.
    """
    found: dict[int, int] = {}
    days = head.tally.days_of
    for index, cut in enumerate(head.cuts):
        before = [days[one.epoch][1] for one in head.cuts[: index + 1] if one.epoch in days]
        numbers = [*(one.epoch for one in head.cuts[index + 1 :]), 0]
        behind = [days[number][0] for number in numbers if number in days]
        if before and (not behind or max(before) < min(behind)):
            found[cut.epoch] = max(before) + 1
    return found


def format_cut(next_offsets: Mapping[int, int]) -> str:
    """0:12,1:40: the next offset of each partition, as `--until` takes it."""
    return ",".join(f"{partition}:{offset}" for partition, offset in sorted(next_offsets.items()))
