"""Folds the whole log again: the books that anyone with the log gets, with every invariant checked on the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping

from ledger.apply import step
from ledger.books import Books
from ledger.decide import Decision
from ledger.digest import chain_link, digest, record_sha256
from ledger.invariants import broken_by, broken_in
from ledger.log import LedgerCorrupt
from ledger.reader import LedgerReader, Record
from schemas.events import Event, UnreadableEvent, parse
from schemas.settings import Settings
from schemas.topics import LEDGER

_FORGET_EVERY = 100_000

#: Is told each batch of one partition's records with what they came to.
Listener = Callable[[list[tuple[Record, Event, Decision]]], Awaitable[None]]


class Replay:
    """The books of all partitions while the log is read. `broken` says what an invariant found, with its place."""

    def __init__(self, partitions: int, *, remember: bool = False) -> None:
        self.books = [Books(partition) for partition in range(partitions)]
        self.chains = [b""] * partitions
        self.last_sha256 = [b""] * partitions
        self.outcomes: Counter[str] = Counter()
        self.events = 0
        self.broken: list[str] = []
        self._remember = remember
        self._since_forgetting = 0

    def feed(self, records: list[Record]) -> list[tuple[Record, Event, Decision]]:
        """Fold records of one partition. Raises LedgerCorrupt at an event that cannot be read."""
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
        place = f"{LEDGER} partition {partition} offset {offset}"
        try:
            event = parse(value)
        except UnreadableEvent as error:
            raise LedgerCorrupt(f"{place}: {error}") from None
        if event.wallet.encode() != key:
            raise LedgerCorrupt(f"{place}: its key is not its wallet")
        decision = step(self.books[partition], event, offset)
        self.broken += [f"{place}: {wrong}" for wrong in broken_by(decision)]
        self.outcomes[decision.outcome.value] += 1
        self.events += 1
        self.chains[partition] = chain_link(self.chains[partition], partition, offset, key, value)
        return event, decision

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
    settings: Settings,
    ends: Mapping[int, int] | None,
    on_start: Callable[[int], None],
    on_batch: Callable[[int], None],
    listener: Listener | None = None,
) -> None:
    """Read the log from its beginning to `ends` (None: its end now) into `replay`.

    `on_start` is told how many records there will be, `on_batch` how many more were read. Raises LedgerUnavailable, or
    LedgerCorrupt where the log does not begin at 0, ends before `ends`, or cannot be read.
    """
    async with LedgerReader(settings.kafka, settings.ledger_partitions, client_id="shiver-replay") as reader:
        cut = [partition for partition, first in (await reader.beginnings()).items() if first]
        if cut:
            raise LedgerCorrupt(f"{LEDGER} does not begin at offset 0 in partitions {cut}: records were deleted")
        found = await reader.ends()
        wanted = found if ends is None else ends
        for partition, end in wanted.items():
            there = found.get(partition, 0)
            if there < end:
                raise LedgerCorrupt(f"{LEDGER} partition {partition} ends at {there}, but the books have read to {end}")
        on_start(sum(wanted.values()))
        async for records in reader.read({}, wanted):
            told = replay.feed(records)
            if listener is not None:
                await listener(told)
            on_batch(len(records))
