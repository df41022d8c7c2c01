"""A log in memory with an epoch over it, and proofs of its requests."""

from __future__ import annotations

import base64
import hashlib
from typing import Any, NamedTuple

from exports_kit import PRICE, SECOND_MS, at, credited, request

from ledger.check_proof import canonical
from ledger.digest import chain_link
from ledger.merkle import log_root, record_leaf, root_of
from ledger.proofs import Blocks
from ledger.prove import PaidOut, Proven, assemble
from ledger.reader import Record
from schemas import topics
from schemas.events import (
    EpochClosed,
    Event,
    RequestAccepted,
    RequestAdopted,
    RequestEvent,
    Segment,
    UsageRecorded,
    dump,
)
from schemas.facts import Terms, Token

P = 4
T0 = at("2027-01-15")
TERMS = Terms(
    chain_id=8453,
    contract="0x" + "c0" * 20,
    tokens=(Token(asset="SHIVER", token="0x" + "51" * 20, decimals=18),),
)
RECIPIENTS = {"gpu-1": "0x" + "a1" * 20, "Gpu_2": "0x" + "a2" * 20}
#: What the two may have claimed in all, in units of the token; the other leaves of the tree are strangers'.
CUMULATIVE = {"gpu-1": 7 * 10**30, "Gpu_2": 12_345}


def wallet_in(partition: int, nth: int = 0) -> str:
    found = [w for w in (f"w{n}" for n in range(1000)) if topics.partition_of(w.encode(), P) == partition]
    return found[nth]


class Log(NamedTuple):
    """Records by partition, and an epoch over all that stood before it."""

    records: list[list[Record]]
    closed: Record
    event: EpochClosed

    def of(self, request_id: str) -> list[Record]:
        mark = f'"request_id":"{request_id}"'.encode()
        cut = self.event.cut
        return [r for part, end in zip(self.records, cut, strict=True) for r in part[:end] if mark in r.value]


def make_log(
    events: list[Event],
    payout_root: str = "0x" + "00" * 32,
    terms: Terms | None = TERMS,
    instead: dict[bytes, bytes] | None = None,
) -> Log:
    """`instead` has values that stand in the place of others, whatever they say."""
    records: list[list[Record]] = [[] for _ in range(P)]
    for event in events:
        append(records, event)
    if instead:
        records = [[r._replace(value=instead.get(r.value, r.value)) for r in part] for part in records]
    cut = tuple(len(part) for part in records)
    roots = [root_of([record_leaf(*r) for r in part]) for part in records]
    heads = [b""] * P
    for part in records:
        for r in part:
            heads[r.partition] = chain_link(heads[r.partition], *r)
    event = EpochClosed(
        at_ms=T0, epoch=3, cut=cut, heads=tuple(h.hex() for h in heads), roots=tuple(r.hex() for r in roots),
        log_root=log_root(cut, roots, heads).hex(), digest="d" * 64, terms=terms, payout_root=payout_root,
    )  # fmt: skip
    return Log(records, append(records, event), event)


def append(records: list[list[Record]], event: Event) -> Record:
    key = event.key.encode()
    partition = topics.partition_of(key, P)
    record = Record(partition, len(records[partition]), key, dump(event))
    records[partition].append(record)
    return record


def payout_tree() -> tuple[str, list[PaidOut]]:
    """The root and the leaves of two providers with their ways, made by the server's own tree."""
    from ledger.payout_tree import Leaf, StandardTree

    who = [*RECIPIENTS, "x", "y", "z"]
    leaves = [
        Leaf(TERMS.chain_id, TERMS.contract, TERMS.tokens[0].token, w, RECIPIENTS.get(w, "0x" + "ee" * 20), n)
        for w, n in zip(who, [*CUMULATIVE.values(), 1, 2, 3], strict=True)
    ]
    tree = StandardTree([leaf.encoded() for leaf in leaves])
    paid = [PaidOut(leaf.provider, leaf.recipient, leaf.amount, tree.proof(n)) for n, leaf in enumerate(leaves[:2])]
    return "0x" + tree.root.hex(), paid


def adopted(usage: list[Event], times: int) -> list[Event]:
    """The same request, adopted so often before its end."""
    accept, end = usage
    assert isinstance(accept, RequestAccepted)
    assert isinstance(end, UsageRecorded)
    adoptions: list[Event] = [
        RequestAdopted(wallet=accept.wallet, at_ms=accept.at_ms, request_id=accept.request_id, epoch=n, owner=f"o{n}")
        for n in range(2, times + 2)
    ]
    return [accept, *adoptions, end.model_copy(update={"epoch": times + 1})]


def three_requests() -> tuple[list[Event], list[str]]:
    """Of two wallets in one partition and one in another: two providers and two adoptions, one, one; credits around."""
    one, two, three = wallet_in(1), wallet_in(1, 1), wallet_in(2)
    lives = [
        adopted(with_receipts(request(1, one, T0, ("gpu-1", 10), ("Gpu_2", 3), ("gpu-1", 7))), 2),
        request(2, two, T0 + SECOND_MS, ("gpu-1", 5)),
        request(3, three, T0, ("Gpu_2", 9), hold=1_000_000),
    ]
    events: list[Event] = [credited(w, T0, f"{w}-{n}") for n in range(9) for w in (one, two, three, wallet_in(3))]
    mixed: list[Event] = [events.pop(0)]
    for life in lives:
        for event in life:
            mixed += [event, events.pop(0)]
    mixed += events
    return mixed, [life[0].request_id for life in lives if isinstance(life[0], RequestEvent)]


def with_receipts(life: list[Event]) -> list[Event]:
    end = life[-1]
    assert isinstance(end, UsageRecorded)
    segments = tuple(
        Segment(**{**segment.model_dump(), "receipt": f"receipt {n}"}) for n, segment in enumerate(end.segments)
    )
    return [*life[:-1], end.model_copy(update={"segments": segments})]


def proof_of(
    log: Log,
    request_id: str,
    payouts: list[PaidOut],
    block_bits: int = 2,
    places: list[tuple[int, int]] | None = None,
) -> bytes:
    """What the prover does, without Kafka; of the records at `places`, where these are given."""
    records = log.of(request_id) if places is None else [log.records[p][offset] for p, offset in places]
    partition = records[0].partition
    blocks = Blocks(log.event.cut[partition], [r.offset for r in records], {}, block_bits)
    for first, following in blocks.spans():
        for r in log.records[partition][first:following]:
            blocks.add(r.offset, record_leaf(*r))
    assert blocks.root().hex() == log.event.roots[partition]
    proven = [Proven(r, blocks.path(r.offset)) for r in records]
    return assemble(request_id, log.event.epoch, log.closed, proven, payouts)


def sealed(body: dict[str, Any]) -> bytes:
    """As a forger writes it: the file's own hash is right."""
    unsigned = {name: value for name, value in body.items() if name != "sha256"}
    return canonical({**unsigned, "sha256": hashlib.sha256(canonical(unsigned)).hexdigest()})


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


__all__ = ["PRICE"]
