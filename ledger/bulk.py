"""Replays over columns: an archive in threads, a long log of Kafka's in processes (ledger/kafka_fold.py).

Of the log every record is checked as ever. Of an archive, the SHA-256 of each file against the manifest, that it has
the records of its range, and the invariants of the books are; not, other than by `shrk ledger verify`, each record's
key and hash chain (the heads are the manifest's), and that the columns are what the bytes say.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack
from functools import partial
from threading import Lock

from ledger.archive import Archive
from ledger.digest import record_sha256
from ledger.kafka_fold import Part, fold_log
from ledger.manifest import ArchivedFile
from ledger.parquet import ArchivedColumns
from ledger.reader import event_of
from ledger.replay import Replay
from ledger.vector.fold import Fold
from schemas.events import Event


def fold_archive(replay: Replay, archive: Archive, on_batch: Callable[[int], None]) -> None:
    """Takes all that `archive` has into `replay`, which must have read nothing.

    Arrow lets go of the interpreter's lock, so that threads use the cores. Raises ArchiveUnavailable, and LedgerCorrupt
    at the first event that cannot be read, for one partition.
    """
    lock = Lock()

    def told(count: int) -> None:
        with lock:
            on_batch(count)

    with ExitStack() as stack:
        pool = ThreadPoolExecutor(max_workers=min(len(replay.books), os.cpu_count() or 1), thread_name_prefix="fold")
        # What is not begun when one fails never begins.
        stack.callback(pool.shutdown, cancel_futures=True)
        work = [
            pool.submit(_fold_partition, archive, replay.fold(partition), files, told)
            for partition, files in archive.manifest.files.items()
            if files
        ]
        done, _ = wait(work, return_when=FIRST_EXCEPTION)
        # The first by partition, so that it does not depend on who was faster, as far as they got.
        folded = [future.result() for future in work if future in done]
    for fold, last, last_sha256 in folded:
        replay.took(fold, bytes.fromhex(last.chain), last_sha256)
        replay.unchecked += last.next


async def fold_kafka(replay: Replay, bootstrap: str, ends: Mapping[int, int], on_batch: Callable[[int], None]) -> None:
    """Takes what Kafka has from where `replay` is to `ends`. Raises LedgerUnavailable, LedgerCorrupt."""
    places = replay.places()
    parts = [
        Part(replay.fold(partition), replay.chains[partition], replay.last_sha256[partition], end)
        for partition, end in ends.items()
        if places[partition] < end
    ]
    folded = await fold_log(bootstrap, len(replay.books), parts, on_batch, replay.errata)
    for part in sorted(folded, key=lambda part: part.fold.books.partition):
        replay.took(part.fold, part.chain, part.last_sha256)


def _fold_partition(
    archive: Archive, fold: Fold, files: Sequence[ArchivedFile], told: Callable[[int], None]
) -> tuple[Fold, ArchivedFile, bytes]:
    last_sha256 = b""
    for file in files:
        found = archive.columns(file)
        with archive.altered(file):
            columns = found.columns(file.partition, file.first)
        fold.feed(columns, partial(_events, archive, file, found))
        if file is files[-1]:
            with archive.altered(file):
                last_sha256 = record_sha256(*found.records([found.count - 1])[0])
        told(found.count)
    return fold, files[-1], last_sha256


def _events(archive: Archive, file: ArchivedFile, found: ArchivedColumns, rows: Sequence[int]) -> list[Event]:
    with archive.altered(file):
        records = found.records(rows)
    return [event_of(record, archive.errata) for record in records]
