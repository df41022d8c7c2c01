"""Sessions, requests a minute and tokens a month in state.admit and beside it: on PostgreSQL, over two ingresses."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
from admission_kit import (
    BOOT,
    CAP,
    add_key,
    add_wallet,
    admit,
    blocked,
    counters,
    hold,
    open_in_the_log,
    prepare,
    release,
    sums,
)
from ledger_kit import new_id

from infra import accounts, catalog
from infra.errors import AccountRefused
from ingress.admission import SESSIONS_MAX, Admission, Ask
from ingress.admission import open_pool as open_ingress_pool
from schemas import keys
from schemas.errors import TABLE, ApiError
from schemas.keys import ApiKey

PAGE = "https://app.example.com"
MINUTE_US = 60_000_000


@pytest.fixture
async def db(books_url: str) -> AsyncIterator[asyncpg.Pool]:
    pool = await open_ingress_pool(books_url)
    await prepare(pool)
    yield pool
    await pool.close()


async def outcome(db: Any, key: ApiKey, hold_nano: int = 0, **more: Any) -> str:
    return (await admit(db, key, hold_nano, **more))["outcome"]


async def session(
    db: Any, key: ApiKey, expires_in_s: int = 600, models: list[str] | None = None, origins: list[str] | None = None
) -> ApiKey:
    """The token of a session that was opened as an ingress opens it."""
    token = keys.parse(keys.mint(keys.SESSION, secrets.token_bytes(keys.ENTROPY_BYTES)))
    assert token is not None
    await Admission(db).open_session(key, token, expires_in_s, models, origins)
    return token


async def end(db: Any) -> None:
    """The time of all sessions is over."""
    await db.execute("update state.sessions set expires_at = clock_timestamp()")


async def refused(call: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        await call
    return caught.value


def ask(key: ApiKey) -> Ask:
    return Ask(new_id(), key, {"SHIVER": 0, "USDC": 0}, BOOT, "n", ("m",), "l", 0)


# Sessions


async def test_a_session_spends_its_key_s_money_slots_and_minute(db: asyncpg.Pool) -> None:
    key = await add_key(db, await add_wallet(db, "w", 10), open_max=2, rpm=3)
    token = await session(db, key)
    got = await admit(db, token, 6)
    assert (got["outcome"], got["key_id"], got["wallet_id"], got["tier"]) == ("ok", key.key_id, "w", "pro")
    assert await counters(db) == {"open": {key.key_id: 1}, "held": {"w": 6}, "used": {}} == await sums(db)
    assert await outcome(db, key, 5) == "insufficient_balance"
    assert await outcome(db, key, 4) == "ok"
    assert await outcome(db, token) == "open_request_cap"
    await db.execute("update state.keys set open_max = 9")
    assert await outcome(db, token) == "ok"
    assert [await outcome(db, one) for one in (token, key)] == ["rate_limit_exceeded"] * 2
    assert await db.fetchval("select array_agg(distinct key_id) from state.admissions") == [key.key_id]
    admitted = await Admission(db).admit(ask(await session(db, await add_key(db, await add_wallet(db, "v")))))
    assert admitted.key_id == "k-v"  # what request.accepted names


async def test_a_session_of_a_sandbox_key_is_the_sandbox_s(db: asyncpg.Pool) -> None:
    token = await session(db, await add_key(db, await add_wallet(db, "w"), "dev"))
    got = await admit(db, token, CAP)
    assert (got["outcome"], got["tier"], got["payer"]) == ("ok", "dev", "platform:sandbox")
    assert await outcome(db, token, 1) == "daily_cap_exceeded"


async def test_an_ended_an_unknown_and_a_forged_session_are_told_alike(db: asyncpg.Pool) -> None:
    key = await add_key(db, await add_wallet(db, "w"))
    token, admission = await session(db, key), Admission(db)
    forged = token._replace(sha256=bytes(32))
    unknown = token._replace(key_id="unknown")
    as_key = ApiKey("pro", token.key_id, token.sha256)
    as_session = ApiKey(keys.SESSION, key.key_id, key.sha256)
    assert await outcome(db, token) == "ok"
    assert await outcome(db, as_key) == "invalid_key"
    await admission.check_key(token)
    for _ in range(2):
        for wrong in (forged, unknown, as_session):
            assert await outcome(db, wrong) == "session_expired"
            assert (await refused(admission.check_key(wrong))).code == "session_expired"
        await end(db)
        forged = token  # which is over now
    assert (await refused(admission.admit(ask(token)))).code == "session_expired"
    assert (await counters(db))["open"] == {key.key_id: 1}


async def test_a_session_s_time_is_judged_behind_the_wait_for_its_key(db: asyncpg.Pool) -> None:
    """It ends while its request stands behind another of the key."""
    key = await add_key(db, await add_wallet(db, "w"))
    token = await session(db, key)
    await db.execute("update state.sessions set expires_at = clock_timestamp() + interval '0.3 s'")
    async with db.acquire() as other, other.transaction():
        await other.execute("select from state.keys for no key update")
        waiting = asyncio.create_task(outcome(db, token))
        await blocked(db)
        await asyncio.sleep(0.35)
    assert await waiting == "session_expired"


async def test_a_session_dies_with_its_key_at_once(db: asyncpg.Pool) -> None:
    key = await add_key(db, await add_wallet(db, "w"))
    token, admission = await session(db, key), Admission(db)
    running = new_id()
    assert await outcome(db, token, request_id=running) == "ok"
    await accounts.revoke_key(db, key.key_id)
    assert await outcome(db, token) == "key_revoked"
    assert (await refused(admission.check_key(token))).code == "revoked_api_key"
    assert (await refused(session(db, key))).code == "revoked_api_key"
    await release(db, {running: 0})  # what was running ends
    assert (await counters(db))["open"] == {}


async def test_a_revocation_under_way_is_waited_for(db: asyncpg.Pool) -> None:
    key = await add_key(db, await add_wallet(db, "w"))
    token = await session(db, key)
    async with db.acquire() as operator, operator.transaction():
        await accounts.revoke_key(operator, key.key_id)
        waiting = [asyncio.create_task(outcome(db, token)), asyncio.create_task(refused(session(db, key)))]
        await blocked(db, 2)
    assert await waiting[0] == "key_revoked"
    assert (await waiting[1]).code == "revoked_api_key"
    assert await db.fetchval("select count(*) from state.sessions") == 1


async def test_a_session_may_use_fewer_models_than_its_key_and_never_more(db: asyncpg.Pool) -> None:
    key = await add_key(db, await add_wallet(db, "w"), models=["a", "b"])
    admission = Admission(db)
    plain, less = await session(db, key), await session(db, key, models=["a"])
    assert [await outcome(db, plain, models=(m,)) for m in "abc"] == ["ok", "ok", "model_not_allowed"]
    assert [await outcome(db, less, models=(m,)) for m in "abc"] == ["ok", "model_not_allowed", "model_not_allowed"]
    assert await outcome(db, less, models=("a", "b")) == "model_not_allowed"
    assert [(await admission.check_key(one)).models for one in (plain, less)] == [["a", "b"], ["a"]]
    assert (await refused(session(db, key, models=["a", "c"]))).code == "model_not_allowed"
    await db.execute("update state.keys set models = '{b}'")  # later: the key's own count too
    assert [await outcome(db, less, models=(m,)) for m in "ab"] == ["model_not_allowed"] * 2
    free = await add_key(db, "w", name="free")
    assert (await admission.open_session(free, less._replace(key_id="s"), 60, ["x"], None)).models == ["x"]
    assert (await refused(admission.admit(ask(less)))).message == "This session may not use all of: m."


async def test_a_session_for_pages_is_for_these_alone(db: asyncpg.Pool) -> None:
    key = await add_key(db, await add_wallet(db, "w"))
    bound, free = await session(db, key, origins=[PAGE, "http://localhost"]), await session(db, key)
    admission = Admission(db)
    for origin, expected in ((PAGE, "ok"), ("http://localhost", "ok"), ("https://evil", "no"), (None, "no")):
        sent = bound._replace(origin=origin)
        assert await outcome(db, sent) == ("ok" if expected == "ok" else "origin_not_allowed")
        if expected == "ok":
            await admission.check_key(sent)
        else:
            assert (await refused(admission.check_key(sent))).code == "origin_not_allowed"
        assert await outcome(db, free._replace(origin=origin)) == "ok"


async def test_a_session_opens_none_and_reads_no_usage(db: asyncpg.Pool) -> None:
    key = await add_key(db, await add_wallet(db, "w"))
    token, admission = await session(db, key), Admission(db)
    assert (await refused(admission.check_key(token, session_may=False))).code == "session_not_allowed"
    await admission.check_key(key, session_may=False)
    assert (await refused(session(db, token))).code == "invalid_api_key"  # nor would the database open one
    await end(db)
    assert (await refused(admission.check_key(token, session_may=False))).code == "session_expired"


async def test_a_key_has_so_many_living_sessions_and_its_dead_ones_go(
    db: asyncpg.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert SESSIONS_MAX == 1000
    monkeypatch.setattr("ingress.admission.SESSIONS_MAX", 3)
    key = await add_key(db, await add_wallet(db, "w"))
    other = await session(db, await add_key(db, "w", name="other"))
    said = await asyncio.gather(*(session(db, key, 600 + n) for n in range(8)), return_exceptions=True)
    assert sorted(getattr(one, "code", "ok") for one in said) == ["ok"] * 3 + ["session_cap"] * 5
    first = await db.fetchval("select min(expires_at) from state.sessions where key_id = $1", key.key_id)
    error = await refused(session(db, key))
    left_s = first.timestamp() - time.time()
    assert error.retry_after_s is not None
    assert left_s - 1 <= error.retry_after_s <= left_s + 2
    await end(db)
    await session(db, key)
    left = dict(await db.fetch("select key_id, count(*) from state.sessions group by 1"))
    assert left == {key.key_id: 1, "other": 1}  # another key's wait for that key
    assert await outcome(db, other) == "session_expired"


async def test_when_a_session_ends_is_told_in_whole_seconds_and_true(db: asyncpg.Pool) -> None:
    key = await add_key(db, await add_wallet(db, "w"))
    got = await Admission(db).open_session(key, ApiKey(keys.SESSION, "s", bytes(32)), 77, None, [PAGE])
    row = await db.fetchrow("select *, extract(epoch from expires_at)::bigint as end_s from state.sessions")
    assert row["end_s"] == got.expires_s
    assert 0 <= row["created_at"].timestamp() + 77 - got.expires_s < 1.5
    assert row["origins"] == [PAGE]


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
        await admission.admit(ask(key))
    error = await refused(admission.admit(ask(key)))
    assert error.code == "rate_limit_exceeded"
    assert error.retry_after_s in (1, 2)
    assert error.message == f"This key may send 30 requests a minute: the next one in {error.retry_after_s} s."
    wait_us = error.retry_after_s * 1_000_000
    await db.execute("update state.keys set rate_us = rate_us - $1", wait_us)  # that much later
    await admission.admit(ask(key))


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
        error = await refused(Admission(db).admit(ask(key)))
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
    await end(db)
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
