"""Walks the log, or its archive and the log's tail, and names the first record or row that is not as it must be.

the records     readable, in their partition, without a gap (reader.py); the archive's files, and that their columns are
                what the records say (archive.py)
the books       every invariant at every prefix, or behind every batch
the hash chain  at the end of each archived file, and against derived.offsets
PostgreSQL      entries, rejections, accounts, requests, credits, offsets, row by row, in one snapshot (compare.py)
the two copies  with `both`: each archived record against the log's own
epochs          each `epoch.closed` against the log at its cut, and the rows of epochs (verify_epochs.py)
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, aclosing
from typing import Any, NamedTuple

from ledger.archive import Archive
from ledger.books import Books
from ledger.compare import Comparison, Difference, connected
from ledger.decide import Decision
from ledger.epoch_log import EpochPlace
from ledger.invariants import Running
from ledger.log import LedgerCorrupt
from ledger.reader import LedgerReader, Record
from ledger.replay import Listener, Replay, read_into
from ledger.source import Source
from ledger.verify_epochs import EpochCheck
from schemas.events import Event
from schemas.topics import LEDGER

#: Makes a progress bar: a function to say how much there will be, and one to say how much more was done.
Bar = Callable[[str], AbstractContextManager[tuple[Callable[[int], None], Callable[[int], None]]]]


class Report(NamedTuple):
    """What was found. `bad` begins with the first bad place and is empty where all is well."""

    bad: list[str]
    events: int
    rows: int
    compared: int | None  # records that PostgreSQL had read; None where it was not asked
    places: dict[int, tuple[int, str]]  # next offset and chain head of each partition
    digest: str
    epochs: int


class _Walk:
    """One walk through the log, and what it found so far."""

    def __init__(self, source: Source, every_batch: bool, epochs: list[EpochPlace]) -> None:
        self._running = [Running() for _ in range(source.partitions)]
        self._every_batch = every_batch
        after_step = None if every_batch else self._after_step
        self.replay = Replay(source.partitions, remember=True, after_step=after_step, errata=source.errata)
        self.epochs = EpochCheck(self.replay, epochs)
        self.bad: list[str] = []
        self._stopped = False

    def _after_step(self, books: Books, event: Event, decision: Decision) -> list[str]:
        running = self._running[books.partition]
        running.take(event, decision)
        return running.wrong(books)

    def listener(self, comparison: Comparison | None) -> Listener:
        """To be told of each batch."""

        async def listen(told: list[tuple[Record, Event, Decision]]) -> None:
            if self._every_batch and told:
                last = told[-1][0]
                running = self._running[last.partition]
                for _, event, decision in told:
                    running.take(event, decision)
                wrong = running.wrong(self.replay.books[last.partition])
                self.replay.broken += [f"{_place(last.partition, last.offset)} or shortly before: {w}" for w in wrong]
            if comparison is not None:
                await comparison.batch(told)
            await self.epochs.listen(told)

        return listen

    async def stopped_by(self, reading: Awaitable[None]) -> LedgerCorrupt | None:
        """Does the reading; what cannot be read ends it."""
        try:
            await reading
        except LedgerCorrupt as error:
            self._stopped = True
            return error
        return None

    def report(self, rows: int, compared: int | None) -> Report:
        """The walk is over."""
        # Where it stopped inside a batch, what that batch came to was not taken.
        whole = not (self._stopped and self._every_batch)
        for books, running in zip(self.replay.books, self._running, strict=True) if whole else ():
            self.bad += [f"{_place(books.partition)}: {wrong}" for wrong in running.wrong_in_all(books)]
        known = len(self.replay.broken)
        digest = self.replay.finish()
        self.bad += self.replay.broken[known:]
        self.bad += self.epochs.bad
        places = {p: (n, self.replay.chains[p].hex()) for p, n in self.replay.places().items()}
        return Report(self.bad, self.replay.events, rows, compared, places, digest, self.epochs.done)


async def verify_log(source: Source, database_url: str, bar: Bar, *, every_batch: bool, both: bool) -> Report:
    """Verify everything that there is, and close `source`.

    Raises LedgerUnavailable, ArchiveUnavailable and what DATABASE_ERRORS names.
    """
    async with source:
        return await _verify_log(source, database_url, bar, every_batch=every_batch, both=both)


async def verify_archive(source: Source, bar: Bar, *, every_batch: bool) -> Report:
    """Verify an archive alone, a source without Kafka, with no PostgreSQL. Raises ArchiveUnavailable."""
    _check_columns(source)
    walk = _Walk(source, every_batch, await source.epochs(damaged=True))
    with bar("Verifying the archive") as (started, more):
        stop = await walk.stopped_by(_read_on(walk, source, started, more))
    walk.bad += walk.replay.broken
    walk.bad += [] if stop is None else [str(stop)]
    return walk.report(0, None)


def _check_columns(source: Source) -> None:
    if source.archive is not None:
        source.archive.check_columns = True


async def _verify_log(source: Source, database_url: str, bar: Bar, *, every_batch: bool, both: bool) -> Report:
    _check_columns(source)
    async with connected(database_url) as db, db.transaction(isolation="repeatable_read", readonly=True):
        comparison = Comparison(db)
        read_to = {p: end for p, end in (await comparison.ends()).items() if p < source.partitions}
        there = await source.ends()
        # After the snapshot: what has a row in it stands in the log by now.
        walk = _Walk(source, every_batch, await source.epochs(damaged=True))
        ends = {partition: min(end, there.get(partition, 0)) for partition, end in read_to.items()}
        with bar("Comparing with PostgreSQL") as (started, more):
            listener = walk.listener(comparison)
            started(sum(ends.values()))

            async def read(to: Mapping[int, int]) -> None:
                await read_into(walk.replay, source, to, _nothing, more, listener)

            stop = await walk.stopped_by(walk.epochs.walk(read, ends, db))
        walk.bad += walk.replay.broken
        walk.bad += _in_words(comparison.differences)
        walk.bad += [] if stop is None else [str(stop)]
        walk.bad += [
            f"{_place(p, there.get(p, 0))}: the log ends here, but the books have read to {end}: records were lost"
            for p, end in read_to.items()
            if there.get(p, 0) < end
        ]
        if stop is None:
            walk.bad += await _chains(db, walk.replay)
            known = len(comparison.differences)
            await comparison.books(walk.replay)
            walk.bad += _in_words(comparison.differences[known:])
            await walk.epochs.strays(db)
    if stop is None:
        known = len(walk.replay.broken)
        with bar("Reading on to the log's end") as (started, more):
            stop = await walk.stopped_by(_read_on(walk, source, started, more))
        walk.bad += walk.replay.broken[known:]
        walk.bad += [] if stop is None else [str(stop)]
    if both:
        with bar("Comparing the archive with the log") as (started, more):
            # First, because it knows the record where the others know a range.
            walk.bad[:0] = await _other_copies(source, started, more)
    return walk.report(comparison.rows, sum(ends.values()))


async def _read_on(
    walk: _Walk, source: Source, on_start: Callable[[int], None], on_batch: Callable[[int], None]
) -> None:
    """From where the walk is to the end of now."""
    ends, listener = await source.ends(), walk.listener(None)
    on_start(sum(end - walk.replay.places()[partition] for partition, end in ends.items()))

    async def read(to: Mapping[int, int]) -> None:
        await read_into(walk.replay, source, to, _nothing, on_batch, listener)

    await walk.epochs.walk(read, ends)


def _nothing(_: int) -> None:
    """The bar knows already."""


async def _chains(db: Any, replay: Replay) -> list[str]:
    """Where the chain over the records is not the one that the projection made of those that it read."""
    places = replay.places()
    rows: list[tuple[int, int, bytes]] = await db.fetch(
        "select partition, next, chain from derived.offsets where topic = $1 order by 1", LEDGER
    )
    return [
        f"{_place(partition)}, before offset {following}: the hash chain over its records is "
        f"{replay.chains[partition].hex()}, derived.offsets has {chain.hex()}: a record, or that row, was changed"
        for partition, following, chain in rows
        if following and places.get(partition) == following and replay.chains[partition] != chain
    ]


async def _other_copies(source: Source, on_start: Callable[[int], None], on_batch: Callable[[int], None]) -> list[str]:
    """The first record of each partition that stands otherwise in the archive than in the log."""
    assert source.archive is not None
    bad = list[str]()
    begins, ends = await source.beginnings(), await source.ends()
    spans = {p: (begins[p], min(end, ends[p])) for p, end in source.held.items()}
    on_start(sum(max(0, end - begin) for begin, end in spans.values()))
    for partition, (begin, end) in spans.items():
        try:
            different = await _other_copy(await source.log(), source.archive, partition, begin, end, on_batch)
        except LedgerCorrupt as error:
            bad.append(str(error))
            continue
        if different is not None:
            bad.append(f"{_place(partition, different)}: the log has another record than the archive")
    return bad


async def _other_copy(
    log: LedgerReader, archive: Archive, partition: int, begin: int, end: int, on_batch: Callable[[int], None]
) -> int | None:
    archived = _flat(archive, {partition: begin}, {partition: end})
    async with aclosing(log.read({partition: begin}, {partition: end})) as batches:
        async for records in batches:
            for record in records:
                if record != next(archived):
                    return record.offset
            on_batch(len(records))
    return None


def _flat(archive: Archive, starts: Mapping[int, int], ends: Mapping[int, int]) -> Iterator[Record]:
    for _, records in archive.read(starts, ends):
        yield from records


def _in_words(differences: list[Difference]) -> list[str]:
    """Those with an offset first, by their place: of one changed record, its own rows say the most."""
    ordered = sorted(differences, key=lambda d: (d.offset is None, d.partition or 0, d.offset or 0))
    return [f"{_place(d.partition, d.offset)}: {d.text}" for d in ordered]


def _place(partition: int | None, offset: int | None = None) -> str:
    return f"{LEDGER} partition {partition}" + ("" if offset is None else f" offset {offset}")
