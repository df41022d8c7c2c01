"""Exports: golden files, names that go both ways, one file for one cut, sorting with bounded memory."""

from __future__ import annotations

import ast
import csv
import io
import random
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
from exports_kit import (
    balances_of,
    credited,
    exported,
    fold,
    is_golden,
    small_log,
    transactions_of,
)
from hypothesis import example, given
from hypothesis import strategies as st

from ledger import exports
from ledger.exports.beancount import Beancount
from ledger.exports.csvs import Csv
from ledger.exports.dates import END_MS, iso_day, iso_time, month_ms, parse_day
from ledger.exports.hledger import Hledger
from ledger.exports.names import from_beancount, from_hledger, from_plain, plain, to_beancount, to_hledger
from ledger.exports.transactions import ExportError, Head, Tally, by_day, format_cut
from ledger.exports.write import Form, export
from ledger.spool import Spool

FORMS = [(Hledger(), "export.journal"), (Beancount(), "export.beancount"), (Csv(), "export.csv")]
IDS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,79}", fullmatch=True)
ODD_IDS = ["own", "Own", "0-x", "-2d", "a:", "x%3Ay"]
SHARED = ["burn", "platform", "platform:sandbox", "platform:losses", "world", "adjustments", "burn:pending"]
HEADS = st.sampled_from(["wallet", "provider"])
ACCOUNTS = st.sampled_from(SHARED) | st.builds("{}:{}".format, HEADS, IDS | st.sampled_from(ODD_IDS))
BEANCOUNT_ACCOUNT = re.compile(r"(Assets|Equity)(:[A-Z0-9][A-Za-z0-9-]*){2}")


@pytest.mark.parametrize(("form", "name"), FORMS, ids=[name for _, name in FORMS])
def test_golden(form: Form, name: str) -> None:
    is_golden(name, exported(form, *fold(small_log())))


@pytest.mark.parametrize(("form", "name"), FORMS, ids=[name for _, name in FORMS])
def test_one_cut_is_one_file_however_it_was_read(form: Form, name: str) -> None:
    told, books = fold(small_log())
    whole = exported(form, told, books)
    for seed in range(5):
        mixed = told.copy()
        random.Random(seed).shuffle(mixed)
        assert exported(form, mixed, books, run_transactions=1 + seed) == whole


@pytest.mark.parametrize(("form", "name"), FORMS, ids=[name for _, name in FORMS])
def test_as_of_a_day_does_not_change_when_the_log_grows(form: Form, name: str) -> None:
    log = small_log()
    day = parse_day("2027-02-01")
    before = exported(form, *fold([log[0], log[1][:1]]), until_day=day)
    assert exported(form, *fold(log), until_day=day) == before
    assert "2027-02-02 *" not in before


@pytest.mark.parametrize(("form", "name"), FORMS, ids=[name for _, name in FORMS])
def test_an_empty_log_is_a_legal_file(form: Form, name: str) -> None:
    text = exported(form, *fold([[], []]))
    assert "2027" not in text
    assert text.endswith("\n")


def test_csv_sums_to_the_books() -> None:
    told, books = fold(small_log())
    sums: dict[tuple[str, str], int] = {}
    by_event: dict[tuple[str, str, str], int] = {}
    for row in csv.DictReader(io.StringIO(exported(Csv(), told, books))):
        key, amount = (row["account"], row["asset"]), int(row["amount_nano"])
        sums[key] = sums.get(key, 0) + amount
        assert int(row["balance_nano"]) == sums[key]
        place = (row["partition"], row["offset"], row["asset"])
        by_event[place] = by_event.get(place, 0) + amount
    assert sums == balances_of(books)
    assert set(by_event.values()) == {0}


def test_every_account_is_asserted_at_the_end() -> None:
    told, books = fold(small_log())
    last = exported(Hledger(), told, books).partition("* balances at the end of the export\n")[2].splitlines()
    assert [line.strip() for line in last] == [
        f"{to_hledger(account)}  0 {asset}NANO = {nano} {asset}NANO"
        for (account, asset), nano in sorted(balances_of(books).items())
    ]


@given(ACCOUNTS)
def test_names_go_both_ways_and_are_legal(account: str) -> None:
    assert from_hledger(to_hledger(account)) == account
    assert to_hledger(account).count(":") <= 1  # no sub-accounts within an id
    name = to_beancount(account)
    assert BEANCOUNT_ACCOUNT.fullmatch(name)
    assert from_beancount(name) == account


def test_names_as_documented() -> None:
    assert to_hledger("wallet:a:b") == "wallet:a%3Ab"
    assert to_beancount("wallet:acme_1") == "Assets:Wallet:Acme-5f1"
    assert to_beancount("wallet:Acme") == "Assets:Wallet:0-Acme"
    assert to_beancount("wallet:own") == "Assets:Wallet:0-own"
    assert to_beancount("platform") == "Assets:Platform:Own"
    assert to_beancount("world") == "Equity:World:Own"


@pytest.mark.parametrize("name", ["Assets", "Assets:Wallet", "Income:Wallet:Own", "Assets:Wallet:A-5"])
def test_a_name_that_is_not_ours_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"no account of ours|no part of an account"):
        from_beancount(name)


@example("an end ")
@example(" ")
@example("=1+1")
@example("-")
@example("a\r\nb\t\x00")
@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=30))
def test_free_text_is_harmless_and_comes_back(text: str) -> None:
    safe = plain(text)
    assert from_plain(safe) == text
    assert safe.isascii()
    assert safe.isprintable()
    assert not set(safe) & set('",;\\|<>[]')
    assert safe == safe.strip()
    assert safe[:1] not in ("=", "+", "-", "@")


@given(st.integers(0, END_MS - 1))
def test_times_are_utc(at_ms: int) -> None:
    told = datetime.fromtimestamp(at_ms // 1000, UTC).replace(microsecond=at_ms % 1000 * 1000)
    assert iso_time(at_ms) == told.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    assert iso_day(parse_day(iso_time(at_ms)[:10])) == iso_time(at_ms)[:10]
    begin, end = month_ms(iso_time(at_ms)[:7])
    assert begin <= at_ms < end


@pytest.mark.parametrize(
    "month", ["2027", "2027-13", "2027-00", "1969-12", "2901-01", "27-01", "2027-1", "2027-01-01", "\uff12027-01"]
)
def test_what_is_no_month_is_said(month: str) -> None:
    with pytest.raises(ValueError, match=r"month|year"):
        month_ms(month)


@pytest.mark.parametrize("day", ["2027", "2027-02-29", "20270201", "2027-W01-1", "1969-12-31", "2901-01-01"])
def test_what_is_no_day_is_said(day: str) -> None:
    with pytest.raises(ValueError, match=r"day|year"):
        parse_day(day)


def test_a_time_without_a_date_stops_the_export_by_its_place() -> None:
    told, _ = fold([[credited("w", END_MS, "r")]])
    with pytest.raises(ExportError, match="partition 0 offset 0: its time is after the year 2900"):
        transactions_of(told)


def test_the_spool_sorts_what_does_not_fit() -> None:
    rng = random.Random(5)
    log = [[credited("w", rng.randrange(10**12), f"{p}/{n}") for n in range(700)] for p in range(3)]
    many = transactions_of(fold(log)[0])
    for run_transactions in (1, 7, 1000, 5000):
        with Spool(run_transactions) as spool:
            for transaction in many:
                spool.add(transaction)
            assert list(spool.ordered()) == sorted(many, key=by_day)


def test_transactions_that_are_not_those_counted_are_refused() -> None:
    told, books = fold(small_log())
    many = sorted(transactions_of(told), key=by_day)
    tally = Tally()
    for transaction in many:
        tally.add(transaction)
    head = Head({b.partition: b.next_offset for b in books}, "", None, tally)
    with pytest.raises(ExportError, match="are not those that were read"):
        list(export(Hledger(), head, many[:-1]))


def test_a_cut_is_written_as_until_takes_it() -> None:
    assert format_cut({1: 40, 0: 12}) == "0:12,1:40"


@pytest.mark.parametrize("path", sorted(Path(exports.__file__).parent.glob("*.py")), ids=lambda path: path.name)
def test_exports_are_pure(path: Path) -> None:
    """No file, clock, network or float."""
    allowed = {"__future__", "bisect", "collections", "csv", "datetime", "html", "io", "json", "re", "typing", "urllib"}
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        for name in names:
            assert name.partition(".")[0] in allowed | {"ledger", "schemas"}, f"{path.name} imports {name}"
        assert not (isinstance(node, ast.Constant) and isinstance(node.value, float)), f"a float in {path.name}"
        assert not (isinstance(node, ast.Name) and node.id in ("float", "open", "print", "hash")), path.name
        assert not (isinstance(node, ast.Attribute) and node.attr in ("now", "today", "utcnow")), path.name
        assert not (isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.Div)), path.name
