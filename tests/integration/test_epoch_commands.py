"""`shrk epochs`, `shrk providers register` and `shrk ledger replay --epoch` on a real log and database."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest
from books_kit import P, append_all, project, shrk
from click.testing import CliRunner, Result
from epochs_kit import TERMS, address_of, earnings, epochs_of, funded
from ledger_kit import T0_MS

from infra.cli import cli
from infra.errors import EpochNotClosed, FactRefused, Unreachable
from ledger.epoch_log import UnknownEpoch
from ledger.source import Source

NOWHERE = "postgresql://u@127.0.0.1:1/x"


async def command(kafka: str, url: str, *arguments: str, **more: str) -> Result:
    env = {"SHRK_KAFKA": kafka, "SHRK_DATABASE_URL": url, "SHRK_LEDGER_PARTITIONS": str(P), **more}
    return await asyncio.to_thread(CliRunner(env=env).invoke, cli, list(arguments))


async def good(kafka: str, url: str, *arguments: str, **more: str) -> str:
    result = await command(kafka, url, *arguments, **more)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


def line_of(output: str, *words: str) -> str:
    (found,) = [line for line in output.splitlines() if all(word in line for word in words)]
    return found


async def test_the_way_of_an_operator(ledger_log: str, books: asyncpg.Pool, books_url: str) -> None:
    async def do(*arguments: str, **more: str) -> str:
        return await good(ledger_log, books_url, *arguments, **more)

    assert await do("epochs", "list") == "no epoch is closed yet\n"
    await append_all(ledger_log, earnings(1))
    to = address_of("p1")
    assert to in await do("providers", "register", "p1", "--name", "Home", "--recipient", to)
    assert await books.fetchval("select name from state.providers where provider_id = 'p1'") == "Home"
    await project(ledger_log, books)
    token = "0x" + "51" * 20
    said = await do("epochs", "close", SHRK_CHAIN_ID="5", SHRK_TOKEN_SHIVER=token)
    assert said.startswith("closed epoch 1 at ")
    shown = await do("epochs", "show", "1")
    assert f"chain 5, contract 0x{'0' * 40}, SHIVER {token} (18 decimals)" in shown
    assert f"{to}, " in line_of(shown, "p1", "SHIVER")
    assert "waits: no recipient is registered" in line_of(shown, "p2", "SHIVER")
    assert line_of(shown, "sandbox: 0 SHIVER funded, 0 SHIVER given to providers, ").endswith(" waits for a budget")

    fund = ("epochs", "fund-sandbox", "--asset", "SHIVER", "--reason", "grants", "--ref", "g1", "--operator", "ann")
    assert "the sandbox may pay 0.01 SHIVER more" in await do(*fund, "--amount", "0.01")
    await append_all(ledger_log, [funded(7, "g1")])  # past the command
    await project(ledger_log, books)
    await do("epochs", "close")  # no terms are told: those of the epoch before
    shown = await do("epochs", "show", "2")
    assert f"chain 5, contract 0x{'0' * 40}, SHIVER {token}" in shown
    assert "sandbox: 0.01 SHIVER funded, 0.01 SHIVER given to providers" in shown
    assert "does not count (conflict): 0.000000007 SHIVER, reference g1, by ann" in shown
    listed = (await do("epochs", "list")).splitlines()
    assert [line.split()[0] for line in listed] == ["epoch", "2", "1"]
    assert (await do("epochs", "list", "--most", "1")).count("\n") == 2
    root = await books.fetchval("select payout_root from derived.epochs where number = 2")
    assert root in listed[1]

    refusals = [
        (("epochs", "close"), EpochNotClosed, "nothing has happened since epoch 2"),
        (("epochs", "show", "3"), EpochNotClosed, "there is no epoch 3 yet"),
        ((*fund, "--amount", "0.02"), FactRefused, "reference g1 stands for 0.01 SHIVER"),
        ((*fund, "--amount", "10001"), FactRefused, "above 10000 SHIVER a budget needs --approver: someone other than"),
        ((*fund, "--amount", "10001", "--approver", "ann"), FactRefused, "needs --approver"),
        (("providers", "register", "p1", "--name", "x", "--recipient", "0x12"), FactRefused, "40 hexadecimal digits"),
        (("providers", "register", "p1", "--name", "x", "--recipient", "0x" + "0" * 40), FactRefused, "zero address"),
        (("providers", "register", "p 1", "--name", "x", "--recipient", to), FactRefused, "a provider's id"),
    ]
    for arguments, kind, words in refusals:
        result = await command(ledger_log, books_url, *arguments)
        assert isinstance(result.exception, kind), (arguments, result.output, result.exception)
        assert words in str(result.exception)
        assert "\n" not in str(result.exception)

    await books.execute("update derived.epochs set mismatch = 'digest: x' where number = 2")
    assert "pay nothing by it: digest: x" in await do("epochs", "show", "2")
    assert "MISMATCH" in line_of(await do("epochs", "list"), root)


async def test_books_as_of_an_epoch(ledger_log: str, books: asyncpg.Pool, books_url: str) -> None:
    for seed in range(2):
        await append_all(ledger_log, earnings(seed))
        await project(ledger_log, books)
        async with epochs_of(ledger_log, books_url) as epochs:
            await epochs.close(TERMS, T0_MS)
    await append_all(ledger_log, earnings(2))
    rows = await books.fetch("select number, cut, digest, payout_root from derived.epochs order by number")
    for number, cut, digest, root in rows:
        async with Source(P, ledger_log) as source:
            assert (await source.epochs(up_to=number))[-1].ends == dict(enumerate(cut))
        result = await shrk(ledger_log, books_url, "replay", "--epoch", str(number))
        assert result.exit_code == 0, result.output
        assert f"digest {digest}" in result.output
        assert f"as epoch {number} says: digest, heads, roots, payout root {root}" in result.output
        assert f"{sum(cut):,} events in {P} partitions" in result.output
    async with Source(P, ledger_log) as source:
        with pytest.raises(UnknownEpoch, match="the log has no epoch 3: its last is 2"):
            await source.epochs(up_to=3)
    missing = await shrk(ledger_log, books_url, "replay", "--epoch", "3")
    assert (missing.exit_code, "the log has no epoch 3: its last is 2" in missing.output) == (1, True)
    assert (await shrk(ledger_log, books_url, "replay", "--epoch", "1", "--compare")).exit_code == 2


async def test_without_kafka_or_postgresql_there_is_one_clear_line(ledger_log: str, books_url: str) -> None:
    away = [
        ("127.0.0.1:1", books_url, ("epochs", "close"), "the ledger log at 127.0.0.1:1 does not answer"),
        (ledger_log, NOWHERE, ("epochs", "close"), "PostgreSQL at "),
        (ledger_log, NOWHERE, ("epochs", "list"), "PostgreSQL at "),
        (ledger_log, NOWHERE, ("epochs", "show", "1"), "PostgreSQL at "),
    ]
    for kafka, url, arguments, words in away:
        result = await command(kafka, url, *arguments)
        assert isinstance(result.exception, Unreachable), (arguments, result.output, result.exception)
        assert str(result.exception).startswith(words)
        assert "\n" not in str(result.exception)
