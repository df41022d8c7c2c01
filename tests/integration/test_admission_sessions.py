"""Sessions in state.admit and state.open_session, on PostgreSQL: whose they are, what they may do, when they end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import asyncpg
import pytest
from admission_kit import (
    CAP,
    add_key,
    add_wallet,
    admit,
    ask_of,
    blocked,
    counters,
    end_sessions,
    outcome,
    prepare,
    refused,
    release,
    session,
    sums,
)
from ledger_kit import new_id

from infra import accounts
from ingress.admission import SESSIONS_MAX, Admission
from ingress.admission import open_pool as open_ingress_pool
from schemas import keys
from schemas.keys import ApiKey

PAGE = "https://app.example.com"


@pytest.fixture
async def db(books_url: str) -> AsyncIterator[asyncpg.Pool]:
    pool = await open_ingress_pool(books_url)
    await prepare(pool)
    yield pool
    await pool.close()


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
    admitted = await Admission(db).admit(ask_of(await session(db, await add_key(db, await add_wallet(db, "v")))))
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
        await end_sessions(db)
        forged = token  # which is over now
    assert (await refused(admission.admit(ask_of(token)))).code == "session_expired"
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
    assert (await refused(admission.admit(ask_of(less)))).message == "This session may not use all of: m."


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
    await end_sessions(db)
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
    await end_sessions(db)
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
