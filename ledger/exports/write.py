"""The order in which every form is written: head, then by days the transactions and what they left behind.

`told` walks through the transactions; `export` has a form write what it is told. Two orders (`Form.by_epoch`):

by day     transactions by their own days. An epoch's balances stand between two days where such a border parts what
           lies before its cut from all else (`transactions.clean_days`), else nowhere.
by epoch   what lies before a cut, then the balances there, then what lies behind. Days must not go back, so what lies
           behind a cut and is of an earlier day is dated with the day of the cut (`transactions.cut_days`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

from ledger.exports.transactions import Balance, Cut, ExportError, Head, Transaction, clean_days, cut_days


class Form(Protocol):
    """One tool's way to write books. Each method gives whole lines, or nothing."""

    #: Whether it wants the order of epochs.
    by_epoch: bool

    def head(self, head: Head) -> str:
        """What comes before the first transaction."""
        ...

    def transaction(self, transaction: Transaction, day: int, after_nano: Sequence[int]) -> str:
        """One transaction, dated `day`; `after_nano` is what each posting's account has behind it, in this order."""
        ...

    def assertion(self, day: int, balances: Sequence[Balance], last: bool) -> str:
        """What accounts have at the end of `day`: those that moved on it, or, the `last` time, all."""
        ...

    def epoch(self, cut: Cut, day: int, balances: Sequence[Balance]) -> str:
        """What accounts that moved since the last such time have at the cut: at its place on `day` in the order of
        epochs, at the beginning of `day` in that of days.
        """
        ...


class Moved(NamedTuple):
    """A transaction, its date, and what each posting's account has behind it."""

    transaction: Transaction
    day: int
    after_nano: Sequence[int]


class DayEnds(NamedTuple):
    """What accounts have at the end of a day: those that moved on it; all, the last time."""

    day: int
    balances: Sequence[Balance]
    last: bool


class EpochEnds(NamedTuple):
    """What accounts have at a cut: those that moved since the one before."""

    cut: Cut
    day: int
    balances: Sequence[Balance]


Told = Moved | DayEnds | EpochEnds


class _Books:
    """Balances so far, and what moved since when."""

    def __init__(self) -> None:
        self.nano: dict[tuple[str, str], int] = {}
        self._today: set[tuple[str, str]] = set()
        self._in_epoch: set[tuple[str, str]] = set()

    def move(self, transaction: Transaction) -> list[int]:
        after_nano = list[int]()
        for account, asset, amount_nano in transaction.postings:
            key = (account, asset)
            self.nano[key] = self.nano.get(key, 0) + amount_nano
            self._today.add(key)
            self._in_epoch.add(key)
            after_nano.append(self.nano[key])
        return after_nano

    def end_of(self, day: int) -> DayEnds:
        moved, self._today = self._today, set()
        return DayEnds(day, self._of(moved), last=False)

    def end_of_epoch(self, cut: Cut, day: int) -> EpochEnds:
        moved, self._in_epoch = self._in_epoch, set()
        return EpochEnds(cut, day, self._of(moved))

    def end_of_all(self, day: int) -> DayEnds:
        return DayEnds(day, self._of(self.nano), last=True)

    def _of(self, keys: Iterable[tuple[str, str]]) -> list[Balance]:
        return [Balance(*key, self.nano[key]) for key in sorted(keys)]


def told(head: Head, transactions: Iterable[Transaction], by_epoch: bool) -> Iterator[Told]:
    """Everything to be written behind the head. `transactions` are sorted by `by_epoch` or `by_day`.

    Raises ExportError, before the last balances, where the transactions are not those that the head's tally counted.
    """
    books = _Books()
    days = cut_days(head) if by_epoch else clean_days(head)
    cuts = [cut for cut in head.cuts if cut.epoch in days]
    day: int | None = None
    for transaction in transactions:
        date = transaction.day
        while cuts and (_is_behind(transaction, cuts[0]) if by_epoch else days[cuts[0].epoch] <= date):
            cut = cuts.pop(0)
            at = days[cut.epoch]
            if day is not None and day < at:
                yield books.end_of(day)
                day = at if by_epoch else None
            yield books.end_of_epoch(cut, at)
        if by_epoch and day is not None:
            date = max(day, date)
        if day is not None and day < date:
            yield books.end_of(day)
        day = date
        yield Moved(transaction, date, books.move(transaction))
    if books.nano != head.tally.balances:
        raise ExportError("the sorted transactions are not those that were read: the temporary file was damaged")
    for cut in cuts:
        at = days[cut.epoch]
        if day is not None and by_epoch and day < at:
            yield books.end_of(day)
            day = at
        yield books.end_of_epoch(cut, at)
    if day is not None:
        yield books.end_of_all(day)


def _is_behind(transaction: Transaction, cut: Cut) -> bool:
    return transaction.epoch == 0 or transaction.epoch > cut.epoch


def export(form: Form, head: Head, transactions: Iterable[Transaction]) -> Iterator[str]:
    """The whole export, piece by piece. Raises as `told` does."""
    yield form.head(head)
    for one in told(head, transactions, form.by_epoch):
        if isinstance(one, Moved):
            yield form.transaction(*one)
        elif isinstance(one, DayEnds):
            yield form.assertion(*one)
        elif one.balances:
            yield form.epoch(*one)
