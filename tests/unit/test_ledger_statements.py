"""Statements: golden files, opening plus entries is closing, months chain, values are exact."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import pytest
from exports_kit import NASTY_REF, balances_of, fold, is_golden, small_log, statement_of

from ledger.exports.statement_html import as_html
from ledger.exports.statement_text import as_csv, as_json, as_text
from ledger.exports.transactions import ExportError
from ledger.statements import Statement, StatementBuilder, format_usd

MONTHS = ["2026-12", "2027-01", "2027-02", "2027-03", "2027-04"]
RENDERERS = [(as_text, "txt"), (as_json, "json"), (as_csv, "csv"), (as_html, "html")]


@pytest.mark.parametrize(("render", "suffix"), RENDERERS, ids=[suffix for _, suffix in RENDERERS])
@pytest.mark.parametrize(("account", "name"), [("wallet:acme", "wallet"), ("provider:gpu-1", "provider")])
def test_golden(render: Callable[[Statement], str], suffix: str, account: str, name: str) -> None:
    statement = statement_of(account, "2027-01" if name == "wallet" else "2027-02", *fold(small_log()))
    is_golden(f"statement-{name}.{suffix}", render(statement))


def test_opening_plus_entries_is_closing_and_months_chain() -> None:
    told, books = fold(small_log())
    balances = balances_of(books)
    for account in {account for account, _ in balances}:
        closing: dict[str, int] = {}
        entries = 0
        for month in MONTHS:
            for section in statement_of(account, month, told, books).sections:
                assert section.opening_nano == closing.get(section.asset, 0)
                running = section.opening_nano
                for entry in section.entries:
                    running += entry.amount_nano
                    assert entry.balance_nano == running
                assert section.closing_nano == running
                closing[section.asset] = running
                entries += len(section.entries)
        assert closing == {asset: nano for (name, asset), nano in balances.items() if name == account}
        assert entries == sum(row.entries for b in books for key, row in b.accounts.items() if key[0] == account)


def test_an_entry_belongs_to_the_month_of_its_own_time() -> None:
    """Request 2's usage stands before a credit of January in the log, and is February's all the same."""
    statement = statement_of("platform:sandbox", "2027-02", *fold(small_log()))
    assert [entry.offset for entry in statement.sections[0].entries] == [4]


def test_usd_is_the_exact_product_with_the_recorded_rate_and_credits_have_none() -> None:
    statement = statement_of("wallet:acme", "2027-01", *fold(small_log()))
    shiver = statement.sections[0]
    credit, charge = shiver.entries
    assert credit.usd_atto is None
    charged = 7 * 1_000_000 + 13 * 2_000_001
    assert charge.amount_nano == -charged
    assert charge.usd_atto == -charged * 123_456_789 == shiver.usd_atto
    assert format_usd(charge.usd_atto) == "-0.004074075641938257"


@pytest.mark.parametrize(
    ("usd_atto", "text"),
    [(0, "0.00"), (1, "0.000000000000000001"), (-(10**18), "-1.00"), (5 * 10**17, "0.50"), (10**36, f"{10**18}.00")],
)
def test_usd_is_written_exactly(usd_atto: int, text: str) -> None:
    assert format_usd(usd_atto) == text


def test_json_has_strings_for_integers_and_gives_text_back() -> None:
    found = json.loads(as_json(statement_of("wallet:acme", "2027-01", *fold(small_log()))), parse_int=_no_number)
    assert found["assets"][0]["entries"][0]["details"]["ref"] == NASTY_REF
    assert found["assets"][0]["entries"][0]["rate_nano_usd"] is None


def _no_number(text: str) -> Any:
    raise AssertionError(f"a number: {text}")


def test_csv_chains_row_by_row() -> None:
    rows = list(csv.DictReader(io.StringIO(as_csv(statement_of("wallet:acme", "2027-01", *fold(small_log()))))))
    for asset in ("SHIVER", "USDC"):
        mine = [row for row in rows if row["asset"] == asset]
        assert [mine[0]["kind"], mine[-1]["kind"]] == ["opening", "closing"]
        total = sum(int(row["amount_nano"]) for row in mine if row["kind"] == "entry")
        assert int(mine[0]["balance_nano"]) + total == int(mine[-1]["balance_nano"])


def test_html_is_one_safe_file() -> None:
    seen: list[tuple[str, list[tuple[str, str | None]]]] = []

    class Parser(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            seen.append((tag, attrs))

    page = as_html(statement_of("wallet:acme", "2027-01", *fold(small_log())))
    Parser().feed(page)
    assert not {tag for tag, _ in seen} & {"script", "link", "img", "iframe"}
    assert not {name for _, attrs in seen for name, _ in attrs} & {"src", "href", "onclick"}
    assert "url(" not in page
    assert "@import" not in page
    assert "&lt;script&gt;" in page
    assert "@page { size: A4" in page


@pytest.mark.parametrize(("render", "suffix"), RENDERERS, ids=[suffix for _, suffix in RENDERERS])
def test_a_provider_is_not_told_whose_request_it_was(render: Callable[[Statement], str], suffix: str) -> None:
    page = render(statement_of("provider:gpu-1", "2027-02", *fold(small_log())))
    assert "acme" not in page


def test_a_provider_is_told_its_own_tokens() -> None:
    statement = statement_of("provider:Gpu_2", "2027-02", *fold(small_log()))
    assert statement.sections[0].entries == ()
    january = statement_of("provider:Gpu_2", "2027-01", *fold(small_log())).sections[0].entries
    assert [dict(entry.details)["completion_tokens"] for entry in january] == ["3"]


def test_an_account_without_entries_is_said() -> None:
    with pytest.raises(ExportError, match="the log has no entry of wallet:acmee"):
        statement_of("wallet:acmee", "2027-01", *fold(small_log()))


def test_entries_that_are_not_the_books_are_refused() -> None:
    told, books = fold(small_log())
    builder = StatementBuilder("wallet:acme", "2027-01")
    for one in told[1:]:
        builder.add(*one)
    with pytest.raises(ExportError, match="but the books have"):
        builder.finish({}, balances_of(books))
