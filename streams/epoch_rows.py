"""Epochs in PostgreSQL: the snapshot that a cut is taken from, and the rows of epochs that were read back."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple

from ledger.block_tree import BlockTree
from ledger.digest import Fingerprint
from ledger.entitlements import Earned, Entitlement, Key
from ledger.epochs import Closing, EpochFold, Registration
from ledger.log import Position
from ledger.rows import request_of_row
from schemas import topics
from schemas.events import EpochClosed
from schemas.facts import Terms
from schemas.locks import Lock
from streams.sql import statements

_PREFETCH_ROWS = 1000
_SQL = statements()


class State(NamedTuple):
    """Where the rows are: the last epoch, and all that the next one goes on from."""

    last: EpochClosed | None
    place: Position | None
    chains: list[bytes]
    fold: EpochFold

    @property
    def number(self) -> int:
        return 0 if self.last is None else self.last.epoch

    @property
    def cut(self) -> tuple[int, ...]:
        return (0,) * len(self.chains) if self.last is None else self.last.cut


class Snapshot(NamedTuple):
    """The books at one moment: how far they have read each partition, the heads there, their digest."""

    cut: tuple[int, ...]
    chains: list[bytes]
    digest: str
    earned: list[tuple[Key, int, int]]  # since another cut: nano, and of it the sandbox's
    balances: dict[Key, int]  # of providers


async def snapshot(db: Any, partitions: int, since: Sequence[int]) -> Snapshot:
    """All of it in one REPEATABLE READ transaction: nothing of it can belong to another moment."""
    async with db.transaction(isolation="repeatable_read", readonly=True):
        rows = {row["partition"]: row for row in await _offsets(db)}
        accounts = _Ordered(db.cursor(_SQL["epoch_accounts"], prefetch=_PREFETCH_ROWS))
        requests = _Ordered(db.cursor(_SQL["epoch_open_requests"], prefetch=_PREFETCH_ROWS))
        fingerprint = Fingerprint()
        balances = dict[Key, int]()
        for partition in range(partitions):
            place = rows.get(partition)
            moved = (0, 0, 0) if place is None else (place["next"], place["max_event_ms"], place["rejected"])
            fingerprint.partition(partition, *moved)
            async for row in accounts.of(partition):
                account, asset, nano = row["account"], row["asset"], int(row["balance_nano"])
                fingerprint.account(account, asset, nano, row["entries"])
                if account.startswith("provider:"):
                    key = (account.removeprefix("provider:"), asset)
                    balances[key] = balances.get(key, 0) + nano
            async for row in requests.of(partition):
                fingerprint.open_request(str(row["request_id"]), request_of_row(row))
        cut = tuple(rows[p]["next"] if p in rows else 0 for p in range(partitions))
        chains = [bytes(rows[p]["chain"]) if p in rows else b"" for p in range(partitions)]
        return Snapshot(cut, chains, fingerprint.hexdigest(), await earned(db, since, cut), balances)


async def earned(db: Any, since: Sequence[int], cut: Sequence[int]) -> list[tuple[Key, int, int]]:
    """What providers earned between two cuts, and what of it the sandbox paid. The books must have read so far."""
    out = list[tuple[Key, int, int]]()
    for partition, (first, following) in enumerate(zip(since, cut, strict=True)):
        for row in await db.fetch(_SQL["epoch_earnings"], partition, first, following):
            key = (row["account"].removeprefix("provider:"), row["asset"])
            out.append((key, int(row["earned_nano"]), int(row["sandbox_nano"])))
    return out


async def has_read(db: Any, cut: Sequence[int]) -> bool:
    """Whether the projection has read every partition up to `cut`."""
    places = {row["partition"]: row["next"] for row in await _offsets(db)}
    return all(places.get(partition, 0) >= following for partition, following in enumerate(cut))


async def _offsets(db: Any) -> list[Any]:
    return await db.fetch("select * from derived.offsets where topic = $1", topics.LEDGER)


class _Ordered:
    """Rows in the order of their partitions, taken partition by partition."""

    def __init__(self, rows: Any) -> None:
        self._rows: AsyncIterator[Any] = aiter(rows)
        self._next: Any = None
        self._begun = False

    async def of(self, partition: int) -> AsyncIterator[Any]:
        if not self._begun:
            self._begun = True
            self._next = await anext(self._rows, None)
        while self._next is not None and self._next["partition"] <= partition:
            if self._next["partition"] == partition:
                yield self._next
            self._next = await anext(self._rows, None)


async def last_number(db: Any) -> int:
    """Of the last epoch that has a row; 0 for none."""
    return int(await db.fetchval("select coalesce(max(number), 0) from derived.epochs"))


async def load(db: Any, partitions: int) -> State:
    """What the rows of the last epoch say, in one snapshot."""
    async with db.transaction(isolation="repeatable_read", readonly=True):
        return await _load(db, partitions)


async def _load(db: Any, partitions: int) -> State:
    fold = EpochFold(partitions)
    row = await db.fetchrow("select * from derived.epochs order by number desc limit 1")
    if row is None:
        return State(None, None, [b""] * partitions, fold)
    last = event_of_row(row)
    fold.trees = [BlockTree(size, bytes(data)) for size, data in zip(last.cut, row["trees"], strict=True)]
    for one in await db.fetch("select * from derived.entitlements where epoch = $1", last.epoch):
        key = (one["provider"], one["asset"])
        entitlement = Entitlement(**{name: int(one[name]) for name in Entitlement._fields})
        fold.entitled[key] = entitlement
        fold.earned[key] = Earned(entitlement.earned_nano, entitlement.sandbox_earned_nano)
    recipients = (
        "select distinct on (provider) * from derived.recipients where epoch <= $1 order by provider, epoch desc"
    )
    for one in await db.fetch(recipients, last.epoch):
        fold.recipients[one["provider"]] = Registration(one["recipient"], one["partition"], one["offset"])
    counted = "select * from derived.sandbox_funds where epoch <= $1 and verdict = 'counted'"
    for one in await db.fetch(counted, last.epoch):
        fold.funds.count(one["external_ref"], one["asset"], one["amount_nano"])
    return State(last, Position(row["partition"], row["offset"]), [bytes(head) for head in row["chains"]], fold)


def event_of_row(row: Any) -> EpochClosed:
    """The event that a row of derived.epochs is of. Raises ValueError where it is of none."""
    return EpochClosed(
        at_ms=row["at_ms"],
        epoch=row["number"],
        cut=tuple(row["cut"]),
        heads=tuple(row["heads"]),
        roots=tuple(row["roots"]),
        log_root=row["log_root"],
        digest=row["digest"],
        terms=None if row["terms"] is None else Terms.model_validate_json(row["terms"]),
        payout_root=row["payout_root"],
    )


async def store(
    db: Any, event: EpochClosed, place: Position, chains: list[bytes], fold: EpochFold, closing: Closing, mismatch: str
) -> bool:
    """Writes the rows of an epoch, all or none; False where another process has written that epoch before."""
    async with db.transaction():
        await db.execute("select pg_advisory_xact_lock($1)", Lock.EPOCH_ROWS)
        if await last_number(db) != event.epoch - 1:
            return False
        for table in ("entitlements", "recipients", "sandbox_funds"):  # of epochs whose own row was deleted
            await db.execute(f"delete from derived.{table} where epoch >= $1", event.epoch)
        terms = None if event.terms is None else json.dumps(event.terms.model_dump())
        await db.execute(
            'insert into derived.epochs (number, partition, "offset", at_ms, cut, heads, roots, log_root, digest, '
            "terms, payout_root, chains, trees, mismatch) "
            "values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)",
            event.epoch, *place, event.at_ms, event.cut, event.heads, event.roots, event.log_root, event.digest,
            terms, event.payout_root, chains, [tree.dump() for tree in fold.trees], mismatch,
        )  # fmt: skip
        await _copy(
            db,
            "entitlements",
            ("epoch", "provider", "asset", *Entitlement._fields, "recipient", "amount", "waits"),
            [(event.epoch, *key, *value, *closing.payouts[key]) for key, value in closing.entitlements.items()],
        )
        await _copy(
            db,
            "recipients",
            ("epoch", "provider", "recipient", "partition", "offset"),
            [(event.epoch, provider, *registered) for provider, registered in fold.new_recipients.items()],
        )
        await _copy(
            db,
            "sandbox_funds",
            (
                "epoch", "partition", "offset", "external_ref", "asset", "amount_nano", "reason", "operator",
                "approver", "verdict",
            ),
            [(event.epoch, *funding) for funding in fold.new_fundings],
        )  # fmt: skip
        for partition, tree in enumerate(fold.trees):
            for block, root in tree.blocks:
                await db.execute(
                    "insert into derived.tree_blocks values ($1, $2, $3) on conflict (partition, block) "
                    "do update set root = excluded.root",
                    partition,
                    block,
                    root,
                )
        return True


async def _copy(db: Any, table: str, columns: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    if rows:
        await db.copy_records_to_table(table, schema_name="derived", columns=columns, records=rows)
