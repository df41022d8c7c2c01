"""A small log of every kind of entry, for golden exports and statements; and golden files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ledger.apply import step
from ledger.books import Books
from ledger.decide import Decision
from ledger.digest import digest
from ledger.exports.dates import parse_day
from ledger.exports.transactions import Cut, Epochs, Head, Tally, Transaction, by_day, by_epoch, transaction_of
from ledger.exports.write import Form, export
from ledger.spool import Spool
from ledger.statements import Statement, StatementBuilder
from schemas.events import (
    Event,
    How,
    ModelPrice,
    RequestAccepted,
    RequestFailed,
    Segment,
    UsageRecorded,
    WalletCredited,
)
from schemas.ids import uuid7

GOLDEN = Path(__file__).parent / "golden"
SECOND_MS, HOUR_MS = 1000, 3_600_000
PRICE = ModelPrice(model="shark <mini>", in_nano=1_000_000, out_nano=2_000_001)
NASTY_REF = '=pi_1; "x", \\ü\n<script>'

Told = tuple[int, int, Event, Decision]


def at(day: str, ms: int = 0) -> int:
    return parse_day(day) * 86_400_000 + ms


def credited(wallet: str, at_ms: int, ref: str, nano: int = 10**10, asset: Any = "SHIVER") -> WalletCredited:
    return WalletCredited(
        wallet=wallet,
        at_ms=at_ms,
        asset=asset,
        amount_nano=nano,
        external_ref=ref,
        reason="top_up",
        operator="ann",
    )


def request(number: int, wallet: str, at_ms: int, *tokens: tuple[str, int], **more: Any) -> list[Event]:
    """An accept and its usage, by segments of (provider, tokens)."""
    rid = uuid7(at_ms, bytes([number]) * 10)
    accept = RequestAccepted(
        wallet=wallet,
        at_ms=at_ms,
        request_id=rid,
        key_id="key",
        owner="boot",
        rules_version=1,
        asset=more.get("asset", "SHIVER"),
        prices=(PRICE,),
        rate_nano_usd=more.get("rate", 123_456_789),
        cap_day=None,
        hold_nano=more.get("hold", 10**10),
        payer=more.get("payer", f"wallet:{wallet}"),
    )
    segments = tuple(
        Segment(node="n", provider=provider, attempt=n + 1, tokens=count) for n, (provider, count) in enumerate(tokens)
    )
    usage = UsageRecorded(
        wallet=wallet,
        at_ms=at_ms + 8 * SECOND_MS,
        request_id=rid,
        epoch=1,
        how=more.get("how", How.STOP),
        model=PRICE.model,
        prompt_tokens=7,
        segments=segments,
    )
    return [accept, usage]


def small_log() -> list[list[Event]]:
    """Two partitions: months that meet, times that go back, odd ids, every account, a duplicate, a clamp."""
    late = at("2027-01-31", 24 * HOUR_MS - 5 * SECOND_MS)
    failed = RequestFailed(
        wallet="a:b", at_ms=at("2027-02-02"), request_id=uuid7(late, b"f" * 10), epoch=1, how=How.NO_NODE
    )
    return [
        [
            credited("acme", at("2027-01-30", HOUR_MS), NASTY_REF),
            *request(1, "acme", late - 10 * SECOND_MS, ("gpu-1", 10), ("Gpu_2", 3)),
            *request(2, "acme", late, ("gpu-1", 1), payer="platform:sandbox"),
            credited("acme", at("2027-01-31", 12 * HOUR_MS), "deposit", 5_000_000_000, "USDC"),
            credited("acme", at("2027-02-01", HOUR_MS), "deposit", 5_000_000_000, "USDC"),
            *request(3, "acme", at("2027-02-01", HOUR_MS), ("gpu-1", 2), how=How.OWNER_DIED),
        ],
        [
            credited("a:b", at("2027-02-01"), "own"),
            *request(4, "a:b", at("2027-02-02"), ("own", 10**6), hold=1_000_000_007, rate=1),
            failed,
            *request(5, "a:b", at("2027-03-01"), ("gpu-1", 4), rate=0),
        ],
    ]


def fold(log: list[list[Event]]) -> tuple[list[Told], list[Books]]:
    books = [Books(partition) for partition in range(len(log))]
    told = [
        (partition, offset, event, step(books[partition], event, offset))
        for partition, events in enumerate(log)
        for offset, event in enumerate(events)
    ]
    return told, books


def balances_of(books: list[Books]) -> dict[tuple[str, str], int]:
    sums: dict[tuple[str, str], int] = {}
    for one in books:
        for key, row in one.accounts.items():
            sums[key] = sums.get(key, 0) + row.balance_nano
    return sums


def transactions_of(told: list[Told]) -> list[Transaction]:
    made = [transaction_of(*one) for one in told]
    return [transaction for transaction in made if transaction is not None]


def exported(
    form: Form,
    told: list[Told],
    books: list[Books],
    *,
    until_day: int | None = None,
    run_transactions: int = 1000,
    cuts: list[Cut] | None = None,
) -> str:
    """What the command does, without Kafka."""
    with Spool(run_transactions, by_epoch if form.by_epoch else by_day) as spool:
        head = head_of(told, books, spool, until_day, cuts or [])
        return "".join(export(form, head, spool.ordered()))


def head_of(
    told: list[Told], books: list[Books], spool: Spool, until_day: int | None = None, cuts: list[Cut] | None = None
) -> Head:
    tally, epochs = Tally(), Epochs(cuts or [])
    for transaction in transactions_of(told):
        if until_day is None or transaction.day <= until_day:
            transaction = transaction._replace(epoch=epochs.of(transaction.partition, transaction.offset))
            tally.add(transaction)
            spool.add(transaction)
    if until_day is not None:
        return Head(tally.next_offsets, None, until_day, tally)
    assert tally.balances == balances_of(books)
    return Head({b.partition: b.next_offset for b in books}, digest(books), None, tally, epochs.cuts)


def statement_of(account: str, month: str, told: list[Told], books: list[Books]) -> Statement:
    builder = StatementBuilder(account, month)
    for one in told:
        builder.add(*one)
    return builder.finish({b.partition: b.next_offset for b in books}, balances_of(books))


def is_golden(name: str, text: str) -> None:
    """`text` is what stands in the golden file. SHRK_WRITE_GOLDEN=1 writes it instead: read the difference."""
    path = GOLDEN / name
    if os.environ.get("SHRK_WRITE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text.encode())
    assert text == path.read_bytes().decode()
