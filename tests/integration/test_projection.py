"""The projection against a real PostgreSQL: exactly once, to the row, and nothing skipped."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import asyncpg
import pytest
from books_kit import append_all, project, shrk
from ledger_kit import (
    T0_MS,
    accepted,
    adjusted,
    adopted,
    asserted,
    credited,
    failed,
    load,
    new_id,
    records,
    usage,
    wallet_in,
)

from infra.accounts import show_wallet
from ledger.apply import step
from ledger.books import Books
from ledger.log import cached_partition_of
from ledger.reader import Record
from schemas import topics
from schemas.events import How, dump, parse
from streams.projection import Projection
from streams.slices import ProjectionStopped

P = 4
W = wallet_in(0, P)
TABLES = ("accounts", "entries", "requests", "credits", "adjustments", "rejections")


async def assign(db: Any, partitions: int = P) -> None:
    await db.execute(
        "insert into derived.offsets (topic, partition, next) select $1, g, 0 from generate_series(0, $2 - 1) g",
        topics.LEDGER,
        partitions,
    )


@pytest.fixture
async def projection(books: asyncpg.Pool) -> Projection:
    await assign(books)
    return Projection(books, P)


def by_partition(many: list[Any]) -> dict[int, list[Record]]:
    out: dict[int, list[Record]] = {p: [] for p in range(P)}
    for event in many:
        partition = cached_partition_of(event.key.encode(), P)
        out[partition] += records(partition, [event], len(out[partition]))
    return out


async def balances(db: Any) -> dict[tuple[str, str, int], tuple[int, int]]:
    rows = await db.fetch("select * from derived.accounts")
    return {(r["account"], r["asset"], r["partition"]): (r["balance_nano"], r["entries"]) for r in rows}


async def everything(db: Any, schema: str = "derived") -> dict[str, list[Any]]:
    """Every row of a schema, in order."""
    out = {}
    for table in ("offsets", *TABLES):
        out[table] = [tuple(r) for r in await db.fetch(f"select t.* from {schema}.{table} t order by t::text")]
    return out


def folded(log: dict[int, list[Record]]) -> dict[tuple[str, str, int], tuple[int, int]]:
    out = {}
    for partition, rows in log.items():
        ledger = Books(partition)
        for row in rows:
            step(ledger, parse(row.value), row.offset)
        out |= {(a, s, partition): (x.balance_nano, x.entries) for (a, s), x in ledger.accounts.items()}
    return out


async def test_the_rows_are_what_the_fold_says(projection: Projection, books: asyncpg.Pool) -> None:
    log = by_partition(load(1, 600))
    for partition, rows in log.items():
        for at in range(0, len(rows), 97):
            await projection.apply(partition, rows[at : at + 97])
    assert await balances(books) == folded(log)
    sums = await books.fetch("select asset, sum(amount_nano) as nano from derived.entries group by asset")
    assert {row["asset"]: row["nano"] for row in sums} == {"SHIVER": 0, "USDC": 0}
    burns = await books.fetch("select distinct account, asset from derived.accounts where account like 'burn%'")
    assert {tuple(row) for row in burns} == {("burn", "SHIVER"), ("burn:pending", "USDC")}


async def test_s6_any_slicing_and_interleaving_gives_the_same_rows(projection: Projection, books: asyncpg.Pool) -> None:
    log = by_partition(load(2, 300))

    async def fill(size: int) -> dict[str, list[Any]]:
        for table in ("offsets", *TABLES):
            await books.execute(f"truncate derived.{table}")
        await assign(books)

        async def one(partition: int) -> None:
            rows = log[partition]
            for at in range(0, len(rows), size):
                await projection.apply(partition, rows[at : at + size])

        await asyncio.gather(*(one(partition) for partition in log))
        return await everything(books)

    assert await fill(13) == await fill(5000)


async def test_c2_records_that_come_again_are_trimmed(projection: Projection, books: asyncpg.Pool) -> None:
    rid = new_id()
    rows = records(0, [credited(W), accepted(rid, W), usage(rid, 10, W)])
    assert (await projection.apply(0, rows[:2])).records == 2
    assert (await projection.apply(0, rows)).records == 1
    before = await everything(books)
    assert (await projection.apply(0, rows)).records == 0
    assert await everything(books) == before


async def test_s6_what_fails_at_its_commit_has_changed_nothing(projection: Projection, books: asyncpg.Pool) -> None:
    """As a kill in the last instant: whatever was written beside the transaction would stay, and count twice."""
    rid = await admission(books, W)
    await books.execute(
        "create function planted() returns trigger language plpgsql as $$ begin raise 'planted'; end $$"
    )
    await books.execute(
        "create constraint trigger planted after update on derived.offsets deferrable initially deferred "
        "for each row execute function planted()"
    )
    log = by_partition([*load(6, 200), accepted(rid, W), usage(rid, 10, W)])
    before = await everything(books)
    for partition, rows in log.items():
        with pytest.raises(asyncpg.RaiseError, match="planted"):
            await projection.apply(partition, rows)
    assert await everything(books) == before
    assert await books.fetchval("select count(*) from state.admissions") == 1
    assert await books.fetchval("select held_nano from state.wallets") == 5
    await books.execute("drop trigger planted on derived.offsets")
    for partition, rows in log.items():
        await projection.apply(partition, rows)
    assert await balances(books) == folded(log)
    assert await books.fetchval("select count(*) from state.admissions") == 0


async def test_two_workers_on_one_partition_apply_each_record_once(projection: Projection, books: asyncpg.Pool) -> None:
    rows = by_partition(load(3, 200))[0]
    await asyncio.gather(*(projection.apply(0, rows) for _ in range(4)))
    assert await balances(books) == folded({0: rows})


async def test_c9_a_gap_stops_loudly_and_applies_nothing(projection: Projection, books: asyncpg.Pool) -> None:
    rows = records(0, [credited(W, ref="a"), credited(W, ref="b"), credited(W, ref="c")])
    with pytest.raises(ProjectionStopped, match=r"ledger\.events partition 0: a gap, expected offset 1, got 2"):
        await projection.apply(0, [rows[0], rows[2]])
    assert await books.fetchval("select count(*) from derived.entries") == 0


async def test_c9_another_record_under_an_applied_offset_stops(projection: Projection) -> None:
    await projection.apply(0, records(0, [credited(W, ref="a")]))
    with pytest.raises(ProjectionStopped, match="offset 0 is not the record that was applied"):
        await projection.apply(0, records(0, [credited(W, ref="other"), credited(W, ref="b")]))


@pytest.mark.parametrize(
    "value", [b"", b"{}", b'{"type":"wallet.credited","version":2}', dump(credited(W)).replace(b"grant", b"gift")]
)
async def test_poison_names_its_place_and_stops(projection: Projection, books: asyncpg.Pool, value: bytes) -> None:
    good = records(0, [credited(W)])
    with pytest.raises(ProjectionStopped, match=r"ledger\.events partition 0 offset 1: not a known event"):
        await projection.apply(0, [*good, Record(0, 1, W.encode(), value)])
    assert await books.fetchval("select next from derived.offsets where partition = 0") == 0


async def test_a_key_in_a_wrong_partition_or_not_the_wallet_stops(projection: Projection) -> None:
    with pytest.raises(ProjectionStopped, match="its key belongs elsewhere"):
        await projection.apply(1, records(1, [credited(W)]))
    other = wallet_in(0, P, nth=1)
    with pytest.raises(ProjectionStopped, match="its key is not its event's"):
        await projection.apply(0, [Record(0, 0, other.encode(), dump(credited(W)))])


async def test_s5_a_slice_writes_each_account_and_request_once(projection: Projection, books: asyncpg.Pool) -> None:
    await projection.apply(0, records(0, [credited(W)]))
    await books.execute("create table writes (name text)")
    await books.execute(
        "create function note() returns trigger language plpgsql as $$ begin insert into writes values (tg_table_name);"
        " return new; end $$"
    )
    for table in ("accounts", "requests"):
        await books.execute(
            f"create trigger n after insert or update on derived.{table} for each row execute function note()"
        )
    ids = [new_id() for _ in range(50)]
    many = [e for rid in ids for e in (accepted(rid, W), usage(rid, 5, W))]
    await projection.apply(0, records(0, many, first=1))
    written = dict(await books.fetch("select name, count(*) from writes group by 1"))
    assert written == {"accounts": 4, "requests": 50}  # wallet, burn, provider, platform


async def test_s6_the_same_id_in_two_partitions_is_two_requests(projection: Projection, books: asyncpg.Pool) -> None:
    rid, other = new_id(), wallet_in(1, P)
    await projection.apply(0, records(0, [accepted(rid, W)]))
    await projection.apply(1, records(1, [failed(rid, other), accepted(rid, other)]))
    await projection.apply(0, records(0, [usage(rid, 10, W)], first=1))
    rows = await books.fetch("select partition, status from derived.requests order by partition")
    assert [tuple(r) for r in rows] == [(0, "charged"), (1, "failed")]


async def test_c3_an_end_of_an_old_epoch_in_a_later_slice_is_stale(projection: Projection, books: asyncpg.Pool) -> None:
    rid = new_id()
    await projection.apply(0, records(0, [accepted(rid, W), adopted(rid, 2, W)]))
    await projection.apply(0, records(0, [usage(rid, 10, W)], first=2))
    await projection.apply(0, records(0, [usage(rid, 5, W, epoch=2, how=How.OWNER_DIED)], first=3))
    assert await books.fetchval("select code from derived.rejections") == "stale_owner"
    row = await books.fetchrow("select * from derived.requests")
    assert (row["completion_tokens"], row["charge_nano"], row["payer_charge_nano"]) == (5, 1_700_000, 0)
    assert await books.fetchval("select balance_nano from derived.accounts where account = 'platform:losses'") < 0


async def test_c1_only_the_projection_removes_an_admission(projection: Projection, books: asyncpg.Pool) -> None:
    rid = await admission(books, W)
    await projection.apply(0, records(0, [failed(rid, W), accepted(rid, W)]))
    assert await books.fetchval("select count(*) from state.admissions") == 0
    assert await books.fetchval("select held_nano from state.wallets") == 0
    assert await books.fetchval("select open_requests from state.keys") == 0
    assert await books.fetchval("select code from derived.rejections") == "already_ended"


async def test_c1_an_end_that_is_too_old_still_gives_the_hold_back(projection: Projection, books: asyncpg.Pool) -> None:
    rid = await admission(books, W)
    later = T0_MS + 3 * 86_400_000
    await projection.apply(0, records(0, [credited(W, at_ms=later), failed(rid, W)]))
    assert await books.fetchval("select code from derived.rejections") == "too_old"
    assert await books.fetchval("select count(*) from state.admissions") == 0


async def test_an_event_of_another_wallet_frees_nothing(projection: Projection, books: asyncpg.Pool) -> None:
    rid = await admission(books, W)
    await projection.apply(0, records(0, [failed(rid, wallet_in(0, P, nth=1))]))
    assert await books.fetchval("select count(*) from state.admissions") == 1


async def test_s3_a_worker_that_hangs_in_a_transaction_lets_go(projection: Projection, books: asyncpg.Pool) -> None:
    hung = await books.acquire()
    await hung.execute("begin")
    await hung.execute("select * from derived.offsets where partition = 0 for update")
    with pytest.raises(asyncpg.LockNotAvailableError):  # nobody waits for it without a bound either
        await projection.apply(0, records(0, [credited(W)]))
    async with asyncio.timeout(5):
        assert (await projection.apply(0, records(0, [credited(W)]))).records == 1
    await books.release(hung)


async def test_an_adjustment_counts_once_over_slices(projection: Projection, books: asyncpg.Pool) -> None:
    await projection.apply(0, records(0, [credited(W, 100), adjusted(W, -7), adjusted(W, -7)]))
    await projection.apply(0, records(0, [adjusted(W, -7), adjusted(W, 7), adjusted(W, 10**15, "big")], first=3))
    codes = await books.fetch('select code from derived.rejections order by "offset"')
    assert [row["code"] for row in codes] == ["duplicate", "duplicate", "conflict", "needs_approval"]
    assert tuple(await books.fetchrow("select * from derived.adjustments")) == (
        W, "ref", "SHIVER", -7, "why", "test", None, 0, 1
    )  # fmt: skip
    assert (await balances(books))[f"wallet:{W}", "SHIVER", 0] == (93, 2)
    assert (await balances(books))["adjustments", "SHIVER", 0] == (7, 1)


async def test_a_balance_may_outgrow_64_bits(books: asyncpg.Pool, books_url: str, ledger_log: str) -> None:
    """In one slice and over several, up and down; and whoever reads it understands it."""
    most = 10**18
    await append_all(ledger_log, [credited(W, most, f"a{n}") for n in range(20)])
    await project(ledger_log, books)
    await append_all(ledger_log, [credited(W, most, "b"), asserted(W, 5), adjusted(W, -7)])
    await project(ledger_log, books)
    assert (await balances(books))[f"wallet:{W}", "SHIVER", 0] == (21 * most - 7, 22)
    assert (await balances(books))["world", "SHIVER", 0] == (-21 * most, 21)
    assert await books.fetchval("select code from derived.rejections") == "assertion_failed"
    compared = await shrk(ledger_log, books_url, "replay", "--compare")
    assert "PostgreSQL is the same at these offsets" in compared.output
    await books.execute("insert into state.owners values ('o')")
    await books.execute("insert into state.wallets (wallet_id, owner_id, partition) values ($1, 'o', 0)", W)
    assert (await show_wallet(books, W)).balance_nano == 21 * most - 7
    await books.execute("update derived.accounts set balance_nano = balance_nano + 1 where account = 'world'")
    compared = await shrk(ledger_log, books_url, "replay", "--compare")
    assert "PostgreSQL has (-20999999999999999999, 21), the log says (-21000000000000000000, 21)" in compared.output


async def test_an_assertion_knows_what_earlier_slices_booked(projection: Projection, books: asyncpg.Pool) -> None:
    await projection.apply(0, records(0, [credited(W, 100), asserted(W, 100)]))
    await projection.apply(0, records(0, [asserted(W, 100), credited(W, 1, "b"), asserted(W, 101)], first=2))
    assert await books.fetchval("select count(*) from derived.rejections") == 0
    await projection.apply(0, records(0, [asserted(W, 100), credited(W, 1, "c")], first=5))
    assert await books.fetchval("select code from derived.rejections") == "assertion_failed"
    assert (await balances(books))[f"wallet:{W}", "SHIVER", 0] == (102, 3)  # and the projection goes on


async def test_in_another_schema_it_makes_the_same_books_and_touches_nothing_else(
    projection: Projection, books: asyncpg.Pool
) -> None:
    tables = ("offsets", *TABLES)
    await books.execute("create schema rebuilt")
    for table in tables:
        await books.execute(f"create table rebuilt.{table} (like derived.{table} including all)")
    await books.execute("insert into rebuilt.offsets select * from derived.offsets")
    log = by_partition([*load(5, 200), asserted("w1", 1)])
    rid = await admission(books, W)
    log[0] += records(0, [failed(rid, W)], len(log[0]))
    before = await everything(books)
    beside = Projection(books, P, schema="rebuilt")
    for partition, rows in log.items():
        for at in range(0, len(rows), 97):
            await beside.apply(partition, rows[at : at + 97])
    assert await everything(books) == before
    assert await books.fetchval("select count(*) from state.admissions") == 1  # the live books have no end of it yet
    for partition, rows in log.items():
        await projection.apply(partition, rows)
    assert await everything(books, "rebuilt") == await everything(books)
    with pytest.raises(ValueError, match="cannot be the name of a schema"):
        Projection(books, P, schema="x; drop schema derived")


async def admission(db: Any, wallet: str) -> str:
    rid = new_id()
    await db.execute("insert into state.owners values ('o')")
    await db.execute(
        "insert into state.wallets (wallet_id, owner_id, partition, held_nano) values ($1, 'o', 0, 5)", wallet
    )
    await db.execute(
        "insert into state.keys (key_id, sha256, wallet_id, tier, open_max, open_requests) "
        "values ('key', sha256('x'), $1, 'pro', 10, 1)",
        wallet,
    )
    await db.execute(
        "insert into state.admissions (request_id, key_id, wallet_id, owner_id, payer, asset, hold_nano, hold_nano_usd,"
        " owner, node_id, model, lane, lane_offset) values ($1, 'key', $2, 'o', 'wallet:' || $2, 'SHIVER', 5, 0, 'b',"
        " 'n', 'm', 'l', 0)",
        rid,
        wallet,
    )
    return rid


async def test_rate(projection: Projection, capsys: pytest.CaptureFixture[str]) -> None:
    """Not a bar, a number to see: events a second through the whole projection."""
    log = by_partition(load(4, 5000))
    began_s = time.monotonic()
    for partition, rows in log.items():
        for at in range(0, len(rows), 1000):
            await projection.apply(partition, rows[at : at + 1000])
    rate = sum(map(len, log.values())) / (time.monotonic() - began_s)
    with capsys.disabled():
        print(f"\nprojection: {rate:,.0f} events/s")
    assert rate > 500
