"""Owners, wallets, keys, requests in PostgreSQL, and what must always be true of admission's counters."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from typing import Any

import asyncpg
import pytest
from ledger_kit import new_id

from ingress.admission import Admission, Ask
from schemas import keys, topics
from schemas.errors import ApiError
from schemas.keys import ApiKey, Tier

P = 4
BOOT = "boot-1"
#: A cap in nano USD. At RATE one nano SHIVER is one nano USD.
CAP = 1000
RATE = 10**9


async def prepare(db: Any) -> None:
    """A rate, a living ingress, and admission open."""
    await db.execute("update state.rates set nano_usd = $1 where asset = 'SHIVER'", RATE)
    await add_ingress(db, BOOT)
    assert await db.fetchval("select state.open_admission(state.server_id())") == 0


async def add_ingress(db: Any, boot_id: str, *, lease_s: float = 3600, lanes: int = 0) -> None:
    await db.execute(
        "insert into state.ingresses (boot_id, lease_until, lanes) "
        "values ($1, clock_timestamp() + $2::float8 * interval '1 second', $3)",
        boot_id,
        lease_s,
        lanes,
    )


async def add_wallet(db: Any, name: str, balance_nano: int = 0, owner: str | None = None, asset: str = "SHIVER") -> str:
    partition = topics.partition_of(name.encode(), P)
    await db.execute("insert into state.owners (owner_id) values ($1) on conflict do nothing", owner or name)
    await db.execute(
        "insert into state.wallets (wallet_id, owner_id, partition, asset) values ($1, $2, $3, $4)",
        name,
        owner or name,
        partition,
        asset,
    )
    if balance_nano:
        await add_to_balance(db, name, balance_nano, asset)
    return name


async def add_to_balance(db: Any, wallet: str, amount_nano: int, asset: str = "SHIVER") -> None:
    """As the projection books it."""
    await db.execute(
        "insert into derived.accounts as a values ('wallet:' || $1, $4, $2, $3, 1) "
        "on conflict (account, asset, partition) do update set balance_nano = a.balance_nano + excluded.balance_nano",
        wallet,
        topics.partition_of(wallet.encode(), P),
        amount_nano,
        asset,
    )


async def add_key(
    db: Any,
    wallet: str,
    tier: Tier = "pro",
    open_max: int = 100,
    name: str = "",
    models: list[str] | None = None,
    rpm: int | None = None,
) -> ApiKey:
    key_id = name or f"k-{wallet}"
    sha256 = hashlib.sha256(key_id.encode()).digest()
    await db.execute(
        "insert into state.keys (key_id, sha256, wallet_id, tier, open_max, models, rpm) "
        "values ($1, $2, $3, $4, $5, $6, $7)",
        key_id,
        sha256,
        wallet,
        tier,
        open_max,
        models,
        rpm,
    )
    return ApiKey(tier, key_id, sha256)


async def admit(
    db: Any,
    key: ApiKey,
    hold_nano: int,
    request_id: str | None = None,
    *,
    owner: str = BOOT,
    node: str = "node-1",
    lane: str = "",
    lane_offset: int = 0,
    cap_nano_usd: int = CAP,
    dry_run: bool = False,
    hold_usdc_nano: int = 0,
    models: tuple[str, ...] = ("m",),
    counted: bool = True,
) -> asyncpg.Record:
    """`hold_nano` is of SHIVER."""
    return await db.fetchrow(
        "select * from state.admit($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)",
        request_id or new_id(),
        key.key_id,
        key.sha256,
        hold_nano,
        hold_usdc_nano,
        owner,
        node,
        list(models),
        lane,
        lane_offset,
        cap_nano_usd,
        dry_run,
        key.is_session,
        key.origin,
        counted,
    )


async def hold(db: Any, key: ApiKey, hold_nano: int) -> str:
    """An admitted request."""
    request_id = new_id()
    assert (await admit(db, key, hold_nano, request_id))["outcome"] == "ok"
    return request_id


async def settle(db: Any, request_id: str, charge_nano: int) -> bool:
    return await db.fetchval("select state.settle($1, $2)", request_id, charge_nano)


async def release(db: Any, charges_nano: dict[str, int], wallet: str | None = None) -> None:
    """The projection's call. `wallet` is whose the events in the log were, where not the admission's."""
    ids = list(charges_nano)
    found = await db.fetch("select request_id, wallet_id from state.admissions where request_id = any ($1)", ids)
    wallets = {str(row["request_id"]): row["wallet_id"] for row in found}
    await db.execute(
        "select state.release($1, $2, $3)",
        ids,
        [wallet or wallets.get(request_id, "nobody") for request_id in ids],
        list(charges_nano.values()),
    )


async def open_in_the_log(db: Any, request_id: str, key: ApiKey, wallet: str, hold_nano: int, **more: Any) -> None:
    """The row of derived.requests of an accepted request."""
    row: dict[str, Any] = {
        "request_id": request_id,
        "partition": topics.partition_of(wallet.encode(), P),
        "wallet_id": wallet,
        "status": "open",
        "key_id": key.key_id,
        "payer": f"wallet:{wallet}",
        "asset": "SHIVER",
        "model": "m",
        "rate_nano_usd": RATE,
        "hold_nano": hold_nano,
        "owner": BOOT,
        "owner_epoch": 1,
    } | more
    places = ", ".join(f"${number}" for number in range(1, len(row) + 1))
    await db.execute(f"insert into derived.requests ({', '.join(row)}) values ({places})", *row.values())


async def counters(db: Any) -> dict[str, dict[str, int]]:
    """Every counter by its owner; what is zero is left out."""
    keys = await db.fetch("select key_id, open_requests from state.keys where open_requests <> 0")
    wallets = await db.fetch("select wallet_id, held_nano from state.wallets where held_nano <> 0")
    days = await db.fetch(
        "select owner_id, sum(used_nano_usd)::bigint from state.sandbox_days group by 1 having sum(used_nano_usd) <> 0"
    )
    names = ("open", "held", "used")
    return {name: dict(map(tuple, rows)) for name, rows in zip(names, (keys, wallets, days), strict=True)}


async def sums(db: Any) -> dict[str, dict[str, int]]:
    """What `counters` must be: sums over admissions, and for a sandbox owner the charges that were released."""
    opened = await db.fetch("select key_id, count(*) from state.admissions where slot group by 1")
    held = await db.fetch(
        "select wallet_id, sum(hold_nano)::bigint from state.admissions where payer = 'wallet:' || wallet_id "
        "group by 1 having sum(hold_nano) <> 0"
    )
    used = await db.fetch(
        "select owner_id, sum(usd)::bigint from ("
        "select owner_id, hold_nano_usd as usd from state.admissions where cap_day is not null union all "
        "select w.owner_id, state.to_nano_usd(r.payer_charge_nano, r.rate_nano_usd) from derived.requests r "
        "join state.wallets w using (wallet_id) where r.cap_day is not null and r.status = 'charged') u "
        "group by 1 having sum(usd) <> 0"
    )
    names = ("open", "held", "used")
    return {name: dict(map(tuple, rows)) for name, rows in zip(names, (opened, held, used), strict=True)}


async def blocked(db: Any, count: int = 1) -> None:
    """Returns once `count` sessions of this database wait for a lock."""
    async with asyncio.timeout(10):
        while (
            await db.fetchval(
                "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
            )
            < count
        ):
            await asyncio.sleep(0.01)


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


async def end_sessions(db: Any) -> None:
    """Their time is over, of all."""
    await db.execute("update state.sessions set expires_at = clock_timestamp()")


async def refused(call: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        await call
    return caught.value


def ask_of(key: ApiKey) -> Ask:
    return Ask(new_id(), key, {"SHIVER": 0, "USDC": 0}, BOOT, "n", ("m",), "l", 0)
