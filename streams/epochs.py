"""Epochs: reads `epoch.closed` back from the log and keeps its read models, and closes the next one.

Close by cut: one REPEATABLE READ snapshot of PostgreSQL gives the cut (derived.offsets) and the digest of the books
there; the log itself, from the previous cut to this one, gives the hash chains, which must be those of the snapshot,
the trees, and the facts that concern payouts; the entries between the cuts give what was earned. Then `epoch.closed`
is appended and read back. What the log says is what counts: the first event of the next number ends the epoch, whoever
wrote it, and its rows are made from the log and from the entries, not from what a closer had in mind. So any number of
closers may run at once, and one that dies at any point leaves either nothing or an event that the next process reads.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from typing import Any, NamedTuple

import asyncpg

from ledger.digest import chain_link
from ledger.epochs import Closing, EpochFold, counts, differences, payable_faults
from ledger.errata import Errata
from ledger.errata_store import stored
from ledger.log import LedgerUnavailable, LedgerWriter, Position
from ledger.reader import LedgerReader, Record, event_of
from schemas import topics
from schemas.events import EpochClosed
from schemas.facts import Terms
from schemas.settings import Settings
from streams import epoch_rows
from streams.epoch_rows import Snapshot, State

log = logging.getLogger(__name__)

ACK_TIMEOUT_S = 15.0
READ_BACK_TIMEOUT_S = 30.0
POLL_S = 0.2
#: Events of epochs that are held in memory while their rows are made.
EVENTS_MAX = 100
#: Records between two breaths: the projection runs in the same loop. Some 5 ms, from Kafka's bytes to the tree.
STRIDE = 250
_SETTLEMENT = topics.SETTLEMENT_KEY.encode()
_PROVIDER = b"provider:"
_CONNECT_TIMEOUT_S = 5
_COMMAND_TIMEOUT_S = 300


class EpochError(Exception):
    """Why no epoch was closed, in one line."""


class NothingToClose(EpochError):
    """No record but what settlement itself wrote stands behind the last cut."""


class NotRead(EpochError):
    """The books have not read far enough. It passes."""


class EpochRefused(EpochError):
    """The log, the books and the epochs contradict each other. A person must look; nothing was appended."""


class Closed(NamedTuple):
    """The epoch that was closed, where its event stands, and whether it is the one that this closer made."""

    event: EpochClosed
    place: Position
    ours: bool


@asynccontextmanager
async def opened(settings: Settings, *, name: str) -> AsyncGenerator[Epochs, None]:
    """An `Epochs` with a connection and a reader of its own. Raises LedgerUnavailable and what asyncpg raises."""
    db = await asyncpg.connect(
        settings.database_url,
        timeout=_CONNECT_TIMEOUT_S,
        command_timeout=_COMMAND_TIMEOUT_S,
        server_settings={"application_name": name},
    )
    try:
        errata = Errata(await stored(db) if settings.errata_keys else (), settings.errata_keys)
        async with LedgerReader(
            settings.kafka, settings.ledger_partitions, client_id=name, errata=errata, at_once=STRIDE
        ) as reader:
            yield Epochs(settings, db, reader)
    finally:
        await db.close(timeout=3)


class Epochs:
    """One reader of the log and one connection; not for concurrent calls."""

    def __init__(self, settings: Settings, db: Any, reader: LedgerReader) -> None:
        self._settings = settings
        self._partitions = settings.ledger_partitions
        self._home = topics.partition_of(_SETTLEMENT, self._partitions)
        self._db = db
        self._reader = reader
        self._state: State | None = None
        self._scanned = 0  # of the partition that has the epochs

    @property
    def db(self) -> Any:
        """The connection."""
        return self._db

    async def follow(self) -> State:
        """Makes the rows of every epoch that the log has and PostgreSQL has not. Returns where that has led to.

        Raises NotRead where the projection has not read up to the cut of the next one; what was made before stays.
        """
        while True:
            state = await self._current()
            end = (await self._reader.ends())[self._home]
            found = await self._scan(state, end)
            for event, place in found:
                state = await self._current()
                if not counts(state.last, event, *place, self._partitions):
                    if event.epoch > state.number:
                        log.error("epoch.closed %d at %d/%d ends no epoch: shrk ledger verify", event.epoch, *place)
                elif not await epoch_rows.has_read(self._db, event.cut):
                    self._scanned = place.offset
                    raise NotRead(f"the books have not read up to the cut of epoch {event.epoch} yet")
                else:
                    await self._settle(state, event, place)
                self._scanned = place.offset + 1
            if len(found) < EVENTS_MAX:
                self._scanned = max(self._scanned, end)
                return await self._current()

    async def _current(self) -> State:
        """The state that the rows are in, loaded anew where another process, or a hand, has changed it."""
        if self._state is None or await epoch_rows.last_number(self._db) != self._state.number:
            self._state = await self._load()
            self._scanned = 0 if self._state.place is None else self._state.place.offset + 1
        return self._state

    async def _load(self) -> State:
        try:
            return await epoch_rows.load(self._db, self._partitions)
        except (ValueError, TypeError) as error:
            raise EpochRefused(
                "the rows of the last epoch were changed by hand: delete them from derived.epochs, and they are made "
                "again from the log"
            ) from error

    async def _scan(self, state: State, end: int) -> list[tuple[EpochClosed, Position]]:
        found = list[tuple[EpochClosed, Position]]()
        async with aclosing(self._reader.read({self._home: self._scanned}, {self._home: end})) as batches:
            async for records in batches:
                for record in records:
                    if record.key == _SETTLEMENT and isinstance(
                        event := event_of(record, self._reader.errata), EpochClosed
                    ):
                        found.append((event, Position(record.partition, record.offset)))
                        if len(found) == EVENTS_MAX:
                            return found
                await asyncio.sleep(0)
        return found

    async def _settle(self, state: State, event: EpochClosed, place: Position) -> None:
        """Makes the rows of the event that ends the next epoch. The state given is used up."""
        chains, fold = state.chains, state.fold
        self._state = None  # whatever happens now, it is no longer what the rows say
        for earned in await epoch_rows.earned(self._db, state.cut, event.cut):
            fold.earn(*earned)
        await self._read(state.cut, event.cut, chains, fold)
        closing, faults = await asyncio.to_thread(_closing, fold, event.terms)
        wrong = [*differences(event, closing, [head.hex() for head in chains]), *faults]
        if wrong:
            log.critical("epoch %d at %d/%d is not what the log makes: %s", event.epoch, *place, "; ".join(wrong))
        if await epoch_rows.store(self._db, event, place, chains, fold, closing, "; ".join(wrong)):
            log.info("epoch %d is closed at %d/%d, payout root %s", event.epoch, *place, event.payout_root)

    async def _read(self, since: tuple[int, ...], cut: tuple[int, ...], chains: list[bytes], fold: EpochFold) -> None:
        starts, ends = dict(enumerate(since)), dict(enumerate(cut))
        async with aclosing(self._reader.read(starts, ends)) as batches:
            async for records in batches:
                _take(records, chains, fold, self._reader.errata)
                await asyncio.sleep(0)

    async def close(self, terms: Terms, now_ms: int) -> Closed:
        """Closes the epoch that is next, and returns what the log says of it.

        Raises NothingToClose, NotRead, EpochRefused, LedgerError and what asyncpg raises. Where the log gave no ack the
        event may stand in it all the same, and then counts: closing again finds it.
        """
        event = await self._prepare(terms, now_ms)
        await self._append(event)
        return await self._read_back(event)

    async def _prepare(self, terms: Terms, now_ms: int) -> EpochClosed:
        await self.follow()
        state = await self._load()  # one of our own, to be used up
        taken = await epoch_rows.snapshot(self._db, self._partitions, state.cut)
        if any(new < old for new, old in zip(taken.cut, state.cut, strict=True)):
            raise NotRead(f"the books have not read up to the cut of epoch {state.number}: they are being made again")
        chains, fold = list(state.chains), state.fold
        for earned in taken.earned:
            fold.earn(*earned)
        await self._read(state.cut, taken.cut, chains, fold)
        _check(taken, chains, fold)
        if not fold.new_records:
            raise NothingToClose(f"nothing has happened since epoch {state.number}" if state.last else "no log yet")
        if state.last is not None and state.last.terms != terms:
            log.warning("epoch %d is to be paid under other terms than the one before", state.number + 1)
        closing, wrong = await asyncio.to_thread(_closing, fold, terms)
        if wrong:
            raise EpochRefused("; ".join(wrong))
        return _event(state.number + 1, now_ms, closing, [head.hex() for head in chains], taken.digest, terms)

    async def _append(self, event: EpochClosed) -> None:
        writer = LedgerWriter(self._settings.kafka, self._partitions, client_id="shiver-epochs")
        await writer.start()
        try:
            async with asyncio.timeout(ACK_TIMEOUT_S):
                await writer.append(event)
        except TimeoutError as error:
            raise LedgerUnavailable(
                f"the log gave no ack for epoch {event.epoch} within {ACK_TIMEOUT_S:g} s; if it has the event all the "
                "same, it counts: closing again finds it"
            ) from error
        finally:
            await writer.stop(timeout_s=0)

    async def _read_back(self, event: EpochClosed) -> Closed:
        """What the log has under the event's number: ours, or that of another closer who was first."""
        until_s = time.monotonic() + READ_BACK_TIMEOUT_S
        while (state := await self.follow()).number < event.epoch:
            if time.monotonic() > until_s:
                raise NotRead(
                    f"epoch {event.epoch} was appended and cannot be read back yet; it counts once it is read"
                )
            await asyncio.sleep(POLL_S)
        if state.number != event.epoch:
            row = await self._db.fetchrow("select * from derived.epochs where number = $1", event.epoch)
            found, place = epoch_rows.event_of_row(row), Position(row["partition"], row["offset"])
        else:
            assert state.last is not None
            assert state.place is not None
            found, place = state.last, state.place
        return Closed(found, place, found == event)


def _closing(fold: EpochFold, terms: Terms | None) -> tuple[Closing, list[str]]:
    """The epoch that would end here, and what it breaks. For a thread: a thousand providers take 0.1 s of hashing."""
    before = fold.entitled
    closing = fold.closing(terms)
    return closing, payable_faults(before, closing, terms)


def _take(records: list[Record], chains: list[bytes], fold: EpochFold, errata: Errata) -> None:
    for record in records:
        partition, offset, key, value = record
        chains[partition] = chain_link(chains[partition], partition, offset, key, value)
        fold.leaf(partition, offset, key, value)
        if key == _SETTLEMENT or key.startswith(_PROVIDER):
            fold.fact(event_of(record, errata), partition, offset)


def _check(taken: Snapshot, chains: list[bytes], fold: EpochFold) -> None:
    """The log is what the books have read, and the entries are what the accounts have. Raises EpochRefused."""
    for partition, (read, found) in enumerate(zip(taken.chains, chains, strict=True)):
        if read != found:
            raise EpochRefused(
                f"{topics.LEDGER} partition {partition} up to offset {taken.cut[partition]} is not what the books have "
                f"read: its hash chain ends in {found.hex() or 'nothing'}, theirs in {read.hex() or 'nothing'}"
            )
    for key in sorted({*taken.balances, *fold.earned}):
        earned_nano = fold.earned[key].earned_nano if key in fold.earned else 0
        if earned_nano != taken.balances.get(key, 0):
            raise EpochRefused(
                f"provider {key[0]} has earned {earned_nano} nano {key[1]} by its entries, its account has "
                f"{taken.balances.get(key, 0)}"
            )


def _event(number: int, now_ms: int, closing: Closing, heads: list[str], digest: str, terms: Terms) -> EpochClosed:
    return EpochClosed(
        at_ms=now_ms,
        epoch=number,
        cut=closing.cut,
        heads=tuple(heads),
        roots=closing.roots,
        log_root=closing.log_root(heads),
        digest=digest,
        terms=terms,
        payout_root=closing.payout_root,
    )
