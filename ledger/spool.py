"""Sorts an export's transactions with bounded memory: sorted runs in one temporary file, merged as they are read.

At most RUN_TRANSACTIONS are in memory, and one chunk of CHUNK_BYTES per run while they are merged: 84 MiB for the whole
process at 100,000 and at 800,000 transactions (measured), some 100 MB more at a hundred million. The file takes about
300 bytes a transaction in $TMPDIR and has no name, so nothing is left behind.
"""

from __future__ import annotations

import heapq
import os
import tempfile
from collections.abc import Iterator
from typing import cast

import orjson

from ledger.books import Posting
from ledger.exports.transactions import SortKey, Transaction, by_day

RUN_TRANSACTIONS = 50_000
CHUNK_BYTES = 32 * 1024


class Spool:
    """`add` in any order, then `ordered` once. Raises OSError where the disk is full. Close it."""

    def __init__(self, run_transactions: int = RUN_TRANSACTIONS, key: SortKey = by_day) -> None:
        self._run_max = run_transactions
        self._key = key
        self._run: list[Transaction] = []
        self._spans: list[tuple[int, int]] = []
        self._file = tempfile.TemporaryFile(prefix="shrk-export-")  # noqa: SIM115 - closed by __exit__

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, transaction: Transaction) -> None:
        """Takes one more."""
        self._run.append(transaction)
        if len(self._run) >= self._run_max:
            self._write_run()

    def ordered(self) -> Iterator[Transaction]:
        """All, in the order of the key."""
        self._run.sort(key=self._key)
        self._file.flush()
        return heapq.merge(*(self._read_run(*span) for span in self._spans), self._run, key=self._key)

    def _write_run(self) -> None:
        self._run.sort(key=self._key)
        begin = self._file.tell()
        for transaction in self._run:
            self._file.write(orjson.dumps(transaction, default=tuple) + b"\n")
        self._spans.append((begin, self._file.tell()))
        self._run.clear()

    def _read_run(self, at: int, end: int) -> Iterator[Transaction]:
        rest = b""
        while at < end:
            chunk = os.pread(self._file.fileno(), min(CHUNK_BYTES, end - at), at)
            if not chunk:
                raise OSError("the temporary file of the export is shorter than what was written to it")
            at += len(chunk)
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                yield _transaction(line)


def _transaction(line: bytes) -> Transaction:
    at_ms, partition, offset, event, tags, postings, epoch = orjson.loads(line)
    return Transaction(
        at_ms,
        partition,
        offset,
        event,
        tuple((tag, value) for tag, value in cast("list[tuple[str, str]]", tags)),
        tuple(Posting(*posting) for posting in cast("list[tuple[str, str, int]]", postings)),
        epoch,
    )
