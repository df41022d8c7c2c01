"""Requests a minute and tokens a month in state.admit and beside it: on PostgreSQL, over two ingresses."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
from admission_kit import (
    P,
    add_key,
    add_wallet,
    admit,
    ask_of,
    blocked,
    counters,
    end_sessions,
    hold,
    open_in_the_log,
    outcome,
    prepare,
    refused,
    release,
    session,
)
from books_kit import append_all
from ledger_kit import accepted, credited, failed, new_id, records, usage, wallet_in

from infra import accounts, catalog
from infra.errors import AccountRefused
from ingress.admission import Admission
from ingress.admission import open_pool as open_ingress_pool
from ledger.reader import LedgerReader
from schemas import topics
from schemas.errors import TABLE
from schemas.keys import ApiKey
from schemas.settings import Settings
from streams import rebuild
from streams.projection import Projection
from streams.starts import start_offsets

PAGE = "https://app.example.com"
MINUTE_US = 60_000_000


@pytest.fixture
async def db(books_url: str) -> AsyncIterator[asyncpg.Pool]:
    pool = await open_ingress_pool(books_url)
    await prepare(pool)
    yield pool
    await pool.close()


# Requests a minute


async def test_two_ingresses_grant_a_key_its_number_and_no_more(db: asyncpg.Pool, books_url: str) -> None:
    wallet = await add_wallet(db, "w")
    key, free = await add_key(db, wallet, rpm=7), await add_key(db, wallet, name="free")
    token = await session(db, key)
    other = await open_ingress_pool(books_url)
    try:
        # One a 60 / 7 s comes to it meanwhile: on any machine that ends these in less, seven in all.
        calls = [admit(pool, one, 0) for _ in range(10) for pool in (db, other) for one in (key, token)]
        began_s = time.monotonic()
        said = [row["outcome"] for row in await asyncio.gather(*calls)]
        more = int((time.monotonic() - began_s) / (60 / 7))
    finally:
        await other.close()
    assert set(said) == {"ok", "rate_limit_exceeded"}
    assert 7 <= said.count("ok") <= 7 + more
    assert (await counters(db))["open"] == {key.key_id: said.count("ok")}
    assert [await outcome(db, free) for _ in range(20)] == ["ok"] * 20


@pytest.mark.parametrize("rpm", [1, 7, 60, 59_999, 60_000])
async def test_after_the_burst_they_come_at_an_even_pace(db: asyncpg.Pool, rpm: int) -> None:
    """The row says where the key stands: it is put where the clock cannot matter."""
    key = await add_key(db, await add_wallet(db, "w"), rpm=rpm, open_max=100_000)
    step = MINUTE_US // rpm

    async def stand(ahead_us: int) -> None:
        now_us = await db.fetchval("select (extract(epoch from clock_timestamp()) * 1000000)::bigint")
        await db.execute("update state.keys set rate_us = $1", now_us + ahead_us)

    half_minute = step * rpm // 2
    await stand(half_minute)
    assert await outcome(db, key) == ("ok" if rpm > 1 else "rate_limit_exceeded")
    await stand(step * rpm + 20_000_000)  # as if more had been granted than may be
    got = await admit(db, key, 0)
    assert got["outcome"] == "rate_limit_exceeded"
    # Another is due one step after the row's time, less the burst: in ceil(step + 20 s), of which little has passed.
    assert -(-(step + 20_000_000) // 1_000_000) - got["wait_s"] in (0, 1)
    await stand(10 * MINUTE_US)  # the server's clock was put back by as much: not the key's fault
    assert await outcome(db, key) == "ok"
    await stand(-step * rpm * 10)  # a long rest earns no more than the burst
    await outcome(db, key)
    row = await db.fetchrow("select rate_us, (extract(epoch from clock_timestamp()) * 1e6)::bigint now from state.keys")
    assert step - 5_000_000 < row["rate_us"] - row["now"] <= step


async def test_the_wait_that_is_told_is_long_enough_and_no_longer(db: asyncpg.Pool) -> None:
    """At 30 a minute one is due every 2 s."""
    key = await add_key(db, await add_wallet(db, "w"), rpm=30)
    admission = Admission(db)
    for _ in range(30):
        await admission.admit(ask_of(key))
    error = await refused(admission.admit(ask_of(key)))
    assert error.code == "rate_limit_exceeded"
    assert error.retry_after_s in (1, 2)
    assert error.message == f"This key may send 30 requests a minute: the next one in {error.retry_after_s} s."
    wait_us = error.retry_after_s * 1_000_000
    await db.execute("update state.keys set rate_us = rate_us - $1", wait_us)  # that much later
    await admission.admit(ask_of(key))


async def test_what_is_refused_repeated_or_dry_takes_nothing_of_the_minute(db: asyncpg.Pool) -> None:
    key = await add_key(db, await add_wallet(db, "w", 5), rpm=2)
    request_id = new_id()

    async def taken() -> int:
        return await db.fetchval("select rate_us from state.keys")

    assert await outcome(db, key, 6) == "insufficient_balance"
    assert await outcome(db, key, dry_run=True) == "ok"
    assert await taken() == 0
    for _ in range(3):
        assert await outcome(db, key, request_id=request_id) == "ok"
    once = await taken()
    assert await outcome(db, key, counted=False) == "ok"  # a further prompt of the same call
    assert await taken() == once
    assert await outcome(db, key) == "ok"
    assert await outcome(db, key, dry_run=True) == "rate_limit_exceeded"
    assert await outcome(db, key, counted=False) == "ok"
    assert await outcome(db, key, request_id=request_id) == "ok"


# Tokens a month


async def book(db: Any, key: ApiKey, wallet: str, tokens: int, ended_ms: int | None = None, model: str = "m") -> None:
    """A request from its admission to its end in the books."""
    await end_of(db, await hold(db, key, 0), key, wallet, tokens, ended_ms, model)


async def in_a_transaction(db: Any, *ended: Any) -> None:
    async with db.transaction():
        await end_of(db, *ended)


async def end_of(
    db: Any, request_id: str, key: ApiKey, wallet: str, tokens: int, ended_ms: int | None = None, model: str = "m"
) -> None:
    """In the projection's order."""
    now_ms = await db.fetchval("select (extract(epoch from clock_timestamp()) * 1000)::bigint")
    done: dict[str, Any] = {"status": "charged", "how": "stop", "model": model, "ended_ms": ended_ms or now_ms}
    counts = {"prompt_tokens": tokens // 2, "completion_tokens": tokens - tokens // 2}
    await open_in_the_log(db, request_id, key, wallet, 0, **done, **counts)
    await release(db, {request_id: 0})


async def used(db: Any) -> dict[str, int]:
    return dict(await db.fetch("select wallet_id, tokens_used from state.wallets where tokens_month_max is not null"))


async def test_a_wallet_s_booked_tokens_are_its_limit_s_over_all_its_keys(db: asyncpg.Pool) -> None:
    wallet = await add_wallet(db, "w")
    one, two = await add_key(db, wallet), await add_key(db, wallet, "dev", name="two")
    other = await add_key(db, await add_wallet(db, "v"))
    await accounts.limit_tokens(db, "w", 100)
    await book(db, one, "w", 60)
    await book(db, other, "v", 1000)
    await book(db, two, "w", 39)
    assert await used(db) == {"w": 99}
    assert await outcome(db, one) == "ok"
    await book(db, await add_key(db, wallet, name="three"), "w", 1)
    for key in (one, two, await session(db, one)):
        error = await refused(Admission(db).admit(ask_of(key)))
        assert (error.code, error.row.status) == ("monthly_tokens_exceeded", 429)
        assert await outcome(db, key, dry_run=True) == "monthly_tokens_exceeded"
    month = await db.fetchrow(
        "select extract(epoch from date_trunc('month', now() at time zone 'UTC') + interval '1 month')::bigint end_s, "
        "extract(epoch from clock_timestamp())::bigint now_s"
    )
    assert error.retry_after_s is not None
    assert abs(error.retry_after_s - (month["end_s"] - month["now_s"])) <= 2
    assert error.message == "The wallet's 100 tokens of this UTC month are used up."
    assert await outcome(db, other) == "ok"
    await accounts.limit_tokens(db, "w", None)
    assert await outcome(db, one) == "ok"
    assert await used(db) == {}


async def test_the_count_is_that_of_the_books_whenever_the_limit_came(db: asyncpg.Pool) -> None:
    key = await add_key(db, await add_wallet(db, "w"))
    await catalog.set_model(db, "vectors", catalog.price("1", "0"), "embedding")
    await book(db, key, "w", 10)
    await accounts.limit_tokens(db, "w", 0)
    assert await outcome(db, key) == "monthly_tokens_exceeded"
    await accounts.limit_tokens(db, "w", 100)
    for _ in range(2):
        assert await used(db) == {"w": (await Admission(db).month_tokens("w"))[1]}
        await book(db, key, "w", 20, model="vectors")  # of a vector the prompt counts, once
    assert await used(db) == {"w": 30}
    view = await accounts.show_wallet(db, "w")
    assert (view.tokens_month, view.tokens_month_max) == (30, 100)
    await db.execute("update state.wallets set tokens_used = 99, tokens_month = '2000-01-01'")
    await db.fetchval("select state.open_admission(state.server_id())")  # counters are counted anew (C7)
    assert await used(db) == {"w": 30}
    failed = await hold(db, key, 0)
    await open_in_the_log(db, failed, key, "w", 0, status="failed", how="error", ended_ms=1, prompt_tokens=9)
    await release(db, {failed: 0})
    assert await used(db) == {"w": 30}


async def test_a_limit_set_while_the_projection_books_counts_once(db: asyncpg.Pool) -> None:
    """Whichever comes first, the other waits at the wallet's row and then sees it."""
    key = await add_key(db, await add_wallet(db, "w"))
    for first in ("projection", "operator"):
        await accounts.limit_tokens(db, "w", None)
        before = (await Admission(db).month_tokens("w"))[1]
        request_id = await hold(db, key, 0)
        async with db.acquire() as one, db.acquire() as two:
            async with one.transaction():
                if first == "projection":
                    await end_of(one, request_id, key, "w", 8)
                    waiting = asyncio.create_task(accounts.limit_tokens(two, "w", 100))
                else:
                    await accounts.limit_tokens(one, "w", 100)
                    waiting = asyncio.create_task(in_a_transaction(two, request_id, key, "w", 8))
                await blocked(db)
            await waiting
        assert await used(db) == {"w": before + 8} == {"w": (await Admission(db).month_tokens("w"))[1]}


async def test_the_month_s_border(db: asyncpg.Pool) -> None:
    key = await add_key(db, await add_wallet(db, "w"))
    this = await db.fetchval("select date_trunc('month', now() at time zone 'UTC')::date")
    begin_ms = await db.fetchval("select (extract(epoch from $1::timestamp at time zone 'UTC') * 1000)::bigint", this)
    await accounts.limit_tokens(db, "w", 10)

    async def stand() -> tuple[Any, int]:
        return tuple(await db.fetchrow("select tokens_month, tokens_used from state.wallets"))

    await book(db, key, "w", 50, begin_ms - 1)  # ended in the last instant of the month before
    assert await stand() == (this, 0)
    await book(db, key, "w", 4, begin_ms)
    await book(db, key, "w", 5, begin_ms + 40 * 86_400_000)  # an ingress whose clock is ahead
    assert await stand() == (this, 9)
    assert await outcome(db, key) == "ok"
    # As the new month finds it: the old one's count is over, for admission and for the next booking.
    await db.execute("update state.wallets set tokens_used = 10, tokens_month = tokens_month - interval '1 month'")
    assert await outcome(db, key) == "ok"
    await book(db, key, "w", 3)
    assert await stand() == (this, 3)
    # A slice with ends of both: the newer month stays.
    last = this.replace(day=1)
    ids = [await hold(db, key, 0) for _ in range(2)]
    for request_id, ended_ms in zip(ids, (begin_ms - 5, begin_ms + 5), strict=True):
        done = {"status": "charged", "how": "stop", "ended_ms": ended_ms, "prompt_tokens": 2}
        await open_in_the_log(db, request_id, key, "w", 0, **done)
    await db.execute("update state.wallets set tokens_used = 90, tokens_month = tokens_month - interval '1 month'")
    await release(db, dict.fromkeys(ids, 0))
    assert await stand() == (last, 2)


# Together


async def test_refusals_come_in_the_table_s_order_and_take_nothing(db: asyncpg.Pool) -> None:
    """Everything is wrong at once; each repair uncovers the next refusal."""
    key = await add_key(db, await add_wallet(db, "w"), open_max=0, rpm=1, models=["x"])
    token = (await session(db, key, origins=[PAGE]))._replace(origin="https://evil")
    await accounts.limit_tokens(db, "w", 0)
    await db.execute("update state.keys set rate_us = (extract(epoch from now()) + 90) * 1000000, revoked_at = now()")
    await end_sessions(db)
    later = "update state.sessions set expires_at = clock_timestamp() + interval '1 hour'"
    repairs = [
        ("session_expired", later),
        ("key_revoked", "update state.keys set revoked_at = null"),
        ("origin_not_allowed", "update state.sessions set origins = null"),
        ("model_not_allowed", "update state.keys set models = null"),
        ("rate_limit_exceeded", "update state.keys set rate_us = 0"),
        ("monthly_tokens_exceeded", "update state.wallets set tokens_month_max = null"),
        ("open_request_cap", "update state.keys set open_max = 1"),
        ("insufficient_balance", "update state.keys set tier = 'dev'"),
    ]
    for expected, repair in repairs:
        assert await outcome(db, token, 1) == expected
        await db.execute(repair)
    told = [{"key_revoked": "revoked_api_key"}.get(name, name) for name, _ in repairs]
    limits = [code for code in TABLE if code in told[4:]]
    assert limits == told[4:]
    assert await db.fetchval("select count(*) from state.admissions") == 0
    assert await db.fetchval("select rate_us from state.keys") == 0
    assert await outcome(db, token, 1) == "ok"


async def test_what_an_operator_sets(db: asyncpg.Pool) -> None:
    await add_wallet(db, "w")
    text = await accounts.create_key(db, "w", "pro", rpm=20)
    (row,) = await accounts.list_keys(db, "w")
    assert row.rpm == 20
    assert await accounts.limit_key(db, text, None) == row.key_id
    assert (await accounts.list_keys(db, "w"))[0].rpm is None
    await accounts.limit_key(db, row.key_id, 60_000)
    for wrong in (0, -1, 60_001, 2**40):
        with pytest.raises(AccountRefused, match="--rpm must be 1 to 60000"):
            await accounts.limit_key(db, text, wrong)
        with pytest.raises(AccountRefused, match="--rpm must be 1 to 60000"):
            await accounts.create_key(db, "w", "pro", rpm=wrong)
    with pytest.raises(AccountRefused, match="no such key"):
        await accounts.limit_key(db, "nothing", 1)
    with pytest.raises(AccountRefused, match="no wallet nobody"):
        await accounts.limit_tokens(db, "nobody", 1)
    for wrong in (-1, 2**70):
        with pytest.raises(AccountRefused, match="--tokens-month must be"):
            await accounts.limit_tokens(db, "w", wrong)
    assert (await accounts.show_wallet(db, "w")).tokens_month_max is None


# The books' side


async def test_the_projection_counts_the_tokens_of_wallets_with_a_limit(db: asyncpg.Pool) -> None:
    """Once, in whatever slices its records come, and however often an end is said."""
    limited = wallet_in(0, P)
    key = await add_key(db, await add_wallet(db, limited))
    await accounts.limit_tokens(db, limited, 10**6)
    await db.execute(
        "insert into derived.offsets (topic, partition, next) select $1, g, 0 from generate_series(0, $2 - 1) g",
        topics.LEDGER,
        P,
    )
    now_ms = int(time.time() * 1000)
    ids = [new_id(now_ms) for _ in range(6)]
    for one in ids[:5]:
        assert await outcome(db, key, request_id=one) == "ok"
    many: list[Any] = [accepted(one, limited, at_ms=now_ms, key_id=key.key_id) for one in ids]
    many += [usage(one, n + 1, limited, at_ms=now_ms) for n, one in enumerate(ids[:4])]
    many += [failed(ids[4], limited), usage(ids[5], 50, limited, at_ms=now_ms), usage(ids[0], 99, limited)]
    read = records(0, many)
    projection = Projection(db, P)
    for end in (7, 9, 8, len(many)):  # from the first one each time
        await projection.apply(0, read[:end])
    tokens = (await Admission(db).month_tokens(limited))[1]
    prompts = await db.fetchval("select sum(prompt_tokens) from derived.requests where status = 'charged'")
    assert tokens == 1 + 2 + 3 + 4 + 50 + prompts
    # The last one's admission was forgotten in a crash: it counts when admission is opened (C7).
    assert await used(db) == {limited: tokens - 57}
    await db.fetchval("select state.open_admission(state.server_id())")
    assert await used(db) == {limited: tokens}


async def test_a_rebuild_counts_the_month_s_tokens_anew(ledger_log: str, db: asyncpg.Pool, books_url: str) -> None:
    wallet = wallet_in(0, P)
    key = await add_key(db, await add_wallet(db, wallet))
    await accounts.limit_tokens(db, wallet, 10**6)
    now_ms = int(time.time() * 1000)
    one = new_id(now_ms)
    assert await outcome(db, key, request_id=one) == "ok"
    many = [credited(wallet, at_ms=now_ms), accepted(one, wallet, at_ms=now_ms), usage(one, 7, wallet, at_ms=now_ms)]
    await append_all(ledger_log, many)
    places = await start_offsets(db, ledger_log, P, list(range(P)))
    async with LedgerReader(ledger_log, P, client_id="test") as reader:
        async for part in reader.read(places, await reader.ends()):
            await Projection(db, P).apply(part[0].partition, part)
    true = await used(db)
    assert true[wallet] > 7
    # The books are damaged, and the count agrees with them.
    await db.execute("update derived.requests set completion_tokens = 900")
    await accounts.limit_tokens(db, wallet, 10**6)
    assert (await used(db))[wallet] > 900
    quiet = rebuild.Progress(lambda _: None, lambda _: None, lambda _: None)
    settings = Settings(ledger_log, books_url, P)
    result = await rebuild.rebuild(settings, None, rebuild.Options(accept_differences=True), quiet)
    assert result.swapped
    assert await used(db) == true
    assert (await Admission(db).month_tokens(wallet))[1] == true[wallet]
