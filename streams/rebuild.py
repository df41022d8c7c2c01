"""Makes schema derived anew from the log, beside the live one, compares every row, and swaps (S17).

    1 derived_next gets the tables of derived as they are, and its offsets at 0
    2 the log is folded into it, by the projection's own code, until it is near the live one; nobody waits for that
    3 every row is compared, in one snapshot of each at the same place of the log; nobody waits for that either
    4 in one short transaction the live offsets are locked (the projection waits), derived_next is brought to exactly
      their place, what changed since 3 is compared, admission is locked, the schemas change names, and the admissions
      are made right for the books that are live now

Where rows differ nothing is swapped, unless that is asked for: then it mends a damaged derived. A kill at any instant
leaves the live books as they were, or swapped as a whole; the next run begins anew.

Whoever waits for one of our locks looks the tables up by name again when it gets it, and so finds the new ones: that
is PostgreSQL's rule for names and for prepared plans alike. Locks are taken in everybody's order (offsets, state,
derived), and given up before PostgreSQL's deadlock_timeout, so that where two wait for each other it is we who let go.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg

from ledger.archive import Archive
from ledger.errata import NO_ERRATA, Errata
from ledger.log import LedgerCorrupt
from ledger.reader import LedgerReader, Record
from schemas import topics
from schemas.settings import Settings
from streams.differences import LIVE, NEXT, Differences, Since, Table, compare, tables_of
from streams.projection import Projection
from streams.starts import LogChanged, describe

OLD = "derived_old"
_SQL = {path.stem: path.read_text() for path in Path(__file__).with_name("rebuild_sql").glob("*.sql")}
#: Any number that no other program uses on this database.
ADVISORY_LOCK = 7_311_808
SLICE_RECORDS = 5_000
#: So near the live books, step 3 and 4 begin; further away the log is folded on without any lock.
NEAR_RECORDS = 2_000
ROUNDS_MAX = 100
#: Below deadlock_timeout (1 s), and short, because who comes behind us waits too: admission gives up after 1.5 s.
LOCK_MS = 500
#: Below the 4 s after which the streams process gives up waiting.
SWAP_MS = 3_000
ATTEMPTS_MAX = 40
PAUSE_S = 1.0
CONNECT_S = 10

#: Tables of derived that are not made of records one by one, but by another component of the streams from what the
#: records made. They go over to the new books as they are, row by row the same; where the books differed they begin
#: empty, and their component makes them again.
COMPUTED = frozenset(("epochs", "entitlements", "recipients", "sandbox_funds", "tree_blocks"))  # streams/epochs.py

#: What a lost race for the locks looks like, and a transaction that took too long.
_LOST = (
    asyncpg.LockNotAvailableError,
    asyncpg.DeadlockDetectedError,
    asyncpg.QueryCanceledError,
    asyncpg.PostgresConnectionError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.TransactionTimeoutError,
    asyncpg.InterfaceError,
    ConnectionError,
)
_SWAP_SETTINGS = {
    "lock_timeout": str(LOCK_MS),
    "transaction_timeout": str(SWAP_MS),
    "idle_in_transaction_session_timeout": str(SWAP_MS),
    "client_connection_check_interval": "1000",
}


class RebuildFailed(Exception):
    """The books were not made anew, and the live ones are as they were. Its text is one line for the operator."""


class Options(NamedTuple):
    """What the operator asks for."""

    accept_differences: bool = False
    keep_old: bool = False


class Result(NamedTuple):
    """What a run came to. `restored` admissions were made again in the swap; None where its answer was lost."""

    swapped: bool
    differences: Differences
    records: int
    restored: int | None


class Progress(NamedTuple):
    """Whom to tell: what is done now, how many records there are, how many more were folded."""

    say: Callable[[str], None]
    started: Callable[[int], None]
    more: Callable[[int], None]


async def discard(database_url: str) -> list[str]:
    """Removes what earlier runs left, and returns the names. Raises RebuildFailed while one runs."""
    async with _locked(database_url) as db:
        left = await db.fetch("select nspname from pg_namespace where nspname = any ($1)", [NEXT, OLD])
        for row in left:
            await db.execute(f"drop schema {row['nspname']} cascade")
        return [row["nspname"] for row in left]


async def rebuild(
    settings: Settings, archive: Archive | None, options: Options, progress: Progress, errata: Errata = NO_ERRATA
) -> Result:
    """One run. Raises RebuildFailed, LogChanged, ProjectionStopped, LedgerError, KafkaException and asyncpg errors."""
    async with _locked(settings.database_url) as db:
        progress.say("making derived_next")
        await _prepare(db, settings)
        async with (
            LedgerReader(
                settings.kafka, settings.ledger_partitions, client_id="shiver-rebuild", errata=errata
            ) as reader,
            asyncpg.create_pool(
                settings.database_url,
                min_size=1,
                max_size=2,
                timeout=CONNECT_S,
                command_timeout=120,
                # What is lost in a crash is made again; the swap's own commit waits for the disk, and for all before.
                server_settings={"application_name": "shiver-rebuild", "synchronous_commit": "off"},
            ) as pool,
        ):
            if archive is not None:
                archive.errata = errata
            projection = Projection(pool, settings.ledger_partitions, schema=NEXT, errata=errata)
            return await _Rebuild(settings, archive, options, progress, db, reader, pool, projection).run()


async def _prepare(db: asyncpg.Connection, settings: Settings) -> None:
    unknown = await db.fetch(_SQL["unknown"])
    if unknown:
        what = ", ".join(row["what"] for row in unknown)
        raise RebuildFailed(f"a copy of the tables of derived would lack: {what}")
    topic_id, count = await asyncio.wait_for(asyncio.to_thread(describe, settings.kafka), 2 * CONNECT_S)
    if count != settings.ledger_partitions:
        raise LogChanged(f"{topics.LEDGER} has {count} partitions where {settings.ledger_partitions} are configured")
    await db.execute(f"drop schema if exists {OLD} cascade")
    await db.execute(_SQL["make"])
    await db.execute(
        f"insert into {NEXT}.offsets (topic, partition, next, topic_id) "
        "select $1, p, 0, $2 from generate_series(0, $3 - 1) p",
        topics.LEDGER,
        topic_id,
        count,
    )


class _Rebuild:
    def __init__(
        self,
        settings: Settings,
        archive: Archive | None,
        options: Options,
        progress: Progress,
        db: asyncpg.Connection,
        reader: LedgerReader,
        pool: asyncpg.Pool,
        projection: Projection,
    ) -> None:
        self._settings = settings
        self._archive = archive
        self._options = options
        self._progress = progress
        self._db = db
        self._reader = reader
        self._pool = pool
        self._projection = projection
        self._records = 0
        self._begins: dict[int, int] = {}
        self._ahead = False  # differences were accepted: go to the log's end, since the live place may be damaged too
        self._seen: set[str] | None = None  # requests of the records since all rows were compared

    async def run(self) -> Result:
        migrations = await _migrations(self._db)
        self._begins = await self._reader.beginnings()
        await self._catch_up()
        self._progress.say("comparing every row")
        for table in await tables_of(self._db, NEXT):
            await self._db.execute(f'analyze {NEXT}."{table.name}"')  # else its first plans would know nothing of it
        found, since = await self._compare_all()
        if found.count and not self._options.accept_differences:
            return Result(False, found, self._records, 0)
        self._ahead = found.count > 0
        self._progress.say("swapping")
        last = ""
        for _ in range(ATTEMPTS_MAX):
            await self._catch_up()
            if last := await _long_readers(self._db):
                await asyncio.sleep(PAUSE_S)  # they would make everybody behind us wait
                continue
            try:
                result = await self._swap(found, since, migrations)
            except _LOST as error:
                if await self._db.fetchval("select to_regnamespace($1) is null", NEXT):
                    result = Result(True, found, self._records, None)
                else:
                    last = repr(error)
                    await asyncio.sleep(PAUSE_S)
                    continue
            if result.swapped and not self._options.keep_old:
                await self._db.execute(f"drop schema {OLD} cascade")
            return result
        raise RebuildFailed(f"no swap in {ATTEMPTS_MAX} attempts; the last: {last}")

    async def _catch_up(self) -> None:
        """Fold until the live books are near. Nobody waits for this."""
        for _ in range(ROUNDS_MAX):
            if await self._fold(await self._targets(self._db)) <= NEAR_RECORDS:
                return
        raise RebuildFailed(f"the projection is still ahead after {ROUNDS_MAX} rounds: rebuild in a quieter hour")

    async def _targets(self, db: Any) -> dict[int, int]:
        """Where the live books are, as far as the log reaches: where it does not, that is a difference to be shown."""
        ends = await self._reader.ends()
        if self._ahead:
            return ends
        live = await _places(db, LIVE)
        return {partition: min(live.get(partition, 0), end) for partition, end in ends.items()}

    async def _fold(self, targets: Mapping[int, int]) -> int:
        """Apply the log up to `targets`, and return how many records that were."""
        places = await _places(self._pool, NEXT)
        lag = sum(max(0, target - places[partition]) for partition, target in targets.items())
        if not lag:
            return 0
        self._progress.started(self._records + lag)
        if self._archive is not None:
            await self._fold_archive(self._archive, places, targets)
            places = await _places(self._pool, NEXT)
        # From the last record that is there already, where Kafka has it: the projection looks whether it is the same
        # (C9), so that an archive of another log is found out.
        starts = {p: self._start(p, places[p]) for p, target in targets.items() if places[p] < target or self._archive}
        async for records in self._reader.read(starts, {partition: targets[partition] for partition in starts}):
            await self._apply(records)
        return lag

    async def _fold_archive(self, archive: Archive, places: Mapping[int, int], targets: Mapping[int, int]) -> None:
        for file, records in archive.read(places, targets):
            await self._apply(records)
            if records[-1].offset + 1 == file.next:
                head = await self._pool.fetchval(
                    f"select chain from {NEXT}.offsets where topic = $1 and partition = $2",
                    topics.LEDGER,
                    file.partition,
                )
                archive.check_chain(file, head)

    def _start(self, partition: int, following: int) -> int:
        """One record before `following`, where Kafka has it. Raises LedgerCorrupt where records are gone."""
        begin = self._begins[partition]
        if begin > following:
            raise LedgerCorrupt(
                f"{topics.LEDGER} partition {partition} begins at {begin}, but {following} follows: records were "
                "deleted; give their archive"
            )
        return max(begin, following - 1)

    async def _apply(self, records: Sequence[Record]) -> None:
        for at in range(0, len(records), SLICE_RECORDS):
            part = records[at : at + SLICE_RECORDS]
            fresh = (await self._projection.apply(part[0].partition, part)).records
            self._records += fresh
            self._progress.more(fresh)
            if self._seen is not None:
                self._seen.update(_request_ids(part))

    async def _compare_all(self) -> tuple[Differences, dict[int, int]]:
        """Both in a snapshot at one place of the log, which is returned. The live projection goes on meanwhile."""
        found = Differences()
        async with _reading(self._settings.database_url) as live:
            targets = await self._targets(live)
            await self._fold(targets)
            self._seen = set()
            async with _reading(self._settings.database_url) as rebuilt:
                for table in await _compared(rebuilt):
                    await compare(found, live, rebuilt, table)
        return found, targets

    async def _swap(self, found: Differences, since: Mapping[int, int], migrations: int) -> Result:
        """One attempt; what differs since the comparison is added to `found`, and nothing is swapped if it may not be.

        If we die in it, PostgreSQL rolls back when the connection closes, or after SWAP_MS.
        """
        async with _connection(self._settings.database_url, _SWAP_SETTINGS) as db, db.transaction():
            await db.execute(f"lock table {LIVE}.offsets in exclusive mode")
            await self._fold(await self._targets(db))
            if not self._ahead:
                changed = Differences()
                for table in await _compared(db):
                    await compare(changed, db, db, table, Since(since, sorted(self._seen or ())))
                if changed.count and not self._options.accept_differences:
                    return Result(False, changed, self._records, 0)
                found = changed if changed.count else found
            if await _migrations(db) != migrations:
                raise RebuildFailed("the database was migrated meanwhile: begin again")
            await db.execute(
                "lock table state.keys, state.wallets, state.sandbox_days, state.admissions in exclusive mode"
            )
            names = [table.name for table in await tables_of(db, LIVE)]
            quoted = ", ".join(f'{LIVE}."{name}"' for name in names)
            await db.execute(f"lock table {quoted} in access exclusive mode")
            if not found.count:
                for name in sorted(COMPUTED.intersection(names)):
                    await db.execute(f'drop table {NEXT}."{name}"')
                    await db.execute(f'alter table {LIVE}."{name}" set schema {NEXT}')
            await db.execute(f"alter schema {LIVE} rename to {OLD}")
            await db.execute(f"alter schema {NEXT} rename to {LIVE}")
            restored = await db.fetchval("select state.make_admissions_right()")
            await db.execute("select state.recount_tokens()")
        return Result(True, found, self._records, restored)


def _request_ids(records: Iterable[Record]) -> Iterable[str]:
    for record in records:
        try:
            fields: object = json.loads(record.value)
        except ValueError:
            continue  # unreadable: an erratum stands for it, and it changed no request
        if isinstance(fields, dict) and isinstance(found := fields.get("request_id"), str):
            yield found


async def _places(db: Any, schema: str) -> dict[int, int]:
    rows = await db.fetch(f"select partition, next from {schema}.offsets where topic = $1", topics.LEDGER)
    return {row["partition"]: row["next"] for row in rows}


async def _compared(db: Any) -> list[Table]:
    """What is compared. Raises RebuildFailed where the live tables are not those that were copied."""
    tables = await tables_of(db, NEXT)
    if await tables_of(db, LIVE) != tables:
        raise RebuildFailed("the tables of derived were changed meanwhile: begin again")
    return [table for table in tables if table.name not in COMPUTED]


async def _migrations(db: Any) -> int:
    return await db.fetchval("select count(*) from public.shrk_migrations")


async def _long_readers(db: Any) -> str:
    """Who holds tables of derived for longer than the swap would wait: a verify, say."""
    rows = await db.fetch(
        "select distinct a.pid, a.application_name as name from pg_locks l join pg_stat_activity a using (pid) "
        "where l.granted and l.database = (select oid from pg_database where datname = current_database()) "
        "and l.relation in (select oid from pg_class where relnamespace = $1::regnamespace) "
        "and a.pid <> pg_backend_pid() and a.xact_start < clock_timestamp() - $2 * interval '1 millisecond' "
        "and a.backend_type = 'client backend' order by 1",
        LIVE,
        LOCK_MS,
    )
    names = ", ".join(f"{row['name'] or 'unnamed'} (process {row['pid']})" for row in rows)
    return f"the books are being read in a long transaction by {names}" if names else ""


@asynccontextmanager
async def _connection(database_url: str, more: Mapping[str, str] | None = None) -> AsyncGenerator[Any, None]:
    settings = {"application_name": "shiver-rebuild", **(more or {})}
    db = await asyncpg.connect(database_url, timeout=CONNECT_S, server_settings=settings)
    try:
        yield db
    finally:
        await db.close(timeout=CONNECT_S)


@asynccontextmanager
async def _reading(database_url: str) -> AsyncGenerator[Any, None]:
    async with _connection(database_url) as db, db.transaction(isolation="repeatable_read", readonly=True):
        yield db


@asynccontextmanager
async def _locked(database_url: str) -> AsyncGenerator[Any, None]:
    """One rebuild at a time; the lock goes with the connection."""
    async with _connection(database_url) as db:
        if not await db.fetchval("select pg_try_advisory_lock($1)", ADVISORY_LOCK):
            raise RebuildFailed("another rebuild runs on this database")
        yield db
