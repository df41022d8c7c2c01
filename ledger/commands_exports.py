"""`shrk ledger export` and `shrk ledger statement`: the books for finance's own tools, and an account's month.

Both replay the log, and give nothing where an invariant is broken or the log cannot be read to its end.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from ledger.books import provider_account, wallet_account
from ledger.commands_errata import errata_of, errata_option
from ledger.console import bar, settings_of
from ledger.decide import Decision
from ledger.errata import Errata
from ledger.exports.beancount import Beancount
from ledger.exports.csvs import Csv
from ledger.exports.dates import parse_day
from ledger.exports.hledger import Hledger
from ledger.exports.statement_html import as_html
from ledger.exports.statement_text import as_csv, as_json, as_text
from ledger.exports.transactions import ExportError, Head, Tally, format_cut, transaction_of
from ledger.exports.write import Form, export
from ledger.log import LedgerError, cached_partition_of
from ledger.reader import LedgerReader, Record
from ledger.replay import Listener, Replay, read_into
from ledger.spool import Spool
from ledger.statements import Statement, StatementBuilder
from schemas.events import Event
from schemas.settings import Settings
from schemas.topics import LEDGER

FORMS: dict[str, type[Form]] = {"hledger": Hledger, "beancount": Beancount, "csv": Csv}
RENDERERS: dict[str, Callable[[Statement], str]] = {
    "text": as_text,
    "json": as_json,
    "csv": as_csv,
    "html": as_html,
}
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,79}")  # schemas.events.Id
_CUT = re.compile(r"\d{1,4}:\d{1,18}(,\d{1,4}:\d{1,18})*")


def register(group: click.Group) -> None:
    """Adds the commands of this module."""
    group.add_command(export_command)
    group.add_command(statement_command)


@click.command("export")
@click.option("--format", "form", type=click.Choice(list(FORMS)), required=True, help="Whose file it is to be.")
@click.option("--out", required=True, metavar="FILE", help="Where to write it, whole or not at all; - is stdout.")
@click.option(
    "--until",
    metavar="PARTITION:OFFSET,...",
    help="Read each partition up to, not with, this offset. Default: its end.",
)
@click.option("--until-date", metavar="YYYY-MM-DD", help="Only what happened on this UTC day or before.")
@errata_option
@click.pass_context
def export_command(
    ctx: click.Context, form: str, out: str, until: str | None, until_date: str | None, errata_file: Path | None
) -> None:
    """Write every transaction of the books as a journal that hledger or beancount checks, or as CSV.

    The same cut gives the same bytes. Balances are asserted at the end of each day and of the export.
    """
    if until is not None and until_date is not None:
        raise click.UsageError("give --until or --until-date, not both", ctx)
    settings = settings_of(ctx)
    ends = None if until is None else _parse_cut(ctx, until, settings.ledger_partitions)
    day = None if until_date is None else _parsed(ctx, "--until-date", parse_day, until_date)
    errata = errata_of(settings, errata_file)
    with _one_line_errors(), Spool() as spool:
        head = asyncio.run(_collect(settings, ends, day, spool, errata))
        written = _write(out, export(FORMS[form](), head, spool.ordered()))
    click.echo(
        f"{head.tally.transactions:,} transactions of {len(head.tally.first_day_of):,} accounts, {written:,} bytes; "
        f"offsets {format_cut(head.next_offsets)}",
        err=True,
    )


@click.command("statement")
@click.option("--wallet", metavar="ID", help="The wallet whose month it is.")
@click.option("--provider", metavar="ID", help="The provider whose month it is.")
@click.option("--month", required=True, metavar="YYYY-MM", help="A UTC month.")
@click.option("--format", "form", type=click.Choice(list(RENDERERS)), default="text", show_default=True)
@errata_option
@click.pass_context
def statement_command(
    ctx: click.Context,
    wallet: str | None,
    provider: str | None,
    month: str,
    form: str,
    errata_file: Path | None,
) -> None:
    """Print a month of a wallet or a provider: opening balance, every entry, closing balance, value in USD.

    HTML is one file without anything from elsewhere: print it for a PDF.
    """
    if (wallet is None) == (provider is None):
        raise click.UsageError("give --wallet or --provider", ctx)
    subject, option = (provider or "", "--provider") if wallet is None else (wallet, "--wallet")
    if not _ID.fullmatch(subject):
        raise click.BadParameter(f"{subject!r} is no id", ctx, param_hint=option)
    account = provider_account(subject) if wallet is None else wallet_account(subject)
    builder = _parsed(ctx, "--month", lambda text: StatementBuilder(account, text), month)
    settings = settings_of(ctx)
    errata = errata_of(settings, errata_file)
    with _one_line_errors():
        statement = asyncio.run(_build(settings, builder, wallet, errata))
        _write("-", [RENDERERS[form](statement)])


async def _collect(
    settings: Settings, ends: dict[int, int] | None, until_day: int | None, spool: Spool, errata: Errata
) -> Head:
    """Replays the log up to `ends` and puts what is to be exported into `spool`."""
    tally = Tally()

    async def listen(told: list[tuple[Record, Event, Decision]]) -> None:
        for record, event, decision in told:
            transaction = transaction_of(record.partition, record.offset, event, decision)
            if transaction is not None and (until_day is None or transaction.day <= until_day):
                tally.add(transaction)
                spool.add(transaction)

    if ends is not None:
        found = await _ends(settings)
        for partition, end in ends.items():
            if end > found.get(partition, 0):
                raise ExportError(f"{LEDGER} partition {partition} ends at {found.get(partition, 0)}, before {end}")
    replay = Replay(settings.ledger_partitions, errata=errata)
    await _read(replay, settings, ends, listen)
    digest = _finished(replay)
    if until_day is not None:
        return Head(tally.next_offsets, None, until_day, tally)
    if tally.balances != _balances(replay):
        raise ExportError("the transactions do not sum to the books: run shrk ledger replay")
    return Head({books.partition: books.next_offset for books in replay.books}, digest, None, tally)


async def _build(settings: Settings, builder: StatementBuilder, wallet: str | None, errata: Errata) -> Statement:
    """Replays what can concern the account: a wallet's events all stand in one partition, a provider's in any."""

    async def listen(told: list[tuple[Record, Event, Decision]]) -> None:
        for record, event, decision in told:
            builder.add(record.partition, record.offset, event, decision)

    ends = await _ends(settings)
    if wallet is not None:
        partition = cached_partition_of(wallet.encode(), settings.ledger_partitions)
        ends = {partition: ends.get(partition, 0)}
    replay = Replay(settings.ledger_partitions, errata=errata)
    await _read(replay, settings, ends, listen)
    _finished(replay)
    return builder.finish(ends, _balances(replay))


async def _read(replay: Replay, settings: Settings, ends: dict[int, int] | None, listener: Listener) -> None:
    with bar("Replaying") as (started, more):
        await read_into(replay, settings, ends, started, more, listener)


async def _ends(settings: Settings) -> dict[int, int]:
    async with LedgerReader(settings.kafka, settings.ledger_partitions, client_id="shiver-export") as reader:
        return await reader.ends()


def _balances(replay: Replay) -> dict[tuple[str, str], int]:
    return {(account, asset): nano for account, asset, nano, _ in replay.balances()}


def _finished(replay: Replay) -> str:
    digest = replay.finish()
    if replay.broken:
        more = f" and {len(replay.broken) - 1} more" if len(replay.broken) > 1 else ""
        raise ExportError(f"the books are broken: {replay.broken[0]}{more}")
    return digest


def _parse_cut(ctx: click.Context, text: str, partitions: int) -> dict[int, int]:
    if not _CUT.fullmatch(text):
        raise click.BadParameter(f"{text!r} is not PARTITION:OFFSET,...", ctx, param_hint="--until")
    pairs = [part.split(":") for part in text.split(",")]
    ends = {int(partition): int(offset) for partition, offset in pairs}
    if len(ends) != len(pairs) or set(ends) != set(range(partitions)):
        wanted = f"each partition from 0 to {partitions - 1} once"
        raise click.BadParameter(f"it must name {wanted}: a cut is of the whole log", ctx, param_hint="--until")
    return ends


def _parsed(ctx: click.Context, option: str, parse: Callable[[str], Any], text: str) -> Any:
    try:
        return parse(text)
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, param_hint=option) from None


@contextmanager
def _one_line_errors() -> Generator[None]:
    try:
        yield
    except (LedgerError, ExportError) as error:
        raise click.ClickException(str(error)) from error
    except BrokenPipeError:
        raise
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        raise click.ClickException(f"nothing was written: {what}") from error


def _write(out: str, pieces: Iterable[str]) -> int:
    """Write a file that appears only when it is whole, and return its bytes. Raises OSError."""
    if out == "-":
        stdout = click.get_binary_stream("stdout")
        written = sum(stdout.write(piece.encode()) for piece in pieces)
        stdout.flush()
        return written
    path = Path(out)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            written = sum(file.write(piece.encode()) for piece in pieces)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return written
