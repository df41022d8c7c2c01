"""state.admit, settle, release and open_admission on PostgreSQL: money and slots are taken once, and come back."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
from admission_kit import (
    BOOT,
    CAP,
    RATE,
    P,
    add_ingress,
    add_key,
    add_to_balance,
    add_wallet,
    admit,
    blocked,
    counters,
    hold,
    open_in_the_log,
    prepare,
    release,
    settle,
    sums,
)
from ledger_kit import new_id

from ingress.admission import Admission, Ask
from ingress.admission import open_pool as open_ingress_pool
from schemas import topics
from schemas.errors import ApiError
from schemas.keys import ApiKey

NOTHING: dict[str, dict[str, int]] = {"open": {}, "held": {}, "used": {}}


@pytest.fixture
async def db(books_url: str) -> AsyncIterator[asyncpg.Pool]:
    """The ingress's own pool: its lock_timeout would show a wait that never ends."""
    pool = await open_ingress_pool(books_url)
    await prepare(pool)
    yield pool
    await pool.close()


async def outcome(db: Any, key: ApiKey, hold_nano: int, **more: Any) -> str:
    return (await admit(db, key, hold_nano, **more))["outcome"]


@pytest.mark.parametrize(("balance_nano", "expected"), [(2 * 10**19, "ok"), (-2 * 10**19, "insufficient_balance")])
async def test_balances_beyond_64_bits_are_told_from_each_other(
    db: asyncpg.Pool, balance_nano: int, expected: str
) -> None:
    wallet = await add_wallet(db, "w")
    await add_to_balance(db, wallet, 0)
    await db.execute("update derived.accounts set balance_nano = $1", balance_nano)
    key = await add_key(db, wallet)
    assert await outcome(db, key, 10**18) == expected


@pytest.mark.parametrize(("tier", "short_of_money"), [("pro", "insufficient_balance"), ("dev", "daily_cap_exceeded")])
async def test_refusals_come_in_their_order_and_take_nothing(db: asyncpg.Pool, tier: Any, short_of_money: str) -> None:
    """Everything is wrong at once; each repair uncovers the next refusal."""
    wallet = await add_wallet(db, "w", 5)
    key = await add_key(db, wallet, tier, open_max=0)
    await db.execute("update state.readiness set server_id = 'x'")
    await db.execute("update state.ingresses set lease_until = clock_timestamp()")
    await db.execute("update state.keys set revoked_at = now()")
    wrong = key._replace(sha256=bytes(32))
    repairs = [
        ("catching_up", wrong, "update state.readiness set server_id = state.server_id()"),
        ("owner_lapsed", wrong, "update state.ingresses set lease_until = clock_timestamp() + interval '1 hour'"),
        ("invalid_key", wrong, None),
        ("invalid_key", key._replace(key_id="unknown"), None),
        ("key_revoked", key, "update state.keys set revoked_at = null"),
        ("open_request_cap", key, "update state.keys set open_max = 1"),
    ]
    for expected, asked_with, repair in repairs:
        assert await outcome(db, asked_with, CAP + 1) == expected
        if repair:
            await db.execute(repair)
    assert await outcome(db, key, CAP + 1) == short_of_money
    assert await counters(db) == NOTHING
    assert await db.fetchval("select count(*) from state.admissions") == 0
    assert await outcome(db, key, 5) == "ok"
    assert await outcome(db, key, CAP + 1) == "open_request_cap"


async def test_what_an_admitted_request_is_told(db: asyncpg.Pool) -> None:
    pro = await add_key(db, await add_wallet(db, "w", 5), "pro")
    dev = await add_key(db, await add_wallet(db, "s"), "dev")
    got = await admit(db, pro, 5)
    assert (got["wallet_id"], got["tier"], got["payer"], got["asset"]) == ("w", "pro", "wallet:w", "SHIVER")
    assert (got["rate_nano_usd"], got["cap_day"], got["available_nano"]) == (RATE, None, 5)
    got = await admit(db, dev, 5)
    today = await db.fetchval("select (now() at time zone 'UTC')::date")
    assert (got["payer"], got["cap_day"], got["available_nano"]) == ("platform:sandbox", today, CAP)
    assert await counters(db) == {"open": {"k-w": 1, "k-s": 1}, "held": {"w": 5}, "used": {"s": 5}} == await sums(db)


async def test_a_balance_counts_only_in_its_own_partition_and_asset(db: asyncpg.Pool) -> None:
    """Books are kept per partition; an account elsewhere under the same name is not this wallet's money."""
    key = await add_key(db, await add_wallet(db, "w", 5))
    await db.execute("insert into derived.accounts values ('wallet:w', 'USDC', $1, 100, 1)", _partition("w"))
    await db.execute("insert into derived.accounts values ('wallet:w', 'SHIVER', $1, 100, 1)", _partition("w") + 1)
    assert await outcome(db, key, 6) == "insufficient_balance"
    assert await outcome(db, key, 5) == "ok"


def _partition(wallet: str) -> int:
    return topics.partition_of(wallet.encode(), P)


async def test_one_request_id_is_one_hold_c2(db: asyncpg.Pool) -> None:
    """The second call would find the balance and the cap used up by the first one, were it not the same."""
    key = await add_key(db, await add_wallet(db, "w", 5), open_max=1)
    request_id = new_id()
    answers = await asyncio.gather(*(admit(db, key, 5, request_id) for _ in range(8)))
    told = {(a["outcome"], a["wallet_id"], a["payer"], a["asset"], a["rate_nano_usd"], a["cap_day"]) for a in answers}
    assert told == {("ok", "w", "wallet:w", "SHIVER", RATE, None)}
    assert await counters(db) == {"open": {"k-w": 1}, "held": {"w": 5}, "used": {}} == await sums(db)


@pytest.mark.parametrize("tier", ["pro", "dev"])
async def test_a_dry_run_takes_nothing_and_tells_the_truth(db: asyncpg.Pool, tier: Any) -> None:
    key = await add_key(db, await add_wallet(db, "w", CAP), tier, open_max=1)
    assert await outcome(db, key, CAP, dry_run=True) == "ok"
    assert await outcome(db, key, CAP + 1, dry_run=True) != "ok"
    assert await counters(db) == NOTHING
    assert await db.fetchval("select count(*) from state.admissions") == 0
    await hold(db, key, 1)
    assert await outcome(db, key, 1, dry_run=True) == "open_request_cap"


async def test_concurrent_admits_cannot_overspend_a_balance_s2(db: asyncpg.Pool, books_url: str) -> None:
    """Two keys of one wallet, two pools: only the wallet's row can order them."""
    wallet = await add_wallet(db, "w", 7 * 10 + 9)
    keys = [await add_key(db, wallet, name=f"k{n}") for n in range(2)]
    other = await open_ingress_pool(books_url)
    try:
        calls = [outcome(pool, key, 10) for _ in range(10) for pool in (db, other) for key in keys]
        said = await asyncio.gather(*calls)
    finally:
        await other.close()
    assert sorted(set(said)) == ["insufficient_balance", "ok"]
    assert said.count("ok") == 7
    assert (await counters(db))["held"] == {"w": 70}


async def test_admission_sees_balance_and_hold_change_together_s2(db: asyncpg.Pool) -> None:
    """The projection books 60 of 100 and gives the hold of 60 back: 40 are free, before it and after it, never 100."""
    wallet = await add_wallet(db, "w", 100)
    key = await add_key(db, wallet)
    other = await add_key(db, wallet, name="k2")
    ended = await hold(db, key, 60)
    async with db.acquire() as projection, projection.transaction():
        await release(projection, {ended: 60})
        await add_to_balance(projection, wallet, -60)
        waiting = asyncio.create_task(admit(db, other, 41))
        await blocked(db)
    got = await waiting
    assert (got["outcome"], got["available_nano"]) == ("insufficient_balance", 40)
    assert await outcome(db, other, 40) == "ok"


async def test_the_sandbox_cap_is_its_owner_s_over_all_wallets_and_keys_s20(db: asyncpg.Pool) -> None:
    keys = [await add_key(db, await add_wallet(db, f"w{n}", owner="o"), "dev") for n in range(2)]
    stranger = await add_key(db, await add_wallet(db, "x"), "dev")
    await hold(db, keys[0], 600)
    assert await outcome(db, keys[1], 401) == "daily_cap_exceeded"
    assert await outcome(db, keys[1], 400) == "ok"
    assert await outcome(db, stranger, CAP) == "ok"
    assert (await counters(db))["held"] == {}


async def test_the_first_two_requests_of_a_day_cannot_pass_the_cap_s20(db: asyncpg.Pool) -> None:
    """They come through two wallets of one owner while the day has no row yet, so only that row can order them."""
    keys = [await add_key(db, await add_wallet(db, f"w{n}", owner="o"), "dev") for n in range(2)]
    async with db.acquire() as blocker:
        pending = blocker.transaction()
        await pending.start()
        await blocker.execute("insert into state.sandbox_days values ('o', (now() at time zone 'UTC')::date, 0)")
        calls = [asyncio.create_task(outcome(db, key, 600)) for key in keys]
        await blocked(db, 2)
        await pending.rollback()
    assert sorted(await asyncio.gather(*calls)) == ["daily_cap_exceeded", "ok"]
    assert (await counters(db))["used"] == {"o": 600} == (await sums(db))["used"]


async def test_a_sandbox_counts_fractions_of_a_nano_dollar_as_whole_ones(db: asyncpg.Pool) -> None:
    """At a rate of a third of a dollar 2 nano are 0.67 nano USD. A cap is never passed by rounding."""
    await db.execute("update state.rates set nano_usd = 333333333")
    key = await add_key(db, await add_wallet(db, "w"), "dev")
    assert await outcome(db, key, 2, cap_nano_usd=0) == "daily_cap_exceeded"
    request_id = new_id()
    assert (await admit(db, key, 4, request_id, cap_nano_usd=2))["outcome"] == "ok"
    assert (await counters(db))["used"] == {"w": 2}
    assert await outcome(db, key, 1, cap_nano_usd=2) == "daily_cap_exceeded"
    await settle(db, request_id, 2)
    assert (await counters(db))["used"] == {"w": 1}
    await release(db, {request_id: 2})
    assert await counters(db) == NOTHING | {"used": {"w": 1}}


@pytest.mark.parametrize("tier", ["pro", "dev"])
@pytest.mark.parametrize("charge_nano", [0, 30, 100])
async def test_settle_and_release_come_to_the_same_in_any_order_s4(
    db: asyncpg.Pool, tier: Any, charge_nano: int
) -> None:
    after = []
    for number, order in enumerate(["settle release", "release settle", "release", "settle settle release release"]):
        wallet = await add_wallet(db, f"w{number}", 100)
        request_id = await hold(db, await add_key(db, wallet, tier), 100)
        for step in order.split():
            if step == "settle":
                await settle(db, request_id, charge_nano)
            else:
                await release(db, {request_id: charge_nano})
        left = {name: list(of.values()) for name, of in (await counters(db)).items()}
        after.append(left)
        await db.execute("delete from state.sandbox_days")
    expected = NOTHING | {"used": {"w": charge_nano} if tier == "dev" and charge_nano else {}}
    assert after == [{name: list(of.values()) for name, of in expected.items()}] * 4


async def test_a_sandbox_day_is_counted_at_the_rate_of_admission_s4(db: asyncpg.Pool) -> None:
    """Whatever the rate has become since: else settle-then-release and release alone differ, and so does a recount."""
    used = []
    for number, settled_first in enumerate([True, False]):
        await db.execute("update state.rates set nano_usd = $1", RATE)
        wallet = await add_wallet(db, f"w{number}")
        request_id = await hold(db, await add_key(db, wallet, "dev"), 100)
        if settled_first:
            await settle(db, request_id, 40)
        await db.execute("update state.rates set nano_usd = $1", RATE // 10)
        await release(db, {request_id: 40})
        used.append((await counters(db))["used"][wallet])
    assert used == [40, 40]


async def test_settle_frees_the_slot_and_the_rest_of_the_hold_at_once_s4(db: asyncpg.Pool) -> None:
    key = await add_key(db, await add_wallet(db, "w", 100), open_max=1)
    first = await hold(db, key, 100)
    assert await outcome(db, key, 1) == "open_request_cap"
    assert await settle(db, first, 30) is True
    assert await counters(db) == {"open": {}, "held": {"w": 30}, "used": {}} == await sums(db)
    assert await outcome(db, key, 71) == "insufficient_balance"
    assert await outcome(db, key, 70) == "ok"
    await release(db, {first: 30})
    assert await counters(db) == {"open": {"k-w": 1}, "held": {"w": 70}, "used": {}} == await sums(db)


async def test_settle_changes_nothing_twice_unknown_or_above_the_hold_s9(db: asyncpg.Pool) -> None:
    key = await add_key(db, await add_wallet(db, "w", 100))
    request_id = await hold(db, key, 50)
    assert await settle(db, new_id(), 1) is False
    assert await settle(db, request_id, 51) is False
    assert await counters(db) == {"open": {"k-w": 1}, "held": {"w": 50}, "used": {}}
    assert await settle(db, request_id, 20) is True
    assert await settle(db, request_id, 10) is False
    assert await counters(db) == {"open": {}, "held": {"w": 20}, "used": {}} == await sums(db)


async def test_a_late_settle_makes_no_admission_again_s4(db: asyncpg.Pool) -> None:
    key = await add_key(db, await add_wallet(db, "w", 100))
    request_id = await hold(db, key, 50)
    await release(db, {request_id: 20})
    assert await settle(db, request_id, 20) is False
    assert await counters(db) == NOTHING
    assert await db.fetchval("select count(*) from state.admissions") == 0


async def test_release_skips_what_is_unknown_or_of_another_wallet(db: asyncpg.Pool) -> None:
    key = await add_key(db, await add_wallet(db, "w", 100))
    kept, ended = await hold(db, key, 50), await hold(db, key, 10)
    await release(db, {new_id(): 5})
    await release(db, {kept: 0}, wallet="thief")
    await release(db, {new_id(): 5, ended: 10})
    assert await counters(db) == {"open": {"k-w": 1}, "held": {"w": 50}, "used": {}} == await sums(db)


@pytest.mark.parametrize(("tier", "settled", "booked"), [("pro", 20, 30), ("dev", 20, 30), ("dev", 30, 20)])
async def test_the_log_s_charge_counts_where_settle_said_another(
    db: asyncpg.Pool, tier: Any, settled: int, booked: int
) -> None:
    """A settled hold is an ingress's word; what is booked is the truth."""
    key = await add_key(db, await add_wallet(db, "w", 100), tier)
    request_id = await hold(db, key, 50)
    await settle(db, request_id, settled)
    await release(db, {request_id: booked})
    assert await counters(db) == NOTHING | {"used": {"w": booked} if tier == "dev" else {}}


async def test_a_revoked_key_s_requests_still_end(db: asyncpg.Pool) -> None:
    key = await add_key(db, await add_wallet(db, "w", 100))
    settled, released = await hold(db, key, 50), await hold(db, key, 50)
    await db.execute("update state.keys set revoked_at = now()")
    assert await outcome(db, key, 0) == "key_revoked"
    assert await settle(db, settled, 10) is True
    await release(db, {settled: 10, released: 0})
    assert await counters(db) == NOTHING


async def test_a_restarted_server_admits_nothing_until_it_is_opened_c7(db: asyncpg.Pool) -> None:
    key = await add_key(db, await add_wallet(db, "w", 100))
    await db.execute("update state.readiness set server_id = 'x'")
    assert await outcome(db, key, 1) == "catching_up"
    assert await db.fetchval("select state.open_admission('x')") is None
    assert await outcome(db, key, 1) == "catching_up"
    assert await db.fetchval("select state.open_admission(state.server_id())") == 0
    assert await outcome(db, key, 1) == "ok"


async def test_what_a_crash_forgot_is_held_again_from_the_log_c7(db: asyncpg.Pool) -> None:
    """Admissions commit without waiting for the disk: the newest can be gone, with their counters, after a crash."""
    pro = await add_key(db, await add_wallet(db, "w", 100), "pro")
    dev = await add_key(db, await add_wallet(db, "s"), "dev")
    kept = await hold(db, pro, 10)
    today = await db.fetchval("select (now() at time zone 'UTC')::date")
    sandbox = {"payer": "platform:sandbox", "cap_day": today}
    await open_in_the_log(db, kept, pro, "w", 10)
    await open_in_the_log(db, new_id(), pro, "w", 30)
    await open_in_the_log(db, new_id(), dev, "s", 70, **sandbox)
    ended = {"status": "charged", "how": "stop", "charge_nano": 20, "payer_charge_nano": 20}
    await open_in_the_log(db, new_id(), dev, "s", 90, **sandbox, **ended)
    await open_in_the_log(db, new_id(), pro, "w", 50, status="failed", how="not_acked")
    await db.execute("update state.readiness set server_id = 'x'")

    assert await db.fetchval("select state.open_admission(state.server_id())") == 2
    expected = {"open": {"k-w": 2, "k-s": 1}, "held": {"w": 40}, "used": {"s": 90}}
    assert await counters(db) == expected == await sums(db)
    assert await db.fetchval("select state.open_admission(state.server_id())") == 0
    assert await counters(db) == expected
    assert await outcome(db, pro, 61) == "insufficient_balance"


async def test_a_hold_made_again_is_released_like_any_other_c7(db: asyncpg.Pool) -> None:
    dev = await add_key(db, await add_wallet(db, "s"), "dev")
    today = await db.fetchval("select (now() at time zone 'UTC')::date")
    request_id = new_id()
    await open_in_the_log(db, request_id, dev, "s", 70, payer="platform:sandbox", cap_day=today)
    assert await db.fetchval("select state.open_admission(state.server_id())") == 1
    await release(db, {request_id: 15})
    assert await counters(db) == NOTHING | {"used": {"s": 15}}


async def test_counters_are_counted_anew_c7(db: asyncpg.Pool) -> None:
    key = await add_key(db, await add_wallet(db, "w", 100))
    await add_key(db, await add_wallet(db, "idle"))
    await hold(db, key, 10)
    await db.execute("update state.keys set open_requests = 9")
    await db.execute("update state.wallets set held_nano = 9")
    await db.execute("insert into state.sandbox_days values ('idle', (now() at time zone 'UTC')::date, 9)")
    assert await db.fetchval("select state.open_admission(state.server_id())") == 0
    assert await counters(db) == {"open": {"k-w": 1}, "held": {"w": 10}, "used": {}} == await sums(db)


async def test_a_settle_under_way_does_not_deadlock_with_the_opening_c7(db: asyncpg.Pool) -> None:
    """Stopped between its lock on the key and its update of the admission, while open_admission wants the key too."""
    key = await add_key(db, await add_wallet(db, "w", 100))
    request_id = await hold(db, key, 50)
    await open_in_the_log(db, new_id(), key, "w", 5)
    async with db.acquire() as blocker, blocker.transaction():
        await blocker.execute("select from state.wallets for no key update")
        settling = asyncio.create_task(settle(db, request_id, 20))
        await blocked(db, 1)
        opening = asyncio.create_task(db.fetchval("select state.open_admission(state.server_id())"))
        await blocked(db, 2)
    assert await asyncio.gather(settling, opening) == [True, 1]
    assert await counters(db) == {"open": {"k-w": 1}, "held": {"w": 25}, "used": {}} == await sums(db)


async def test_an_ingress_without_a_living_lease_admits_nothing_c3(db: asyncpg.Pool) -> None:
    key = await add_key(db, await add_wallet(db, "w", 100))
    await add_ingress(db, "dead", lease_s=-0.001)
    assert await outcome(db, key, 1, owner="dead") == "owner_lapsed"
    assert await outcome(db, key, 1, owner="unknown") == "owner_lapsed"
    assert await outcome(db, key, 1, owner=BOOT) == "ok"


async def test_the_ingress_s_own_calls(db: asyncpg.Pool) -> None:
    key = await add_key(db, await add_wallet(db, "w", 100))
    admission = Admission(db)
    ask = Ask(new_id(), key, {"SHIVER": 60, "USDC": 7}, BOOT, "node-1", ("m", "fallback"), "replies.b.0", 7)
    got = await admission.admit(ask)
    assert (got.wallet_id, got.tier, got.payer, got.rate_nano_usd) == ("w", "pro", "wallet:w", RATE)
    row = await db.fetchrow("select * from state.admissions")
    assert (row["lane"], row["lane_offset"], row["node_id"], row["model"]) == ("replies.b.0", 7, "node-1", "m")
    with pytest.raises(ApiError, match=r"may cost up to 0\.00000006 SHIVER, 0\.00000004 are free"):
        await admission.admit(ask._replace(request_id=new_id()))
    await admission.settle(ask.request_id, 10)
    assert (await counters(db))["held"] == {"w": 10}
    with pytest.raises(ApiError, match="invalid_api_key"):
        await admission.check_key(key._replace(sha256=bytes(32)))


@pytest.mark.parametrize("seed", [1, 2])
async def test_mixed_operations_never_deadlock_and_counters_stay_sums(
    db: asyncpg.Pool, books_url: str, seed: int
) -> None:
    """Twelve tasks, 300 operations: admits, settles, ends of several requests in the projection's transaction, and
    openings of admission between them."""
    rng = random.Random(seed)
    wallets = [await add_wallet(db, f"w{n}", 2000, owner=f"o{n % 2}") for n in range(4)]
    keys = [await add_key(db, w, tier, 6, f"k-{w}-{tier}") for w in wallets for tier in ("pro", "dev")]
    streams = await asyncpg.create_pool(books_url, min_size=6, max_size=6)
    living: list[str] = []
    said: list[str] = []

    async def admit_one() -> None:
        request_id, key, hold_nano = new_id(), rng.choice(keys), rng.randrange(1, 400)
        got = (await admit(db, key, hold_nano, request_id))["outcome"]
        said.append(got)
        if got == "ok":
            living.append(request_id)

    async def settle_one() -> None:
        if living:
            await settle(db, rng.choice(living), rng.randrange(1, 100))

    async def end_some() -> None:
        ends = [living.pop(rng.randrange(len(living))) for _ in range(min(len(living), 5))]
        await _end(streams, {request_id: rng.randrange(0, 100) for request_id in ends})

    async def open_again() -> None:
        await streams.fetchval("select state.open_admission(state.server_id())")

    async def worker(steps: int) -> None:
        for _ in range(steps):
            await rng.choices([admit_one, settle_one, end_some, open_again], [60, 25, 14, 1])[0]()

    try:
        await asyncio.gather(*(worker(25) for _ in range(12)))
        assert said.count("ok") > 20
        assert set(said) <= {"ok", "insufficient_balance", "daily_cap_exceeded", "open_request_cap"}
        assert await counters(db) == await sums(db)
        await _end(streams, dict.fromkeys(living, 0))
    finally:
        await streams.close()
    end = await counters(db)
    assert (end["open"], end["held"]) == ({}, {})
    assert end["used"] == (await sums(db))["used"]
    assert await db.fetchval("select min(balance_nano) from derived.accounts") >= 0


async def _end(pool: asyncpg.Pool, charges_nano: dict[str, int]) -> None:
    """What the projection does for ends in the log: the requests, then the admissions, then the balances."""
    async with pool.acquire() as db, db.transaction():
        for row in await db.fetch("select * from state.admissions where request_id = any ($1)", list(charges_nano)):
            request_id = str(row["request_id"])
            # No more than the hold, which a settle may have shrunk meanwhile.
            charges_nano[request_id] = min(charges_nano[request_id], row["hold_nano"])
            ended = {"status": "charged", "how": "stop", "payer": row["payer"], "cap_day": row["cap_day"]}
            charge = dict.fromkeys(("charge_nano", "payer_charge_nano"), charges_nano[request_id])
            key = ApiKey("pro", row["key_id"], b"")
            await open_in_the_log(db, request_id, key, row["wallet_id"], row["hold_nano"], **ended, **charge)
        rows = await db.fetch(
            "select request_id, wallet_id, payer from state.admissions where request_id = any ($1)", list(charges_nano)
        )
        await release(db, charges_nano)
        for row in sorted(rows, key=lambda row: row["wallet_id"]):
            if row["payer"] != "platform:sandbox":
                await add_to_balance(db, row["wallet_id"], -charges_nano[str(row["request_id"])])
