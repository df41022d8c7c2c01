"""`shrk ledger export` and `statement` on a real log, read by the real hledger and beancount."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
from pathlib import Path

import pytest
from click.testing import Result
from finance_tools import (
    Balances,
    bean_check,
    beancount_balances,
    csv_balances,
    hledger_balances,
    parquet_balances,
    run_hledger,
)
from finance_tools import hledger as hledger  # a fixture
from ledger_kit import T0_MS, accepted, credited, load, new_id, usage
from test_replay import P, append_all, shrk

from ledger.reader import LedgerReader
from ledger.replay import Replay
from ledger.spool import Spool
from schemas.event_base import RequestEvent
from schemas.events import Event, Segment
from schemas.ids import uuid7, uuid7_ms

MONTH_MS = 31 * 86_400_000
MONTHS = ["2027-01", "2027-02", "2027-03", "2027-04"]  # T0_MS is 2027-01-15
NO_DATABASE = "postgresql://nobody@127.0.0.1:1/none"
SUFFIXES = {"hledger": "journal", "beancount": "beancount", "csv": "csv", "parquet": "parquet"}


def log_of_months() -> list[Event]:
    """Three months of the mixed load, and ids that other tools could misread."""
    many: list[Event] = []
    for month in range(3):
        many += [_later(event, month * MONTH_MS) for event in load(100 + month, 250, wallets=8)]
    for wallet, asset in (("a:b", "SHIVER"), ("A.b_c-d", "USDC"), ("own", "SHIVER"), ("w1:", "SHIVER")):
        rid = new_id(T0_MS + 2 * MONTH_MS)
        segments = tuple(
            Segment(node="n", provider=provider, attempt=n + 1, tokens=10 + n)
            for n, provider in enumerate(("p1", "P1", "p:1", "p-1", "own", "7"))
        )
        at_ms = T0_MS + 2 * MONTH_MS
        many += [
            credited(wallet, 10**12, '=1+1, "x"; y:\n  z\\ ü', asset=asset, at_ms=at_ms),
            accepted(rid, wallet, asset=asset, at_ms=at_ms),
            usage(rid, wallet=wallet, segments=segments, at_ms=at_ms),
        ]
    return many


def _later(event: Event, by_ms: int) -> Event:
    changed: dict[str, object] = {"at_ms": event.at_ms + by_ms}
    if isinstance(event, RequestEvent):
        seed = hashlib.sha256(event.request_id.encode()).digest()[:10]
        changed["request_id"] = uuid7(uuid7_ms(event.request_id) + by_ms, seed)
    return event.model_copy(update=changed)


async def books_of(kafka: str, ends: dict[int, int] | None = None) -> tuple[Replay, Balances]:
    """The books, folded without the command."""
    replay = Replay(P)
    async with LedgerReader(kafka, P, client_id="test") as reader:
        async for records in reader.read({}, ends or await reader.ends()):
            replay.feed(records)
    assert replay.finish()
    assert replay.broken == []
    return replay, {(account, asset): nano for account, asset, nano, _ in replay.balances()}


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def export(kafka: str, form: str, folder: Path, *more: str) -> tuple[Path, Result]:
    out = folder / f"books.{SUFFIXES[form]}"
    done = await shrk(kafka, NO_DATABASE, "export", "--format", form, "--out", str(out), *more)
    assert done.exit_code == 0, done.output
    return out, done


async def test_every_balance_in_hledger_beancount_and_csv_is_that_of_the_books(
    ledger_log: str, hledger: str, tmp_path: Path
) -> None:
    await append_all(ledger_log, log_of_months())
    replay, wanted = await books_of(ledger_log)
    kinds = {"wallet", "provider", "platform", "burn", "adjustments", "world"}
    assert {account.partition(":")[0] for account, _ in wanted} == kinds

    journal, told = await export(ledger_log, "hledger", tmp_path)
    checked = await asyncio.to_thread(run_hledger, hledger, journal, "check", "--strict", "ordereddates")
    assert checked.returncode == 0, checked.stderr
    assert await asyncio.to_thread(hledger_balances, hledger, journal) == wanted
    assert f"digest of the books there: {replay.finish()}" in journal.read_text()

    beans, _ = await export(ledger_log, "beancount", tmp_path)
    bean = await asyncio.to_thread(bean_check, beans)
    assert (bean.returncode, bean.stdout, bean.stderr) == (0, "", "")
    assert await asyncio.to_thread(beancount_balances, beans) == wanted

    table, _ = await export(ledger_log, "csv", tmp_path)
    assert csv_balances(table) == wanted

    columns, _ = await export(ledger_log, "parquet", tmp_path)
    assert parquet_balances(columns) == wanted

    cut = ",".join(f"{books.partition}:{books.next_offset}" for books in replay.books)
    assert f"offsets {cut}" in told.stderr
    assert names_in(tmp_path) == ["books.beancount", "books.csv", "books.journal", "books.parquet"]


async def test_the_same_cut_gives_the_same_bytes_while_the_log_grows(
    ledger_log: str, hledger: str, tmp_path: Path
) -> None:
    await append_all(ledger_log, log_of_months())
    ends = {p: books.next_offset // 2 for p, books in enumerate((await books_of(ledger_log))[0].books)}
    cut = ",".join(f"{partition}:{end}" for partition, end in ends.items())
    _, wanted = await books_of(ledger_log, ends)
    before = {form: (await export(ledger_log, form, tmp_path, "--until", cut))[0].read_bytes() for form in SUFFIXES}
    await append_all(ledger_log, load(9, 50))
    for form in SUFFIXES:
        out, _ = await export(ledger_log, form, tmp_path, "--until", cut)
        assert out.read_bytes() == before[form]
    assert await asyncio.to_thread(hledger_balances, hledger, tmp_path / "books.journal") == wanted
    assert await asyncio.to_thread(beancount_balances, tmp_path / "books.beancount") == wanted
    assert csv_balances(tmp_path / "books.csv") == wanted
    stdout = await shrk(ledger_log, NO_DATABASE, "export", "--format", "csv", "--out", "-", "--until", cut)
    assert stdout.stdout_bytes == before["csv"]


async def test_the_tools_find_one_nano_that_was_moved(ledger_log: str, hledger: str, tmp_path: Path) -> None:
    await append_all(ledger_log, [credited("w1", 1000, "a"), credited("w1", 1000, "b")])
    journal, _ = await export(ledger_log, "hledger", tmp_path)
    beans, _ = await export(ledger_log, "beancount", tmp_path)
    for path in (journal, beans):
        text = path.read_text()
        assert text.count("  1000 SHIVERNANO") == text.count("  -1000 SHIVERNANO") == 2
        for old, new in (("  1000 ", "  1001 "), ("  -1000 ", "  -1001 ")):
            text = text.replace(old, new, 1)
        path.write_text(text)
    checked = await asyncio.to_thread(run_hledger, hledger, journal, "check")
    assert checked.returncode != 0
    assert "balance assertion" in checked.stderr.lower()
    bean = await asyncio.to_thread(bean_check, beans)
    assert bean.returncode != 0
    assert "Balance failed" in bean.stdout + bean.stderr


async def test_statements_open_close_and_chain_to_the_books(ledger_log: str, tmp_path: Path) -> None:
    await append_all(ledger_log, log_of_months())
    _, wanted = await books_of(ledger_log)
    for option, subject, assets in (
        ("--wallet", "w1", ["SHIVER"]),
        ("--wallet", "A.b_c-d", ["USDC"]),
        ("--provider", "p1", ["SHIVER", "USDC"]),
    ):
        closing = dict.fromkeys(assets, 0)
        entries = 0
        for month in ["2026-12", *MONTHS]:
            done = await shrk(
                ledger_log, NO_DATABASE, "statement", option, subject, "--month", month, "--format", "json"
            )
            assert done.exit_code == 0, done.output
            found = json.loads(done.stdout)
            assert [section["asset"] for section in found["assets"]] == assets
            for section in found["assets"]:
                assert int(section["opening_nano"]) == closing[section["asset"]]
                total = sum(int(entry["amount_nano"]) for entry in section["entries"])
                assert int(section["opening_nano"]) + total == int(section["closing_nano"])
                closing[section["asset"]] = int(section["closing_nano"])
                entries += len(section["entries"])
        account = f"{option.removeprefix('--')}:{subject}"
        assert closing == {asset: wanted[account, asset] for asset in assets}
        assert entries > 0


async def test_a_statement_closes_on_what_an_export_as_of_its_last_day_has(ledger_log: str, tmp_path: Path) -> None:
    await append_all(ledger_log, log_of_months())
    table, _ = await export(ledger_log, "csv", tmp_path, "--until", "2027-02-28")
    done = await shrk(ledger_log, NO_DATABASE, "statement", "--wallet", "w2", "--month", "2027-02", "--format", "json")
    (section,) = json.loads(done.stdout)["assets"]
    assert section["entries"]
    assert int(section["closing_nano"]) == csv_balances(table)["wallet:w2", "SHIVER"]


@pytest.mark.parametrize(
    ("form", "begin"), [("text", "Statement of"), ("csv", "kind,time"), ("html", "<!doctype html>")]
)
async def test_a_statement_in_every_form(ledger_log: str, form: str, begin: str) -> None:
    rid = new_id()
    await append_all(ledger_log, [credited("w1"), accepted(rid, "w1"), usage(rid, 10, "w1")])
    done = await shrk(ledger_log, NO_DATABASE, "statement", "--wallet", "w1", "--month", "2027-01", "--format", form)
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith(begin)
    assert rid in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["statement", "--month", "2027-01"], 2, "give --wallet or --provider"),
        (["statement", "--month", "2027-1", "--wallet", "w1"], 2, "'2027-1' is no month"),
        (["statement", "--month", "2027-01", "--wallet", "w 1"], 2, "'w 1' is no id"),
        (["statement", "--month", "2027-01", "--wallet", "nobody"], 1, "the log has no entry of wallet:nobody"),
        (["export", "--format", "csv", "--out", "-", "--until", "0:1"], 2, "each partition from 0 to 3 once"),
        (["export", "--format", "csv", "--out", "-", "--until", "0:1,0:1,1:0,2:0,3:0"], 2, "each partition from 0"),
        (["export", "--format", "csv", "--out", "-", "--until", "zero"], 2, "is neither PARTITION:OFFSET"),
        (["export", "--format", "csv", "--out", "-", "--until", "0:1", "--epoch", "1"], 2, "give --until or --epoch"),
        (["export", "--format", "csv", "--out", "-", "--epoch", "1"], 1, "the log has no epoch 1: none is closed"),
        (["export", "--format", "csv", "--out", "-", "--no-tail"], 2, "--no-tail needs --archive DIR"),
        (["statement", "--month", "2027-01", "--wallet", "w1", "--no-tail"], 2, "--no-tail needs --archive DIR"),
        (["export", "--format", "csv", "--out", "-", "--archive", "/nowhere"], 1, "there is no archive in /nowhere"),
        (["export", "--format", "csv", "--out", "-", "--until", "0:9,1:9,2:9,3:9"], 1, "ends at"),
        (["export", "--format", "csv", "--out", "-", "--until", "2027-02-30"], 2, "is no day"),
        (["export", "--format", "csv", "--out", "/nowhere/x.csv"], 1, "nothing was written: /nowhere/"),
    ],
)
async def test_errors_are_one_line(ledger_log: str, arguments: list[str], code: int, text: str) -> None:
    await append_all(ledger_log, [credited("w1")])
    done = await shrk(ledger_log, NO_DATABASE, *arguments)
    assert done.exit_code == code, done.output
    assert text in done.output.splitlines()[-1]
    assert done.stdout == ""


async def test_a_full_disk_is_one_line_and_leaves_no_file(
    ledger_log: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    await append_all(ledger_log, [credited("w1")])
    monkeypatch.setattr(Spool, "add", full)
    out = tmp_path / "x.csv"
    done = await shrk(ledger_log, NO_DATABASE, "export", "--format", "csv", "--out", str(out))
    assert done.exit_code == 1
    assert done.output.splitlines()[-1].endswith("nothing was written: [Errno 28] No space left on device")
    assert names_in(tmp_path) == []


async def test_without_a_log_an_export_says_so(tmp_path: Path) -> None:
    out = tmp_path / "x.csv"
    done = await shrk("127.0.0.1:1", NO_DATABASE, "export", "--format", "csv", "--out", str(out))
    assert done.exit_code == 1
    assert "does not answer" in done.output.splitlines()[-1]
    assert names_in(tmp_path) == []
