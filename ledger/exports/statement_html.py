"""A statement as one HTML file: no script, nothing from elsewhere, and laid out so that printing it gives the PDF."""

from __future__ import annotations

from html import escape

from ledger.exports.dates import iso_time
from ledger.exports.statement_text import describe, heading
from ledger.money import format_amount
from ledger.statements import Entry, Section, Statement, format_usd

_STYLE = """\
@page { size: A4; margin: 18mm 14mm; }
body { font: 10pt/1.4 sans-serif; color: #111; margin: 2em auto; max-width: 62em; padding: 0 1em; }
h1 { font-size: 15pt; margin: 0; }
h2 { font-size: 12pt; margin: 1.6em 0 .4em; break-after: avoid; }
p { margin: .2em 0; color: #444; overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; }
thead { display: table-header-group; }
tr { break-inside: avoid; }
th, td { padding: .25em .5em; text-align: left; vertical-align: top; border-bottom: 1px solid #ccc; }
td.what { overflow-wrap: anywhere; }
.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.balance td { font-weight: bold; border-bottom: 2px solid #111; }
@media print { body { margin: 0; max-width: none; padding: 0; font-size: 8.5pt; } }
"""
_HEAD = """\
<thead><tr><th>Time (UTC)</th><th>Entry</th><th class="number">Amount</th><th class="number">Balance</th>\
<th class="number">USD</th><th>In the log at</th></tr></thead>
"""


def as_html(statement: Statement) -> str:
    """The whole document."""
    title, source = heading(statement)
    body = "".join(_section(section) for section in statement.sections)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>{escape(title)}</title>\n<style>\n{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n<p>{escape(source)}</p>\n{body}"
        "<p>Amounts are exact. USD is the value at the rate that was recorded when the request was accepted.</p>\n"
        "</body>\n</html>\n"
    )


def _section(section: Section) -> str:
    rows = "".join(_entry(entry) for entry in section.entries)
    total = ""
    if any(entry.rate_nano_usd is not None for entry in section.entries):
        total = f"<p>Value at the recorded rates: {format_usd(section.usd_atto)} USD</p>\n"
    return (
        f"<h2>{escape(section.asset)}</h2>\n<table>\n{_HEAD}<tbody>\n"
        f"{_balance('Opening balance', section.opening_nano)}{rows}{_balance('Closing balance', section.closing_nano)}"
        f"</tbody>\n</table>\n{total}"
    )


def _balance(name: str, nano: int) -> str:
    return (
        f'<tr class="balance"><td colspan="3">{name}</td><td class="number">{format_amount(nano)}</td>'
        "<td></td><td></td></tr>\n"
    )


def _entry(entry: Entry) -> str:
    what = ", ".join(f"{escape(name)} <bdi>{escape(value)}</bdi>" for name, value in describe(entry))
    usd = "" if entry.usd_atto is None else format_usd(entry.usd_atto)
    return (
        f"<tr><td>{iso_time(entry.at_ms)}</td>"
        f'<td class="what">{escape(entry.event)}<br>{what}</td>'
        f'<td class="number">{format_amount(entry.amount_nano)}</td>'
        f'<td class="number">{format_amount(entry.balance_nano)}</td>'
        f'<td class="number">{usd}</td>'
        f"<td>{entry.partition}/{entry.offset}</td></tr>\n"
    )
