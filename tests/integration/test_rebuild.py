"""A rebuild of schema derived: the same rows, swapped under running work; damage is named, and mended if asked."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from admission_kit import add_key, add_wallet, admit, counters, hold, prepare, settle, sums
from books_kit import P, all_records, append_all, make_log_of, shrk
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient
from epochs_kit import epochs_of
from ledger_kit import T0_MS, accepted, credited, failed, load, new_id, usage, wallet_in
from test_epochs import closed_twice, rows_of

from ledger.archive import Archive
from ledger.log import LedgerCorrupt
from ledger.reader import LedgerReader
from schemas import topics
from schemas.settings import Settings
from streams import rebuild as work
from streams.app import open_pool
from streams.differences import tables_of
from streams.projection import Projection
from streams.rebuild import Options, Progress, RebuildFailed, Result
from streams.starts import LogChanged, start_offsets

QUIET = Progress(lambda _: None, lambda _: None, lambda _: None)
W = wallet_in(0, P)


async def project(kafka: str, pool: asyncpg.Pool) -> None:
    """As the streams do: with the topic's id on the offsets."""
    places = await start_offsets(pool, kafka, P, list(range(P)))
    projection = Projection(pool, P)
    async with LedgerReader(kafka, P, client_id="test") as reader:
        async for records in reader.read(places, await reader.ends()):
            await projection.apply(records[0].partition, records)


async def rebuilt(kafka: str, url: str, *, archive: Archive | None = None, **options: bool) -> Result:
    return await work.rebuild(Settings(kafka, url, P), archive, Options(**options), QUIET)


async def everything(db: Any, schema: str = "derived") -> dict[str, list[str]]:
    """Every row of a schema as text, in order."""
    out = {}
    for table in await tables_of(db, schema):
        rows = await db.fetch(f"select t::text as r from {schema}.{table.name} t order by 1")
        out[table.name] = [row["r"] for row in rows]
    return out


async def shape(db: Any) -> list[tuple[Any, ...]]:
    """What tables are beside their rows: indexes, checks and keys by name and definition, settings, owners, grants."""
    rows = await db.fetch(
        "select indexname::text, indexdef from pg_indexes where schemaname = 'derived' union all "
        "select conname::text, pg_get_constraintdef(c.oid) from pg_constraint c "
        "where connamespace = 'derived'::regnamespace union all "
        "select relname::text, concat_ws('|', reloptions, relacl, relowner) from pg_class "
        "where relnamespace = 'derived'::regnamespace union all "
        "select table_name || '.' || column_name, concat_ws('|', ordinal_position, data_type, column_default, "
        "is_nullable) from information_schema.columns where table_schema = 'derived' order by 1, 2"
    )
    return [tuple(row) for row in rows]


async def oid(db: Any, table: str = "accounts") -> int:
    return await db.fetchval("select to_regclass($1)::oid::int8", f"derived.{table}")


async def test_it_gives_the_same_rows_in_the_same_tables(ledger_log: str, books: asyncpg.Pool, books_url: str) -> None:
    await append_all(ledger_log, load(21, 400))
    await project(ledger_log, books)
    await books.execute("grant select on derived.accounts to public")
    await books.execute("alter table derived.accounts set (fillfactor = 71)")
    rows, tables, old = await everything(books), await shape(books), await oid(books)
    result = await rebuilt(ledger_log, books_url)
    assert (result.swapped, result.differences.count) == (True, 0)
    assert result.records == sum(map(len, await all_records(ledger_log)))
    assert result.differences.rows >= sum(map(len, rows.values()))
    assert await oid(books) != old
    assert await everything(books) == rows
    assert await shape(books) == tables
    assert (
        await books.fetchval("select count(*) from pg_namespace where nspname in ('derived_next', 'derived_old')") == 0
    )
    assert await books.fetchval("select reltuples from pg_class where oid = 'derived.entries'::regclass") > 0


DAMAGE = [
    ("update derived.accounts set balance_nano = balance_nano + 1 where account = 'burn'", "derived.accounts {burn,"),
    ("delete from derived.entries where posting = 1 and partition = 0", "derived.entries {0,"),
    ("insert into derived.entries values (1, 999999, 9, 'wallet:x', 'SHIVER', 1, null, 1)", "{1,999999,9}"),
    ("update derived.requests set how = 'length' where how = 'stop'", "derived.requests {"),
    ("update derived.offsets set chain = 'x' where partition = 2", "derived.offsets {ledger.events,2}"),
    ("update derived.offsets set next = 3 where partition = 1", "derived.offsets {ledger.events,1}"),
    ("update derived.offsets set next = next + 5 where partition = 1", "derived.offsets {ledger.events,1}"),
    ("delete from derived.offsets", "derived.entries {0,"),
    ("delete from derived.rejections where partition = 1", "derived.rejections {1,"),
    ("insert into derived.credits values ('w', 'ref', 'SHIVER', 1, 0, 0)", "derived.credits {w,ref}"),
    ("truncate derived.accounts", "no such row"),
]


@pytest.mark.parametrize(("damage", "named"), DAMAGE)
async def test_damage_is_named_and_mended_only_if_asked(
    ledger_log: str, books: asyncpg.Pool, books_url: str, damage: str, named: str
) -> None:
    await append_all(ledger_log, load(22, 60))
    await project(ledger_log, books)
    sound = await everything(books)
    await books.execute(damage)
    damaged = await everything(books)
    result = await rebuilt(ledger_log, books_url)
    assert not result.swapped
    assert any(named in str(difference) for difference in result.differences.shown), result.differences.shown
    assert await everything(books) == damaged
    assert await books.fetchval("select count(*) from derived_next.offsets") == P  # kept for looking at
    mended = await rebuilt(ledger_log, books_url, accept_differences=True, keep_old=True)
    assert (mended.swapped, mended.differences.count) == (True, result.differences.count)
    assert await everything(books) == sound
    assert await everything(books, "derived_old") == damaged
    await append_all(ledger_log, load(23, 20))
    await project(ledger_log, books)  # and the projection goes on
    assert (await rebuilt(ledger_log, books_url)).differences.count == 0
    assert await work.discard(books_url) == []


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        ("select", ""),
        ("update derived.accounts set balance_nano = balance_nano + 1 where account = 'wallet:late'", "{wallet:late,"),
        ("delete from derived.accounts where account = 'wallet:late'", "derived.accounts {wallet:late,"),
        (
            "update derived.entries set amount_nano = 5 where account = 'wallet:late' and posting = 0",
            "derived.entries {",
        ),
        ("update derived.requests set model = 'x' where wallet_id = 'late'", "derived.requests {"),
        ("delete from derived.requests where wallet_id = 'late'", "derived.requests {"),
        ("update derived.credits set amount_nano = 5 where wallet_id = 'late'", "derived.credits {late,"),
        ("update derived.offsets set rejected = rejected + 1 where partition = 2", "derived.offsets {"),
    ],
)
async def test_what_goes_wrong_after_the_comparison_is_seen_under_the_lock(
    ledger_log: str, books: asyncpg.Pool, books_url: str, damage: str, named: str
) -> None:
    await append_all(ledger_log, load(34, 30))
    await project(ledger_log, books)

    async def meanwhile() -> None:
        late = new_id()
        await append_all(ledger_log, [credited("late"), accepted(late, "late"), usage(late, 1, "late")])
        pool = await open_pool(books_url)
        await project(ledger_log, pool)
        await pool.execute(damage)
        await pool.close()

    def say(what: str) -> None:
        if what == "swapping":  # in a loop of its own, so that the rebuild goes on behind it
            other = threading.Thread(target=lambda: asyncio.run(meanwhile()))
            other.start()
            other.join(30)

    settings = Settings(ledger_log, books_url, P)
    result = await work.rebuild(settings, None, Options(), QUIET._replace(say=say))
    assert result.swapped is not bool(named)
    assert all(named in str(difference) for difference in result.differences.shown)
    assert result.differences.count == bool(named)


async def test_admissions_are_kept_made_again_and_let_go(ledger_log: str, books: asyncpg.Pool, books_url: str) -> None:
    await prepare(books)
    await add_wallet(books, W)
    key = await add_key(books, W, name="key")
    await append_all(ledger_log, [credited(W, 10**12)])
    await project(ledger_log, books)
    running, settled, lost, ended, unknown = [await hold(books, key, 1000 + n) for n in range(5)]
    at = {"at_ms": T0_MS, "key_id": "key"}
    many: list[Any] = [
        accepted(rid, W, hold_nano=1000 + n, **at) for n, rid in enumerate((running, settled, lost, ended))
    ]
    await append_all(ledger_log, many)
    await project(ledger_log, books)
    assert await settle(books, settled, 7)
    before = await books.fetchrow("select * from state.admissions where request_id = $1", running)
    # The damage: an admission is gone, and the books lost a request, so that its end freed nothing.
    await books.execute("delete from state.admissions where request_id = $1", lost)
    await books.execute("delete from derived.requests where request_id = $1", ended)
    await append_all(ledger_log, [usage(ended, 1, W)])
    await project(ledger_log, books)
    assert await books.fetchval("select count(*) from state.admissions where request_id = $1", ended) == 1
    await books.execute("update state.wallets set held_nano = 5")

    result = await rebuilt(ledger_log, books_url, accept_differences=True)
    assert (result.swapped, result.restored) == (True, 1)
    rows = {str(r["request_id"]): r for r in await books.fetch("select * from state.admissions")}
    assert set(rows) == {running, settled, lost, unknown}
    assert rows[running] == before
    assert (rows[settled]["slot"], rows[settled]["hold_nano"]) == (False, 7)
    assert (rows[lost]["slot"], rows[lost]["hold_nano"], rows[lost]["owner"]) == (True, 1002, "boot-1")
    assert await counters(books) == await sums(books)
    assert (await counters(books))["held"] == {W: 1000 + 7 + 1002 + 1004}
    await append_all(ledger_log, [usage(running, 1, W), failed(settled, W), usage(lost, 1, W), failed(unknown, W)])
    await project(ledger_log, books)
    assert await counters(books) == {"open": {}, "held": {}, "used": {}}


async def test_one_at_a_time_and_what_it_cannot_copy_is_refused(
    ledger_log: str, books: asyncpg.Pool, books_url: str
) -> None:
    await project(ledger_log, books)
    async with work._locked(books_url):
        with pytest.raises(RebuildFailed, match="another rebuild runs"):
            await rebuilt(ledger_log, books_url)
        with pytest.raises(RebuildFailed, match="another rebuild runs"):
            await work.discard(books_url)
    for thing, named in (
        ("create view derived.v as select 1", "view derived.v"),
        ("create view public.v as select * from derived.accounts", "view v on derived.accounts"),
        ("create sequence derived.s", "sequence derived.s"),
        (
            "create table public.f (p int, o bigint, foreign key (p, o) references derived.rejections)",
            "foreign key .* f",
        ),
    ):
        await books.execute(thing)
        with pytest.raises(RebuildFailed, match=named):
            await rebuilt(ledger_log, books_url)
        await books.execute(f"drop {thing.split()[1]} {thing.split()[2]}")
    await books.execute(
        "create function f() returns trigger language plpgsql as $$ begin return new; end $$;"
        "create trigger t after insert on derived.entries for each row execute function f()"
    )
    with pytest.raises(RebuildFailed, match=r"trigger t of derived\.entries"):
        await rebuilt(ledger_log, books_url)
    await books.execute("drop trigger t on derived.entries")
    assert (await rebuilt(ledger_log, books_url)).swapped


async def test_new_tables_and_columns_of_later_migrations_are_followed(
    ledger_log: str, books: asyncpg.Pool, books_url: str
) -> None:
    await append_all(ledger_log, load(24, 20))
    await project(ledger_log, books)
    await books.execute("alter table derived.accounts add column note text not null default 'n'")
    await books.execute("create table derived.more (n int primary key)")
    assert (await rebuilt(ledger_log, books_url)).swapped
    assert await books.fetchval("select count(*) from derived.more") == 0
    assert await books.fetchval("select note from derived.accounts limit 1") == "n"
    await books.execute("insert into derived.more values (1)")  # nobody makes it of the log: said, not lost in silence
    result = await rebuilt(ledger_log, books_url)
    assert [str(d) for d in result.differences.shown] == ["derived.more {1}: it has (1), the log says none"]


async def test_the_archive_and_the_tail_behind_it(
    ledger_log: str, books: asyncpg.Pool, books_url: str, tmp_path: Path
) -> None:
    many = load(25, 200)
    await append_all(ledger_log, many)
    out = str(tmp_path / "a")
    assert (await shrk(ledger_log, books_url, "archive", "--out", out, "--range", "8")).exit_code == 0
    await append_all(ledger_log, load(26, 20))
    await project(ledger_log, books)
    before = await everything(books)
    archive = Archive.open(tmp_path / "a")
    await asyncio.to_thread(_delete_records, ledger_log, archive.ends())
    with pytest.raises(LedgerCorrupt, match="records were deleted; give their archive"):
        await rebuilt(ledger_log, books_url)
    result = await rebuilt(ledger_log, books_url, archive=archive)
    assert (result.swapped, await everything(books)) == (True, before)
    assert result.records == len(many) + len(load(26, 20))


async def test_an_archive_of_another_log_is_found_out(
    ledger_log: str, books: asyncpg.Pool, books_url: str, tmp_path: Path
) -> None:
    await append_all(ledger_log, load(27, 50))
    out = str(tmp_path / "a")
    assert (await shrk(ledger_log, books_url, "archive", "--out", out, "--tail")).exit_code == 0
    logs = await all_records(ledger_log)
    logs[0][-1] = logs[0][-1]._replace(value=logs[0][-1].value.replace(b'"at_ms":1800', b'"at_ms":1801'))
    await make_log_of(ledger_log, logs)
    await project(ledger_log, books)
    from streams.projection import ProjectionStopped

    with pytest.raises(ProjectionStopped, match="is not the record that was applied"):
        await rebuilt(ledger_log, books_url, archive=Archive.open(tmp_path / "a"))


async def test_c9_a_log_made_anew_is_a_difference_and_another_count_of_partitions_refused(
    ledger_log: str, books: asyncpg.Pool, books_url: str
) -> None:
    await append_all(ledger_log, load(28, 50))
    await project(ledger_log, books)
    logs = await all_records(ledger_log)
    await make_log_of(ledger_log, logs)
    with pytest.raises(LogChanged):
        await project(ledger_log, books)
    result = await rebuilt(ledger_log, books_url)
    assert {d.table for d in result.differences.shown} == {"offsets"}  # the same records, under another topic id
    assert (await rebuilt(ledger_log, books_url, accept_differences=True)).swapped
    await project(ledger_log, books)
    with pytest.raises(LogChanged, match="4 partitions where 3 are configured"):
        await work.rebuild(Settings(ledger_log, books_url, 3), None, Options(), QUIET)


async def test_a_long_reader_is_waited_for_and_sees_one_books(
    ledger_log: str, books: asyncpg.Pool, books_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await append_all(ledger_log, load(29, 50))
    await project(ledger_log, books)
    reader = await asyncpg.connect(books_url)
    async with reader.transaction(isolation="repeatable_read", readonly=True):
        count = await reader.fetchval("select count(*) from derived.entries")
        task = asyncio.create_task(rebuilt(ledger_log, books_url))
        await asyncio.sleep(3)
        assert not task.done()
        assert await reader.fetchval("select count(*) from derived.entries") == count
    await reader.close()
    assert (await task).swapped
    monkeypatch.setattr(work, "ATTEMPTS_MAX", 2)
    reader = await asyncpg.connect(books_url, server_settings={"application_name": "somebody"})
    async with reader.transaction():
        await reader.fetchval("select count(*) from derived.entries")
        with pytest.raises(RebuildFailed, match="being read in a long transaction by somebody"):
            await rebuilt(ledger_log, books_url)
    await reader.close()


async def test_prepared_statements_survive_the_rename(ledger_log: str, books: asyncpg.Pool, books_url: str) -> None:
    await prepare(books)
    await add_wallet(books, W)
    key = await add_key(books, W)
    await append_all(ledger_log, [credited(W, 10**12)])
    await project(ledger_log, books)
    async with books.acquire() as db:
        held = await db.prepare("select sum(balance_nano) from derived.accounts where account = $1")
        for _ in range(8):  # past the five after which PostgreSQL keeps a generic plan
            assert (await admit(db, key, 1000))["outcome"] == "ok"
            assert await held.fetchval(f"wallet:{W}") == 10**12
        assert (await rebuilt(ledger_log, books_url)).swapped
        await books.execute("update derived.accounts set balance_nano = 5 where account = $1", f"wallet:{W}")
        assert await held.fetchval(f"wallet:{W}") == 5
        assert (await admit(db, key, 1000))["outcome"] == "insufficient_balance"


async def test_epochs_go_over_as_they_are_or_are_made_again(
    ledger_log: str, books: asyncpg.Pool, books_url: str
) -> None:
    await project(ledger_log, books)
    await closed_twice(ledger_log, books_url, books)
    before, old = await rows_of(books), await oid(books, "epochs")
    assert len(before["epochs"]) == 2
    async with epochs_of(ledger_log, books_url) as running:
        await running.follow()
        result = await rebuilt(ledger_log, books_url)
        assert (result.swapped, result.differences.count) == (True, 0)
        assert await oid(books, "epochs") == old
        assert await rows_of(books) == before
        assert (await running.follow()).number == 2
        # Of books that were wrong, nothing is taken over: the component makes its rows again.
        await books.execute("update derived.accounts set balance_nano = balance_nano + 1 where account = 'burn'")
        assert (await rebuilt(ledger_log, books_url, accept_differences=True)).swapped
        assert not any((await rows_of(books)).values())
        assert (await running.follow()).number == 2
    assert await rows_of(books) == before


def _delete_records(kafka: str, ends: dict[int, int]) -> None:
    admin = AdminClient({"bootstrap.servers": kafka})
    places = [TopicPartition(topics.LEDGER, partition, end) for partition, end in ends.items()]
    for future in admin.delete_records(places).values():
        future.result(10)
