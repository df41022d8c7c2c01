"""What is exported: one transaction for each event of the log that moved money. Others moved none and are left out.

A transaction's day is that of its event's own time, in UTC. Times in a partition are not monotonic, so transactions are
sorted by day, then partition, then offset: the same file for the same events, whatever order they were read in.
"""

from __future__ import annotations

from collections.abc import Mapping
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


def sort_key(transaction: Transaction) -> tuple[int, int, int]:
    """The order of an export."""
    return transaction.day, transaction.partition, transaction.offset


class Tally:
    """What is known of an export's transactions only when all were seen, and must be written before them."""

    def __init__(self) -> None:
        self.transactions = 0
        self.balances: dict[tuple[str, str], int] = {}
        self.first_day_of: dict[str, int] = {}  # by account
        self.next_offsets: dict[int, int] = {}  # by partition, behind the last transaction

    def add(self, transaction: Transaction) -> None:
        """Counts one more, in any order of partitions and days."""
        self.transactions += 1
        day = transaction.day
        for account, asset, amount_nano in transaction.postings:
            key = (account, asset)
            self.balances[key] = self.balances.get(key, 0) + amount_nano
            if day < self.first_day_of.get(account, day + 1):
                self.first_day_of[account] = day
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


class Balance(NamedTuple):
    """What an account has of an asset."""

    account: str
    asset: str
    nano: int


def format_cut(next_offsets: Mapping[int, int]) -> str:
    """0:12,1:40: the next offset of each partition, as `--until` takes it."""
    return ",".join(f"{partition}:{offset}" for partition, offset in sorted(next_offsets.items()))
