"""Replays an archive over its columns, one thread a partition at a time: what `shrk ledger replay --archive` does.

Checked on the way: the SHA-256 of each file against the manifest, that it has the records of its range, and the
invariants of the books. Not checked, other than by `shrk ledger verify`: each record's key and hash chain (the heads
are the manifest's), and that the columns are what the bytes say.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack
from functools import partial
from threading import Lock

from ledger.archive import Archive
from ledger.books import Books
from ledger.digest import record_sha256
from ledger.manifest import ArchivedFile
from ledger.parquet import ArchivedColumns
from ledger.reader import event_of
from ledger.replay import Folded, Replay
from ledger.vector.fold import Fold
from schemas.events import Event


def fold_archive(replay: Replay, archive: Archive, on_batch: Callable[[int], None]) -> None:
    """Takes all that `archive` has into `replay`, which has read nothing.

    Arrow lets go of the interpreter's lock, so that threads use the cores. Raises ArchiveUnavailable, and LedgerCorrupt
    at the first event that cannot be read, for one partition.
    """
    started = [books for books in replay.books if books.next_offset]
    if started:
        raise ValueError(f"partition {started[0].partition} was begun")
    lock = Lock()

    def told(count: int) -> None:
        with lock:
            on_batch(count)

    with ExitStack() as stack:
        pool = ThreadPoolExecutor(max_workers=min(len(replay.books), os.cpu_count() or 1), thread_name_prefix="fold")
        # What is not begun when one fails never begins.
        stack.callback(pool.shutdown, cancel_futures=True)
        work = [
            pool.submit(_fold_partition, archive, replay.books[partition], files, told)
            for partition, files in archive.manifest.files.items()
            if files
        ]
        done, _ = wait(work, return_when=FIRST_EXCEPTION)
        # The first by partition, so that it does not depend on who was faster, as far as they got.
        folded = [future.result() for future in work if future in done]
    for one in folded:
        replay.took(one)


def _fold_partition(
    archive: Archive, books: Books, files: Sequence[ArchivedFile], told: Callable[[int], None]
) -> Folded:
    fold = Fold(books)
    for file in files:
        found = archive.columns(file)
        with archive.altered(file):
            columns = found.columns(file.partition, file.first)
        fold.feed(columns, partial(_events, archive, file, found))
        told(found.count)
    last = files[-1]
    record = archive.last_record(last)
    return Folded(
        books.partition, bytes.fromhex(last.chain), record_sha256(*record), fold.outcomes, fold.events, fold.broken,
        fold.unpack,
    )  # fmt: skip


def _events(archive: Archive, file: ArchivedFile, found: ArchivedColumns, rows: Sequence[int]) -> list[Event]:
    with archive.altered(file):
        records = found.records(rows)
    return [event_of(record, archive.errata) for record in records]
