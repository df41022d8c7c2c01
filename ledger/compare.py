"""Compares replayed books with schema derived, row by row, in one snapshot of PostgreSQL at the offsets that it has."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

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
async def connected(database_url: str, *, read_only: bool = True) -> AsyncGenerator[Any, None]:
    """A connection, for reading unless said otherwise. Raises what DATABASE_ERRORS names."""
    db = await _asyncpg.connect(
        database_url,
        timeout=_CONNECT_TIMEOUT_S,
        command_timeout=_COMMAND_TIMEOUT_S,
        server_settings={
            "application_name": "shiver-ledger",
            "default_transaction_read_only": "on" if read_only else "off",
        },
    )
    try:
        yield db
    finally:
        await db.close(timeout=_CONNECT_TIMEOUT_S)


class Difference(NamedTuple):
    """What PostgreSQL has otherwise than the log. The offset is None where a row is not of one record."""

    partition: int | None
    offset: int | None
    text: str

    def __str__(self) -> str:
        return self.text


class Comparison:
    """One snapshot, given by a connection inside a REPEATABLE READ transaction. `differences` holds the first ones."""

    def __init__(self, db: Any) -> None:
        self._db = db
        self.differences: list[Difference] = []
        self.rows = 0
        self._capped = True

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
        known = len(self.differences)
        self._capped = False  # of a batch's differences the first in the log count
        await self._batch(told)
        self._capped = True
        new = sorted(self.differences[known:], key=lambda difference: difference.offset or 0)
        self.differences[known:] = new[: DIFFERENCES_MAX - known]

    async def _batch(self, told: list[tuple[Record, Event, Decision]]) -> None:
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
            key = (row["offset"], row["posting"])
            self._same(f"entry {partition}/{key[0]}/{key[1]}", found, entries, key, (partition, key[0]))
        for row in await self._db.fetch(f"select * from derived.rejections {span}", partition, first, last):
            found = (row["type"], row["code"], _text(row["request_id"]))
            place = (partition, row["offset"])
            self._same(f"rejection {partition}/{row['offset']}", found, rejections, row["offset"], place)
        self._missing(f"entry of partition {partition} at", entries, lambda key, _: (partition, key[0]))
        self._missing(f"rejection of partition {partition} at", rejections, lambda key, _: (partition, key))

    async def books(self, replay: Replay) -> None:
        """Everything that is not a row of one record: offsets, accounts, requests, references."""
        offsets = {b.partition: self._expected_place(replay, b.partition) for b in replay.books if b.next_offset}
        accounts = {
            (account, asset, b.partition): (row.balance_nano, row.entries)
            for b in replay.books
            for (account, asset), row in b.accounts.items()
        }
        requests = {(rid, b.partition): request for b in replay.books for rid, request in b.requests.items()}
        credits_ = {key: (*credit, b.partition) for b in replay.books for key, credit in b.credits.items()}
        adjustments = {key: (*kept, b.partition) for b in replay.books for key, kept in b.adjustments.items()}
        async for row in self._rows("derived.offsets where next > 0"):
            key = row["partition"]
            found = _place(row["next"], row["last_sha256"], row["chain"], row["max_event_ms"], row["rejected"])
            self._same(f"offset of partition {key}", found, offsets, key, (key, None))
        async for row in self._rows("derived.accounts"):
            key = (row["account"], row["asset"], row["partition"])
            found = (int(row["balance_nano"]), row["entries"])  # a Decimal
            self._same(f"account {key}", found, accounts, key, (key[2], None))
        async for row in self._rows("derived.requests"):
            key = (str(row["request_id"]), row["partition"])
            self._same(f"request {key[0]}", _request(row), requests, key, (key[1], None))
        async for row in self._rows("derived.credits"):
            key = (row["wallet_id"], row["external_ref"])
            found = (row["asset"], row["amount_nano"], row["offset"], row["partition"])
            self._same(f"credit {key}", found, credits_, key, (row["partition"], row["offset"]))
        async for row in self._rows("derived.adjustments"):
            key = (row["wallet_id"], row["external_ref"])
            found = (*adjustment_of_row(row), row["partition"])
            self._same(f"adjustment {key}", found, adjustments, key, (row["partition"], row["offset"]))
        self._missing("offset of partition", offsets, lambda key, _: (key, None))
        self._missing("account", accounts, lambda key, _: (key[2], None))
        self._missing("request", requests, lambda key, _: (key[1], None))
        self._missing("credit", credits_, lambda _, credit: (credit[3], credit[2]))
        self._missing("adjustment", adjustments, lambda _, kept: (kept[-1], kept[-2]))
        await self._strays("entries")
        await self._strays("rejections")

    async def _strays(self, table: str) -> None:
        """Rows of records that the projection has not read."""
        rows = await self._db.fetch(
            f'select partition, "offset" from derived.{table} r where not exists (select from derived.offsets o '
            'where o.topic = $1 and o.partition = r.partition and r."offset" >= 0 and r."offset" < o.next) '
            "order by 1, 2 limit $2",
            LEDGER,
            DIFFERENCES_MAX,
        )
        for partition, offset in rows:
            text = f"a row of derived.{table} is of offset {partition}/{offset}, which derived.offsets has not read"
            self._note(Difference(partition, offset, text))

    def _expected_place(self, replay: Replay, partition: int) -> str:
        books = replay.books[partition]
        return _place(
            books.next_offset,
            replay.last_sha256[partition],
            replay.chains[partition],
            books.max_event_ms,
            books.rejected,
        )

    async def _rows(self, source: str) -> AsyncIterator[Any]:
        async for row in self._db.cursor(f"select * from {source}", prefetch=_CURSOR_ROWS):
            yield row

    def _same(
        self, what: str, found: object, expected: dict[Any, Any], key: object, place: tuple[int, int | None]
    ) -> None:
        self.rows += 1
        if key not in expected:
            self._note(Difference(*place, f"{what}: PostgreSQL has {found}, the log has none"))
            return
        wanted = expected.pop(key)
        if found != wanted:
            self._note(Difference(*place, f"{what}: PostgreSQL has {found}, the log says {wanted}"))

    def _missing(self, what: str, left: dict[Any, Any], place: Callable[[Any, Any], tuple[int, int | None]]) -> None:
        for key, wanted in left.items():
            self._note(Difference(*place(key, wanted), f"{what} {key}: PostgreSQL has none, the log says {wanted}"))

    def _note(self, difference: Difference) -> None:
        if not (self._capped and self.full):
            self.differences.append(difference)


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _place(following: int, last_sha256: bytes, chain: bytes, max_event_ms: int, rejected: int) -> str:
    return (
        f"next {following}, chain {chain.hex()}, last record {last_sha256.hex()}, newest event time {max_event_ms}, "
        f"{rejected} rejected"
    )


def _request(row: Any) -> object:
    try:
        return request_of_row(row)
    except (ValueError, TypeError):
        return "a row that no accept makes"
