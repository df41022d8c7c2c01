"""A statement as text, JSON and CSV. Amounts are exact; free text is made safe for terminals and spreadsheets."""

from __future__ import annotations

import json
from collections.abc import Sequence

from ledger.exports.csvs import csv_line
from ledger.exports.dates import day_of, iso_day, iso_time
from ledger.exports.names import plain
from ledger.exports.transactions import TAGS, format_cut
from ledger.money import format_amount
from ledger.statements import Entry, Section, Statement, format_usd

_DETAILS = tuple(tag for tag in TAGS if tag != "wallet")
CSV_COLUMNS = (
    "kind",
    "time",
    "asset",
    "amount_nano",
    "balance_nano",
    "rate_nano_usd",
    "usd_atto",
    "event",
    *_DETAILS,
    "prompt_tokens",
    "completion_tokens",
    "clamped",
    "partition",
    "offset",
)
_DETAIL_COLUMNS = (*_DETAILS, "prompt_tokens", "completion_tokens", "clamped")


def as_text(statement: Statement) -> str:
    """For a terminal."""
    lines = list(heading(statement))
    for section in statement.sections:
        lines += ["", section.asset, *_table(_rows(section))]
        if any(entry.rate_nano_usd is not None for entry in section.entries):
            lines.append(f"value at the recorded rates: {format_usd(section.usd_atto)} USD")
    return "\n".join(lines) + "\n"


def heading(statement: Statement) -> tuple[str, str]:
    """Whose, when, and from how much of the log."""
    first, last = iso_day(day_of(statement.begin_ms)), iso_day(day_of(statement.end_ms) - 1)
    return (
        f"Statement of {statement.account}, {first} to {last} (UTC)",
        f"from ledger.events up to, not with, offsets {format_cut(statement.next_offsets)}",
    )


def describe(entry: Entry) -> list[tuple[str, str]]:
    """Names and values of what is said of an entry, for people."""
    return [(name.replace("_", " "), value) for name, value in entry.details]


def _rows(section: Section) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("time", "amount", "balance", "USD", "in the log at", "what")]
    rows.append(("opening balance", "", format_amount(section.opening_nano), "", "", ""))
    for entry in section.entries:
        usd = entry.usd_atto
        rows.append(
            (
                iso_time(entry.at_ms),
                format_amount(entry.amount_nano),
                format_amount(entry.balance_nano),
                "" if usd is None else format_usd(usd),
                f"{entry.partition}/{entry.offset}",
                f"{entry.event} " + ", ".join(f"{name} {plain(value)}" for name, value in describe(entry)),
            )
        )
    rows.append(("closing balance", "", format_amount(section.closing_nano), "", "", ""))
    return rows


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    out: list[str] = []
    for row in rows:
        cells = [
            cell.rjust(width) if column in (1, 2, 3) else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        out.append("  ".join(cells).rstrip())
    return out


def as_json(statement: Statement) -> str:
    """For programs. Every integer is a string: JavaScript's numbers would round them."""
    told = {
        "statement": "1",
        "account": statement.account,
        "month": statement.month,
        "from": iso_time(statement.begin_ms),
        "until": iso_time(statement.end_ms),
        "next_offsets": {str(p): str(offset) for p, offset in sorted(statement.next_offsets.items())},
        "assets": [_json_section(section) for section in statement.sections],
    }
    return json.dumps(told, indent=2) + "\n"


def _json_section(section: Section) -> dict[str, object]:
    return {
        "asset": section.asset,
        "opening_nano": str(section.opening_nano),
        "entries": [_json_entry(entry) for entry in section.entries],
        "closing_nano": str(section.closing_nano),
        "usd_atto": str(section.usd_atto),
    }


def _json_entry(entry: Entry) -> dict[str, object]:
    return {
        "time": iso_time(entry.at_ms),
        "event": entry.event,
        "amount_nano": str(entry.amount_nano),
        "balance_nano": str(entry.balance_nano),
        "rate_nano_usd": None if entry.rate_nano_usd is None else str(entry.rate_nano_usd),
        "usd_atto": None if entry.usd_atto is None else str(entry.usd_atto),
        "partition": str(entry.partition),
        "offset": str(entry.offset),
        "details": dict(entry.details),
    }


def as_csv(statement: Statement) -> str:
    """For spreadsheets: a row for each opening balance, entry and closing balance."""
    lines = [csv_line(CSV_COLUMNS)]
    for section in statement.sections:
        lines.append(_csv_balance("opening", iso_time(statement.begin_ms), section.asset, section.opening_nano))
        lines += [_csv_entry(section.asset, entry) for entry in section.entries]
        lines.append(_csv_balance("closing", iso_time(statement.end_ms), section.asset, section.closing_nano))
    return "".join(lines)


def _csv_balance(kind: str, time: str, asset: str, nano: int) -> str:
    return csv_line([kind, time, asset, "", str(nano), *[""] * (len(CSV_COLUMNS) - 5)])


def _csv_entry(asset: str, entry: Entry) -> str:
    details = dict(entry.details)
    return csv_line(
        [
            "entry",
            iso_time(entry.at_ms),
            asset,
            str(entry.amount_nano),
            str(entry.balance_nano),
            "" if entry.rate_nano_usd is None else str(entry.rate_nano_usd),
            "" if entry.usd_atto is None else str(entry.usd_atto),
            entry.event,
            *(plain(details.get(name, "")) for name in _DETAIL_COLUMNS),
            str(entry.partition),
            str(entry.offset),
        ]
    )
