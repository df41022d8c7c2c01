"""`shrk ledger rebuild`: schema derived anew from the log, by streams/rebuild.py, which ledger may not import.

Registered under `ledger` by infra/cli.py.
"""

from __future__ import annotations

from pathlib import Path

import click

from infra.errors import RebuildFailed, Unreachable
from ledger.commands_archive import archive_option, opened
from ledger.commands_errata import errata_of, errata_option
from ledger.console import bar, run_shell, settings_of


@click.command()
@click.option("--accept-differences", is_flag=True, help="Swap although rows differ: this mends a damaged derived.")
@click.option("--keep-old", is_flag=True, help="Keep the old tables as schema derived_old, until the next rebuild.")
@click.option("--discard", is_flag=True, help="Only remove what earlier runs left: derived_next and derived_old.")
@archive_option
@errata_option
@click.pass_context
def rebuild(
    ctx: click.Context,
    accept_differences: bool,
    keep_old: bool,
    discard: bool,
    folder: Path | None,
    errata_file: Path | None,
) -> None:
    """Make the tables of schema derived anew from the log's first record, compare every row, and swap them in.

    Serving goes on meanwhile. Where rows differ, they are listed, nothing is swapped, and derived_next is kept for
    looking at; exits 1 then. Killed at any instant, nothing is lost: run it again.
    """
    from confluent_kafka import KafkaException

    from streams import rebuild as work
    from streams.projection import ProjectionStopped
    from streams.starts import LogChanged

    if discard and (accept_differences or keep_old or folder):
        raise click.UsageError("--discard goes alone", ctx)
    settings = settings_of(ctx)
    try:
        if discard:
            removed = run_shell(work.discard(settings.database_url))
            click.echo(f"removed {' and '.join(removed)}" if removed else "there was nothing to remove")
            return
        archive = opened(folder, settings.ledger_partitions)
        errata = errata_of(settings, errata_file, archive)
        with bar("Rebuilding") as (started, more):
            options = work.Options(accept_differences, keep_old)
            result = run_shell(work.rebuild(settings, archive, options, work.Progress(_say, started, more), errata))
    except KafkaException as error:
        raise Unreachable(f"Kafka at {settings.kafka} does not answer: {error.args[0].str()}") from error
    except (work.RebuildFailed, LogChanged, ProjectionStopped) as error:
        raise RebuildFailed(str(error)) from error
    found = result.differences
    for difference in found.shown:
        click.echo(f"  {difference}", err=True)
    if found.count > len(found.shown):
        click.echo(f"  and {found.count - len(found.shown):,} more", err=True)
    click.echo(f"{result.records:,} records folded, {found.rows:,} rows compared, {found.count:,} differ")
    if not result.swapped:
        click.echo("nothing was swapped; derived_next has what the log says (--discard removes it)", err=True)
        ctx.exit(1)
    again = "" if result.restored is None else f"; {result.restored:,} admissions were made again"
    click.echo(f"swapped{again}" + ("; the old tables are in derived_old" if keep_old else ""))


def _say(what: str) -> None:
    click.echo(f"\n{what}", err=True)
