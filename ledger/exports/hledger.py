"""An hledger journal. It passes `hledger check --strict`: every account and commodity is declared.

hledger checks the assertions of a day in the order in which it reads them, so the balances at an epoch's cut stand
between what lies before it and what lies behind.
"""

from __future__ import annotations

from collections.abc import Sequence

from ledger.exports.dates import iso_day, iso_time
from ledger.exports.names import EQUITY_HEADS, commodity, plain, to_hledger
from ledger.exports.transactions import Balance, Cut, Head, Transaction, format_cut


class Hledger:
    """Writes a journal."""

    by_epoch = True

    def head(self, head: Head) -> str:
        """The cut as comments; then what strict checks want declared."""
        lines = [f"; {line}" for line in about(head)]
        if head.cuts:
            lines.append("; but what lies behind an epoch's cut is not dated before it: the tag time has its own time")
        lines += ["", *(f"commodity 1000. {commodity(asset)}" for asset in head.tally.assets())]
        declared: set[str] = set()
        for account, _ in head.tally.accounts():
            name = to_hledger(account)
            top = name.partition(":")[0]
            if top not in declared:
                declared.add(top)
                lines.append(f"account {top}  ; type:{'E' if top in EQUITY_HEADS else 'A'}")
            if name not in declared:
                declared.add(name)
                lines.append(f"account {name}")
        return "\n".join(lines) + "\n"

    def transaction(self, transaction: Transaction, day: int, after_nano: Sequence[int]) -> str:
        """Its place is its code and stands in tags too, so that `hledger print tag:request=...` finds it."""
        tags = [
            f"partition:{transaction.partition}",
            f"offset:{transaction.offset}",
            f"time:{iso_time(transaction.at_ms)}",
            *(f"{tag}:{plain(value)}" for tag, value in transaction.tags),
        ]
        place = f"{transaction.partition}/{transaction.offset}"
        lines = [
            "",
            f"{iso_day(day)} * ({place}) {transaction.event}",
            f"    ; {', '.join(tags)}",
            *(f"    {to_hledger(p.account)}  {p.amount_nano} {commodity(p.asset)}" for p in transaction.postings),
        ]
        return "\n".join(lines) + "\n"

    def assertion(self, day: int, balances: Sequence[Balance], last: bool) -> str:
        """Postings of nothing, each with what its account must have, sub-accounts apart."""
        lines = ["", f"{iso_day(day)} * balances at the end of {'the export' if last else 'the day'}"]
        return "\n".join(lines + _asserted(balances)) + "\n"

    def epoch(self, cut: Cut, day: int, balances: Sequence[Balance]) -> str:
        """As the others; the cut and its log root are tags."""
        tags = [f"epoch:{cut.epoch}", f"closed:{iso_time(cut.at_ms)}", f"cut:{_offsets(cut)}"]
        tags += [f"log_root:{cut.log_root}"] if cut.log_root else []
        lines = ["", f"{iso_day(day)} * balances at the cut of epoch {cut.epoch}", f"    ; {', '.join(tags)}"]
        return "\n".join(lines + _asserted(balances)) + "\n"


def _asserted(balances: Sequence[Balance]) -> list[str]:
    units = [commodity(asset) for _, asset, _ in balances]
    return [f"    {to_hledger(b.account)}  0 {unit} = {b.nano} {unit}" for b, unit in zip(balances, units, strict=True)]


def _offsets(cut: Cut) -> str:
    # A comma would end the tag.
    return " ".join(format_cut(dict(enumerate(cut.next_offsets))).split(","))


def about(head: Head) -> list[str]:
    """What an export says of itself in its first lines. Nothing that changes with the day on which it is made."""
    if head.until_day is None:
        lines = [f"Shiver ledger: ledger.events up to, not with, offsets {format_cut(head.next_offsets)}"]
    else:
        lines = [
            f"Shiver ledger: events of ledger.events whose UTC day is {iso_day(head.until_day)} or before",
            f"the last of them stand before offsets {format_cut(head.next_offsets)}",
        ]
    if head.digest is not None:
        lines.append(f"digest of the books there: {head.digest}")
    if head.cuts:
        first, last = head.cuts[0].epoch, head.cuts[-1].epoch
        lines.append(f"epochs {first} to {last} are closed there")
    return [
        *lines,
        f"{head.tally.transactions} transactions, {len(head.tally.first_day_of)} accounts",
        "amounts are integers in nano units (1e-9) of an asset; dates are UTC days of the events' own times",
    ]
