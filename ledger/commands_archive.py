"""`shrk ledger archive` and `verify`. Registered by ledger/commands.py. pyarrow is imported when it is needed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ledger.commands_errata import errata_of, errata_of_archive, errata_option
from ledger.console import bar, run_shell, settings_of
from ledger.log import LedgerError
from ledger.manifest import RANGE_RECORDS
from ledger.source import Source

if TYPE_CHECKING:
    from ledger.archive import Archive
    from ledger.verify import Report

_SHOWN_MAX = 20

_FOLDER = click.Path(file_okay=False, path_type=Path)
archive_option = click.option(
    "--archive", "folder", type=_FOLDER, default=None, help="Read this archive first, then what Kafka has behind it."
)


def register(group: click.Group) -> None:
    """Adds the commands of this file."""
    group.add_command(archive)
    group.add_command(verify)


def opened(folder: Path | None, partitions: int | None) -> Archive | None:
    """The archive in `folder`; None for none. Raises ClickException where it is missing or altered."""
    if folder is None:
        return None
    from ledger.archive import Archive

    try:
        return Archive.open(folder, partitions)
    except LedgerError as error:
        raise click.ClickException(str(error)) from error


def source_of(ctx: click.Context, folder: Path | None, errata_file: Path | None, no_tail: bool = False) -> Source:
    """Where the log is read: the archive in `folder`, then Kafka; with `no_tail` the archive alone.

    Raises ClickException as `opened` does, and where errata cannot be had.
    """
    if not no_tail:
        settings = settings_of(ctx)
        archive = opened(folder, settings.ledger_partitions)
        return Source(settings.ledger_partitions, settings.kafka, archive, errata_of(settings, errata_file, archive))
    alone = opened(folder, None)
    if alone is None:
        raise click.UsageError("--no-tail needs --archive DIR", ctx)
    return Source(alone.manifest.partitions, None, alone, errata_of_archive(alone, errata_file))


@click.command()
@click.option("--out", "folder", type=_FOLDER, required=True, help="The folder of the archive; made if need be.")
@errata_option
@click.option("--tail", is_flag=True, help="Also the begun range of each partition; a later run replaces it.")
@click.option(
    "--range",
    "range_records",
    type=click.IntRange(1, 1 << 23),
    default=RANGE_RECORDS,
    show_default=True,
    help="Records in a file, a power of two. The same for the archive's whole life.",
)
@click.pass_context
def archive(ctx: click.Context, folder: Path, errata_file: Path | None, tail: bool, range_records: int) -> None:
    """Write closed ranges of ledger.events to Parquet files, with a manifest of their hashes.

    Errata for what is archived go along, in errata.json beside the manifest.
    Only what is new is written; a run that was killed is taken up by the next one. The same log gives the same files.
    """
    from ledger.archive import write_archive

    if range_records.bit_count() != 1:
        raise click.BadParameter(f"{range_records} is no power of two", ctx, param_hint="--range")
    settings = settings_of(ctx)
    errata = errata_of(settings, errata_file)
    with bar("Archiving") as (started, more):
        written = run_shell(
            write_archive(
                settings,
                folder,
                range_records=range_records,
                tail=tail,
                on_start=started,
                on_file=more,
                errata=errata,
            )
        )
    click.echo(
        f"{written.records:,} records written in {written.files:,} files; "
        f"{sum(written.ends.values()):,} are archived in {folder}"
    )


@click.command()
@archive_option
@errata_option
@click.option("--no-tail", is_flag=True, help="The archive alone: needs neither Kafka nor PostgreSQL.")
@click.option("--both", is_flag=True, help="Also compare each archived record with the log's own copy of it.")
@click.option("--every-batch", is_flag=True, help="Check the invariants behind each batch, not behind each event.")
@click.pass_context
def verify(
    ctx: click.Context, folder: Path | None, errata_file: Path | None, no_tail: bool, both: bool, every_batch: bool
) -> None:
    """Walk the log, or an archive and the log's tail, and name the first thing that is not as it must be.

    Checked are the records, their hash chain, the invariants at every prefix, and PostgreSQL row by row. Exits 1 where
    something is wrong.
    """
    from ledger.verify import verify_archive, verify_log

    if folder is None and (no_tail or both):
        raise click.UsageError("--no-tail and --both need --archive DIR", ctx)
    if no_tail and both:
        raise click.UsageError("--both needs the log, --no-tail leaves it out", ctx)
    source = source_of(ctx, folder, errata_file, no_tail)
    if no_tail:
        report = run_shell(verify_archive(source, bar, every_batch=every_batch))
    else:
        report = run_shell(verify_log(source, settings_of(ctx).database_url, bar, every_batch=every_batch, both=both))
    _print(report)
    for path in [] if source.archive is None else source.archive.strays()[:_SHOWN_MAX]:
        click.echo(f"not read, since the manifest does not name it: {path}", err=True)
    if report.bad:
        ctx.exit(1)


def _print(report: Report) -> None:
    for partition, (following, head) in report.places.items():
        if following:
            click.echo(f"partition {partition}: {following:,} records, chain {head}")
    if report.bad:
        click.echo(f"first bad: {report.bad[0]}", err=True)
        for other in report.bad[1:_SHOWN_MAX]:
            click.echo(f"      and: {other}", err=True)
        if len(report.bad) > _SHOWN_MAX:
            click.echo(f"      and {len(report.bad) - _SHOWN_MAX:,} more", err=True)
        return
    rows = "" if report.compared is None else f", and PostgreSQL in {report.rows:,} rows"
    if report.compared is not None and report.compared < report.events:
        rows += f", which has read {report.compared:,} of them"
    click.echo(f"{report.events:,} events verified: records, hash chain, invariants at every prefix{rows}")
    if report.epochs:
        click.echo(f"{report.epochs:,} epochs verified: cut, heads, roots, digest, entitlements, payout root")
    click.echo(f"digest {report.digest}")
