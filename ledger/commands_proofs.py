"""`shrk ledger prove` and `check-proof`. Registered by ledger/commands.py."""

from __future__ import annotations

from pathlib import Path

import click

from ledger import check_proof
from ledger.commands_archive import archive_option, source_of
from ledger.commands_errata import errata_option
from ledger.compare import DATABASE_ERRORS, connected
from ledger.console import bar, one_line_for_files, parse_request_id, run_shell, settings_of, write_whole
from ledger.prove import FromLog, FromRows, OnRecords, prove
from ledger.source import Source


def register(group: click.Group) -> None:
    """Adds the commands of this file."""
    group.add_command(prove_command)
    group.add_command(check_command)


@click.command("prove")
@click.option("--request", "request_id", metavar="ID", required=True, help="That of x-shiver-request-id.")
@click.option("--epoch", type=click.IntRange(1, 10**9), default=None, help="Default: the first that has all of it.")
@click.option("--out", default="-", metavar="FILE", help="Where to write it, whole or not at all; - is stdout.")
@archive_option
@errata_option
@click.option("--no-tail", is_flag=True, help="The archive alone: needs neither Kafka nor PostgreSQL.")
@click.pass_context
def prove_command(
    ctx: click.Context,
    request_id: str,
    epoch: int | None,
    out: str,
    folder: Path | None,
    errata_file: Path | None,
    no_tail: bool,
) -> None:
    """Write the proof that a request's records stand in the log of a closed epoch, and what they come to.

    Anyone checks it, with neither log nor database: shrk ledger check-proof FILE, or ledger/check_proof.py alone.
    """
    try:
        wanted = parse_request_id(request_id)
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, param_hint="--request") from None
    source = source_of(ctx, folder, errata_file, no_tail)
    database_url = None if no_tail else settings_of(ctx).database_url
    with bar("Reading") as (started, more):
        data = run_shell(_prove(source, database_url, wanted, epoch, started, more))
    with one_line_for_files():
        written = write_whole(out, [data])
    click.echo(f"{written:,} bytes prove request {wanted}", err=True)


async def _prove(
    source: Source,
    database_url: str | None,
    request_id: str,
    epoch: int | None,
    started: OnRecords,
    more: OnRecords,
) -> bytes:
    async with source:
        try:
            if database_url is not None:
                async with (
                    connected(database_url) as db,
                    db.transaction(isolation="repeatable_read", readonly=True),
                ):
                    return await prove(source, FromRows(db, source, more), request_id, epoch, more)
        except DATABASE_ERRORS as error:
            reason = str(error) or type(error).__name__
            click.echo(f"PostgreSQL does not answer ({reason}): folding the whole log instead", err=True)
        return await prove(source, FromLog(source, started, more), request_id, epoch, more)


@click.command("check-proof")
@click.argument("file")
@click.option("--log-root", metavar="HEX", default=None, help="The epoch's log root as it was published.")
@click.option("--payout-root", metavar="HEX", default=None, help="The epoch's payout root as it is on chain.")
@click.pass_context
def check_command(ctx: click.Context, file: str, log_root: str | None, payout_root: str | None) -> None:
    """Check a proof, offline: a line for each check and a verdict. Exits 1 where it does not hold."""
    more = [f"--log-root={log_root}"] if log_root is not None else []
    more += [f"--payout-root={payout_root}"] if payout_root is not None else []
    ctx.exit(check_proof.main([*more, "--", file]))
