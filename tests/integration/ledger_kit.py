"""Events, records and topics for tests of the books."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Iterable
from typing import Any

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from infra.kafka.topics import create_topics
from ledger.reader import Record
from schemas import events, topics
from schemas.events import (
    AdjustmentPosted,
    BalanceAsserted,
    Event,
    How,
    ModelPrice,
    RatePublished,
    RequestAccepted,
    RequestAdopted,
    RequestFailed,
    Segment,
    UsageRecorded,
    WalletCredited,
)
from schemas.ids import uuid7

T0_MS = 1_800_000_000_000
MODEL = "m"
PRICE = ModelPrice(model=MODEL, in_nano=100_000, out_nano=200_000)


def new_id(at_ms: int = T0_MS) -> str:
    return uuid7(at_ms, os.urandom(10))


def credited(wallet: str, amount_nano: int = 10**12, ref: str = "ref", **more: Any) -> WalletCredited:
    fields: dict[str, Any] = {"at_ms": T0_MS, "asset": "SHIVER", "reason": "grant", "operator": "test"} | more
    return WalletCredited(wallet=wallet, amount_nano=amount_nano, external_ref=ref, **fields)


def adjusted(wallet: str, amount_nano: int = -5, ref: str = "ref", **more: Any) -> AdjustmentPosted:
    fields: dict[str, Any] = {"at_ms": T0_MS, "asset": "SHIVER", "reason": "why", "operator": "test"} | more
    return AdjustmentPosted(wallet=wallet, amount_nano=amount_nano, external_ref=ref, **fields)


def asserted(wallet: str, amount_nano: int) -> BalanceAsserted:
    return BalanceAsserted(wallet=wallet, at_ms=T0_MS, asset="SHIVER", amount_nano=amount_nano)


def accepted(request_id: str, wallet: str = "w", **more: Any) -> RequestAccepted:
    fields: dict[str, Any] = {
        "at_ms": T0_MS,
        "key_id": "key",
        "owner": "boot-1",
        "rules_version": 1,
        "asset": "SHIVER",
        "prices": (PRICE,),
        "rate_nano_usd": 100_000,
        "cap_day": None,
        "hold_nano": 10**10,
        "payer": f"wallet:{wallet}",
    }
    return RequestAccepted(wallet=wallet, request_id=request_id, **(fields | more))


def adopted(request_id: str, epoch: int = 2, wallet: str = "w", owner: str = "boot-2") -> RequestAdopted:
    return RequestAdopted(wallet=wallet, at_ms=T0_MS, request_id=request_id, epoch=epoch, owner=owner)


def usage(request_id: str, tokens: int = 10, wallet: str = "w", **more: Any) -> UsageRecorded:
    fields: dict[str, Any] = {
        "at_ms": T0_MS + 1000,
        "epoch": 1,
        "how": How.STOP,
        "model": MODEL,
        "prompt_tokens": 7,
        "segments": (Segment(node="n1", provider="p1", attempt=1, tokens=tokens),),
    }
    return UsageRecorded(wallet=wallet, request_id=request_id, **(fields | more))


def failed(request_id: str, wallet: str = "w", **more: Any) -> RequestFailed:
    fields: dict[str, Any] = {"at_ms": T0_MS + 1000, "epoch": 1, "how": How.NOT_ACKED}
    return RequestFailed(wallet=wallet, request_id=request_id, **(fields | more))


def records(partition: int, many: Iterable[Event], first: int = 0) -> list[Record]:
    """The events as they would stand in `partition` from offset `first` on."""
    return [Record(partition, first + i, e.key.encode(), events.dump(e)) for i, e in enumerate(many)]


def wallet_in(partition: int, partitions: int, nth: int = 0) -> str:
    """A wallet id whose key belongs to `partition`."""
    found = -1
    for number in range(100_000):
        name = f"w{number}"
        if topics.partition_of(name.encode(), partitions) == partition:
            found += 1
            if found == nth:
                return name
    raise AssertionError("no such wallet")


def load(seed: int, requests: int, wallets: int = 20) -> list[Event]:
    """A mixed load in the order of one writer: credits, lives of requests of every kind, duplicates, stray ends.

    Every fifth wallet has USDC.
    """
    rng = random.Random(seed)
    assets = {f"w{n}": "USDC" if n % 5 == 4 else "SHIVER" for n in range(wallets)}
    out: list[Event] = [credited(wallet, 10**15, asset=asset) for wallet, asset in assets.items()]
    for number in range(requests):
        wallet, at_ms = f"w{rng.randrange(wallets)}", T0_MS + number
        rid = uuid7(at_ms, rng.randbytes(10))
        payer = rng.choice([f"wallet:{wallet}", "platform:sandbox"])
        begin = accepted(rid, wallet, at_ms=at_ms, payer=payer, asset=assets[wallet])
        end = rng.choice(
            [
                usage(rid, rng.randrange(1, 500), wallet, how=rng.choice(list(How)), at_ms=at_ms),
                usage(rid, 10**6, wallet, at_ms=at_ms),
                usage(rid, 0, wallet, at_ms=at_ms),
                failed(rid, wallet, at_ms=at_ms),
            ]
        )
        match rng.randrange(10):
            case 0:
                out += [begin, begin, end, end]
            case 1:
                out += [begin, adopted(rid, 2, wallet), end, end.model_copy(update={"epoch": 2})]
            case 2:
                out += [failed(rid, wallet), begin, end]
            case 3:
                out += [end, begin]
            case 4:
                out += [begin, begin.model_copy(update={"hold_nano": 1})]
            case 5:
                out += [credited(wallet, ref=f"ref{number % 50}")]
                out += [RatePublished(at_ms=at_ms, asset="SHIVER", rate_nano_usd=1 + number, source="test")]
                out += [adjusted(wallet, rng.choice([-5, 5, 10**16]), f"ref{number % 50}", approver="another")]
            case _:
                out += [begin, end]
    return out


async def make_topic(kafka: str, partitions: int) -> None:
    async with asyncio.timeout(30):
        while True:
            await asyncio.to_thread(create_topics, kafka, [topics.ledger_topic(partitions)])
            count = await asyncio.to_thread(_count, kafka)
            if count == partitions:
                return
            await asyncio.sleep(0.05)


async def drop_topic(kafka: str) -> None:
    await asyncio.to_thread(_drop, kafka)
    async with asyncio.timeout(30):
        while await asyncio.to_thread(_count, kafka):
            await asyncio.sleep(0.05)


def _count(kafka: str) -> int:
    found = AdminClient({"bootstrap.servers": kafka, "log_level": 0}).list_topics(timeout=10).topics
    return len(found[topics.LEDGER].partitions) if topics.LEDGER in found else 0


def _drop(kafka: str) -> None:
    if not _count(kafka):
        return
    admin = AdminClient({"bootstrap.servers": kafka})  # must outlive the call
    try:
        admin.delete_topics([topics.LEDGER])[topics.LEDGER].result(10)
    except KafkaException as error:
        raise AssertionError(f"the ledger topic could not be dropped: {error}") from error
