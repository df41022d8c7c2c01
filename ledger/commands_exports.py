"""`shrk ledger export` and `shrk ledger statement`: the books for finance's own tools, and an account's month.

Both replay the log, and give nothing where an invariant is broken or the log cannot be read to its end.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from ledger.books import provider_account, wallet_account
from ledger.commands_archive import archive_option, source_of
from ledger.commands_errata import errata_option
from ledger.console import bar, one_line_for_files, write_whole
from ledger.decide import Decision
from ledger.exports.beancount import Beancount
from ledger.exports.csvs import Csv
from ledger.exports.dates import parse_day
from ledger.exports.hledger import Hledger
from ledger.exports.statement_html import as_html
from ledger.exports.statement_text import as_csv, as_json, as_text
from ledger.exports.transactions import (
    Cut,
    Epochs,
    ExportError,
    Head,
    Tally,
    by_day,
    by_epoch,
    format_cut,
    transaction_of,
)
from ledger.exports.write import Form, export
from ledger.log import LedgerError, cached_partition_of
from ledger.reader import Record
from ledger.replay import Listener, Replay, read_into
from ledger.source import Source
from ledger.spool import Spool
from ledger.statements import Statement, StatementBuilder
from schemas.events import EpochClosed, Event
from schemas.topics import LEDGER, SETTLEMENT_KEY

PARQUET = "parquet"
FORMS: dict[str, type[Form]] = {"hledger": Hledger, "beancount": Beancount, "csv": Csv}
RENDERERS: dict[str, Callable[[Statement], str]] = {
    "text": as_text,
    "json": as_json,
    "csv": as_csv,
    "html": as_html,
}
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,79}")  # schemas.events.Id
_CUT = re.compile(r"\d{1,4}:\d{1,18}(,\d{1,4}:\d{1,18})*", re.ASCII)


def register(group: click.Group) -> None:
    """Adds the commands of this module."""
    group.add_command(export_command)
    group.add_command(statement_command)


@click.command("export")
@click.option("--format", "form", type=click.Choice([*FORMS, PARQUET]), required=True, help="Whose file it is to be.")
@click.option("--out", required=True, metavar="FILE", help="Where to write it, whole or not at all; - is stdout.")
@click.option(
    "--until",
    metavar="CUT|DAY",
    help="0:12,1:40,...: each partition up to, not with, this offset. YYYY-MM-DD: what happened on this UTC day or "
    "before. Default: the log's end.",
)
@click.option("--epoch", type=click.IntRange(1, 10**9), default=None, help="Up to the cut of this epoch.")
@archive_option
@errata_option
@click.option("--no-tail", is_flag=True, help="The archive alone: needs neither Kafka nor PostgreSQL.")
@click.pass_context
def export_command(
    ctx: click.Context,
    form: str,
    out: str,
    until: str | None,
    epoch: int | None,
    folder: Path | None,
    errata_file: Path | None,
    no_tail: bool,
) -> None:
    """Write every transaction of the books as a journal that hledger or beancount checks, as CSV or as Parquet.

    The same cut gives the same bytes. Balances are asserted at the end of each day, at each epoch's cut, and at the
    end of the export. Exits 1, with the file written, where the last epoch in it was closed over other records.
    """
    if until is not None and epoch is not None:
        raise click.UsageError("give --until or --epoch, not both", ctx)
    source = source_of(ctx, folder, errata_file, no_tail)
    ends, day = _parse_until(ctx, until, source.partitions)
    key = by_epoch if form in FORMS and FORMS[form].by_epoch else by_day
    with _one_line_errors(), one_line_for_files(), Spool(key=key) as spool:
        head, wrong = asyncio.run(_collect(source, ends, day, epoch, spool))
        if form == PARQUET:
            from ledger.parquet_export import export_parquet

            pieces = export_parquet(head, spool.ordered())
        else:
            pieces = (piece.encode() for piece in export(FORMS[form](), head, spool.ordered()))
        written = write_whole(out, pieces)
    click.echo(
        f"{head.tally.transactions:,} transactions of {len(head.tally.first_day_of):,} accounts, {written:,} bytes; "
        f"offsets {format_cut(head.next_offsets)}",
        err=True,
    )
    _end(ctx, wrong)


@click.command("statement")
@click.option("--wallet", metavar="ID", help="The wallet whose month it is.")
@click.option("--provider", metavar="ID", help="The provider whose month it is.")
@click.option("--month", required=True, metavar="YYYY-MM", help="A UTC month.")
@click.option("--format", "form", type=click.Choice(list(RENDERERS)), default="text", show_default=True)
@archive_option
@errata_option
@click.option("--no-tail", is_flag=True, help="The archive alone: needs neither Kafka nor PostgreSQL.")
@click.pass_context
def statement_command(
    ctx: click.Context,
    wallet: str | None,
    provider: str | None,
    month: str,
    form: str,
    folder: Path | None,
    errata_file: Path | None,
    no_tail: bool,
) -> None:
    """Print a month of a wallet or a provider: opening balance, every entry, closing balance, value in USD.

    HTML is one file without anything from elsewhere: print it for a PDF. Exits 1, with the statement printed, where the
    last epoch was closed over other records of its partitions.
    """
    if (wallet is None) == (provider is None):
        raise click.UsageError("give --wallet or --provider", ctx)
    subject, option = (provider or "", "--provider") if wallet is None else (wallet, "--wallet")
    if not _ID.fullmatch(subject):
        raise click.BadParameter(f"{subject!r} is no id", ctx, param_hint=option)
    account = provider_account(subject) if wallet is None else wallet_account(subject)
    builder = _parsed(ctx, "--month", lambda text: StatementBuilder(account, text), month)
    source = source_of(ctx, folder, errata_file, no_tail)
    with _one_line_errors(), one_line_for_files():
        statement, wrong = asyncio.run(_build(source, builder, wallet))
        write_whole("-", [RENDERERS[form](statement).encode()])
    _end(ctx, wrong)


def _end(ctx: click.Context, wrong: list[str]) -> None:
    for line in wrong:
        click.echo(f"broken: {line}: run shrk ledger verify", err=True)
    if wrong:
        ctx.exit(1)


async def _collect(
    source: Source, ends: dict[int, int] | None, until_day: int | None, epoch: int | None, spool: Spool
) -> tuple[Head, list[str]]:
    """Replays the log up to `ends`, or the cut of `epoch`, and puts what is to be exported into `spool`.

    Also says where the last epoch in it was closed over other records.

    The epochs are those that were closed before `ends`; an export by a day looks at none.
    """
    tally = Tally()
    async with source:
        ends, epochs, last = await _cut(source, ends, until_day, epoch)

        async def listen(told: list[tuple[Record, Event, Decision]]) -> None:
            for record, event, decision in told:
                transaction = transaction_of(record.partition, record.offset, event, decision)
                if transaction is not None and (until_day is None or transaction.day <= until_day):
                    transaction = transaction._replace(epoch=epochs.of(record.partition, record.offset))
                    tally.add(transaction)
                    spool.add(transaction)

        replay, digest, wrong = await _replayed(source, ends, listen, last)
    if until_day is not None:
        return Head(tally.next_offsets, None, until_day, tally), wrong
    if tally.balances != _balances(replay):
        raise ExportError("the transactions do not sum to the books: run shrk ledger replay")
    return Head(replay.places(), digest, None, tally, epochs.cuts), wrong


async def _cut(
    source: Source, ends: dict[int, int] | None, until_day: int | None, epoch: int | None
) -> tuple[dict[int, int], Epochs, EpochClosed | None]:
    """Up to where to read, the epochs that were closed before, and the last one whose cut lies there or before."""
    found = await source.ends()
    ends = found if ends is None else ends
    _check_there(ends, found)
    if until_day is not None:
        return ends, Epochs(), None
    home = cached_partition_of(SETTLEMENT_KEY.encode(), source.partitions)
    events = [place.event for place in await source.epochs(ends[home], up_to=epoch)]
    last = events[-1] if epoch is not None else None
    if epoch is not None:
        # As --until with these offsets has it: its own record stands behind them.
        ends = dict(enumerate(events.pop().cut))
        _check_there(ends, found)
    inside = [event for event in events if _is_before(event, ends)]
    last = last or _last_before(events, ends)
    return ends, Epochs([Cut(event.epoch, event.at_ms, event.cut, event.log_root) for event in inside]), last


def _is_before(event: EpochClosed, ends: dict[int, int]) -> bool:
    return all(following <= ends[partition] for partition, following in enumerate(event.cut))


def _last_before(events: list[EpochClosed], ends: dict[int, int]) -> EpochClosed | None:
    return next((event for event in reversed(events) if _is_before(event, ends)), None)


def _check_there(ends: dict[int, int], found: dict[int, int]) -> None:
    for partition, end in ends.items():
        if end > found.get(partition, 0):
            raise ExportError(f"{LEDGER} partition {partition} ends at {found.get(partition, 0)}, before {end}")


async def _build(source: Source, builder: StatementBuilder, wallet: str | None) -> tuple[Statement, list[str]]:
    """Replays what can concern the account: a wallet's events all stand in one partition, a provider's in any.

    Also says where the last epoch was closed over other records of those partitions.
    """

    async def listen(told: list[tuple[Record, Event, Decision]]) -> None:
        for record, event, decision in told:
            builder.add(record.partition, record.offset, event, decision)

    async with source:
        ends = await source.ends()
        # Damage elsewhere is no affair of this account's.
        last = _last_before([place.event for place in await source.epochs(damaged=True)], ends)
        if wallet is not None:
            partition = cached_partition_of(wallet.encode(), source.partitions)
            ends = {partition: ends.get(partition, 0)}
        replay, _, wrong = await _replayed(source, ends, listen, last)
    return builder.finish(ends, _balances(replay)), wrong


async def _replayed(
    source: Source, ends: dict[int, int], listener: Listener, epoch: EpochClosed | None = None
) -> tuple[Replay, str, list[str]]:
    """The books up to `ends`, their digest, and where `epoch` was closed over other records than those before its cut.

    Raises ExportError where an invariant does not hold.
    """
    replay, wrong = Replay(source.partitions, errata=source.errata), list[str]()
    with bar("Replaying") as (started, more):
        if epoch is not None:
            # A chain is made of all before it, so the last epoch's heads speak for every record up to there.
            cut = {partition: epoch.cut[partition] for partition in ends}
            await read_into(replay, source, cut, started, more, listener)
            wrong = [
                f"partition {partition} is not what epoch {epoch.epoch} was closed over: its hash chain up to offset "
                f"{following} ends in {replay.chains[partition].hex()}, the epoch says {epoch.heads[partition]}"
                for partition, following in cut.items()
                if replay.chains[partition].hex() != epoch.heads[partition]
            ]
        await read_into(replay, source, ends, started, more, listener)
    digest = replay.finish()
    if replay.broken:
        others = f" and {len(replay.broken) - 1} more" if len(replay.broken) > 1 else ""
        raise ExportError(f"the books are broken: {replay.broken[0]}{others}")
    return replay, digest, wrong


def _balances(replay: Replay) -> dict[tuple[str, str], int]:
    return {(account, asset): nano for account, asset, nano, _ in replay.balances()}


def _parse_until(ctx: click.Context, text: str | None, partitions: int) -> tuple[dict[int, int] | None, int | None]:
    """A cut or a day, whichever it is."""
    if text is None:
        return None, None
    if not _CUT.fullmatch(text):
        if ":" in text or "-" not in text:
            raise click.BadParameter(f"{text!r} is neither PARTITION:OFFSET,... nor a day", ctx, param_hint="--until")
        return None, _parsed(ctx, "--until", parse_day, text)
    pairs = [part.split(":") for part in text.split(",")]
    ends = {int(partition): int(offset) for partition, offset in pairs}
    if len(ends) != len(pairs) or set(ends) != set(range(partitions)):
        wanted = f"each partition from 0 to {partitions - 1} once"
        raise click.BadParameter(f"it must name {wanted}: a cut is of the whole log", ctx, param_hint="--until")
    return ends, None


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
