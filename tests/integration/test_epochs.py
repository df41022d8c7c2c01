"""Epochs on a real log and database: close, read back, race, death; and that the log alone makes the same."""

from __future__ import annotations

import asyncio
import functools
import signal
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from books_kit import P, append_all, project, shrk
from epochs_kit import (
    HOUR_MS,
    OTHER_TERMS,
    PROVIDERS,
    TERMS,
    address_of,
    earnings,
    epochs_of,
    funded,
    registered,
    settings_for,
)
from ledger_kit import T0_MS, accepted, adjusted, new_id, usage, wallet_in
from streams_kit import StreamsProcess

from ledger.block_tree import BlockTree
from ledger.merkle import record_leaf, root_of
from ledger.payout_tree import Leaf, StandardTree
from ledger.reader import LedgerReader
from schemas import topics
from schemas.events import EpochClosed, Event, ModelPrice, parse
from schemas.locks import Lock
from streams import epoch_rows
from streams.epoch_schedule import EpochSettings, Schedule, watch
from streams.epochs import EpochRefused, NothingToClose, NotRead

TABLES = ("epochs", "entitlements", "tree_blocks", "recipients", "sandbox_funds")
ROOT = Path(__file__).resolve().parents[2]
#: The schedule's connection has come, and asked for the lock.
WAITING = (
    "select true from pg_stat_activity where application_name = 'shiver-epochs-lock' "
    "and datname = current_database() and query like '%advisory%'"
)


async def closed_events(kafka: str) -> list[tuple[int, EpochClosed]]:
    """Every epoch.closed of the log with its offset."""
    home = topics.partition_of(topics.SETTLEMENT_KEY.encode(), P)
    async with LedgerReader(kafka, P, client_id="test") as reader:
        end = (await reader.ends())[home]
        found = [record async for records in reader.read({}, {home: end}) for record in records]
    events = [(record.offset, parse(record.value)) for record in found]
    return [(offset, event) for offset, event in events if isinstance(event, EpochClosed)]


async def rows_of(db: asyncpg.Pool) -> dict[str, list[tuple[Any, ...]]]:
    return {table: sorted(map(tuple, await db.fetch(f"select * from derived.{table}")), key=str) for table in TABLES}


async def closed_twice(kafka: str, url: str, db: asyncpg.Pool) -> None:
    """A log with two epochs, and the projection behind it."""
    people = [registered(provider, address_of(provider)) for provider in PROVIDERS]
    for seed, more in enumerate([people[:2], [funded(10**9), people[2]]]):
        await append_all(kafka, [*earnings(seed), *more])
        await project(kafka, db)
        async with epochs_of(kafka, url) as epochs:
            closed = await epochs.close(TERMS, T0_MS + seed * HOUR_MS)
            assert closed.ours
            assert closed.event.epoch == seed + 1
    await project(kafka, db)


async def test_an_epoch_says_what_the_log_makes_at_its_cut(
    ledger_log: str, books: asyncpg.Pool, books_url: str
) -> None:
    await closed_twice(ledger_log, books_url, books)
    (_, first), (place, second) = await closed_events(ledger_log)
    assert second.at_ms == T0_MS + HOUR_MS
    assert all(a <= b for a, b in zip(first.cut, second.cut, strict=True))
    assert [await books.fetchval("select mismatch from derived.epochs where number = $1", n) for n in (1, 2)] == [
        "",
        "",
    ]
    rows = await books.fetch("select * from derived.entitlements where epoch = 2 order by provider, asset")
    balances = {
        (row["account"].removeprefix("provider:"), row["asset"]): row["nano"]
        for row in await books.fetch(
            "select account, asset, sum(balance_nano) as nano from derived.accounts "
            "where account like 'provider:%' group by 1, 2"
        )
    }
    assert {(row["provider"], row["asset"]): row["earned_nano"] for row in rows} == balances
    leaves = []
    for row in rows:
        token = TERMS.tokens[0 if row["asset"] == "SHIVER" else 1]
        free = row["earned_nano"] - row["sandbox_earned_nano"]
        assert row["entitled_nano"] == free + row["sandbox_payable_nano"]
        entitled = int(row["entitled_nano"])
        unit = entitled * 10**9 if row["asset"] == "SHIVER" else entitled // 1000
        assert row["amount"] == Decimal(unit)
        leaves.append(
            Leaf(TERMS.chain_id, TERMS.contract, token.token, row["provider"], address_of(row["provider"]), unit)
        )
    assert second.payout_root == "0x" + StandardTree([leaf.encoded() for leaf in leaves]).root.hex()
    sandbox = [row for row in rows if row["asset"] == "SHIVER"]
    assert sum(row["sandbox_payable_nano"] for row in sandbox) == min(
        10**9, sum(row["sandbox_earned_nano"] for row in sandbox)
    )
    assert place >= second.cut[topics.partition_of(topics.SETTLEMENT_KEY.encode(), P)]
    waiting = await books.fetch("select waits from derived.entitlements where epoch = 1 and provider = 'p3'")
    assert {row["waits"] for row in waiting} == {"no recipient is registered"}


async def test_the_snapshot_is_of_one_moment(
    ledger_log: str, books: asyncpg.Pool, books_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the snapshot is taken the projection reads on: nothing of that may be seen."""
    await append_all(ledger_log, earnings(1))
    await project(ledger_log, books)
    await append_all(ledger_log, earnings(2))
    offsets = epoch_rows._offsets

    async def then_the_books_move(db: Any) -> Any:
        rows = await offsets(db)
        await project(ledger_log, books)
        return rows

    async with epochs_of(ledger_log, books_url) as epochs:
        monkeypatch.setattr(epoch_rows, "_offsets", then_the_books_move)
        closed = await epochs.close(TERMS, T0_MS)
    assert sum(closed.event.cut) < sum([row["next"] for row in await offsets(books)])
    result = await shrk(ledger_log, books_url, "verify")
    assert result.exit_code == 0, result.output


async def test_nothing_new_is_no_epoch(ledger_log: str, books: asyncpg.Pool, books_url: str) -> None:
    async with epochs_of(ledger_log, books_url) as epochs:
        with pytest.raises(NothingToClose, match="no log yet"):
            await epochs.close(TERMS, T0_MS)
    await closed_twice(ledger_log, books_url, books)
    async with epochs_of(ledger_log, books_url) as epochs:
        for _ in range(2):  # its own event is nothing new
            with pytest.raises(NothingToClose, match="nothing has happened since epoch 2"):
                await epochs.close(TERMS, T0_MS)
    await append_all(ledger_log, [funded(5, "fund-2")])
    await project(ledger_log, books)
    async with epochs_of(ledger_log, books_url) as epochs:
        assert (await epochs.close(TERMS, T0_MS)).event.epoch == 3


async def test_rows_that_were_deleted_are_made_again_alike(
    ledger_log: str, books: asyncpg.Pool, books_url: str
) -> None:
    await closed_twice(ledger_log, books_url, books)
    before = await rows_of(books)
    assert len(before["epochs"]) == 2
    for damage in ("delete from derived.epochs where number = 2", "delete from derived.epochs", ""):
        await books.execute(damage or "; ".join(f"delete from derived.{table}" for table in TABLES))
        async with epochs_of(ledger_log, books_url) as epochs:
            assert (await epochs.follow()).number == 2
        assert await rows_of(books) == before


async def test_two_closers_at_once_close_once(ledger_log: str, books: asyncpg.Pool, books_url: str) -> None:
    await append_all(ledger_log, earnings(1))
    await project(ledger_log, books)
    terms = [TERMS, OTHER_TERMS, TERMS, OTHER_TERMS]

    async def one(number: int) -> Any:
        async with epochs_of(ledger_log, books_url) as epochs:
            event = await epochs._prepare(terms[number], T0_MS + number)
            await barrier.wait()  # every closer has read the log before any appends
            await epochs._append(event)
            return await epochs._read_back(event)

    barrier = asyncio.Barrier(len(terms))
    answers = await asyncio.gather(*(one(number) for number in range(len(terms))))
    events = await closed_events(ledger_log)
    assert len(events) == len(terms)
    assert {event.epoch for _, event in events} == {1}
    assert {answer.event for answer in answers} == {events[0][1]}
    assert {answer.place.offset for answer in answers} == {events[0][0]}
    assert [answer.ours for answer in answers].count(True) == 1
    assert await books.fetchval("select count(*) from derived.epochs") == 1
    await project(ledger_log, books)
    assert (await shrk(ledger_log, books_url, "replay", "--compare")).exit_code == 0


DYING = """
import asyncio, os, signal, sys
sys.path[:0] = [{tests!r}, {root!r}]
from epochs_kit import TERMS, T0_MS, epochs_of
async def main():
    async with epochs_of({kafka!r}, {url!r}) as epochs:
        event = await epochs._prepare(TERMS, T0_MS)
        await epochs._append(event)
        os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""


async def test_a_closer_killed_before_it_reads_back_has_closed(
    ledger_log: str, books: asyncpg.Pool, books_url: str
) -> None:
    await append_all(ledger_log, earnings(1))
    await project(ledger_log, books)
    script = DYING.format(tests=str(ROOT / "tests/integration"), root=str(ROOT), kafka=ledger_log, url=books_url)
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", script)
    assert await asyncio.wait_for(process.wait(), 60) == -signal.SIGKILL
    assert await books.fetchval("select count(*) from derived.epochs") == 0
    async with epochs_of(ledger_log, books_url) as epochs:
        state = await epochs.follow()
        assert state.number == 1
        with pytest.raises(NothingToClose):
            await epochs.close(TERMS, T0_MS)
    assert len(await closed_events(ledger_log)) == 1


async def test_books_that_are_not_of_this_log_close_nothing(
    ledger_log: str, books: asyncpg.Pool, books_url: str
) -> None:
    await append_all(ledger_log, earnings(1))
    await project(ledger_log, books)
    flip = "update derived.offsets set chain = set_byte(chain, 3, get_byte(chain, 3) # 1) where partition = 1"
    lie = "update derived.entries set amount_nano = amount_nano + 1 where account = 'provider:p1' and partition = 1"
    for damage, words in ((flip, "partition 1 .* is not what the books have read"), (lie, "provider p1 has earned")):
        await books.execute(damage)
        async with epochs_of(ledger_log, books_url) as epochs:
            with pytest.raises(EpochRefused, match=words):
                await epochs.close(TERMS, T0_MS)
        await books.execute(damage.replace("+ 1", "- 1"))
    assert await closed_events(ledger_log) == []


async def test_an_event_that_lies_counts_and_is_named(ledger_log: str, books: asyncpg.Pool, books_url: str) -> None:
    await append_all(ledger_log, [*earnings(1), registered("p1", address_of("p1"))])
    await project(ledger_log, books)
    async with epochs_of(ledger_log, books_url) as epochs:
        good = await epochs._prepare(TERMS, T0_MS)
        bad = good.model_copy(update={"payout_root": "0x" + "ab" * 32})
        past = good.model_copy(update={"cut": tuple(n + 10**6 for n in good.cut)})
        skipped = good.model_copy(update={"epoch": 7})
        await append_all(ledger_log, [past, skipped, bad, good])
        state = await epochs.follow()
    assert state.last == bad
    mismatch = await books.fetchval("select mismatch from derived.epochs where number = 1")
    assert mismatch == f"payout_root: it says 0x{'ab' * 32}, the log makes {good.payout_root}"
    await append_all(ledger_log, earnings(2))
    await project(ledger_log, books)
    async with epochs_of(ledger_log, books_url) as epochs:  # what is wrong is not inherited
        assert (await epochs.close(TERMS, T0_MS)).event.epoch == 2
    assert await books.fetchval("select mismatch from derived.epochs where number = 2") == ""


async def test_an_epoch_ahead_of_the_books_waits(ledger_log: str, books: asyncpg.Pool, books_url: str) -> None:
    await closed_twice(ledger_log, books_url, books)
    before = await rows_of(books)
    await books.execute("; ".join(f"delete from derived.{table}" for table in TABLES))
    places = await books.fetch("select partition, next from derived.offsets")
    await books.execute("update derived.offsets set next = 1")
    async with epochs_of(ledger_log, books_url) as epochs:
        with pytest.raises(NotRead):
            await epochs.follow()
        for row in places:
            await books.execute("update derived.offsets set next = $2 where partition = $1", *row)
        assert (await epochs.follow()).number == 2
    assert await rows_of(books) == before


async def test_the_schedule_closes_once_an_interval_and_one_for_all_that_were_missed(
    ledger_log: str, books: asyncpg.Pool, books_url: str
) -> None:
    now_ms = T0_MS

    async def clock(_: Any) -> int:
        return now_ms

    async with epochs_of(ledger_log, books_url) as epochs:

        async def steps() -> list[int | None]:
            again = Schedule(epochs, EpochSettings(HOUR_MS, TERMS), clock)  # as after a restart
            return [await again.step(), await again.step()]

        schedule = Schedule(epochs, EpochSettings(HOUR_MS, TERMS), clock)
        assert await schedule.step() is None  # no log yet
        await append_all(ledger_log, earnings(1))
        await project(ledger_log, books)
        assert await schedule.step() is None  # the log began in this very hour
        now_ms += HOUR_MS
        assert await Schedule(epochs, EpochSettings(0, TERMS), clock).step() is None
        assert await schedule.step() == 1
        assert await steps() == [None, None]
        await project(ledger_log, books)
        now_ms += 5 * HOUR_MS
        assert await steps() == [None, None]  # nothing happened
        await append_all(ledger_log, earnings(2))
        await project(ledger_log, books)
        assert await steps() == [2, None]
        now_ms += HOUR_MS
        await append_all(ledger_log, [adjusted("w1", 5)])
        await project(ledger_log, books)
        assert await steps() == [3, None]
    assert [event.at_ms for _, event in await closed_events(ledger_log)] == [
        T0_MS + HOUR_MS, T0_MS + 6 * HOUR_MS, T0_MS + 7 * HOUR_MS,
    ]  # fmt: skip


async def test_rows_changed_by_hand_refuse_and_are_made_again(
    ledger_log: str, books: asyncpg.Pool, books_url: str
) -> None:
    await closed_twice(ledger_log, books_url, books)
    before = await rows_of(books)
    await append_all(ledger_log, earnings(5))
    await project(ledger_log, books)
    for damage in ("trees = '{}'", "digest = 'x'", "trees[1] = '\\x00'"):
        await books.execute(f"update derived.epochs set {damage} where number = 2")
        async with epochs_of(ledger_log, books_url) as epochs:
            with pytest.raises(EpochRefused, match="changed by hand"):
                await epochs.close(TERMS, T0_MS)
            await books.execute("delete from derived.epochs where number = 2")
            await epochs.follow()
        assert await rows_of(books) == before


async def test_the_streams_close_a_missed_epoch_once_at_their_start(
    ledger_log: str, books: asyncpg.Pool, books_url: str, tmp_path: Path
) -> None:
    past = [event.model_copy(update={"at_ms": T0_MS - 10**12}) for event in earnings(1)]
    await append_all(ledger_log, past)
    both = [
        StreamsProcess(ledger_log, books_url, P, tmp_path / f"{n}.log", SHRK_EPOCH_INTERVAL="day") for n in range(2)
    ]
    try:
        for process in both:
            process.start()
        async with asyncio.timeout(60):
            while not await books.fetchval("select count(*) from derived.epochs"):
                await asyncio.sleep(0.1)
        await append_all(ledger_log, earnings(2))  # more happens on the same day
        await asyncio.sleep(5)
    finally:
        for process in both:
            process.close()
    assert [event.epoch for _, event in await closed_events(ledger_log)] == [1], both[0].text() + both[1].text()
    await project(ledger_log, books)
    result = await shrk(ledger_log, books_url, "verify")
    assert result.exit_code == 0, result.output
    assert "1 epochs verified" in result.output


async def test_entitlements_beyond_64_bits(ledger_log: str, books: asyncpg.Pool, books_url: str) -> None:
    greatest = 10**18
    price = ModelPrice(model="m", in_nano=greatest, out_nano=0)
    many: list[Event] = [registered("p1", address_of("p1"))]
    for number in range(16):
        rid, wallet = new_id(), wallet_in(number % P, P)
        many += [accepted(rid, wallet, hold_nano=greatest, prices=(price,)), usage(rid, wallet=wallet)]
    earned = 16 * (greatest * 99 // 100 * 90 // 100)
    assert earned > 2**63
    for epoch in (1, 2):
        await append_all(ledger_log, [*many, funded(epoch, str(epoch))])
        await project(ledger_log, books)
        async with epochs_of(ledger_log, books_url) as epochs:
            assert (await epochs.close(TERMS, T0_MS)).event.epoch == epoch
    rows = await books.fetch("select * from derived.entitlements order by epoch")
    assert [row["earned_nano"] for row in rows] == [row["entitled_nano"] for row in rows] == [earned, earned]
    assert rows[0]["amount"] == earned * 10**9
    assert (await shrk(ledger_log, books_url, "verify")).exit_code == 0
    await books.execute("update derived.entitlements set entitled_nano = entitled_nano + 1 where epoch = 1")
    result = await shrk(ledger_log, books_url, "verify")
    assert f"entitled_nano is {earned + 1}, the log makes {earned}" in result.output


async def test_roots_of_blocks_are_kept_for_proofs(
    ledger_log: str, books: asyncpg.Pool, books_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = functools.partial(BlockTree, block_bits=3)  # 8 records, where it is 2**17
    monkeypatch.setattr("ledger.epochs.BlockTree", small)
    monkeypatch.setattr("streams.epoch_rows.BlockTree", small)
    await closed_twice(ledger_log, books_url, books)
    cut = await books.fetchval("select cut from derived.epochs where number = 2")
    wanted = []
    async with LedgerReader(ledger_log, P, client_id="test") as reader:
        for partition, end in enumerate(cut):
            found = [r async for records in reader.read({}, {partition: end}) for r in records]
            blocks = [found[at : at + 8] for at in range(0, len(found) - 7, 8)]
            wanted += [(partition, n, root_of([record_leaf(*r) for r in block])) for n, block in enumerate(blocks)]
    assert len(wanted) > P
    before = await rows_of(books)
    assert before["tree_blocks"] == sorted(wanted, key=str)
    await books.execute("delete from derived.tree_blocks; delete from derived.epochs")
    async with epochs_of(ledger_log, books_url) as epochs:
        await epochs.follow()
    assert await rows_of(books) == before
    result = await shrk(ledger_log, books_url, "verify")
    assert result.exit_code == 0, result.output
    for damage, words in (
        ("update derived.tree_blocks set root = sha256('') where partition = 1 and block = 1", "another root"),
        ("delete from derived.tree_blocks where partition = 1 and block = 1", "PostgreSQL has none"),
    ):
        await books.execute(damage)
        result = await shrk(ledger_log, books_url, "verify")
        assert f"block 1 of partition 1: {words}" in result.output


async def test_one_process_at_a_time_follows_the_schedule(ledger_log: str, books: asyncpg.Pool, books_url: str) -> None:
    await append_all(ledger_log, [event.model_copy(update={"at_ms": T0_MS - 10**12}) for event in earnings(1)])
    await project(ledger_log, books)
    watching = asyncio.create_task(watch(settings_for(ledger_log, books_url), EpochSettings(24 * HOUR_MS, TERMS)))
    try:
        async with books.acquire() as another:
            # Before the task has run at all, so before it can have the lock.
            assert await another.fetchval("select pg_try_advisory_lock($1)", Lock.EPOCH_SCHEDULE)
            async with asyncio.timeout(20):
                while not await another.fetchval(WAITING):
                    await asyncio.sleep(0.05)
            await asyncio.sleep(3)
            assert await closed_events(ledger_log) == []
            await another.execute("select pg_advisory_unlock($1)", Lock.EPOCH_SCHEDULE)
        async with asyncio.timeout(30):
            while not await books.fetchval("select count(*) from derived.epochs"):
                await asyncio.sleep(0.1)
    finally:
        watching.cancel()
        await asyncio.wait([watching])
    assert len(await closed_events(ledger_log)) == 1
