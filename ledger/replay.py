"""Folds the whole log again: the books that anyone with the log gets, with every invariant checked on the way."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from collections.abc import Awaitable, Callable, Generator, Mapping
from contextlib import aclosing, contextmanager
from typing import TYPE_CHECKING

from ledger.apply import step
from ledger.books import Books
from ledger.decide import Decision
from ledger.digest import chain_link, digest, record_sha256
from ledger.errata import NO_ERRATA, Errata
from ledger.invariants import broken_by, broken_in
from ledger.log import LedgerCorrupt
from ledger.reader import LedgerReader, Record, event_of, event_or_none, place_of
from schemas.events import Event
from schemas.topics import LEDGER

if TYPE_CHECKING:
    from ledger.archive import Archive  # whoever has none is spared pyarrow
    from ledger.source import Source
    from ledger.vector.fold import Fold

_FORGET_EVERY = 100_000
#: Below so many records to come from Kafka, processes cost more than they bring.
BULK_FROM = 100_000

#: Is told each batch of one partition's records with what they came to.
Listener = Callable[[list[tuple[Record, Event, Decision]]], Awaitable[None]]
#: Looks at the books right after a step, and says what is wrong.
AfterStep = Callable[[Books, Event, Decision], list[str]]


class Replay:
    """The books of all partitions while the log is read. `broken` says what an invariant found, with its place."""

    def __init__(
        self,
        partitions: int,
        *,
        remember: bool = False,
        after_step: AfterStep | None = None,
        errata: Errata = NO_ERRATA,
    ) -> None:
        self.errata = errata
        self.books = [Books(partition) for partition in range(partitions)]
        self.chains = [b""] * partitions
        self.last_sha256 = [b""] * partitions
        self.outcomes: Counter[str] = Counter()
        self.events = 0
        self.unchecked = 0  # of these: whose bytes were not hashed into the chain, which is the manifest's
        self.broken: list[str] = []
        self._remember = remember
        self._after_step = after_step
        self._since_forgetting = 0
        self._folds: dict[int, Fold] = {}

    def feed(self, records: list[Record]) -> list[tuple[Record, Event, Decision]]:
        """Fold records of one partition. Raises LedgerCorrupt at an event that cannot be read."""
        fold = self._folds.get(records[0].partition) if records else None
        if fold is not None:  # it has the ids that ended in bulk
            fold.recall([event for event in map(event_or_none, records) if event is not None])
        out = [(record, *self._step(record)) for record in records]
        if records:
            last = records[-1]
            self.last_sha256[last.partition] = record_sha256(last.partition, last.offset, last.key, last.value)
        self._since_forgetting += len(records)
        if not self._remember and self._since_forgetting >= _FORGET_EVERY:
            self._since_forgetting = 0
            for books in self.books:
                books.forget_ended()
        return out

    def _step(self, record: Record) -> tuple[Event, Decision]:
        partition, offset, key, value = record
        event = event_of(record, self.errata)
        books = self.books[partition]
        decision = step(books, event, offset)
        wrong = broken_by(decision)
        if self._after_step is not None:
            wrong += self._after_step(books, event, decision)
        if wrong:
            self.broken += [f"{place_of(record)}: {what}" for what in wrong]
        self.outcomes[decision.outcome.value] += 1
        self.events += 1
        self.chains[partition] = chain_link(self.chains[partition], partition, offset, key, value)
        return event, decision

    def in_bulk(self) -> bool:
        """Whether nobody needs single steps or every ended request, so that the fold over columns will do."""
        return not self._remember and self._after_step is None

    def fold(self, partition: int) -> Fold:
        """The fold over columns that goes on where `partition` is."""
        from ledger.vector.fold import Fold

        return self._folds.get(partition) or Fold(self.books[partition])

    def took(self, fold: Fold, chain: bytes, last_sha256: bytes) -> None:
        """What a fold over columns has come to since it was given."""
        partition = fold.books.partition
        self.books[partition] = fold.books
        self.chains[partition] = chain
        self.last_sha256[partition] = last_sha256
        outcomes, events, broken = fold.told()
        self.outcomes.update(outcomes)
        self.events += events
        self.broken += broken
        self._folds[partition] = fold

    def places(self) -> dict[int, int]:
        """The next offset of each partition."""
        return {books.partition: books.next_offset for books in self.books}

    def finish(self) -> str:
        """Check what must hold in whole books, and return their digest."""
        for books in self.books:
            self.broken += broken_in(books)
        return digest(self.books)

    def balances(self) -> list[tuple[str, str, int, int]]:
        """(account, asset, nano, entries), summed over the partitions, in order."""
        sums: dict[tuple[str, str], tuple[int, int]] = {}
        for books in self.books:
            for key, row in books.accounts.items():
                nano, entries = sums.get(key, (0, 0))
                sums[key] = (nano + row.balance_nano, entries + row.entries)
        return [(*key, *sums[key]) for key in sorted(sums)]


async def read_into(
    replay: Replay,
    source: Source,
    ends: Mapping[int, int] | None,
    on_start: Callable[[int], None],
    on_batch: Callable[[int], None],
    listener: Listener | None = None,
    *,
    plain: bool = False,
) -> None:
    """Read the log from where `replay` is to `ends` (None: its end now): what an archive has from there, then Kafka's.

    Where nobody listens, a whole archive and a long log are folded over columns (ledger/bulk.py), which comes to the
    same, unless `plain` says otherwise.
    `on_start` is told how many records there will be, `on_batch` how many more were read. Raises LedgerUnavailable,
    ArchiveUnavailable, or LedgerCorrupt where the log does not begin at 0 or in the archive, ends before `ends` or the
    archive, is another one than was archived, or cannot be read.
    """
    bulk = not plain and listener is None and replay.in_bulk()
    begins, found = await source.beginnings(), await source.ends()
    wanted = found if ends is None else ends
    archive, held, before = source.archive, source.held, replay.places()
    _check_bounds(begins, found, wanted, {p: max(n, held.get(p, 0)) for p, n in before.items()}, held)
    on_start(sum(max(0, end - before.get(partition, 0)) for partition, end in wanted.items()))
    if archive is not None:
        if bulk and not replay.events and all(wanted.get(p, 0) >= end for p, end in held.items()):
            from ledger.bulk import fold_archive

            await asyncio.to_thread(fold_archive, replay, archive, on_batch)
        else:
            await read_archive(replay, archive, wanted, on_batch, listener)
    if source.kafka is None:
        return
    await _check_seam(replay, await source.log(), begins, before)
    if bulk and sum(max(0, end - replay.places().get(p, 0)) for p, end in wanted.items()) >= BULK_FROM:
        from ledger.bulk import fold_kafka

        await fold_kafka(replay, source.kafka, wanted, on_batch)
    with _young_garbage_only() as tidy:
        async with aclosing((await source.log()).read(replay.places(), wanted)) as batches:
            async for records in batches:
                told = replay.feed(records)
                if listener is not None:
                    await listener(told)
                on_batch(len(records))
                tidy()


async def read_archive(
    replay: Replay,
    archive: Archive,
    ends: Mapping[int, int],
    on_batch: Callable[[int], None],
    listener: Listener | None = None,
) -> None:
    """What `archive` has from where `replay` is to `ends`, without Kafka. Checks the chain at the end of each file.

    Raises ArchiveUnavailable, and LedgerCorrupt as `read_into` does.
    """
    with _young_garbage_only() as tidy:
        for file, records in archive.read(replay.places(), ends):
            told = replay.feed(records)
            if records[-1].offset + 1 == file.next:
                archive.check_chain(file, replay.chains[file.partition])
            if listener is not None:
                await listener(told)
            on_batch(len(records))
            tidy()


@contextmanager
def _young_garbage_only() -> Generator[Callable[[], object], None, None]:
    """Python's collector does not walk the books again and again, which took more than half of a replay (measured).

    They hold no cycles. What else makes some is freed by calling what this gives, after each batch.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield lambda: gc.collect(0)
    finally:
        if enabled:
            gc.enable()


def _check_bounds(
    begins: Mapping[int, int],
    found: Mapping[int, int],
    wanted: Mapping[int, int],
    reached: Mapping[int, int],
    held: Mapping[int, int],
) -> None:
    """Kafka has everything behind `reached`, up to `wanted` and to what the archive has. Raises LedgerCorrupt."""
    cut = [partition for partition, first in begins.items() if first > reached.get(partition, 0)]
    if cut:
        place = "in the archive" if held else "at offset 0"
        raise LedgerCorrupt(f"{LEDGER} does not begin {place} in partitions {cut}: records were deleted")
    for partition, end in wanted.items():
        there = found.get(partition, 0)
        if there < end:
            raise LedgerCorrupt(f"{LEDGER} partition {partition} ends at {there}, but the books have read to {end}")
    for partition, end in held.items():
        there = found.get(partition, 0)
        if there < end:
            raise LedgerCorrupt(f"{LEDGER} partition {partition} ends at {there}, but the archive ends at {end}")


async def _check_seam(
    replay: Replay, reader: LedgerReader, begins: Mapping[int, int], before: Mapping[int, int]
) -> None:
    """The last record that was read from the archive is in Kafka too, where Kafka has kept it. Raises LedgerCorrupt.

    `before` has the places from which the archive was read; of what it gave nothing of there is no seam.
    """
    for partition, following in replay.places().items():
        last = following - 1
        if following == before[partition] or last < begins.get(partition, 0):
            continue
        async with aclosing(reader.read({partition: last}, {partition: following})) as batches:
            async for records in batches:
                if record_sha256(*records[-1]) != replay.last_sha256[partition]:
                    raise LedgerCorrupt(
                        f"{LEDGER} partition {partition} offset {last} is not the record in the archive: the log was "
                        "made anew or changed"
                    )
