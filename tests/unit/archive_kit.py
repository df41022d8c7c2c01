"""Archives without Kafka."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from hostile_log import hostile_log

from ledger.digest import chain_link
from ledger.manifest import ArchivedFile, Manifest, file_name
from ledger.parquet import encode
from ledger.reader import Record
from schemas.events import dump
from schemas.topics import partition_of

PARTITIONS = 3


def hostile_records(seed: int, count: int, calm: float = 0.7) -> list[list[Record]]:
    """A hostile log as it would stand in Kafka, by partition."""
    logs: list[list[Record]] = [[] for _ in range(PARTITIONS)]
    for event in hostile_log(seed, count, calm):
        key = event.key.encode()
        partition = partition_of(key, PARTITIONS)
        logs[partition].append(Record(partition, len(logs[partition]), key, dump(event)))
    return logs


def make_archive(
    folder: Path,
    logs: Sequence[Sequence[Record]],
    range_records: int,
    encoded: Callable[[Sequence[Record]], bytes] = encode,
) -> None:
    """What `shrk ledger archive --tail` writes of these logs."""
    manifest = Manifest(len(logs), range_records)
    for partition, records in enumerate(logs):
        head = b""
        (folder / f"partition-{partition:05d}").mkdir(parents=True)
        for at in range(0, len(records), range_records):
            some = records[at : at + range_records]
            for record in some:
                head = chain_link(head, *record)
            data, name = encoded(some), file_name(partition, at, at + len(some))
            (folder / name).write_bytes(data)
            sha256 = hashlib.sha256(data).hexdigest()
            manifest.add(ArchivedFile(partition, at, at + len(some), name, len(data), sha256, head.hex()))
    (folder / "manifest.json").write_bytes(manifest.dump())
