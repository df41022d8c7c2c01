"""Applies records of ledger.events to PostgreSQL: one transaction for a slice of one partition, exactly once.

The database owns the place in the log: the rows made from records and the offset behind them commit together, under the
lock of that offset's row, so it does not matter who else reads the same partition or where Faust believes to be. Only
the net result of a slice is written: each account once, each request once (S5).

Order inside the transaction: what nobody else locks first (entries, requests, the offset), then keys, wallets and
admissions, then accounts; so admission waits for a wallet as briefly as can be (S2).
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import asyncpg

from ledger.books import Books, Credit
from ledger.errata import NO_ERRATA, Errata
from ledger.log import cached_partition_of
from ledger.rows import adjustment_of_row, prices_of, request_of_row
from schemas import topics
from streams.slices import COLUMNS, ProjectionStopped, Slice, request_row, sha256_of, updated_columns
from streams.sql import DERIVED, statements

_prices_of = functools.lru_cache(maxsize=1024)(prices_of)


class Applied(NamedTuple):
    """What a transaction did: how many records were new, and how long admission had to wait for the wallets in it."""

    records: int
    held_s: float


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

    async def apply(self, partition: int, records: Sequence[Any]) -> Applied:
        """Apply what is new of `records` (objects with offset, key, value; ascending).

        Raises ProjectionStopped at a gap, an unreadable event, a misplaced key or a changed log, and asyncpg errors;
        nothing of the slice is applied then.
        """
        held_since_s = None
        async with self._pool.acquire() as db:
            async with db.transaction():
                place = await db.fetchrow(self._sql["lock_offset"], topics.LEDGER, partition)
                if place is None:
                    raise ProjectionStopped(
                        f"{topics.LEDGER} partition {partition} has no offset: it was never assigned"
                    )
                fresh = self._fresh(partition, records, place)
                if fresh:
                    held_since_s = await self._write(db, partition, fresh, place)
            held_s = 0.0 if held_since_s is None else time.monotonic() - held_since_s
        return Applied(len(fresh), held_s)

    def _fresh(self, partition: int, records: Sequence[Any], place: asyncpg.Record) -> Sequence[Any]:
        """The records from `next` on. What lies before it was applied; its last one must be what we remember (C9)."""
        following = place["next"]
        at = 0
        while at < len(records) and records[at].offset < following:
            record = records[at]
            if record.offset == following - 1 and sha256_of(partition, record) != place["last_sha256"]:
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

    async def _write(self, db: Any, partition: int, records: Sequence[Any], place: asyncpg.Record) -> float | None:
        """Everything but the commit. Returns when it began to hold wallets, on the monotonic clock, if it does."""
        part = Slice(partition, records, place["chain"], self._errata)
        books = Books(partition, next_offset=place["next"], max_event_ms=place["max_event_ms"])
        for span in part.spans():
            part.read(span)
            await asyncio.sleep(0)  # another partition's transaction may hold wallets, and goes on here
        await self._prefetch(db, part, books)
        known = set(books.requests)
        for span in part.spans():
            part.fold(books, span)
            await asyncio.sleep(0)

        await self._copy(db, "entries", part.entries)
        new = [request_row(i, r, partition) for i, r in part.changed.items() if i not in known]
        await self._copy(db, "requests", new)
        await self._copy(db, "credits", part.credits)
        await self._copy(db, "adjustments", part.adjustments)
        await self._copy(db, "rejections", part.rejections)
        if known and (old := [request_row(i, r, partition) for i, r in part.changed.items() if i in known]):
            await db.execute(self._sql["update_requests"], *updated_columns(old), partition)
        await db.execute(
            self._sql["move_offset"],
            topics.LEDGER,
            partition,
            books.next_offset,
            part.last_sha256(),
            part.chain,
            books.max_event_ms,
            books.rejected,
        )
        held_since_s = None
        if part.released and self._schema == DERIVED:
            held_since_s = time.monotonic()
            wallets, charges = zip(*part.released.values(), strict=True)
            await db.execute(self._sql["release"], list(part.released), wallets, charges)
        accounts = sorted((a, s, partition, row.balance_nano, row.entries) for (a, s), row in books.accounts.items())
        if accounts:
            await db.execute(self._sql["add_to_accounts"], *zip(*accounts, strict=True))
        return held_since_s

    async def _prefetch(self, db: Any, part: Slice, books: Books) -> None:
        """What the slice's events will ask the books for."""
        if part.request_ids:
            for row in await db.fetch(self._sql["requests"], list(part.request_ids), part.partition):
                books.requests[str(row["request_id"])] = request_of_row(row, _prices_of)
        if part.credit_refs:
            for row in await db.fetch(self._sql["credits"], *zip(*part.credit_refs, strict=True)):
                credit = Credit(row["asset"], row["amount_nano"], row["offset"])
                books.credits[row["wallet_id"], row["external_ref"]] = credit
        if part.adjustment_refs:
            for row in await db.fetch(self._sql["adjustments"], *zip(*part.adjustment_refs, strict=True)):
                books.adjustments[row["wallet_id"], row["external_ref"]] = adjustment_of_row(row)
        if part.asserted_accounts:
            for row in await db.fetch(self._sql["opening_balances"], list(part.asserted_accounts), part.partition):
                books.opening_nano[row["account"], row["asset"]] = int(row["balance_nano"])  # a Decimal

    async def _copy(self, db: Any, table: str, rows: list[tuple[Any, ...]]) -> None:
        if rows:
            await db.copy_records_to_table(table, schema_name=self._schema, columns=COLUMNS[table], records=rows)
