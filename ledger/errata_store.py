"""Where errata are kept: table state.errata, files of an operator, and beside the manifest of an archive."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ledger.compare import connected
from ledger.errata import Errata
from ledger.log import LedgerError
from schemas.errata import ErrataError, Erratum, load_file
from schemas.settings import Settings

if TYPE_CHECKING:
    from ledger.archive import Archive


class ErrataUnavailable(LedgerError):
    """A file of errata cannot be read, or is none."""


async def errata_for(settings: Settings, file: Path | None, archive: Archive | None = None) -> Errata:
    """The errata of `archive`, and of `file` or else of PostgreSQL, which is asked only where keys are trusted.

    Raises ErrataUnavailable and what DATABASE_ERRORS names.
    """
    found = list[Erratum]() if archive is None else list(archive.carried)
    if file is not None:
        found += read_file(file)
    elif settings.errata_keys:
        async with connected(settings.database_url) as db:
            found += await stored(db)
    return Errata(found, settings.errata_keys)


def read_file(path: Path) -> tuple[Erratum, ...]:
    """The errata of a file. Raises ErrataUnavailable."""
    try:
        return load_file(path.read_bytes())
    except OSError as error:
        raise ErrataUnavailable(f"{path}: {error.strerror or error}") from error
    except ErrataError as error:
        raise ErrataUnavailable(f"{path}: {error}") from None


async def stored(db: Any) -> tuple[Erratum, ...]:
    """All of state.errata, as they are; `Errata` decides which count."""
    rows = await db.fetch('select * from state.errata order by partition, "offset", created_at')
    return tuple(
        Erratum(
            partition=row["partition"],
            offset=row["offset"],
            record_sha256=row["record_sha256"].hex(),
            reason=row["reason"],
            operator=row["operator"],
            at_ms=row["at_ms"],
            public_key=row["public_key"].hex(),
            signature=row["signature"].hex(),
        )
        for row in rows
    )


async def store(db: Any, errata: Iterable[Erratum]) -> int:
    """Adds what is not there yet, all or nothing, and says how many that were."""
    async with db.transaction():
        return sum([await _store(db, erratum) for erratum in errata])


async def _store(db: Any, erratum: Erratum) -> int:
    done: str = await db.execute(
        'insert into state.errata (partition, "offset", record_sha256, reason, operator, at_ms, public_key, signature) '
        "values ($1, $2, $3, $4, $5, $6, $7, $8) on conflict do nothing",
        erratum.partition,
        erratum.offset,
        bytes.fromhex(erratum.record_sha256),
        erratum.reason,
        erratum.operator,
        erratum.at_ms,
        bytes.fromhex(erratum.public_key),
        bytes.fromhex(erratum.signature),
    )
    return int(done.rpartition(" ")[2])
