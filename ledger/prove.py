"""Makes proofs: a request's records, their place in the log, and what of an epoch's payouts came from them."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from typing import NamedTuple

from ledger.check_proof import FORMAT, VERSION, WORDS, canonical
from ledger.reader import Record


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


def assemble(
    request_id: str, epoch: int, closed: Record, records: Sequence[Proven], payouts: Sequence[PaidOut]
) -> bytes:
    """The file, whose format infra/docs/proofs.md describes."""
    body: dict[str, object] = {
        "format": FORMAT,
        "version": VERSION,
        "words": WORDS,
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
    return canonical({**body, "sha256": hashlib.sha256(canonical(body)).hexdigest()})


def _record(record: Record) -> dict[str, object]:
    return {
        "partition": record.partition,
        "offset": record.offset,
        "key": base64.b64encode(record.key).decode(),
        "value": base64.b64encode(record.value).decode(),
    }
