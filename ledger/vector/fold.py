"""The fold over columns: what is ordinary is decided and posted in bulk, everything else by `ledger.decide`, in order.

Ids meet in nothing but the running maximum of event times (S3), accounts in nothing but assertions. So an id with
exactly one accept and one end after it, which no rule could refuse whatever stands around it, is *ordinary*: its two
events are applied, and what they post is worked out over arrays. So is a credit whose reference is new. All others are
*hard*: they are parsed and stepped, with the running maximum and the balances as they are at their offset. What
could overflow 64 bits is hard too. The books are those of the plain fold (tests/unit/test_ledger_vector.py).

A chunk is any number of records of one partition. Open requests and references stay in the books from one to the next;
ids that ended are kept packed for a day, as `Books.forget_ended` does it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import pyarrow  # pyright: ignore[reportMissingTypeStubs]
import pyarrow.compute  # pyright: ignore[reportMissingTypeStubs]

from ledger.apply import step
from ledger.books import CHARGED, DAY_MS, FAILED, OPEN, Books, Credit, Request
from ledger.columns import LOW, id_bits, id_text
from ledger.invariants import broken_by
from ledger.outcomes import Outcome
from ledger.vector.chunk import CREDIT, Chunk, marked, tuples
from ledger.vector.lives import ROWS_MAX, Charges, Lives, born_ms, broken_in_bulk, charge, lives_in, ordinary
from ledger.vector.posted import Pending, Posted, pending_in
from schemas.events import BalanceAsserted, Event, RequestEvent
from schemas.topics import LEDGER

_arrow: Any = pyarrow  # ships no types
_do: Any = pyarrow.compute
#: Facts that are always applied and change nothing else.
_QUIET = frozenset(
    {
        "key.issued", "key.revoked", "rate.published", "price.published", "provider.registered", "node.online",
        "node.offline",
    }
)  # fmt: skip

#: Ended requests that are left in the books from chunk to chunk, at most: each chunk looks at all of them.
_PACK_FROM = 256

#: The events in these rows of a chunk, in the same order.
EventsAt = Callable[[list[int]], Sequence[Event]]


class Ended(NamedTuple):
    """Ids that ended, with what their late events are told."""

    high: Any
    low: Any
    first_ms: int
    last_ms: int
    wallet: Any  # index into `wallets`
    wallets: list[str]
    charged: Any
    payer_charge_nano: Any


class Fold:
    """The fold of one partition, by chunks. `books` is whole after each `feed`, but for ended ids: see `recall`."""

    def __init__(self, books: Books) -> None:
        self.books = books
        self.outcomes: Counter[str] = Counter()
        self.events = 0
        self.broken: list[str] = []
        self.hard = 0
        self._ended: list[Ended] = []

    def feed(self, columns: Any, events_at: EventsAt) -> None:
        """The next records, by their columns (ledger/columns.py). Only those that are hard are asked of `events_at`."""
        for at in range(0, columns.num_rows, ROWS_MAX):
            self._feed(
                columns.slice(at, ROWS_MAX), lambda rows, at=at: events_at([row + at for row in rows]) if rows else []
            )

    def told(self) -> tuple[Counter[str], int, list[str]]:
        """Outcomes, events and findings since it was asked last."""
        told = self.outcomes, self.events, self.broken
        self.outcomes, self.events, self.broken = Counter(), 0, []
        return told

    def unpack(self) -> None:
        """Puts every id that ended within a day into the books; `recall` does it for those that are asked for."""
        for ended in self._ended:
            self._remember(ended, _do.indices_nonzero(_do.is_valid(ended.low)))
        self._ended.clear()
        self.books.forget_ended()

    def _feed(self, columns: Any, events_at: EventsAt) -> None:
        books, chunk, first = self.books, Chunk(columns), self.books.next_offset
        count = columns.num_rows
        # No event before a row, applied or not, is newer.
        bound = _do.cumulative_max(chunk["at_ms"], start=books.max_event_ms)
        lives = self._new(ordinary(chunk, lives_in(chunk), bound))
        refs = self._credits(chunk, first)
        quiet = _arrow.array([word in _QUIET for word in chunk.words("type")], _arrow.bool_()).take(chunk["type"])
        quiet = _do.fill_null(quiet, False)  # of what is no event
        done = _do.or_(marked(count, lives.accept, lives.end, _arrow.array(refs, _arrow.uint64())), quiet)
        hard = _do.indices_nonzero(_do.invert(done)).to_pylist()
        times = _do.if_else(done, chunk["at_ms"], 0)
        newest = _do.cumulative_max(times, start=books.max_event_ms)
        post = Posted(books)
        charges = charge(chunk, lives)
        self.broken += broken_in_bulk(chunk, charges, lives, books.partition, first)
        if hard:
            pending = pending_in(chunk, lives, charges, refs)
            self._step(hard, events_at(hard), newest, pending, first)
        post.credits(chunk, refs)
        post.lives(chunk, lives, charges)
        if len(lives.accept):
            self._ended.append(packed(chunk, lives, charges))
        books.next_offset = first + count
        books.max_event_ms = max(books.max_event_ms, newest[count - 1].as_py())
        applied = count - len(hard)
        if applied:
            self.outcomes[Outcome.APPLIED.value] += applied
        self.events += count
        self.hard += len(hard)
        self._forget()

    def _new(self, lives: Lives) -> Lives:
        """Those whose id is not in the books: its lower half, which is random, is not."""
        if not len(lives.low):
            return lives
        known = [id_bits(request_id) & LOW for request_id in self.books.requests]
        found = _do.is_in(lives.low, value_set=_arrow.array(known, _arrow.uint64()))
        for ended in self._near(born_ms(lives)):
            found = _do.or_(found, _do.is_in(lives.low, value_set=ended.low))
        return lives.filter(_do.invert(found))

    def _near(self, times_ms: Any) -> Iterator[Ended]:
        """The packed ids among which one of these times can be."""
        first_ms, last_ms = _do.min(times_ms).as_py(), _do.max(times_ms).as_py()
        for ended in self._ended:
            if first_ms <= ended.last_ms and ended.first_ms <= last_ms:
                among = _do.and_(_do.greater_equal(times_ms, ended.first_ms), _do.less_equal(times_ms, ended.last_ms))
                if _do.any(among).as_py():
                    yield ended

    def _credits(self, chunk: Chunk, first: int) -> list[int]:
        """Books the credits whose reference is new, and gives their rows. What they post is posted with the rest."""
        rows = _do.indices_nonzero(chunk.is_word("type", CREDIT))
        if not len(rows):
            return []
        wallets, assets = chunk.words("wallet"), chunk.words("asset")
        refs = cast("list[str]", chunk["external_ref"].take(rows).to_pylist())
        columns = tuples(rows, chunk["wallet"], chunk["asset"], chunk["amount_nano"])
        booked, kept = list[int](), self.books.credits
        for row, ref, (wallet, asset, amount_nano) in zip(rows.to_pylist(), refs, columns, strict=True):
            key = wallets[wallet], ref
            if key not in kept:
                kept[key] = Credit(assets[asset], amount_nano, first + row)
                booked.append(row)
        return booked

    def _step(self, rows: list[int], events: Sequence[Event], newest: Any, pending: Pending | None, first: int) -> None:
        """The hard ones, one by one, each in the books as they are at its offset."""
        books = self.books
        self.recall(events)
        newest_ms = newest.take(_arrow.array(rows, _arrow.int64())).to_pylist()
        for row, event, newest_before_ms in zip(rows, events, newest_ms, strict=True):
            # Of ordinary events alone, so its own row adds nothing.
            books.max_event_ms = max(books.max_event_ms, newest_before_ms)
            if pending is not None and isinstance(event, BalanceAsserted):
                pending.before(row, books.opening_nano)
            decision = step(books, event, first + row)
            self.outcomes[decision.outcome.value] += 1
            wrong = broken_by(decision)
            if wrong:
                self.broken += [f"{LEDGER} partition {books.partition} offset {first + row}: {what}" for what in wrong]
        books.opening_nano.clear()

    def recall(self, events: Sequence[Event]) -> None:
        """Puts the packed ids that these events are about into the books, before they are stepped."""
        ids = [id_bits(event.request_id) for event in events if isinstance(event, RequestEvent)]
        if not self._ended or not ids:
            return
        low = _arrow.array([bits & LOW for bits in ids], _arrow.uint64())
        for ended in self._near(_arrow.array([bits >> 80 for bits in ids], _arrow.int64())):
            self._remember(ended, _do.indices_nonzero(_do.is_in(ended.low, value_set=low)))

    def _remember(self, ended: Ended, at: Any) -> None:
        columns = [
            column.take(at).to_pylist()
            for column in (ended.high, ended.low, ended.wallet, ended.charged, ended.payer_charge_nano)
        ]
        for high, low, wallet, charged, payer_charge_nano in zip(*columns, strict=True):
            self.books.requests[id_text(high, low)] = Request(
                ended.wallets[wallet], CHARGED if charged else FAILED, "", 1, payer_charge_nano=payer_charge_nano
            )

    def _forget(self) -> None:
        """Packs what hard events ended, once it is worth it, and drops what is too old to matter."""
        requests = self.books.requests
        ended = [(rid, r) for rid, r in requests.items() if r.status != OPEN]
        if len(ended) >= _PACK_FROM:
            for request_id, _ in ended:
                del requests[request_id]
            self._ended.append(packed_requests(ended))
        horizon_ms = self.books.max_event_ms - DAY_MS
        self._ended = [ended for ended in self._ended if ended.last_ms >= horizon_ms]


def packed(chunk: Chunk, lives: Lives, charges: Charges) -> Ended:
    """What is kept of lives, until a day after their ids' time."""
    span = _do.min_max(born_ms(lives)).as_py()
    wallet = chunk["wallet"].take(lives.accept)
    return Ended(
        lives.high, lives.low, span["min"], span["max"], wallet, chunk.words("wallet"), charges.usage, charges.by_client
    )


def packed_requests(ended: list[tuple[str, Request]]) -> Ended:
    """The same of requests that have ended."""
    bits = [id_bits(request_id) for request_id, _ in ended]
    wallets = {wallet: code for code, wallet in enumerate({r.wallet_id: None for _, r in ended})}
    return Ended(
        _arrow.array([b >> 64 for b in bits], _arrow.uint64()),
        _arrow.array([b & LOW for b in bits], _arrow.uint64()),
        min(bits) >> 80,
        max(bits) >> 80,
        _arrow.array([wallets[r.wallet_id] for _, r in ended], _arrow.int32()),
        list(wallets),
        _arrow.array([r.status == CHARGED for _, r in ended], _arrow.bool_()),
        _arrow.array([r.payer_charge_nano for _, r in ended], _arrow.int64()),
    )
