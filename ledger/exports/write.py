"""The one order in which every form is written: head, then by days the transactions and what they left behind."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from ledger.exports.transactions import Balance, ExportError, Head, Transaction


class Form(Protocol):
    """One tool's way to write books. Each method gives whole lines, or nothing."""

    def head(self, head: Head) -> str:
        """What comes before the first transaction."""
        ...

    def transaction(self, transaction: Transaction, after_nano: Sequence[int]) -> str:
        """One transaction; `after_nano` is what each posting's account has behind it, in the order of the file."""
        ...

    def assertion(self, day: int, balances: Sequence[Balance], last: bool) -> str:
        """What accounts have at the end of `day`: those that moved on it, or, the `last` time, all."""
        ...


def export(form: Form, head: Head, transactions: Iterable[Transaction]) -> Iterator[str]:
    """The whole export, piece by piece. `transactions` are sorted by `sort_key`.

    Raises ExportError, before the last assertions, where the transactions are not those that the head's tally counted.
    """
    yield form.head(head)
    running: dict[tuple[str, str], int] = {}
    touched: set[tuple[str, str]] = set()
    day: int | None = None
    for transaction in transactions:
        if day is not None and transaction.day != day:
            yield form.assertion(day, _balances(running, touched), last=False)
            touched.clear()
        day = transaction.day
        after_nano: list[int] = []
        for account, asset, amount_nano in transaction.postings:
            key = (account, asset)
            running[key] = running.get(key, 0) + amount_nano
            touched.add(key)
            after_nano.append(running[key])
        yield form.transaction(transaction, after_nano)
    if running != head.tally.balances:
        raise ExportError("the sorted transactions are not those that were read: the temporary file was damaged")
    if day is not None:
        yield form.assertion(day, _balances(running, running), last=True)


def _balances(running: dict[tuple[str, str], int], keys: Iterable[tuple[str, str]]) -> list[Balance]:
    return [Balance(*key, running[key]) for key in sorted(keys)]
