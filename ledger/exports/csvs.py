"""CSV: a row for each posting. What the account has behind it stands in the row, in place of assertions."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

from ledger.exports.dates import iso_day, iso_time
from ledger.exports.names import plain
from ledger.exports.transactions import TAGS, Balance, Cut, Head, Transaction

COLUMNS = (
    "date",
    "time",
    "partition",
    "offset",
    "posting",
    "event",
    "account",
    "asset",
    "amount_nano",
    "balance_nano",
    "epoch",
    *TAGS,
)


class Csv:
    """Writes CSV: UTF-8 (ASCII, in fact), comma, quotes where needed, LF."""

    by_epoch = False

    def head(self, head: Head) -> str:
        """The names of the columns."""
        return csv_line(COLUMNS)

    def transaction(self, transaction: Transaction, day: int, after_nano: Sequence[int]) -> str:
        """Its postings, numbered from 0. Without an epoch where it lies in none that is closed."""
        told = dict(transaction.tags)
        tags = [str(transaction.epoch or ""), *(plain(told.get(tag, "")) for tag in TAGS)]
        head = [
            iso_day(day),
            iso_time(transaction.at_ms),
            str(transaction.partition),
            str(transaction.offset),
        ]
        rows = [
            [*head, str(number), transaction.event, p.account, p.asset, str(p.amount_nano), str(after), *tags]
            for number, (p, after) in enumerate(zip(transaction.postings, after_nano, strict=True))
        ]
        return "".join(csv_line(row) for row in rows)

    def assertion(self, day: int, balances: Sequence[Balance], last: bool) -> str:
        """Nothing: each row has its balance."""
        return ""

    def epoch(self, cut: Cut, day: int, balances: Sequence[Balance]) -> str:
        """Nothing: each row has its epoch."""
        return ""


def csv_line(fields: Iterable[str]) -> str:
    """One row."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(fields)
    return buffer.getvalue()
