"""A beancount file. Its accounts never have sub-accounts, since beancount's assertions would include them."""

from __future__ import annotations

from collections.abc import Sequence

from ledger.exports.dates import iso_day, iso_time
from ledger.exports.hledger import about
from ledger.exports.names import commodity, plain, to_beancount
from ledger.exports.transactions import Balance, Cut, Head, Transaction


class Beancount:
    """Writes a beancount file."""

    by_epoch = False

    def head(self, head: Head) -> str:
        """The cut as comments; commodities and accounts, each opened on the day of its first posting."""
        lines = [f"; {line}" for line in about(head)]
        lines += ["", 'option "title" "Shiver ledger"']
        first_days = head.tally.first_day_of
        if first_days:
            first = iso_day(min(first_days.values()))
            lines += [f"{first} commodity {commodity(asset)}" for asset in head.tally.assets()]
        for account, assets in head.tally.accounts():
            units = ",".join(commodity(asset) for asset in assets)
            lines.append(f"{iso_day(first_days[account])} open {to_beancount(account)} {units}")
            lines.append(f'  account: "{account}"')
        return "\n".join(lines) + "\n"

    def transaction(self, transaction: Transaction, day: int, after_nano: Sequence[int]) -> str:
        """Its place, time and tags are metadata."""
        lines = [
            "",
            f'{iso_day(day)} * "{transaction.event}"',
            f"  partition: {transaction.partition}",
            f"  offset: {transaction.offset}",
            f'  time: "{iso_time(transaction.at_ms)}"',
            *(f'  {tag}: "{plain(value)}"' for tag, value in transaction.tags),
            *(f"  {to_beancount(p.account)}  {p.amount_nano} {commodity(p.asset)}" for p in transaction.postings),
        ]
        return "\n".join(lines) + "\n"

    def assertion(self, day: int, balances: Sequence[Balance], last: bool) -> str:
        """Dated the day after: beancount looks at the beginning of a day."""
        return _asserted(f"the end of {'the export' if last else 'the day'}", day + 1, balances)

    def epoch(self, cut: Cut, day: int, balances: Sequence[Balance]) -> str:
        """Only where the beginning of a day is the cut."""
        return _asserted(f"the cut of epoch {cut.epoch}", day, balances)


def _asserted(where: str, day: int, balances: Sequence[Balance]) -> str:
    date = iso_day(day)
    lines = ["", f"; balances at {where}"]
    lines += [f"{date} balance {to_beancount(b.account)}  {b.nano} {commodity(b.asset)}" for b in balances]
    return "\n".join(lines) + "\n"
