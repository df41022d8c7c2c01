"""Exports with epochs: balances at every cut where a tool can check them; Parquet; balances beyond 64 bits."""

from __future__ import annotations

import csv
import io
import random
import re
from datetime import date
from decimal import Decimal

import pyarrow
import pyarrow.parquet
import pytest
from exports_kit import at, balances_of, credited, exported, fold, head_of, is_golden, request, small_log
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.exports.beancount import Beancount
from ledger.exports.csvs import Csv
from ledger.exports.dates import iso_day, parse_day
from ledger.exports.hledger import Hledger
from ledger.exports.names import from_beancount, from_hledger, from_plain
from ledger.exports.transactions import TAGS, Cut, Epochs, by_day
from ledger.exports.write import Form
from ledger.parquet_export import SCHEMA, export_parquet
from ledger.spool import Spool
from schemas.events import Event

HOUR_MS = 3_600_000
CUTS = [
    Cut(1, at("2027-02-01", HOUR_MS // 6), (3, 0), "ab" * 32),  # what lies behind has an event of the day before
    Cut(2, at("2027-02-01", 2 * HOUR_MS), (9, 1), "cd" * 32),
    Cut(3, at("2027-02-05"), (9, 4), ""),
]
FORMS = [(Hledger(), "epochs.journal"), (Beancount(), "epochs.beancount"), (Csv(), "epochs.csv")]
_LINE = re.compile(r"    (\S+)  (-?\d+) (\w+)NANO(?: = (-?\d+) \w+NANO)?")
_BALANCE = re.compile(r"(\S{10}) balance (\S+)  (-?\d+) (\w+)NANO")

Balances = dict[tuple[str, str], int]


def at_cut(log: list[list[Event]], cut: Cut) -> Balances:
    """The books of what lies before a cut."""
    return balances_of(fold([events[:end] for events, end in zip(log, cut.next_offsets, strict=True)])[1])


@pytest.mark.parametrize(("form", "name"), FORMS, ids=[name for _, name in FORMS])
def test_golden(form: Form, name: str) -> None:
    is_golden(name, exported(form, *fold(small_log()), cuts=CUTS))


@pytest.mark.parametrize(("form", "name"), FORMS, ids=[name for _, name in FORMS])
def test_one_cut_is_one_file_however_it_was_read(form: Form, name: str) -> None:
    told, books = fold(small_log())
    whole = exported(form, told, books, cuts=CUTS)
    for seed in range(5):
        mixed = told.copy()
        random.Random(seed).shuffle(mixed)
        assert exported(form, mixed, books, run_transactions=1 + seed, cuts=CUTS) == whole


def test_an_event_is_in_exactly_one_epoch() -> None:
    epochs = Epochs(CUTS)
    assert [epochs.of(0, offset) for offset in range(11)] == [1, 1, 1, 2, 2, 2, 2, 2, 2, 0, 0]
    assert [epochs.of(1, offset) for offset in range(6)] == [2, 3, 3, 3, 0, 0]
    assert Epochs().of(7, 7) == 0


class Journal:
    """What hledger would check, in its order: dates that do not go back, balances where they are asserted."""

    def __init__(self, text: str) -> None:
        self.running: Balances = {}
        self.epochs: list[tuple[int, str, Balances]] = []
        self.dates: list[str] = []
        self.asserted = 0
        for block in text.split("\n\n")[2:]:
            head, *lines = block.splitlines()
            self.dates.append(head[:10])
            for line in lines:
                if match := _LINE.fullmatch(line):
                    key = (from_hledger(match[1]), match[3])
                    self.running[key] = self.running.get(key, 0) + int(match[2])
                    if match[4] is not None:
                        assert self.running[key] == int(match[4]), head
                        self.asserted += 1
            if "at the cut of epoch" in head:
                self.epochs.append((int(head.rpartition(" ")[2]), head[:10], dict(self.running)))


def test_hledger_has_the_balances_at_every_cut() -> None:
    log = small_log()
    text = exported(Hledger(), *fold(log), cuts=CUTS)
    journal = Journal(text)
    assert journal.dates == sorted(journal.dates)
    assert [(number, day) for number, day, _ in journal.epochs] == [
        (1, "2027-02-01"),
        (2, "2027-02-01"),
        (3, "2027-02-05"),
    ]
    for (_, _, found), cut in zip(journal.epochs, CUTS, strict=True):
        assert found == at_cut(log, cut)
    # An event of the day before the cut that it follows has the day of the cut, and its own time.
    assert "2027-02-01 * (0/5) wallet.credited\n    ; partition:0, offset:5, time:2027-01-31T12:00:00.000Z" in text
    assert journal.running == balances_of(fold(log)[1])


def beans(text: str) -> tuple[list[tuple[str, Balances]], list[tuple[int, str, Balances]]]:
    """Transactions by day, and what is asserted of epochs."""
    moves: list[tuple[str, Balances]] = []
    epochs: list[tuple[int, str, Balances]] = []
    for block in text.split("\n\n"):
        head, *lines = block.splitlines()
        if head.startswith("; balances at the cut of epoch "):
            found = [match for line in lines if (match := _BALANCE.fullmatch(line))]
            balances = {(from_beancount(match[2]), match[4]): int(match[3]) for match in found}
            epochs.append((int(head.rpartition(" ")[2]), found[0][1], balances))
        if ' * "' in head:
            postings = [re.fullmatch(r"  (\S+)  (-?\d+) (\w+)NANO", line) for line in lines]
            moves.append((head[:10], {(from_beancount(m[1]), m[3]): int(m[2]) for m in postings if m}))
    return moves, epochs


def before(moves: list[tuple[str, Balances]], day: str) -> Balances:
    found: Balances = {}
    for moved, postings in moves:
        if moved < day:
            for key, amount in postings.items():
                found[key] = found.get(key, 0) + amount
    return found


def test_beancount_has_those_whose_cut_is_the_beginning_of_a_day() -> None:
    log = small_log()
    moves, epochs = beans(exported(Beancount(), *fold(log), cuts=CUTS))
    assert [(number, day) for number, day, _ in epochs] == [(2, "2027-02-02"), (3, "2027-02-03")]
    for number, day, asserted in epochs:
        at_start = before(moves, day)
        assert at_start == at_cut(log, CUTS[number - 1])
        assert asserted.items() <= at_start.items()
    assert epochs[0][2] == before(moves, "2027-02-02")  # all of them moved since the last one that could be asserted


LOGS = st.lists(st.lists(st.tuples(st.integers(0, 6), st.sampled_from("abc")), max_size=8), min_size=2, max_size=3)


@settings(max_examples=60, deadline=None)
@given(LOGS, st.data())
def test_balances_at_cuts_are_those_of_the_books_whatever_the_times(
    days: list[list[tuple[int, str]]], data: st.DataObject
) -> None:
    log: list[list[Event]] = [
        [
            credited(wallet, at("2027-01-01") + day * 86_400_000, f"{p}/{n}", 10 + n)
            for n, (day, wallet) in enumerate(part)
        ]
        for p, part in enumerate(days)
    ]
    offsets = [sorted(data.draw(st.lists(st.integers(0, len(part)), min_size=3, max_size=3))) for part in log]
    cuts = [
        Cut(n + 1, at("2027-01-01") + data.draw(st.integers(0, 8)) * 86_400_000, tuple(o[n] for o in offsets), "")
        for n in range(3)
    ]
    told, books = fold(log)
    journal = Journal(exported(Hledger(), told, books, cuts=cuts))
    assert journal.dates == sorted(journal.dates)
    for number, _, found in journal.epochs:
        assert found == at_cut(log, cuts[number - 1])
    moved = [n for n, cut in enumerate(cuts) if at_cut(log, cut) != (at_cut(log, cuts[n - 1]) if n else {})]
    assert [number - 1 for number, _, _ in journal.epochs] == moved
    moves, epochs = beans(exported(Beancount(), told, books, cuts=cuts))
    for number, day, asserted in epochs:
        assert before(moves, day) == at_cut(log, cuts[number - 1])
        assert asserted.items() <= before(moves, day).items()
    for row in csv.DictReader(io.StringIO(exported(Csv(), told, books, cuts=cuts))):
        first = [cut.epoch for cut in cuts if int(row["offset"]) < cut.next_offsets[int(row["partition"])]]
        assert row["epoch"] == (str(first[0]) if first else "")


def parquet(log: list[list[Event]], cuts: list[Cut], run_transactions: int = 1000) -> bytes:
    told, books = fold(log)
    with Spool(run_transactions, by_day) as spool:
        head = head_of(told, books, spool, cuts=cuts)
        return b"".join(export_parquet(head, spool.ordered()))


def rows_of(data: bytes) -> list[dict[str, object]]:
    table = pyarrow.parquet.read_table(io.BytesIO(data))
    assert table.schema.equals(SCHEMA.remove_metadata())
    return table.to_pylist()


def test_parquet_says_what_csv_says() -> None:
    log = small_log()
    rows = rows_of(parquet(log, CUTS))
    told = list(csv.DictReader(io.StringIO(exported(Csv(), *fold(log), cuts=CUTS))))
    assert len(rows) == len(told)
    for row, line in zip(rows, told, strict=True):
        assert row.pop("date") == date.fromisoformat(line["date"])
        assert row.pop("time").isoformat(timespec="milliseconds").replace("+00:00", "Z") == line["time"]  # type: ignore[attr-defined]
        for name, value in row.items():
            text = from_plain(line[name]) if name in TAGS else line[name]
            assert ("" if value is None else str(value)) == text
    assert list(rows[0]) == [field.name for field in SCHEMA if field.name not in ("date", "time")]


def test_parquet_has_every_balance_of_the_books() -> None:
    log = small_log()
    sums: Balances = {}
    last: Balances = {}
    for row in rows_of(parquet(log, CUTS)):
        key = (str(row["account"]), str(row["asset"]))
        assert isinstance(row["amount_nano"], int)
        assert isinstance(row["balance_nano"], Decimal)
        sums[key] = sums.get(key, 0) + row["amount_nano"]
        last[key] = int(row["balance_nano"])
    assert sums == last == balances_of(fold(log)[1])


def test_parquet_gives_the_same_bytes_and_says_its_cut() -> None:
    log = small_log()
    data = parquet(log, CUTS)
    assert parquet(log, CUTS, run_transactions=2) == data
    assert parquet(log, CUTS[:1]) != data
    told = pyarrow.parquet.read_metadata(io.BytesIO(data)).metadata[b"shiver"].decode()
    assert "up to, not with, offsets 0:9,1:6" in told
    assert "digest of the books there: " in told
    assert rows_of(parquet([[], []], [])) == []


def test_parquet_in_several_row_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = rows_of(parquet(small_log(), CUTS))
    monkeypatch.setattr("ledger.parquet_export.ROW_GROUP_ROWS", 4)
    data = parquet(small_log(), CUTS)
    assert pyarrow.parquet.read_metadata(io.BytesIO(data)).num_row_groups == 7
    assert rows_of(data) == whole


def large_log() -> list[list[Event]]:
    """Balances far above 2**63 in three accounts, of one partition and over two."""
    big = 10**18
    credits: list[Event] = [credited("w", at("2027-01-01"), f"r{n}", big) for n in range(30)]
    life = request(1, "w", at("2027-01-02"), ("p", 10**9), hold=big)
    other: list[Event] = [credited("v", at("2027-01-03"), f"r{n}", big) for n in range(30)]
    return [[*credits, *life], other]


def test_balances_beyond_64_bits_are_right_in_every_form() -> None:
    log = large_log()
    told, books = fold(log)
    wanted = balances_of(books)
    assert wanted["world", "SHIVER"] == -60 * 10**18 < -(2**63)
    cuts = [Cut(1, at("2027-01-02", HOUR_MS), (32, 0), "")]
    assert Journal(exported(Hledger(), told, books, cuts=cuts)).running == wanted
    moves, epochs = beans(exported(Beancount(), told, books, cuts=cuts))
    assert before(moves, "9") == wanted
    assert epochs[0][2]["wallet:w", "SHIVER"] == wanted["wallet:w", "SHIVER"] > 2**63
    last = {
        (r["account"], r["asset"]): int(r["balance_nano"])
        for r in csv.DictReader(io.StringIO(exported(Csv(), told, books)))
    }
    assert last == wanted
    rows = rows_of(parquet(log, cuts))
    assert {(str(r["account"]), str(r["asset"])): int(str(r["balance_nano"])) for r in rows} == wanted


def test_a_day_knows_no_epochs() -> None:
    told, books = fold(small_log())
    day = parse_day("2027-02-01")
    text = exported(Hledger(), told, books, until_day=day, cuts=CUTS)
    assert "epoch" not in text
    assert f"UTC day is {iso_day(day)} or before" in text
