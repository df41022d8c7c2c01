"""`shrk ledger`: replay the log, show entries and rules; archive, verify and export in files of their own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from ledger import commands_archive, commands_errata, commands_exports, commands_proofs
from ledger.commands_errata import errata_option
from ledger.commands_rules import rules
from ledger.compare import Comparison, connected
from ledger.console import bar, parse_request_id, run_shell, settings_of, table
from ledger.invariants import overdrawn
from ledger.money import format_amount
from ledger.outcomes import MEANINGS, Outcome
from ledger.replay import Replay, read_into
from ledger.source import Source
from ledger.verify_epochs import EpochCheck
from schemas.settings import Settings


@click.group("ledger")
def group() -> None:
    """Replay, verify and archive the log of facts; entries, rules, exports, statements, proofs of requests, errata."""


commands_archive.register(group)
commands_exports.register(group)
commands_errata.register(group)
commands_proofs.register(group)
group.add_command(rules)


@group.command()
@click.option("--compare", is_flag=True, help="Compare with PostgreSQL row by row; exit 1 where a row differs.")
@click.option("--epoch", type=click.IntRange(1), help="Stop at the cut of this epoch, and check every one up to it.")
@commands_archive.archive_option
@errata_option
@click.option("--plain", is_flag=True, help="Parse and step every record; slow, and comes to the same.")
@click.pass_context
def replay(
    ctx: click.Context, compare: bool, epoch: int | None, folder: Path | None, errata_file: Path | None, plain: bool
) -> None:
    """Fold ledger.events from its first record to its end of now, and print the books and their digest.

    An archive is folded over its columns, which checks the hash of each file and the books; each record's key, its hash
    chain, and that the columns are what its bytes say are checked by `verify`, and a line on stderr says so. With
    --plain or --compare every record is parsed, and hashed into the chain. Exits 1 where an invariant does not hold, or
    the log cannot be read to its end.
    """
    if compare and epoch is not None:
        raise click.UsageError("PostgreSQL has the books of now: give --compare or --epoch, not both", ctx)
    source = commands_archive.source_of(ctx, folder, errata_file)
    database_url = settings_of(ctx).database_url if compare else None
    if not run_shell(_replay(source, database_url, epoch, plain)):
        ctx.exit(1)


@group.command()
@click.argument("request_id")
@click.pass_context
def entries(ctx: click.Context, request_id: str) -> None:
    """Show how a request ended and who was booked for it; exit 1 where that does not sum to zero, or to the charge.

    REQUEST_ID is that of x-shiver-request-id, or a completion's id (chatcmpl-...).
    """
    try:
        found = parse_request_id(request_id)
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, param_hint="REQUEST_ID") from None
    if not run_shell(_entries(settings_of(ctx), found)):
        ctx.exit(1)


async def _replay(source: Source, compare_with: str | None, epoch: int | None, plain: bool) -> bool:
    """Whether all is sound."""
    async with source:
        if epoch is not None:
            return await _replay_epoch(source, epoch)
        if compare_with is not None:
            return await _compare(source, compare_with)
        books = Replay(source.partitions, errata=source.errata)
        with bar("Replaying") as (started, more):
            await read_into(books, source, None, started, more, plain=plain)
        return _report(books)


async def _replay_epoch(source: Source, number: int) -> bool:
    places = await source.epochs(up_to=number)
    books = Replay(source.partitions, errata=source.errata)
    check = EpochCheck(books, places)
    with bar("Replaying") as (started, more):
        started(sum(places[-1].event.cut))

        async def read(to: Mapping[int, int]) -> None:
            await read_into(books, source, to, lambda _: None, more, check.listen)

        await check.walk(read, places[-1].ends)
    sound = _report(books)
    for wrong in check.bad[:20]:
        click.echo(f"broken: {wrong}", err=True)
    if sound and not check.bad:
        click.echo(f"as epoch {number} says: digest, heads, roots, payout root {places[-1].event.payout_root}")
    return sound and not check.bad


async def _compare(source: Source, database_url: str) -> bool:
    books = Replay(source.partitions, remember=True, errata=source.errata)
    async with connected(database_url) as db, db.transaction(isolation="repeatable_read", readonly=True):
        comparison = Comparison(db)
        with bar("Replaying") as (started, more):
            await read_into(books, source, await comparison.ends(), started, more, comparison.batch)
        await comparison.books(books)
    sound = _report(books)
    if not comparison.differences:
        behind = sum((await source.ends()).values()) - books.events
        more = f"; the log has {behind:,} records more, which it has not read" if behind else ""
        click.echo(f"PostgreSQL is the same at these offsets: {comparison.rows:,} rows compared{more}")
        return sound
    more = "at least " if comparison.full else ""
    click.echo(f"PostgreSQL differs, {more}{len(comparison.differences)} differences:", err=True)
    for difference in comparison.differences:
        click.echo(f"  {difference}", err=True)
    return False


def _report(books: Replay) -> bool:
    fingerprint = books.finish()
    open_count = sum(b.opened_count - b.ended_count for b in books.books)
    click.echo(f"{books.events:,} events in {len(books.books)} partitions; {open_count:,} requests are open")
    for code, count in sorted(books.outcomes.items(), key=lambda item: (-item[1], item[0])):
        click.echo(f"  {count:>12,}  {code:<16} {MEANINGS[Outcome(code)]}")
    rows = [(account, format_amount(nano), asset, f"{n:,}") for account, asset, nano, n in books.balances()]
    table(("account", "balance", "asset", "entries"), rows, right=(1, 3))
    for account, asset, nano in overdrawn(books.books):
        click.echo(f"below zero: {account} has {format_amount(nano)} {asset}", err=True)
    for wrong in books.broken[:20]:
        click.echo(f"broken: {wrong}", err=True)
    if books.unchecked:
        click.echo(
            f"{books.unchecked:,} of these were taken from the archive as its manifest has them; whether they are the "
            "log's records says shrk ledger verify --archive DIR (--both: each one)",
            err=True,
        )
    click.echo(f"digest {fingerprint}")
    return not books.broken


async def _entries(settings: Settings, request_id: str) -> bool:
    """Whether the entries sum to zero, and are those of the charge."""
    async with connected(settings.database_url) as db, db.transaction(isolation="repeatable_read", readonly=True):
        requests = await db.fetch("select * from derived.requests where request_id = $1 order by partition", request_id)
        rows = await db.fetch(
            'select * from derived.entries where request_id = $1 order by partition, "offset", posting', request_id
        )
    if not requests:
        raise click.ClickException(f"the books know no request {request_id}; just now it may not have been read yet")
    for request in requests:
        _head(request_id, request)
    sums = {asset: sum(r["amount_nano"] for r in rows if r["asset"] == asset) for asset in {r["asset"] for r in rows}}
    lines = [
        (row["account"], format_amount(row["amount_nano"]), row["asset"], f"{row['partition']}/{row['offset']}")
        for row in rows
    ]
    lines += [("sum", format_amount(nano), asset, "") for asset, nano in sorted(sums.items())]
    if rows:
        table(("account", "amount", "asset", "in the log at"), lines, right=(1,))
    else:
        click.echo("no entries: nobody was charged")
    charged = sum(request["charge_nano"] for request in requests)
    taken = -sum(row["amount_nano"] for row in rows if row["posting"] == 0)  # the payer's
    wrong = [f"the entries in {asset} do not sum to zero" for asset, nano in sorted(sums.items()) if nano]
    if charged != taken:
        wrong.append(f"the payer's entries take {taken} nano, the charge is {charged}")
    for what in wrong:
        click.echo(f"broken: {what}: run shrk ledger verify", err=True)
    return not wrong


def _head(request_id: str, request: Any) -> None:
    how = "" if request["how"] is None else f", {request['how']}"
    click.echo(f"request {request_id} of wallet {request['wallet_id']}: {request['status']}{how}")
    if request["status"] == "charged":
        charge = f"{format_amount(request['charge_nano'])} {request['asset']}"
        clamped = " (clamped to the hold)" if request["clamped"] else ""
        click.echo(
            f"{request['model']}: {request['prompt_tokens']} prompt and {request['completion_tokens']} completion "
            f"tokens for {charge}{clamped}"
        )
    elif request["status"] == "open":
        click.echo(f"{format_amount(request['hold_nano'])} {request['asset']} is held for it")
