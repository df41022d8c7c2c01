"""`shrk ledger erratum`: keys, signing, adding, listing. Registered by ledger/commands.py. See schemas/errata.py."""

from __future__ import annotations

import getpass
import os
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ledger.compare import connected
from ledger.console import run_shell, settings_of
from ledger.digest import record_sha256
from ledger.errata import Errata, fault, why_unreadable
from ledger.errata_store import ErrataUnavailable, errata_for, read_file, store, stored
from ledger.reader import LedgerReader, Record
from schemas.errata import ErrataError, Erratum, dump_file, new_key, public_key_of, sign, trusted_keys
from schemas.settings import Settings
from schemas.topics import LEDGER

if TYPE_CHECKING:
    from ledger.archive import Archive

_FILE = click.Path(dir_okay=False, path_type=Path)
errata_option = click.option(
    "--errata",
    "errata_file",
    type=_FILE,
    default=None,
    help="Errata for records that cannot be read, of keys in SHRK_ERRATA_KEYS. Default: those in PostgreSQL.",
)


def register(ledger: click.Group) -> None:
    """Adds the commands of this file."""
    ledger.add_command(group)


def errata_of(settings: Settings, file: Path | None, archive: Archive | None = None) -> Errata:
    """What counts for a command. Raises ClickException."""
    return run_shell(errata_for(settings, file, archive))


def errata_of_archive(archive: Archive, file: Path | None) -> Errata:
    """The same for an archive alone, without settings: its own errata, and those of `file`. Raises ClickException."""
    try:
        trusted = trusted_keys(os.environ.get("SHRK_ERRATA_KEYS", ""))
        return Errata([*archive.carried, *(() if file is None else read_file(file))], trusted)
    except (ErrataError, ErrataUnavailable) as error:
        raise click.ClickException(str(error)) from error


@click.group("erratum")
def group() -> None:
    """Signed words for records that cannot be read, so that the log can be read on behind them."""


@group.command("new-key")
@click.argument("file", type=_FILE)
def new_key_command(file: Path) -> None:
    """Make a private key in FILE (mode 0600, never overwritten), and print its public half for SHRK_ERRATA_KEYS."""
    key = new_key()
    try:
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as out:
            out.write(key + "\n")
    except OSError as error:
        raise click.ClickException(f"{file}: {error.strerror or error}") from error
    click.echo(public_key_of(key))


@group.command("sign")
@click.option("--key", "key_file", type=_FILE, required=True, help="The private key that new-key made.")
@click.option("--partition", type=click.IntRange(0), required=True)
@click.option("--offset", type=click.IntRange(0), required=True)
@click.option("--reason", required=True, help="Why the record may count as a rejection, for whoever reads the books.")
@click.option("--operator", default=None, help="Who says so. Default: the user that runs this.")
@click.option("--out", type=_FILE, required=True, help="Added to this file of errata; made if need be.")
@click.pass_context
def sign_command(
    ctx: click.Context, key_file: Path, partition: int, offset: int, reason: str, operator: str | None, out: Path
) -> None:
    """Read the record at PARTITION and OFFSET, and sign an erratum for it. A record that can be read gets none."""
    settings = settings_of(ctx)
    key = _private_key(key_file)
    record = run_shell(_record(settings, partition, offset))
    wrong = why_unreadable(record.key, record.value)
    if wrong is None:
        raise click.ClickException(f"{LEDGER} partition {partition} offset {offset} can be read: no erratum is signed")
    try:
        erratum = sign(
            Erratum(
                partition=partition,
                offset=offset,
                record_sha256=record_sha256(*record).hex(),
                reason=reason,
                operator=operator or getpass.getuser(),
                at_ms=int(time.time() * 1000),
                public_key=public_key_of(key),
            ),
            key,
        )
    except ValueError as error:  # pydantic's too: a reason of 300 letters, say
        raise click.ClickException(str(error).splitlines()[0]) from None
    before = read_file(out) if out.exists() else ()
    _write(out, dump_file([*before, erratum]))
    click.echo(f"signed for {LEDGER} partition {partition} offset {offset}: {wrong}")
    click.echo(f"  {len(record.key):,} bytes of key, {len(record.value):,} of value, SHA-256 {erratum.record_sha256}")


@group.command("add")
@click.argument("file", type=_FILE)
@click.pass_context
def add_command(ctx: click.Context, file: Path) -> None:
    """Put the errata of FILE into PostgreSQL, where the projection and the other commands find them.

    Refused where one would not count: its key is not in SHRK_ERRATA_KEYS, or its signature is wrong.
    """
    settings = settings_of(ctx)

    async def run() -> tuple[int, int]:
        errata = read_file(file)
        for erratum in errata:
            if wrong := fault(erratum, settings.errata_keys):
                raise click.ClickException(f"{_place(erratum)}: {wrong}; nothing was added")
        async with connected(settings.database_url, read_only=False) as db:
            return await store(db, errata), len(errata)

    added, count = run_shell(run())
    click.echo(f"{added} of {count} errata added; a stopped streams process finds them when it starts again")


@group.command("list")
@click.option("--json", "as_json", is_flag=True, help="As a file of errata, for --errata and for `add` elsewhere.")
@click.pass_context
def list_command(ctx: click.Context, as_json: bool) -> None:
    """Show the errata in PostgreSQL, and which of them count under SHRK_ERRATA_KEYS."""
    settings = settings_of(ctx)

    async def run() -> tuple[Erratum, ...]:
        async with connected(settings.database_url) as db:
            return await stored(db)

    errata = run_shell(run())
    if as_json:
        click.echo(dump_file(errata).decode(), nl=False)
        return
    for erratum in errata:
        wrong = fault(erratum, settings.errata_keys)
        counts = f"does not count: {wrong}" if wrong else "counts"
        click.echo(f"{_place(erratum)} by {erratum.operator}: {erratum.reason} ({counts})")
    if not errata:
        click.echo("there are none")


def _place(erratum: Erratum) -> str:
    return f"{LEDGER} partition {erratum.partition} offset {erratum.offset}"


def _private_key(file: Path) -> str:
    try:
        if stat.S_IMODE(file.stat().st_mode) & 0o077:
            raise click.ClickException(f"{file} can be read by others: chmod 600 {file}")
        text = file.read_text()
        public_key_of(text)
    except OSError as error:
        raise click.ClickException(f"{file}: {error.strerror or error}") from error
    except (ErrataError, UnicodeDecodeError):
        raise click.ClickException(f"{file} holds no private key") from None
    return text


async def _record(settings: Settings, partition: int, offset: int) -> Record:
    if partition >= settings.ledger_partitions:
        raise click.ClickException(f"{LEDGER} has {settings.ledger_partitions} partitions")
    async with LedgerReader(settings.kafka, settings.ledger_partitions, client_id="shiver-erratum") as reader:
        begins, ends = await reader.beginnings(), await reader.ends()
        if not begins[partition] <= offset < ends[partition]:
            held = f"{begins[partition]} to {ends[partition] - 1}" if ends[partition] else "nothing"
            raise click.ClickException(f"{LEDGER} partition {partition} has no offset {offset}: it has {held}")
        async for records in reader.read({partition: offset}, {partition: offset + 1}, misplaced=True):
            return records[0]
    raise click.ClickException(f"{LEDGER} partition {partition} gave no record at offset {offset}")


def _write(path: Path, data: bytes) -> None:
    part: Any = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    except OSError as error:
        raise click.ClickException(f"{path}: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)
