"""Wallets, keys and credits on a real database and a real log."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, TopicPartition

from infra import accounts, demo
from infra.append import appending
from infra.errors import AccountRefused, Unreachable
from infra.kafka.topics import create_topics
from infra.ports import free_port
from infra.state import StateFolder
from schemas.events import AdjustmentPosted, WalletCredited, parse
from schemas.topics import LEDGER, LEDGER_PARTITIONS_DEV, ledger_topic, partition_of


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Any]:
    async with accounts.connected(database_url) as connection:
        yield connection


@pytest.fixture
async def wallet(db: Any) -> str:
    """A wallet of the test's own."""
    name = f"w-{os.urandom(5).hex()}"
    await accounts.create_wallet(db, name, f"owner-of-{name}", LEDGER_PARTITIONS_DEV)
    return name


class Log(list[Any]):
    async def append_event(self, event: WalletCredited | AdjustmentPosted) -> None:
        self.append(event)


async def test_a_wallet_is_made_once_and_belongs_to_one_owner(db: Any, wallet: str) -> None:
    assert not await accounts.create_wallet(db, wallet, f"owner-of-{wallet}", LEDGER_PARTITIONS_DEV)
    with pytest.raises(AccountRefused, match=f"wallet {wallet} exists, with owner owner-of-{wallet}"):
        await accounts.create_wallet(db, wallet, "another", LEDGER_PARTITIONS_DEV)
    with pytest.raises(AccountRefused, match="is no wallet id"):
        await accounts.create_wallet(db, "no spaces", "me", LEDGER_PARTITIONS_DEV)
    stored = await db.fetchval("select partition from state.wallets where wallet_id = $1", wallet)
    assert stored == partition_of(wallet.encode(), LEDGER_PARTITIONS_DEV)


async def test_a_key_is_stored_as_a_hash_and_can_be_revoked(db: Any, wallet: str) -> None:
    key = await accounts.create_key(db, wallet, "pro", "mine")
    assert key.startswith("shvr_pro_")
    assert await accounts.key_is_good(db, key)
    secret = key[21:]
    row = await db.fetchrow("select k::text as text from state.keys k where wallet_id = $1", wallet)
    assert secret not in row["text"]
    (listed,) = await accounts.list_keys(db, wallet)
    assert (listed.tier, listed.open_max, listed.name, listed.revoked_at) == ("pro", 200, "mine", None)
    assert await accounts.revoke_key(db, key) == listed.key_id
    assert not await accounts.key_is_good(db, key)
    with pytest.raises(AccountRefused, match="was revoked already"):
        await accounts.revoke_key(db, listed.key_id)
    with pytest.raises(AccountRefused, match="no such key"):
        await accounts.revoke_key(db, "nothing")


async def test_keys_need_a_wallet(db: Any) -> None:
    with pytest.raises(AccountRefused, match="no wallet nobody; make it with"):
        await accounts.create_key(db, "nobody", "dev")


async def test_a_reference_credits_one_wallet_with_one_amount(db: Any, wallet: str) -> None:
    log, ref = Log(), f"ref-{wallet}"
    for _ in range(2):  # a repeat is appended again: the fold counts it once
        await accounts.credit(db, log.append_event, wallet, 5 * accounts.NANO, ref, "op")
    assert [(event.wallet, event.amount_nano, event.external_ref) for event in log] == [(wallet, 5 * 10**9, ref)] * 2
    with pytest.raises(AccountRefused, match=f"reference {ref} stands for 5 SHIVER to {wallet}"):
        await accounts.credit(db, log.append_event, wallet, 6 * accounts.NANO, ref, "op")
    with pytest.raises(AccountRefused, match="no wallet nobody"):
        await accounts.credit(db, log.append_event, "nobody", 1, "other", "op")
    assert len(log) == 2


async def test_a_correction_names_who_and_why_and_counts_once(db: Any, wallet: str) -> None:
    log, ref = Log(), f"ref-{wallet}"
    for _ in range(2):
        await accounts.adjust(db, log.append_event, wallet, -5, ref, "op", "booked twice")
    assert [(e.amount_nano, e.external_ref, e.operator, e.reason) for e in log] == [(-5, ref, "op", "booked twice")] * 2
    await accounts.credit(db, log.append_event, wallet, 5, ref, "op")  # a credit's references are others
    with pytest.raises(AccountRefused, match=f"reference {ref} stands for -0.000000005 SHIVER to {wallet}"):
        await accounts.adjust(db, log.append_event, wallet, 5, ref, "op", "booked twice")
    with pytest.raises(AccountRefused, match="no wallet nobody"):
        await accounts.adjust(db, log.append_event, "nobody", 5, "other", "op", "why")
    with pytest.raises(AccountRefused, match="1 to 200 characters"):
        await accounts.adjust(db, log.append_event, wallet, 5, "other", "op", "")
    assert len(log) == 3


async def test_a_large_correction_needs_a_second_person(db: Any, wallet: str) -> None:
    log, ref, large = Log(), f"ref-{wallet}", -10_001 * accounts.NANO
    for approver in (None, "op"):
        with pytest.raises(AccountRefused, match="above 10000 SHIVER an adjustment needs --approver"):
            await accounts.adjust(db, log.append_event, wallet, large, ref, "op", "why", approver)
    await accounts.adjust(db, log.append_event, wallet, large, ref, "op", "why", "another")
    assert [(e.amount_nano, e.approver) for e in log] == [(large, "another")]


async def test_a_credit_reaches_the_log_under_its_wallet_s_key(db: Any, wallet: str, kafka: str) -> None:
    create_topics(kafka, [ledger_topic()])
    await accounts.credit(db, appending(kafka, LEDGER_PARTITIONS_DEV), wallet, 7, f"ref-{wallet}", "op", "top_up")
    consumer = Consumer({"bootstrap.servers": kafka, "group.id": "t", "enable.auto.commit": False, "log_level": 0})
    try:
        consumer.assign([TopicPartition(LEDGER, partition_of(wallet.encode(), LEDGER_PARTITIONS_DEV), 0)])
        while (message := consumer.poll(10)) is not None and message.key() != wallet.encode():
            pass
        assert message is not None
        event = parse(message.value())
        assert isinstance(event, WalletCredited)
        assert (event.wallet, event.amount_nano, event.reason) == (wallet, 7, "top_up")
    finally:
        consumer.close()


async def test_a_log_that_is_away_is_one_line(db: Any, wallet: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.append._TIMEOUT_S", 0.5)
    append = appending(f"127.0.0.1:{free_port()}", LEDGER_PARTITIONS_DEV)
    with pytest.raises(Unreachable, match="it is safe to repeat"):
        await accounts.credit(db, append, wallet, 7, f"ref-{wallet}", "op")


async def test_the_demo_keys_are_kept_as_long_as_the_database_knows_them(db: Any, tmp_path: Path) -> None:
    state = StateFolder(tmp_path)
    state.create()
    first = await demo.ensure_keys(db, state, LEDGER_PARTITIONS_DEV)
    assert state.keys_file.stat().st_mode & 0o777 == 0o600
    assert json.loads(state.keys_file.read_text()) == {"dev": first.dev, "pro": first.pro}
    assert await demo.ensure_keys(db, state, LEDGER_PARTITIONS_DEV) == first
    await accounts.revoke_key(db, first.pro)
    second = await demo.ensure_keys(db, state, LEDGER_PARTITIONS_DEV)
    assert second.dev == first.dev
    assert second.pro != first.pro


async def test_registering_again_keeps_what_an_operator_changed(db: Any) -> None:
    await demo.register(db, {"node-r": "home"}, ["shark-mini", "shark-gemma-9b"])
    await db.execute("update state.models set out_nano = 1 where model = 'shark-gemma-9b'")
    await demo.register(db, {"node-r": "home"}, ["shark-mini", "shark-gemma-9b"])
    prices = await db.fetch(
        "select model, in_nano, out_nano from state.models "
        "where model in ('shark-gemma-9b', 'shark-mini') order by model"
    )
    assert [tuple(row) for row in prices] == [("shark-gemma-9b", 300_000, 1), ("shark-mini", 100_000, 200_000)]


@pytest.mark.parametrize(
    ("text", "nano"), [("1", 10**9), ("0.000000001", 1), ("12.5", 12_500_000_000), ("1e3", 10**12)]
)
def test_amounts_are_exact(text: str, nano: int) -> None:
    assert accounts.parse_amount(text) == nano


@pytest.mark.parametrize(("text", "nano"), [("1.5", 1_500_000_000), ("-1.5", -1_500_000_000)])
def test_a_correction_goes_either_way(text: str, nano: int) -> None:
    assert accounts.parse_signed_amount(text) == nano


@pytest.mark.parametrize("text", ["-", "--1", "-0", "0"])
def test_a_correction_of_nothing_is_refused(text: str) -> None:
    with pytest.raises(AccountRefused):
        accounts.parse_signed_amount(text)


@pytest.mark.parametrize("text", ["", "x", "0", "-1", "0.0000000001", "nan", "inf", "1e19"])
def test_no_other_amount_is_taken(text: str) -> None:
    with pytest.raises(AccountRefused):
        accounts.parse_amount(text)


def test_amounts_are_shown_as_they_are() -> None:
    shown = [accounts.format_amount(nano, "SHIVER") for nano in (0, 1, -1_500_000_000, 10**13)]
    assert shown == ["0 SHIVER", "0.000000001 SHIVER", "-1.5 SHIVER", "10000 SHIVER"]
