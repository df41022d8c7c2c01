"""Checks every epoch of the log in a walk that stops at each cut: there all books stand where the event says.

The walk knows the cuts before it begins (`Source.epochs` reads the one partition that has them), so it needs no
second copy of anything: at a cut the digest of the books is made of the books, and roots, entitlements and payout root
are those of `EpochFold`. A stop costs that digest, in time with accounts and open requests.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from ledger.decide import Decision
from ledger.digest import digest
from ledger.entitlements import Entitlement
from ledger.epoch_log import EpochPlace
from ledger.epochs import Closing, EpochFold, differences, payable_faults
from ledger.invariants import Settlement
from ledger.reader import Record
from ledger.replay import Replay
from schemas.events import Event
from schemas.facts import Terms
from schemas.topics import LEDGER, SETTLEMENT_KEY

#: Reads into the replay up to these offsets.
Read = Callable[[Mapping[int, int]], Awaitable[None]]

_KEY = SETTLEMENT_KEY.encode()
_SHOWN_MAX = 20


class EpochCheck:
    """Walks along with `replay`. `bad` says what is wrong, with the place of the event; `done` epochs were checked."""

    def __init__(self, replay: Replay, places: Sequence[EpochPlace]) -> None:
        self._replay = replay
        self._places = list(places)
        self._settlement = Settlement()
        self._fold = EpochFold(len(replay.books))
        self._blocks: dict[tuple[int, int], bytes] = {}
        self.bad: list[str] = []
        self.done = 0
        self.last: Closing | None = None

    async def listen(self, told: list[tuple[Record, Event, Decision]]) -> None:
        """To be told of every batch."""
        fold = self._fold
        for record, event, decision in told:
            partition, offset, key, _ = record
            fold.leaf(*record)
            if decision.postings:
                fold.decided(decision)
            else:
                fold.fact(event, partition, offset)
                if key == _KEY:
                    wrong = self._settlement.broken_by(event, partition, offset)
                    self.bad += [f"{LEDGER} partition {partition} offset {offset}: {what}" for what in wrong]

    async def walk(self, read: Read, ends: Mapping[int, int], db: Any = None) -> None:
        """Reads up to `ends`, with a stop at the cut of each epoch on the way; with `db`, its rows are compared."""
        while self.done < len(self._places):
            place = self._places[self.done]
            if any(end > ends.get(partition, 0) for partition, end in place.ends.items()):
                break
            if any(following > place.event.cut[p] for p, following in self._replay.places().items()):
                self.bad.append(
                    f"epoch {place.event.epoch} is not verified: PostgreSQL has read only a part of what is before "
                    "its cut; verify again when it has caught up"
                )
                self._places = self._places[: self.done]
                break
            await read(place.ends)
            await self._stop(place, db)
        await read(ends)

    async def _stop(self, place: EpochPlace, db: Any) -> None:
        event, fold = place.event, self._fold
        heads = [head.hex() for head in self._replay.chains]
        before = fold.entitled
        closing = fold.closing(event.terms)
        wrong = differences(event, closing, heads, digest(self._replay.books))
        faults = payable_faults(before, closing, event.terms)
        self.bad += [_words(place, what) for what in [*wrong, *faults]]
        for partition, tree in enumerate(fold.trees):
            self._blocks.update({(partition, block): root for block, root in tree.blocks})
        if db is not None:
            known = [what for what in wrong if not what.startswith("digest")]  # whoever makes the rows has none
            await self._compare(db, place, closing, "; ".join([*known, *faults]))
        self.last = closing
        fold.close(closing)
        self.done += 1

    async def _compare(self, db: Any, place: EpochPlace, closing: Closing, mismatch: str) -> None:
        number, event, fold = place.event.epoch, place.event, self._fold
        row = await db.fetchrow("select * from derived.epochs where number = $1", number)
        if row is None:
            if await db.fetchval("select true from derived.epochs where number > $1 limit 1", number):
                self.bad.append(_words(place, "derived.epochs has no row of it, and has later ones"))
            return  # the newest may not have been read back yet
        wanted: dict[str, object] = {
            "at_ms": event.at_ms,
            "cut": list(event.cut),
            "heads": list(event.heads),
            "roots": list(event.roots),
            "log_root": event.log_root,
            "digest": event.digest,
            "terms": event.terms,
            "payout_root": event.payout_root,
            "partition": place.partition,
            "offset": place.offset,
            "chains": list(self._replay.chains),
            "trees": [tree.dump() for tree in fold.trees],
            "mismatch": mismatch,
        }
        for name, value in wanted.items():
            found = _terms(row[name]) if name == "terms" else row[name]
            if found != value:
                self.bad.append(_words(place, f"derived.epochs.{name} is {found}, the log makes {value}"))
        entitlements = {key: (*value, *closing.payouts[key]) for key, value in closing.entitlements.items()}
        columns = (*Entitlement._fields, "recipient", "amount", "waits")
        await self._table(db, place, "entitlements", ("provider", "asset"), columns, entitlements)
        recipients = {(provider,): tuple(registered) for provider, registered in fold.new_recipients.items()}
        columns = ("recipient", "partition", "offset")
        await self._table(db, place, "recipients", ("provider",), columns, recipients)
        fundings = {(f.partition, f.offset): tuple(f[2:]) for f in fold.new_fundings}
        columns = ("external_ref", "asset", "amount_nano", "reason", "operator", "approver", "verdict")
        await self._table(db, place, "sandbox_funds", ("partition", "offset"), columns, fundings)

    async def _table(
        self,
        db: Any,
        place: EpochPlace,
        table: str,
        key_columns: tuple[str, ...],
        columns: tuple[str, ...],
        wanted: dict[Any, tuple[Any, ...]],
    ) -> None:
        """The rows of one epoch in a table, against what the log makes."""
        left = dict(wanted)
        for row in await db.fetch(f"select * from derived.{table} where epoch = $1", place.event.epoch):
            key = tuple(row[name] for name in key_columns)
            found = tuple(row[name] for name in columns)
            expected = left.pop(key, None)
            if expected is None:
                self.bad.append(_words(place, f"derived.{table} of {_key(key)}: PostgreSQL has one, the log has none"))
                continue
            self.bad += [
                _words(place, f"derived.{table} of {_key(key)}: {name} is {have}, the log makes {want}")
                for name, have, want in zip(columns, found, expected, strict=True)
                if have != want
            ]
        self.bad += [_words(place, f"derived.{table} of {_key(key)}: PostgreSQL has none") for key in left]

    async def strays(self, db: Any) -> None:
        """Rows of no epoch of the log, and the roots of blocks."""
        last = self.done and self._places[self.done - 1].event.epoch
        reached = int(await db.fetchval("select coalesce(max(number), 0) from derived.epochs"))
        tables = [("epochs", "number"), *((t, "epoch") for t in ("entitlements", "recipients", "sandbox_funds"))]
        for table, column in tables if self.done == len(self._places) else ():
            sql = f"select distinct {column} from derived.{table} where {column} > $1 order by 1 limit $2"
            for (number,) in await db.fetch(sql, min(last, reached) if table != "epochs" else last, _SHOWN_MAX):
                other = "the log has no such epoch" if number > last else "derived.epochs has no row of it"
                self.bad.append(f"epoch {number}: derived.{table} has rows of it, {other}")
        if reached < last:
            return  # the blocks of the newest epoch may be missing with it
        left = dict(self._blocks)
        for row in await db.fetch("select partition, block, root from derived.tree_blocks"):
            expected = left.pop((row["partition"], row["block"]), None)
            if expected != row["root"]:
                self.bad.append(f"block {row['block']} of partition {row['partition']}: another root than the log's")
        self.bad += [f"block {block} of partition {partition}: PostgreSQL has none" for partition, block in left]


def _terms(text: str | None) -> object:
    """The terms in a row, which jsonb keeps in an order of its own."""
    try:
        return None if text is None else Terms.model_validate_json(text)
    except ValueError:
        return text


def _key(key: tuple[Any, ...]) -> str:
    return "/".join(str(part) for part in key)


def _words(place: EpochPlace, what: str) -> str:
    return f"{LEDGER} partition {place.partition} offset {place.offset}: epoch {place.event.epoch}: {what}"
