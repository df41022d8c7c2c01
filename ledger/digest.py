"""Fingerprints: of the books at a cut of the log, and of the log's own bytes.

Every field is written with its length before it, so that no two different inputs give the same bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from ledger.books import OPEN, Books, Request


def chain_link(head: bytes, partition: int, offset: int, key: bytes, value: bytes) -> bytes:
    """The head of a partition's hash chain after one more record. The chain begins with b""."""
    return hashlib.sha256(
        b"%d:%b%d:%d:%d:%b%d:%b" % (len(head), head, partition, offset, len(key), key, len(value), value)
    ).digest()


def record_sha256(partition: int, offset: int, key: bytes, value: bytes) -> bytes:
    """The hash of one record and its place."""
    return chain_link(b"", partition, offset, key, value)


def digest(all_books: Iterable[Books]) -> str:
    """The books at the offsets that they have reached, as hexadecimal SHA-256.

    The same for any batching, interleaving of partitions, number of processes, hash seed and locale. Ended requests
    are in it through the accounts that they moved; whether they are still remembered makes no difference.
    """
    fingerprint = Fingerprint()
    for books in sorted(all_books, key=lambda b: b.partition):
        fingerprint.partition(books.partition, books.next_offset, books.max_event_ms, books.rejected)
        for (account, asset), row in sorted(books.accounts.items()):
            fingerprint.account(account, asset, row.balance_nano, row.entries)
        for request_id, request in sorted(books.requests.items()):
            if request.status == OPEN:
                fingerprint.open_request(request_id, request)
    return fingerprint.hexdigest()


class Fingerprint:
    """`digest`, told piece by piece: partitions in order, each followed by its accounts, then its open requests.

    Accounts come in the order of (account, asset), requests in that of their ids, both by code point.
    """

    def __init__(self) -> None:
        self._hasher = hashlib.sha256(b"shiver books 1\n")

    def partition(self, partition: int, next_offset: int, max_event_ms: int, rejected: int) -> None:
        """Begins the books of the next partition."""
        self._hasher.update(_line("partition", partition, next_offset, max_event_ms, rejected))

    def account(self, account: str, asset: str, balance_nano: int, entries: int) -> None:
        """The next account of the partition."""
        self._hasher.update(_line("account", account, asset, balance_nano, entries))

    def open_request(self, request_id: str, request: Request) -> None:
        """The next open request of the partition."""
        self._hasher.update(_line("open", request_id, *_fields(request)))

    def hexdigest(self) -> str:
        """The digest of all that was told."""
        return self._hasher.hexdigest()


def _fields(request: Request) -> list[object]:
    prices = [field for p in request.prices for field in (p.model, p.in_nano, p.out_nano, p.image_factor)]
    return [*request[:8], len(request.prices), *prices, *request[9:]]


def _line(*fields: object) -> bytes:
    # None is not the text "None", and 1 is not the text "1".
    encoded = [
        b"-" if field is None else type(field).__name__.encode() + b":" + str(field).encode() for field in fields
    ]
    return b"".join(b"%d=%b" % (len(field), field) for field in encoded) + b"\n"
