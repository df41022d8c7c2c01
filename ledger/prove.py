"""Makes proofs: a request's records, their place in the log, and what of an epoch's payouts came from them.

`FromRows` finds everything through PostgreSQL's read models and then reads from the log only the blocks of the records
and the one that had begun at the cut. `FromLog` has nothing but the log, and folds it. What they find is evidence, not
truth: roots are made from the records, and must be those of the epoch's own record before a proof is written.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, NamedTuple, Protocol

from ledger import check_proof
from ledger.apply import step
from ledger.block_tree import BLOCK_BITS
from ledger.books import Books, Posting
from ledger.entitlements import earnings_of
from ledger.epochs import EpochFold
from ledger.log import LedgerCorrupt, LedgerError
from ledger.merkle import record_leaf
from ledger.outcomes import Outcome
from ledger.payout_tree import Leaf, StandardTree
from ledger.proofs import Blocks
from ledger.reader import Record, event_or_none
from ledger.replay import Replay
from ledger.source import Source
from schemas.events import EpochClosed, Event, RequestAccepted, RequestFailed, UsageRecorded, parse, request_id_of

#: Is told how many records more were read.
OnRecords = Callable[[int], None]


class NoProof(LedgerError):
    """There is nothing to prove, or not yet. The text is one line."""


class Found(NamedTuple):
    """A request's records that counted, and the epoch to prove them in."""

    records: list[Record]
    closed: Record
    event: EpochClosed
    block_roots: Mapping[int, bytes]
    leaves: Sequence[Leaf]


class Finder(Protocol):
    """Where the records of a request are, and which epoch has them."""

    async def find(self, request_id: str, epoch: int | None) -> Found:
        """The first epoch that has trees and the request's end, where `epoch` is None. Raises NoProof, LedgerError."""
        ...


class Proven(NamedTuple):
    """A record and its audit path."""

    record: Record
    path: Sequence[bytes]


class PaidOut(NamedTuple):
    """A provider's payout leaf, its amount in the token's smallest units, and its way to the payout root."""

    provider: str
    recipient: str
    cumulative: int
    path: Sequence[bytes]


async def prove(
    source: Source,
    finder: Finder,
    request_id: str,
    epoch: int | None,
    on_records: OnRecords,
    block_bits: int = BLOCK_BITS,
) -> bytes:
    """The proof of a request that has ended. Raises NoProof, LedgerError and what DATABASE_ERRORS names."""
    found = await finder.find(request_id, epoch)
    event, partition = found.event, found.records[0].partition
    postings = _postings(found.records)
    blocks = Blocks(event.cut[partition], [r.offset for r in found.records], found.block_roots, block_bits)
    for first, following in blocks.spans():
        async with aclosing(source.read(partition, first, following)) as batches:
            async for records in batches:
                for record in records:
                    blocks.add(record.offset, record_leaf(*record))
                on_records(len(records))
    if blocks.root().hex() != event.roots[partition]:
        raise LedgerCorrupt(
            f"the tree over partition {partition} is not the one of epoch {event.epoch}: run shrk ledger verify"
        )
    proven = [Proven(record, blocks.path(record.offset)) for record in found.records]
    data = assemble(request_id, event.epoch, found.closed, proven, _paid_out(found, postings))
    lines, holds = check_proof.report(data, event.log_root, event.payout_root)
    if not holds:
        raise LedgerCorrupt(f"the proof that was made does not hold, so none was written: {lines[-2]}")
    return data


def _postings(records: Sequence[Record]) -> tuple[Posting, ...]:
    """What the request came to. A request's outcomes depend on nothing but its own records, once these have counted."""
    books, postings = Books(records[0].partition), tuple[Posting, ...]()
    for record in records:
        decision = step(books, parse(record.value), record.offset)
        if decision.outcome is not Outcome.APPLIED:
            place = f"partition {record.partition} offset {record.offset}"
            raise LedgerCorrupt(f"{place}: what was found comes to {decision.outcome}: run shrk ledger verify")
        postings = decision.postings
    return postings


def _paid_out(found: Found, postings: Sequence[Posting]) -> list[PaidOut]:
    """The leaves of those whom the request paid."""
    terms = found.event.terms
    if terms is None:
        return []
    tree = StandardTree([leaf.encoded() for leaf in found.leaves])
    if "0x" + tree.root.hex() != found.event.payout_root:
        raise LedgerCorrupt(
            f"the payouts of epoch {found.event.epoch} do not make its payout root: run shrk ledger verify"
        )
    tokens = {token.asset: token.token for token in terms.tokens}
    paid = {(provider, tokens.get(asset)) for (provider, asset), nano, _ in earnings_of(postings) if nano}
    return [
        PaidOut(leaf.provider, leaf.recipient, leaf.amount, tree.proof(place))
        for place, leaf in enumerate(found.leaves)
        if (leaf.provider, leaf.token) in paid
    ]


def assemble(
    request_id: str, epoch: int, closed: Record, records: Sequence[Proven], payouts: Sequence[PaidOut]
) -> bytes:
    """The file, whose format infra/docs/proofs.md describes. The words are the checker's: it wants no others."""
    body: dict[str, object] = {
        "format": check_proof.FORMAT,
        "version": check_proof.VERSION,
        "words": check_proof.WORDS,
        "request_id": request_id,
        "epoch": epoch,
        "closed": _record(closed),
        "records": [{**_record(record), "path": [node.hex() for node in path]} for record, path in records],
        "payouts": [
            {
                "provider": provider,
                "recipient": recipient,
                "cumulative": str(cumulative),
                "path": [f"0x{node.hex()}" for node in path],
            }
            for provider, recipient, cumulative, path in sorted(payouts)
        ],
    }
    return check_proof.canonical({**body, "sha256": hashlib.sha256(check_proof.canonical(body)).hexdigest()})


def _record(record: Record) -> dict[str, object]:
    return {
        "partition": record.partition,
        "offset": record.offset,
        "key": base64.b64encode(record.key).decode(),
        "value": base64.b64encode(record.value).decode(),
    }


class FromRows:
    """Through PostgreSQL: `db` is a connection in one REPEATABLE READ transaction."""

    def __init__(self, db: Any, source: Source, on_records: OnRecords, block_bits: int = BLOCK_BITS) -> None:
        self._db = db
        self._source = source
        self._on_records = on_records
        self._bits = block_bits

    async def find(self, request_id: str, epoch: int | None) -> Found:
        """See Finder."""
        request = await self._request(request_id)
        partition: int = request["partition"]
        closings = await self._db.fetch(
            "select number, partition, \"offset\", cut[$1 + 1] as following, log_root <> '' as has_trees, mismatch "
            "from derived.epochs order by number",
            partition,
        )
        if not closings:
            raise NoProof("no epoch is closed yet")
        records = await self._life(request_id, request, closings[-1]["following"])
        end = records[-1].offset if records and _ends(parse(records[-1].value)) else None
        rows = {r["number"]: Row(r["number"], r["following"], r["has_trees"]) for r in closings}
        number = _chosen(request_id, epoch, end, rows)
        row = next(r for r in closings if r["number"] == number)
        if row["mismatch"]:
            raise NoProof(f"epoch {number} is not what the log makes: {row['mismatch']}")
        closed = await self._source.one(row["partition"], row["offset"])
        event = parse(closed.value)
        if not isinstance(event, EpochClosed) or event.epoch != number:
            raise LedgerCorrupt(f"derived.epochs has a place for epoch {number} where the log has another record")
        return Found(records, closed, event, await self._block_roots(partition), await self._leaves(event))

    async def _request(self, request_id: str) -> Any:
        rows = await self._db.fetch("select * from derived.requests where request_id = $1", request_id)
        if not rows:
            raise NoProof(f"the books know no request {request_id}; just now it may not have been read yet")
        if len(rows) > 1:
            raise NoProof(f"request {request_id} stands in {len(rows)} partitions: a writer broke the rules")
        if rows[0]["status"] == "open":
            raise NoProof(f"request {request_id} has not ended: it is open")
        return rows[0]

    async def _life(self, request_id: str, request: Any, cut: int) -> list[Record]:
        """The request's records before `cut` that were not rejected, found from its end, or the cut, backwards."""
        partition = request["partition"]
        paid_at = await self._db.fetchval(
            'select max("offset") from derived.entries where request_id = $1 and partition = $2', request_id, partition
        )
        rejected = {
            row["offset"]
            for row in await self._db.fetch(
                'select "offset" from derived.rejections where request_id = $1 and partition = $2',
                request_id,
                partition,
            )
        }
        found = list[Record]()
        following = cut if paid_at is None else min(cut, paid_at + 1)
        while following > 0:
            first = (following - 1) >> self._bits << self._bits
            here = list[Record]()
            async with aclosing(self._source.read(partition, first, following)) as batches:
                async for records in batches:
                    here += [r for r in records if _is_of(r, request_id) and r.offset not in rejected]
                    self._on_records(len(records))
            found = here + found
            # Nothing of a request that was accepted counts before its accept; of one that never was, only its end.
            if found and (request["accepted_ms"] is None or isinstance(parse(found[0].value), RequestAccepted)):
                break
            following = first
        return found

    async def _block_roots(self, partition: int) -> dict[int, bytes]:
        if self._bits != BLOCK_BITS:
            return {}
        rows = await self._db.fetch("select block, root from derived.tree_blocks where partition = $1", partition)
        return {row["block"]: bytes(row["root"]) for row in rows}

    async def _leaves(self, event: EpochClosed) -> list[Leaf]:
        if event.terms is None:
            return []
        tokens = {token.asset: token.token for token in event.terms.tokens}
        rows = await self._db.fetch(
            "select provider, asset, recipient, amount from derived.entitlements where epoch = $1 and waits = '' "
            "order by provider, asset",
            event.epoch,
        )
        chain_id, contract = event.terms.chain_id, event.terms.contract
        return [
            Leaf(chain_id, contract, tokens[row["asset"]], row["provider"], row["recipient"], int(row["amount"]))
            for row in rows
        ]


class FromLog:
    """From the log alone: all of it, up to the epoch, is folded."""

    def __init__(self, source: Source, on_start: OnRecords, on_records: OnRecords) -> None:
        self._source = source
        self._on_start = on_start
        self._on_records = on_records

    async def find(self, request_id: str, epoch: int | None) -> Found:
        """See Finder."""
        closed = await self._source.epochs()
        if not closed:
            raise NoProof("no epoch is closed yet")
        wanted = [place for place in closed if epoch is None or place.event.epoch <= epoch]
        self._on_start(sum(wanted[-1].event.cut) if wanted else 0)
        replay, fold = Replay(self._source.partitions, errata=self._source.errata), EpochFold(self._source.partitions)
        found, leaves = list[Record](), tuple[Leaf, ...]()
        end: int | None = None
        for place in wanted:
            found += await self._fold(replay, fold, place.event, request_id)
            closing = fold.closing(place.event.terms)
            leaves = closing.leaves
            fold.close(closing)
            if found and _ends(parse(found[-1].value)):
                end = found[-1].offset
                if epoch is None and place.event.roots:
                    break
        if replay.broken:
            raise LedgerCorrupt(f"the books are broken: {replay.broken[0]}")
        if len({record.partition for record in found}) > 1:
            raise NoProof(f"request {request_id} stands in several partitions: a writer broke the rules")
        partition = found[0].partition if found else 0
        rows = {p.event.epoch: Row(p.event.epoch, p.event.cut[partition], bool(p.event.roots)) for p in closed}
        if not found and (epoch is None or epoch in rows):
            raise NoProof(f"the log knows no request {request_id} before the cut of epoch {wanted[-1].event.epoch}")
        number = _chosen(request_id, epoch, end, rows)
        event, *place = next(place for place in closed if place.event.epoch == number)
        return Found(found, await self._source.one(*place), event, {}, leaves)

    async def _fold(self, replay: Replay, fold: EpochFold, event: EpochClosed, request_id: str) -> list[Record]:
        found = list[Record]()
        for partition, following in enumerate(event.cut):
            since = replay.places()[partition]
            async with aclosing(self._source.read(partition, since, following)) as batches:
                async for records in batches:
                    for record, told, decision in replay.feed(records):
                        fold.fact(told, record.partition, record.offset)
                        fold.decided(decision)
                        if decision.outcome is Outcome.APPLIED and request_id_of(told) == request_id:
                            found.append(record)
                    self._on_records(len(records))
        return found


class Row(NamedTuple):
    """An epoch: its number, its cut in the partition that it is about, and whether it has trees."""

    number: int
    following: int
    has_trees: bool


def _chosen(request_id: str, epoch: int | None, end: int | None, rows: Mapping[int, Row]) -> int:
    """The epoch to prove in. `end` is where the request ended before the last cut. Raises NoProof."""
    last = max(rows)
    if epoch is not None and epoch not in rows:
        raise NoProof(f"epoch {epoch} is not closed; the last is {last}")
    having = [row for row in rows.values() if end is not None and end < row.following]
    wanted = [row for row in having if row.number == epoch or epoch is None]
    if not wanted:
        raise NoProof(f"request {request_id} has not ended before the cut of epoch {last if epoch is None else epoch}")
    for row in wanted:
        if row.has_trees:
            return row.number
    raise NoProof(f"epoch {wanted[-1].number} has no trees over the log: its record is of version 1")


def _is_of(record: Record, request_id: str) -> bool:
    # Looked for before it is parsed: most records are of other requests.
    if request_id.encode() not in record.value:
        return False
    event = event_or_none(record)  # what cannot be read is of none
    return event is not None and request_id_of(event) == request_id


def _ends(event: Event) -> bool:
    return isinstance(event, UsageRecorded | RequestFailed)
