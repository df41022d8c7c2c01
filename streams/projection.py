"""Applies records of ledger.events to PostgreSQL: one transaction for a slice of one partition, exactly once.

The database owns the place in the log: the rows made from records and the offset behind them commit together, under the
lock of that offset's row, so it does not matter who else reads the same partition or where Faust believes to be. Only
the net result of a slice is written: each account once, each request once (S5).

Order inside the transaction: what nobody else locks first (entries, requests), then keys, wallets and admissions, then
accounts; so admission waits for a wallet as briefly as can be (S2).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import date
from typing import Any

import asyncpg

from ledger.apply import step
from ledger.books import Adjustment, Books, Credit, Request, wallet_account
from ledger.digest import chain_link, record_sha256
from ledger.errata import NO_ERRATA, Errata
from ledger.log import cached_partition_of
from ledger.outcomes import Outcome
from ledger.rows import adjustment_of_row, request_of_row
from schemas import topics
from schemas.events import (
    AdjustmentPosted,
    BalanceAsserted,
    Event,
    RequestEvent,
    UnreadableEvent,
    WalletCredited,
    request_id_of,
)
from streams.sql import DERIVED, statements


class ProjectionStopped(Exception):
    """The log cannot be applied from here: a person must look. Names topic, partition and offset."""


class Slice:
    """A slice's records, parsed and in order, and what the fold makes of them."""

    def __init__(self, partition: int, records: Sequence[Any], errata: Errata = NO_ERRATA) -> None:
        self.partition = partition
        self.records = records
        self.events = [_parse(partition, record, errata) for record in records]
        self.entries: list[tuple[Any, ...]] = []
        self.rejections: list[tuple[Any, ...]] = []
        self.released: dict[str, tuple[str, int]] = {}  # the wallet, and what the admission's payer was charged
        self.changed: dict[str, Request] = {}
        self.credits: list[tuple[Any, ...]] = []
        self.adjustments: list[tuple[Any, ...]] = []

    def request_ids(self) -> list[str]:
        return list({event.request_id for event in self.events if isinstance(event, RequestEvent)})

    def credit_refs(self) -> list[tuple[str, str]]:
        return list({(e.wallet, e.external_ref) for e in self.events if isinstance(e, WalletCredited)})

    def adjustment_refs(self) -> list[tuple[str, str]]:
        return list({(e.wallet, e.external_ref) for e in self.events if isinstance(e, AdjustmentPosted)})

    def asserted_accounts(self) -> list[str]:
        return list({wallet_account(e.wallet) for e in self.events if isinstance(e, BalanceAsserted)})

    def fold(self, books: Books) -> None:
        """Every event through the ledger's core; what comes out is collected, nothing is written."""
        for record, event in zip(self.records, self.events, strict=True):
            self._collect(record.offset, event, books)

    def _collect(self, offset: int, event: Event, books: Books) -> None:
        decision = step(books, event, offset)
        request_id = request_id_of(event)
        if decision.outcome is not Outcome.APPLIED:
            self.rejections.append((self.partition, offset, event.type, decision.outcome.value, request_id))
        for number, posting in enumerate(decision.postings):
            self.entries.append((self.partition, offset, number, *posting, request_id, event.at_ms))
        if isinstance(event, RequestEvent):
            if decision.request is not None:
                self.changed[event.request_id] = decision.request
            if decision.released_nano is not None:
                # The first word counts: a later one may come when the end has become too old to be known.
                self.released.setdefault(event.request_id, (event.wallet, decision.released_nano))
        elif decision.credit is not None and isinstance(event, WalletCredited):
            credit = decision.credit
            self.credits.append(
                (event.wallet, event.external_ref, credit.asset, credit.amount_nano, self.partition, offset)
            )
        elif decision.adjustment is not None and isinstance(event, AdjustmentPosted):
            self.adjustments.append(_adjustment_row(event, decision.adjustment, self.partition))


class Projection:
    """The writer of schema derived. One for a process; `apply` may run for several partitions at once.

    In another `schema`, whose tables are the same, it makes the books anew beside the live ones. It then leaves the
    admissions alone: a hold goes when the live books have its charge, and not before.
    """

    def __init__(self, pool: asyncpg.Pool, partitions: int, schema: str = DERIVED, errata: Errata = NO_ERRATA) -> None:
        self._errata = errata
        self._pool = pool
        self._partitions = partitions
        self._schema = schema
        self._sql = statements(schema)

    async def apply(self, partition: int, records: Sequence[Any]) -> int:
        """Apply what is new of `records` (objects with offset, key, value; ascending) and return how many that were.

        Raises ProjectionStopped at a gap, an unreadable event, a misplaced key or a changed log, and asyncpg errors;
        nothing of the slice is applied then.
        """
        async with self._pool.acquire() as db, db.transaction():
            place = await db.fetchrow(self._sql["lock_offset"], topics.LEDGER, partition)
            if place is None:
                raise ProjectionStopped(f"{topics.LEDGER} partition {partition} has no offset: it was never assigned")
            fresh = self._fresh(partition, records, place)
            if fresh:
                await self._write(db, partition, fresh, place)
        return len(fresh)

    def _fresh(self, partition: int, records: Sequence[Any], place: asyncpg.Record) -> Sequence[Any]:
        """The records from `next` on. What lies before it was applied; its last one must be what we remember (C9)."""
        following = place["next"]
        at = 0
        while at < len(records) and records[at].offset < following:
            record = records[at]
            if record.offset == following - 1 and _sha256(partition, record) != place["last_sha256"]:
                raise ProjectionStopped(
                    f"{topics.LEDGER} partition {partition} offset {record.offset} is not the record that was applied: "
                    "the log was made anew or changed"
                )
            at += 1
        fresh = records[at:]
        for expected, record in enumerate(fresh, following):
            if record.offset != expected:
                raise ProjectionStopped(
                    f"{topics.LEDGER} partition {partition}: a gap, expected offset {expected}, got {record.offset}"
                )
            if cached_partition_of(record.key or b"", self._partitions) != partition and not self._errata.covers(
                partition, record.offset, record.key or b"", record.value or b""
            ):
                raise ProjectionStopped(
                    f"{topics.LEDGER} partition {partition} offset {record.offset}: its key belongs elsewhere"
                    + self._errata.why_not(partition, record.offset)
                )
        return fresh

    async def _prefetch(self, db: Any, part: Slice, books: Books) -> None:
        """What the slice's events will ask the books for."""
        if ids := part.request_ids():
            for row in await db.fetch(self._sql["requests"], ids, part.partition):
                books.requests[str(row["request_id"])] = request_of_row(row)
        if refs := part.credit_refs():
            for row in await db.fetch(self._sql["credits"], *zip(*refs, strict=True)):
                credit = Credit(row["asset"], row["amount_nano"], row["offset"])
                books.credits[row["wallet_id"], row["external_ref"]] = credit
        if refs := part.adjustment_refs():
            for row in await db.fetch(self._sql["adjustments"], *zip(*refs, strict=True)):
                books.adjustments[row["wallet_id"], row["external_ref"]] = adjustment_of_row(row)
        if accounts := part.asserted_accounts():
            for row in await db.fetch(self._sql["opening_balances"], accounts, part.partition):
                books.opening_nano[row["account"], row["asset"]] = row["balance_nano"]

    async def _write(self, db: Any, partition: int, records: Sequence[Any], place: asyncpg.Record) -> None:
        part = Slice(partition, records, self._errata)
        books = Books(partition, next_offset=place["next"], max_event_ms=place["max_event_ms"])
        await self._prefetch(db, part, books)
        known = set(books.requests)
        part.fold(books)

        await self._copy(db, "entries", part.entries)
        await self._copy(db, "requests", [_row(i, r, partition) for i, r in part.changed.items() if i not in known])
        await self._copy(db, "credits", part.credits)
        await self._copy(db, "adjustments", part.adjustments)
        await self._copy(db, "rejections", part.rejections)
        if updates := [_row(i, r, partition) for i, r in part.changed.items() if i in known]:
            await db.execute(self._sql["update_requests"], *_columns(updates, _UPDATED), partition)
        if part.released and self._schema == DERIVED:
            wallets, charges = zip(*part.released.values(), strict=True)
            await db.execute(self._sql["release"], list(part.released), wallets, charges)
        accounts = sorted((a, s, partition, row.balance_nano, row.entries) for (a, s), row in books.accounts.items())
        if accounts:
            await db.execute(self._sql["add_to_accounts"], *zip(*accounts, strict=True))
        chain = place["chain"]
        for record in records:
            chain = chain_link(chain, partition, record.offset, record.key or b"", record.value or b"")
        await db.execute(
            self._sql["move_offset"],
            topics.LEDGER,
            partition,
            books.next_offset,
            _sha256(partition, records[-1]),
            chain,
            books.max_event_ms,
            books.rejected,
        )

    async def _copy(self, db: Any, table: str, rows: list[tuple[Any, ...]]) -> None:
        if rows:
            columns = _TABLE_COLUMNS[table]
            await db.copy_records_to_table(table, schema_name=self._schema, columns=columns, records=rows)


_COLUMNS = ("request_id", "partition", *Request._fields)
_UPDATED = (
    "request_id", "status", "owner", "owner_epoch", "model", "ended_ms", "how", "prompt_tokens", "completion_tokens",
    "charge_nano", "payer_charge_nano", "clamped",
)  # fmt: skip
_TABLE_COLUMNS: dict[str, tuple[str, ...]] = {
    "entries": ("partition", "offset", "posting", "account", "asset", "amount_nano", "request_id", "at_ms"),
    "requests": _COLUMNS,
    "credits": ("wallet_id", "external_ref", "asset", "amount_nano", "partition", "offset"),
    "adjustments": (
        "wallet_id",
        "external_ref",
        "asset",
        "amount_nano",
        "reason",
        "operator",
        "approver",
        "partition",
        "offset",
    ),
    "rejections": ("partition", "offset", "type", "code", "request_id"),
}


def _row(request_id: str, request: Request, partition: int) -> tuple[Any, ...]:
    values = request._asdict()
    values["prices"] = json.dumps([price.model_dump() for price in request.prices]) if request.prices else None
    values["cap_day"] = _day(request.cap_day)
    return (request_id, partition, *values.values())


def _adjustment_row(event: AdjustmentPosted, kept: Adjustment, partition: int) -> tuple[Any, ...]:
    *fields, offset = kept
    return (event.wallet, event.external_ref, *fields, partition, offset)


def _columns(rows: Iterable[tuple[Any, ...]], names: Sequence[str]) -> list[list[Any]]:
    places = [_COLUMNS.index(name) for name in names]
    return [[row[place] for row in rows] for place in places]


def _day(text: str | None) -> date | None:
    return None if text is None else date.fromisoformat(text)


def _sha256(partition: int, record: Any) -> bytes:
    return record_sha256(partition, record.offset, record.key or b"", record.value or b"")


def _parse(partition: int, record: Any, errata: Errata) -> Event:
    try:
        return errata.event_of(partition, record.offset, record.key or b"", record.value or b"")
    except UnreadableEvent as error:
        raise ProjectionStopped(f"{topics.LEDGER} partition {partition} offset {record.offset}: {error}") from None
