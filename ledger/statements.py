"""A month of one account: what it had, every entry, what it has. Pure: built from the fold, rendered in ledger/exports.

Months are UTC months of the events' own times, so that a month's closing balance is the next one's opening balance. An
event that is appended late belongs to the month of its own time; a statement says how far the log was read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ledger.books import CHARGED
from ledger.decide import Decision
from ledger.exports.dates import month_ms
from ledger.exports.transactions import ExportError, check_time, tags_of
from schemas.events import Event, UsageRecorded

ATTO = 10**18


class Entry(NamedTuple):
    """One posting of the account. `rate_nano_usd` is what its request's accept recorded; None for a credit."""

    at_ms: int
    partition: int
    offset: int
    event: str
    amount_nano: int
    balance_nano: int  # behind this entry
    details: tuple[tuple[str, str], ...]
    rate_nano_usd: int | None

    @property
    def usd_atto(self) -> int | None:
        """The amount's value in 1e-18 USD, exactly: nano units times nano USD a unit."""
        return None if self.rate_nano_usd is None else self.amount_nano * self.rate_nano_usd


class Section(NamedTuple):
    """The month in one asset. Opening plus entries is closing."""

    asset: str
    opening_nano: int
    entries: tuple[Entry, ...]
    closing_nano: int

    @property
    def usd_atto(self) -> int:
        """The value of all entries that have a rate."""
        return sum(entry.usd_atto or 0 for entry in self.entries)


class Statement(NamedTuple):
    """What a wallet or a provider is told about a month. `next_offsets` is how far the log was read."""

    account: str
    month: str
    begin_ms: int
    end_ms: int
    next_offsets: Mapping[int, int]
    sections: tuple[Section, ...]


class StatementBuilder:
    """Is told every event of the log in the order of each partition, then makes the statement.

    Keeps the month's entries of the account in memory, nothing else that grows.
    """

    def __init__(self, account: str, month: str) -> None:
        """Raises ValueError for what is no month."""
        self.account = account
        self.month = month
        self.begin_ms, self.end_ms = month_ms(month)
        self._opening: dict[str, int] = {}
        self._entries: dict[str, list[Entry]] = {}
        self._all: dict[str, int] = {}

    def add(self, partition: int, offset: int, event: Event, decision: Decision) -> None:
        """One event and what it came to. Raises ExportError for a time that has no date."""
        for posting in decision.postings:
            if posting.account != self.account:
                continue
            check_time(partition, offset, event.at_ms)
            asset, amount_nano = posting.asset, posting.amount_nano
            self._all[asset] = self._all.get(asset, 0) + amount_nano
            if event.at_ms < self.begin_ms:
                self._opening[asset] = self._opening.get(asset, 0) + amount_nano
            elif event.at_ms < self.end_ms:
                rate = None if decision.request is None else decision.request.rate_nano_usd
                details = _details(self.account, event, decision)
                entry = Entry(event.at_ms, partition, offset, event.type, amount_nano, 0, details, rate)
                self._entries.setdefault(asset, []).append(entry)

    def finish(self, next_offsets: Mapping[int, int], balances: Mapping[tuple[str, str], int]) -> Statement:
        """The statement. Raises ExportError where the books know no such account, or have another balance of it."""
        wanted = {asset: nano for (account, asset), nano in balances.items() if account == self.account}
        if not wanted:
            raise ExportError(f"the log has no entry of {self.account}")
        if wanted != self._all:
            raise ExportError(f"the entries of {self.account} sum to {self._all}, but the books have {wanted}")
        sections = tuple(self._section(asset) for asset in sorted(self._all))
        return Statement(self.account, self.month, self.begin_ms, self.end_ms, dict(next_offsets), sections)

    def _section(self, asset: str) -> Section:
        balance_nano = opening_nano = self._opening.get(asset, 0)
        entries: list[Entry] = []
        for entry in sorted(self._entries.get(asset, []), key=lambda e: (e.at_ms, e.partition, e.offset)):
            balance_nano += entry.amount_nano
            entries.append(entry._replace(balance_nano=balance_nano))
        return Section(asset, opening_nano, tuple(entries), balance_nano)


def _details(account: str, event: Event, decision: Decision) -> tuple[tuple[str, str], ...]:
    """What is said of an entry. A provider is told its own tokens, and not whose request it was."""
    told = [(tag, value) for tag, value in tags_of(event) if tag != "wallet"]
    request = decision.request
    if request is None or request.status != CHARGED:
        return tuple(told)
    provider = account.removeprefix("provider:")
    if account != provider and isinstance(event, UsageRecorded):
        own = sum(segment.tokens for segment in event.segments if segment.provider == provider)
        return (*told, ("completion_tokens", str(own)))
    told += [
        ("prompt_tokens", str(request.prompt_tokens)),
        ("completion_tokens", str(request.completion_tokens)),
    ]
    return (*told, ("clamped", "to the hold")) if request.clamped else tuple(told)


def format_usd(usd_atto: int) -> str:
    """The exact decimal in USD, without trailing zeros beyond the cent."""
    whole, fraction = divmod(abs(usd_atto), ATTO)
    digits = f"{fraction:018}".rstrip("0").ljust(2, "0")
    return f"{'-' if usd_atto < 0 else ''}{whole}.{digits}"
