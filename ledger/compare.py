"""Compares replayed books with schema derived, row by row, in one snapshot of PostgreSQL at the offsets that it has."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg  # pyright: ignore[reportMissingTypeStubs]

from ledger.decide import Decision
from ledger.outcomes import Outcome
from ledger.reader import Record
from ledger.replay import Replay
from ledger.rows import adjustment_of_row, request_of_row
from schemas.events import Event, request_id_of
from schemas.topics import LEDGER

DIFFERENCES_MAX = 20
_CONNECT_TIMEOUT_S = 5.0
_COMMAND_TIMEOUT_S = 60.0
_CURSOR_ROWS = 1000

_asyncpg: Any = asyncpg  # ships no types
DATABASE_ERRORS: tuple[type[Exception], ...] = (
    OSError,
    TimeoutError,
    _asyncpg.PostgresError,
    _asyncpg.InterfaceError,
)


@asynccontextmanager
async def connected(database_url: str) -> AsyncGenerator[Any, None]:
    """A connection for reading. Raises what DATABASE_ERRORS names."""
    db = await _asyncpg.connect(
        database_url,
        timeout=_CONNECT_TIMEOUT_S,
        command_timeout=_COMMAND_TIMEOUT_S,
        server_settings={"application_name": "shiver-ledger", "default_transaction_read_only": "on"},
    )
    try:
        yield db
    finally:
        await db.close(timeout=_CONNECT_TIMEOUT_S)


class Comparison:
    """One snapshot, given by a connection inside a REPEATABLE READ transaction. `differences` holds the first ones."""

    def __init__(self, db: Any) -> None:
        self._db = db
        self.differences: list[str] = []
        self.rows = 0

    @property
    def full(self) -> bool:
        """Whether enough differences were found to stop looking."""
        return len(self.differences) >= DIFFERENCES_MAX

    async def ends(self) -> dict[int, int]:
        """How far the projection has read, per partition."""
        rows = await self._db.fetch("select partition, next from derived.offsets where topic = $1", LEDGER)
        return {row["partition"]: row["next"] for row in rows}

    async def batch(self, told: list[tuple[Record, Event, Decision]]) -> None:
        """Entries and rejections of one partition's records."""
        if self.full or not told:
            return
        partition, first, last = told[0][0].partition, told[0][0].offset, told[-1][0].offset
        entries = dict[Any, Any]()
        rejections = dict[Any, Any]()
        for record, event, decision in told:
            request_id = request_id_of(event)
            for number, posting in enumerate(decision.postings):
                entries[record.offset, number] = (*posting, request_id, event.at_ms)
            if decision.outcome is not Outcome.APPLIED:
                rejections[record.offset] = (event.type, decision.outcome.value, request_id)
        span = 'where partition = $1 and "offset" between $2 and $3'
        for row in await self._db.fetch(f"select * from derived.entries {span}", partition, first, last):
            found = (row["account"], row["asset"], row["amount_nano"], _text(row["request_id"]), row["at_ms"])
            self._same(
                f"entry {partition}/{row['offset']}/{row['posting']}", found, entries, (row["offset"], row["posting"])
            )
        for row in await self._db.fetch(f"select * from derived.rejections {span}", partition, first, last):
            found = (row["type"], row["code"], _text(row["request_id"]))
            self._same(f"rejection {partition}/{row['offset']}", found, rejections, row["offset"])
        self._missing(f"entry of partition {partition} at", entries)
        self._missing(f"rejection of partition {partition} at", rejections)

    async def books(self, replay: Replay) -> None:
        """Everything that is not a row of one record: offsets, accounts, requests, references."""
        offsets = {b.partition: self._place(replay, b.partition) for b in replay.books if b.next_offset}
        accounts = {
            (account, asset, b.partition): (row.balance_nano, row.entries)
            for b in replay.books
            for (account, asset), row in b.accounts.items()
        }
        requests = {(rid, b.partition): request for b in replay.books for rid, request in b.requests.items()}
        credits_ = {key: (*credit, b.partition) for b in replay.books for key, credit in b.credits.items()}
        adjustments = {key: (*kept, b.partition) for b in replay.books for key, kept in b.adjustments.items()}
        async for row in self._rows("derived.offsets where next > 0"):
            found = (row["next"], row["last_sha256"], row["chain"], row["max_event_ms"], row["rejected"])
            self._same(f"offset of partition {row['partition']}", found, offsets, row["partition"])
        async for row in self._rows("derived.accounts"):
            key = (row["account"], row["asset"], row["partition"])
            self._same(f"account {key}", (row["balance_nano"], row["entries"]), accounts, key)
        async for row in self._rows("derived.requests"):
            key = (str(row["request_id"]), row["partition"])
            self._same(f"request {key[0]}", request_of_row(row), requests, key)
        async for row in self._rows("derived.credits"):
            key = (row["wallet_id"], row["external_ref"])
            found = (row["asset"], row["amount_nano"], row["offset"], row["partition"])
            self._same(f"credit {key}", found, credits_, key)
        async for row in self._rows("derived.adjustments"):
            key = (row["wallet_id"], row["external_ref"])
            self._same(f"adjustment {key}", (*adjustment_of_row(row), row["partition"]), adjustments, key)
        for name, left in (
            ("offset", offsets),
            ("account", accounts),
            ("request", requests),
            ("credit", credits_),
            ("adjustment", adjustments),
        ):
            self._missing(name, left)

    def _place(self, replay: Replay, partition: int) -> tuple[int, bytes, bytes, int, int]:
        books = replay.books[partition]
        return (
            books.next_offset,
            replay.last_sha256[partition],
            replay.chains[partition],
            books.max_event_ms,
            books.rejected,
        )

    async def _rows(self, source: str) -> AsyncIterator[Any]:
        async for row in self._db.cursor(f"select * from {source}", prefetch=_CURSOR_ROWS):
            yield row

    def _same(self, what: str, found: object, expected: dict[Any, Any], key: object) -> None:
        self.rows += 1
        if key not in expected:
            self._note(f"{what}: PostgreSQL has {found}, the log has none")
            return
        wanted = expected.pop(key)
        if found != wanted:
            self._note(f"{what}: PostgreSQL has {found}, the log says {wanted}")

    def _missing(self, what: str, left: dict[Any, Any]) -> None:
        for key, wanted in left.items():
            self._note(f"{what} {key}: PostgreSQL has none, the log says {wanted}")

    def _note(self, difference: str) -> None:
        if not self.full:
            self.differences.append(difference)


def _text(value: object) -> str | None:
    return None if value is None else str(value)
