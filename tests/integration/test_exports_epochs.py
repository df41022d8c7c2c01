"""Exports of a log with epochs: hledger and beancount check the balances at each cut; from an archive too."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import asyncpg
import pytest
from books_kit import append_all, shrk
from finance_tools import bean_check, beancount_balances, csv_balances, hledger_balances, parquet_balances, run_hledger
from finance_tools import hledger as hledger  # a fixture
from ledger_kit import T0_MS, credited, wallet_in
from test_epochs import closed_events, closed_twice
from test_exports import NO_DATABASE, SUFFIXES, books_of, export

from ledger.books import DAY_MS

P = 4


async def log_with_epochs(kafka: str, url: str, db: asyncpg.Pool) -> list[str]:
    """Two epochs within a day, credits behind them and of days before and after; the cuts, as --until takes them."""
    await closed_twice(kafka, url, db)
    late = [
        credited(wallet_in(0, P), 5, "late", at_ms=T0_MS - DAY_MS),
        credited(wallet_in(1, P), 6, "early", at_ms=T0_MS + DAY_MS),
    ]
    await append_all(kafka, late)
    cuts = [event.cut for _, event in await closed_events(kafka)]
    return [",".join(f"{p}:{offset}" for p, offset in enumerate(cut)) for cut in cuts]


def ends_of(cut: str) -> dict[int, int]:
    return {int(p): int(offset) for p, _, offset in (part.partition(":") for part in cut.split(","))}


async def test_every_tool_checks_the_balances_at_every_cut(
    ledger_log: str, books: asyncpg.Pool, books_url: str, hledger: str, tmp_path: Path
) -> None:
    cuts = await log_with_epochs(ledger_log, books_url, books)
    _, wanted = await books_of(ledger_log)
    journal, _ = await export(ledger_log, "hledger", tmp_path)
    checked = await asyncio.to_thread(run_hledger, hledger, journal, "check", "--strict", "ordereddates")
    assert checked.returncode == 0, checked.stderr
    assert await asyncio.to_thread(hledger_balances, hledger, journal) == wanted
    text = journal.read_text()
    late = re.search(r"\n(\S+) \* \(0/\d+\) wallet.credited\n    ; .*time:(\S{10}).*ref:late", text)
    assert late is not None
    assert late[1] > late[2]  # dated with the day of the cut before it

    for number, cut in enumerate(cuts, 1):
        # What hledger makes of all that stands before the cut is what the books had there.
        before = tmp_path / "before.journal"
        before.write_text(text[: text.index(f"* balances at the cut of epoch {number}\n")].rpartition("\n")[0] + "\n")
        _, there = await books_of(ledger_log, ends_of(cut))
        assert await asyncio.to_thread(hledger_balances, hledger, before) == there
        begin = text.index(f"* balances at the cut of epoch {number}\n")
        at = text.index(" = ", begin) + 3
        digit = "7" if text[at + 1] != "7" else "8"
        bent = tmp_path / "bent.journal"
        bent.write_text(text[: at + 1] + digit + text[at + 2 :])
        refused = await asyncio.to_thread(run_hledger, hledger, bent, "check")
        assert refused.returncode != 0
        assert "balance assertion" in refused.stderr.lower()

    beans, _ = await export(ledger_log, "beancount", tmp_path)
    bean = await asyncio.to_thread(bean_check, beans)
    assert (bean.returncode, bean.stdout, bean.stderr) == (0, "", "")
    assert await asyncio.to_thread(beancount_balances, beans) == wanted
    assert "cut of epoch" not in beans.read_text()  # both cuts are within one day: no date parts them

    columns, _ = await export(ledger_log, "parquet", tmp_path)
    assert parquet_balances(columns) == wanted


async def test_beancount_checks_a_cut_between_two_days(
    ledger_log: str, books: asyncpg.Pool, books_url: str, tmp_path: Path
) -> None:
    await closed_twice(ledger_log, books_url, books)
    await append_all(ledger_log, [credited("w1", 5, "after", at_ms=T0_MS + DAY_MS)])
    beans, _ = await export(ledger_log, "beancount", tmp_path)
    text = beans.read_text()
    assert "; balances at the cut of epoch 2\n" in text
    assert (await asyncio.to_thread(bean_check, beans)).returncode == 0
    head, mark, tail = text.partition("; balances at the cut of epoch 2\n")
    line, _, rest = tail.partition("\n")
    amount = line.split()[3]
    beans.write_text(head + mark + line.replace(amount, str(int(amount) + 1)) + "\n" + rest)
    bean = await asyncio.to_thread(bean_check, beans)
    assert bean.returncode != 0
    assert "alance" in bean.stdout + bean.stderr


@pytest.mark.parametrize("form", list(SUFFIXES))
async def test_as_of_an_epoch_is_as_of_its_cut_from_kafka_and_from_an_archive(
    ledger_log: str, books: asyncpg.Pool, books_url: str, hledger: str, tmp_path: Path, form: str
) -> None:
    cuts = await log_with_epochs(ledger_log, books_url, books)
    folder = tmp_path / "archive"
    made = await shrk(ledger_log, books_url, "archive", "--out", str(folder), "--range", "64")
    assert made.exit_code == 0, made.output
    for number, cut in enumerate(cuts, 1):
        at_epoch = (await export(ledger_log, form, tmp_path, "--epoch", str(number)))[0].read_bytes()
        assert (await export(ledger_log, form, tmp_path, "--until", cut))[0].read_bytes() == at_epoch
        out, _ = await export(ledger_log, form, tmp_path, "--epoch", str(number), "--archive", str(folder))
        assert out.read_bytes() == at_epoch
    _, wanted = await books_of(ledger_log, ends_of(cuts[-1]))
    read = {"csv": csv_balances, "parquet": parquet_balances, "beancount": beancount_balances}
    found = hledger_balances(hledger, out) if form == "hledger" else read[form](out)
    assert found == wanted

    # The archive alone, with nothing to connect to: all of it, when it has the tail.
    whole = (await export(ledger_log, form, tmp_path))[0].read_bytes()
    assert (
        await shrk(ledger_log, books_url, "archive", "--out", str(folder), "--range", "64", "--tail")
    ).exit_code == 0
    alone, _ = await export("127.0.0.1:1", form, tmp_path, "--archive", str(folder), "--no-tail")
    assert alone.read_bytes() == whole


async def test_statements_from_an_archive(ledger_log: str, books: asyncpg.Pool, books_url: str, tmp_path: Path) -> None:
    await log_with_epochs(ledger_log, books_url, books)
    folder = str(tmp_path / "archive")
    assert (await shrk(ledger_log, books_url, "archive", "--out", folder, "--range", "64")).exit_code == 0
    for whose in (("--wallet", "w1"), ("--provider", "p1")):
        arguments = ("statement", *whose, "--month", "2027-01", "--format", "json")
        plain = await shrk(ledger_log, NO_DATABASE, *arguments)
        assert plain.exit_code == 0, plain.output
        archived = await shrk(ledger_log, NO_DATABASE, *arguments, "--archive", folder)
        assert archived.stdout == plain.stdout
    assert (await shrk(ledger_log, books_url, "archive", "--out", folder, "--range", "64", "--tail")).exit_code == 0
    alone = await shrk("127.0.0.1:1", NO_DATABASE, *arguments, "--archive", folder, "--no-tail")
    assert alone.stdout == plain.stdout


async def test_balances_beyond_64_bits_in_every_tool(ledger_log: str, hledger: str, tmp_path: Path) -> None:
    many = [credited(wallet, 10**18, f"r{n}") for wallet in (wallet_in(1, P), wallet_in(2, P)) for n in range(12)]
    await append_all(ledger_log, many)
    _, wanted = await books_of(ledger_log)
    assert wanted["world", "SHIVER"] == -24 * 10**18 < -(2**64)
    journal, _ = await export(ledger_log, "hledger", tmp_path)
    assert await asyncio.to_thread(hledger_balances, hledger, journal) == wanted
    checked = await asyncio.to_thread(run_hledger, hledger, journal, "check", "--strict", "ordereddates")
    assert checked.returncode == 0, checked.stderr
    beans, _ = await export(ledger_log, "beancount", tmp_path)
    assert (await asyncio.to_thread(bean_check, beans)).returncode == 0
    assert await asyncio.to_thread(beancount_balances, beans) == wanted
    assert csv_balances((await export(ledger_log, "csv", tmp_path))[0]) == wanted
    assert parquet_balances((await export(ledger_log, "parquet", tmp_path))[0]) == wanted
    for form in ("json", "csv", "text", "html"):
        arguments = ("--wallet", wallet_in(1, P), "--month", "2027-01", "--format", form)
        told = await shrk(ledger_log, NO_DATABASE, "statement", *arguments)
        assert told.exit_code == 0, told.output
        assert ("12000000000" if form in ("text", "html") else "12000000000000000000") in told.stdout
