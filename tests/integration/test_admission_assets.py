"""Admission in the wallet's own asset, keys that may not use every model, and requests that move to another node."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
from admission_kit import BOOT, CAP, RATE, add_key, add_wallet, admit, counters, prepare, settle
from ledger_kit import new_id

from infra import catalog
from infra.errors import AccountRefused
from ingress.admission import Admission, Ask
from ingress.admission import open_pool as open_ingress_pool
from ingress.catalog import Catalog
from ingress.chat import Chat
from ingress.metering import hold_bound_nano
from schemas.errors import ApiError
from schemas.ids import uuid7


@pytest.fixture
async def db(books_url: str) -> AsyncIterator[asyncpg.Pool]:
    pool = await open_ingress_pool(books_url)
    await prepare(pool)
    yield pool
    await pool.close()


def ask(key: Any, shiver: int, usdc: int, *models: str, request_id: str | None = None) -> Ask:
    holds = {"SHIVER": shiver, "USDC": usdc}
    return Ask(request_id or new_id(), key, holds, BOOT, "n", models or ("m",), "l", 0)  # type: ignore[arg-type]


@pytest.mark.parametrize(("asset", "hold"), [("SHIVER", 60), ("USDC", 7)])
async def test_the_hold_is_that_of_the_wallet_s_asset(db: asyncpg.Pool, asset: str, hold: int) -> None:
    key = await add_key(db, await add_wallet(db, "w", hold + 1, asset=asset))
    admission, first = Admission(db), ask(None, 60, 7)._replace(key=key)
    got = await admission.admit(first)
    assert (got.asset, got.hold_nano) == (asset, hold)
    assert (await counters(db))["held"] == {"w": hold}
    assert (await admission.admit(first)).hold_nano == hold  # once more: the same answer, nothing twice
    with pytest.raises(ApiError, match=f"may cost up to .* {asset}, 0.000000001 are free"):
        await admission.admit(ask(key, 60, 7))
    assert await settle(db, first.request_id, hold - 1)
    assert (await counters(db))["held"] == {"w": hold - 1}


async def test_money_of_another_asset_pays_nothing(db: asyncpg.Pool) -> None:
    key = await add_key(db, await add_wallet(db, "w", asset="USDC"))
    await db.execute("insert into derived.accounts values ('wallet:w', 'SHIVER', 0, 1000000, 1)")
    assert (await admit(db, key, 0, hold_usdc_nano=1))["outcome"] == "insufficient_balance"


async def test_a_sandbox_day_counts_a_usdc_hold_at_usdc_s_rate(db: asyncpg.Pool) -> None:
    await db.execute("update state.rates set nano_usd = $1 where asset = 'USDC'", 2 * RATE)
    key = await add_key(db, await add_wallet(db, "w", asset="USDC"), "dev")
    assert (await admit(db, key, 10 * CAP, hold_usdc_nano=CAP // 2))["outcome"] == "ok"
    assert (await counters(db))["used"] == {"w": CAP}
    assert (await admit(db, key, 0, hold_usdc_nano=1))["outcome"] == "daily_cap_exceeded"


async def test_the_day_s_cap_says_when_it_ends(db: asyncpg.Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingress.admission.SANDBOX_CAP_NANO_USD", 1)
    key = await add_key(db, await add_wallet(db, "w"), "dev")
    with pytest.raises(ApiError) as caught:
        await Admission(db).admit(ask(key, 5, 5))
    midnight = await db.fetchval("select extract(epoch from date_trunc('day', now() at time zone 'UTC'))::bigint")
    now_s = await db.fetchval("select extract(epoch from now())::bigint")
    assert caught.value.code == "daily_cap_exceeded"
    assert abs((caught.value.retry_after_s or 0) - (midnight + 86_400 - now_s)) <= 2


async def test_a_full_key_is_told_when_one_of_its_requests_should_end(db: asyncpg.Pool) -> None:
    key = await add_key(db, await add_wallet(db, "w", 100), open_max=2)
    admission = Admission(db)
    long_ago_ms = int(time.time() * 1000) - 40_000
    for _ in range(60):  # requests that took 40 s
        await admission.settle(uuid7(long_ago_ms, bytes(10)), 0)
    for _ in range(2):
        await admission.admit(ask(key, 1, 1))
    with pytest.raises(ApiError) as caught:
        await admission.admit(ask(key, 1, 1))
    assert caught.value.code == "open_request_cap"
    assert caught.value.retry_after_s in (19, 20, 21)


async def test_a_key_may_be_barred_from_models(db: asyncpg.Pool) -> None:
    """Behind the key and before limits and money (dialects.md, order of checks)."""
    key = await add_key(db, await add_wallet(db, "w"), open_max=0, models=["a", "b"])
    admission = Admission(db)
    with pytest.raises(ApiError, match="may not use all of: a, c"):
        await admission.admit(ask(key, 60, 7, "a", "c"))
    with pytest.raises(ApiError) as caught:
        await admission.admit(ask(key, 60, 7, "b", "a"))
    assert caught.value.code == "open_request_cap"
    assert (await admission.check_key(key)).models == ["a", "b"]


async def test_a_request_moves_only_forward_and_only_for_its_owner(db: asyncpg.Pool) -> None:
    key = await add_key(db, await add_wallet(db, "w", 100))
    admission, request = Admission(db), ask(key, 60, 7)
    await admission.admit(request)
    await admission.move(request.request_id, BOOT, "n2", "fallback", 2)
    row = await db.fetchrow("select node_id, model, attempt, hold_nano from state.admissions")
    assert tuple(row) == ("n2", "fallback", 2, 60)
    for owner, attempt in ((BOOT, 2), ("other", 3)):
        with pytest.raises(ApiError, match="given up meanwhile"):
            await admission.move(request.request_id, owner, "n3", "m", attempt)
    await settle(db, request.request_id, 1)
    with pytest.raises(ApiError, match="given up meanwhile"):
        await admission.move(request.request_id, BOOT, "n3", "m", 3)


async def test_the_published_catalog_as_an_ingress_reads_it(db: asyncpg.Pool) -> None:
    await catalog.publish(db, [entry.name for entry in catalog.PUBLISHED])
    await catalog.publish(db, ["shark-mini", "my-own"])
    await catalog.set_alias(db, "gpt-5.4-mini", "shark-gemma-9b")
    await catalog.publish(db, ["shark-mini"])  # what the operator changed stays
    offers = await Catalog(db).offers()
    assert offers.find("gpt-5.4-mini").name == "shark-gemma-9b"
    assert offers.find("qwen/qwen3-4b-fp8").name == "shark-mini"
    big = offers.find("shark-llama-3.3-70b-vision")
    assert (big.context_tokens, big.takes_images, big.kind) == (131_072, True, "chat")
    chat = Chat("x", messages=[{"role": "user", "content": "hi"}], max_tokens=10)
    shiver, usdc = (hold_bound_nano(chat, big.prices[asset], 1000) for asset in ("SHIVER", "USDC"))
    assert (shiver, usdc) == (54 * 3_500_000 + 10 * 7_000_000, 54 * 350 + 10 * 700)
    assert offers.find("my-own").prices == {
        asset: price.model_copy(update={"model": "my-own"}) for asset, price in offers.find("shark-mini").prices.items()
    }
    with pytest.raises(ApiError) as caught:
        offers.find("gpt-6")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


async def test_what_an_operator_does_to_the_catalog(db: asyncpg.Pool) -> None:
    await catalog.set_model(db, "m", catalog.price("1.001", "2"), "embedding", context_tokens=5)
    await catalog.set_model(db, "m", catalog.price("3", "4", "0.5", "0.25"), takes_images=True)
    model = (await Catalog(db).offers()).find("m")
    assert (model.kind, model.takes_images, model.context_tokens) == ("chat", True, None)
    assert [(p.in_nano, p.out_nano) for p in model.prices.values()] == [(3000, 4000), (500, 250)]
    await catalog.set_alias(db, "n", "m")
    for wrong in (("m", "m"), ("auto", "m"), ("x", "nothing"), ("", "m")):
        with pytest.raises(AccountRefused):
            await catalog.set_alias(db, *wrong)
    await catalog.set_alias(db, "o", "m", ["user", "seed"])
    # Written by hand: what is not droppable keeps its effect, and a model under its own name drops nothing.
    await db.execute("update state.model_aliases set drops = drops || '{messages}'::text[] where alias = 'o'")
    await db.execute("insert into state.model_aliases (alias, model, drops) values ('m', 'm', '{user}')")
    assert (await Catalog(db).offers()).drops == {"o": {"user", "seed"}}
    await catalog.remove_model(db, "m")
    assert await db.fetchval("select count(*) from state.model_aliases") == 0
    for again in (catalog.remove_model(db, "m"), catalog.remove_alias(db, "n"), catalog.set_trust(db, "nobody", "1")):
        with pytest.raises(AccountRefused):
            await again


async def test_a_provider_is_trusted_by_what_the_operator_says(db: asyncpg.Pool) -> None:
    found = await catalog.register_nodes(db, {"node-a": "home", "node-b": None})
    assert found["node-a"] == "home"
    assert len(found["node-b"]) == 36
    assert await catalog.register_nodes(db, {"node-a": None, "node-b": None}) == found
    await catalog.set_trust(db, "home", "0.9")
    assert (await Catalog(db).offers()).trust == {"home": 0.9, found["node-b"]: 0.5}
    for wrong in ("1.1", "-0.1", "nan", "0.0001", "x"):
        with pytest.raises(AccountRefused):
            await catalog.set_trust(db, "home", wrong)


async def test_a_month_s_tokens_are_the_wallet_s_charged_ones(db: asyncpg.Pool) -> None:
    """Those of a vector count once: what was delivered is the prompt."""
    now_ms = await db.fetchval("select (extract(epoch from now()) * 1000)::bigint")
    await add_wallet(db, "w")
    await catalog.set_model(db, "vectors", catalog.price("1", "0"), "embedding")
    rows = [
        ("w", "charged", "m", now_ms),
        ("w", "charged", "m", now_ms),
        ("w", "charged", "vectors", now_ms),
        ("v", "charged", "m", now_ms),
        ("w", "failed", "m", now_ms),
        ("w", "charged", "m", now_ms - 32 * 86_400_000),
    ]
    for row in rows:
        await db.execute(
            "insert into derived.requests (request_id, partition, wallet_id, status, model, owner, owner_epoch, how, "
            "ended_ms, prompt_tokens, completion_tokens) values ($1, 0, $2, $3, $4, 'o', 1, 'stop', $5, 7, 5)",
            new_id(),
            *row,
        )
    month, tokens = await Admission(db).month_tokens("w")
    assert (tokens, month) == (31, await db.fetchval("select to_char(now() at time zone 'UTC', 'YYYY-MM')"))
    assert (await Admission(db).month_tokens("nobody"))[1] == 0
