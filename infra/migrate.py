"""Brings the database forward: infra/migrations/NNNN_name.sql, in order, each once, each in one transaction.

There is no way back: a mistake is mended by the next file. A file that has been applied must never change; its SHA-256
is kept in the table public.shrk_migrations.
"""

import asyncio
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.errors import MigrationFailed, Unreachable
from infra.postgres import describe_url
from schemas.locks import Lock

FOLDER = Path(__file__).with_name("migrations")
_NAME = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")
_CONNECT_TIMEOUT_S = 10
_LOCK_TIMEOUT_S = 60.0
_EACH_TIMEOUT_S = 600.0

_TABLE = """
create table if not exists public.shrk_migrations (
    number int primary key,
    name text not null,
    sha256 text not null,
    applied_at timestamptz not null default now()
)
"""


@dataclass(frozen=True, slots=True)
class Migration:
    """One file; `sha256` in hex."""

    number: int
    name: str
    sql: str
    sha256: str


def load(folder: Path = FOLDER) -> list[Migration]:
    """The migrations of `folder` in order. Raises MigrationFailed for a name of another form, a gap or a double."""
    migrations = []
    for path in sorted(folder.glob("*.sql")):
        match = _NAME.fullmatch(path.name)
        if match is None:
            raise MigrationFailed(f"{path.name} is not named NNNN_what.sql")
        content = path.read_bytes()
        migrations.append(Migration(int(match[1]), path.name, content.decode(), hashlib.sha256(content).hexdigest()))
    for expected, migration in enumerate(migrations, 1):
        if migration.number != expected:
            raise MigrationFailed(
                f"{migration.name} stands where migration {expected:04} should: there is a gap or a double"
            )
    return migrations


def pending(migrations: Sequence[Migration], applied: dict[int, str]) -> list[Migration]:
    """The migrations to apply, given the SHA-256 by number of those that are.

    Raises MigrationFailed if an applied file has changed, or the database is ahead of us.
    """
    known = {migration.number: migration for migration in migrations}
    for number, sha256 in sorted(applied.items()):
        if number not in known:
            raise MigrationFailed(
                f"the database has migration {number:04}, which this version lacks: install a newer one"
            )
        if known[number].sha256 != sha256:
            raise MigrationFailed(
                f"{known[number].name} was changed after it had been applied: put it back, and add another"
            )
    todo = [migration for migration in migrations if migration.number not in applied]
    if todo and applied and todo[0].number < max(applied):
        raise MigrationFailed(f"{todo[0].name} was never applied, but later ones were")
    return todo


async def migrate(url: str, folder: Path = FOLDER) -> list[str]:
    """Applies what is pending to the database at `url` and returns the names. Safe to run side by side.

    Raises Unreachable, or MigrationFailed with the database's own words; what was applied before stays.
    """
    migrations = load(folder)
    connection = await _connect(url)
    try:
        await _lock(connection)
        await connection.execute(_TABLE)
        todo = pending(migrations, await _applied(connection))
        for migration in todo:
            await _apply(connection, migration)
        return [migration.name for migration in todo]
    finally:
        # Also gives back the advisory lock, which belongs to the session.
        await connection.close(timeout=_CONNECT_TIMEOUT_S)


async def status(url: str, folder: Path = FOLDER) -> list[str]:
    """The names of migrations that are still to be applied. Changes nothing. Raises as `migrate` does."""
    migrations = load(folder)
    connection = await _connect(url)
    try:
        there = await connection.fetchval("select to_regclass('public.shrk_migrations') is not null")
        return [migration.name for migration in pending(migrations, await _applied(connection) if there else {})]
    finally:
        await connection.close(timeout=_CONNECT_TIMEOUT_S)


async def _connect(url: str) -> Any:
    import asyncpg

    try:
        return await asyncpg.connect(url, timeout=_CONNECT_TIMEOUT_S, command_timeout=_EACH_TIMEOUT_S)
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, ValueError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise Unreachable(f"PostgreSQL at {describe_url(url)} cannot be used: {why}") from error


async def _lock(connection: Any) -> None:
    try:
        async with asyncio.timeout(_LOCK_TIMEOUT_S):
            # Polled, not waited for: a session that waits for a lock cannot be given up without breaking it.
            while not await connection.fetchval("select pg_try_advisory_lock($1)", Lock.MIGRATE):
                await asyncio.sleep(0.2)
    except TimeoutError as error:
        raise MigrationFailed(f"another process has been migrating this database for {_LOCK_TIMEOUT_S:g} s") from error


async def _applied(connection: Any) -> dict[int, str]:
    rows = await connection.fetch("select number, sha256 from public.shrk_migrations")
    return {row["number"]: row["sha256"] for row in rows}


async def _apply(connection: Any, migration: Migration) -> None:
    import asyncpg

    try:
        async with connection.transaction():
            await connection.execute(migration.sql)
            await connection.execute(
                "insert into public.shrk_migrations (number, name, sha256) values ($1, $2, $3)",
                migration.number,
                migration.name,
                migration.sha256,
            )
    except asyncpg.PostgresError as error:
        raise MigrationFailed(f"{migration.name} failed and was rolled back: {error}") from error
