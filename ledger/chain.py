"""The hash chain over a partition's records as they stand in the log: key and value bytes, never re-serialised JSON.

Every field is length-prefixed, so that no two different records hash alike.
"""

from __future__ import annotations

import hashlib

GENESIS = b""


def record_sha256(partition: int, offset: int, key: bytes, value: bytes) -> bytes:
    """SHA-256 of one record and its place."""
    place = partition.to_bytes(8, "big") + offset.to_bytes(8, "big")
    return hashlib.sha256(
        place + len(key).to_bytes(4, "big") + key + len(value).to_bytes(4, "big") + value
    ).digest()


def chain_next(head: bytes, record: bytes) -> bytes:
    """The head after one more record, from the head before it (GENESIS before the first) and its record_sha256."""
    return hashlib.sha256(head + record).digest()
