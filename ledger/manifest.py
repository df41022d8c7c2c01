"""What an archive of the log says of itself: its files, their hashes, and the head of the hash chain at each one's end.

Canonical bytes: sorted JSON with its own SHA-256 in it, so that the same files give the same bytes and a changed byte
shows. Who changes a file and its manifest together is found by the chain, against derived.offsets or Kafka.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

from schemas.facts import PARTITIONS_MAX
from schemas.topics import LEDGER

FORMAT = "shiver ledger archive 2"
_FORMAT_1 = "shiver ledger archive 1"
#: Records of a closed range. Every archive of the same log with the same number has the same files. A power of two, so
#: that a range is a perfect subtree of its partition's Merkle tree (ledger/merkle.py).
RANGE_RECORDS = 1 << 17
_HEX = frozenset("0123456789abcdef")


class ArchivedFile(NamedTuple):
    """One range of one partition: the records from `first` up to, not with, `next`."""

    partition: int
    first: int
    next: int
    file: str
    size_bytes: int
    sha256: str
    chain: str  # head of the partition's hash chain behind its last record, hexadecimal


def file_name(partition: int, first: int, following: int) -> str:
    """Where a range lies in an archive."""
    return f"partition-{partition:05d}/{first:020d}-{following:020d}.parquet"


class Manifest:
    """The files of an archive, per partition in order and without a hole. Only a partition's last may be a tail."""

    def __init__(self, partitions: int, range_records: int) -> None:
        """Raises ValueError where `range_records` is no power of two, or no log has so many partitions."""
        if type(partitions) is not int or not 1 <= partitions <= PARTITIONS_MAX:
            raise ValueError(f"an archive has 1 to {PARTITIONS_MAX} partitions")
        if type(range_records) is not int or range_records.bit_count() != 1:
            raise ValueError(f"a range of {range_records} records is no power of two")
        self.partitions = partitions
        self.range_records = range_records
        self.files: dict[int, list[ArchivedFile]] = {partition: [] for partition in range(partitions)}

    def last(self, partition: int) -> ArchivedFile | None:
        """The file that ends a partition; None where nothing of it is archived."""
        files = self.files[partition]
        return files[-1] if files else None

    def end(self, partition: int) -> int:
        """The next offset behind what is archived."""
        last = self.last(partition)
        return 0 if last is None else last.next

    def is_closed(self, file: ArchivedFile) -> bool:
        """Whether it is a whole range; else it is a tail, which a later run replaces."""
        return file.next - file.first == self.range_records

    def add(self, file: ArchivedFile) -> ArchivedFile | None:
        """Appends a range, in the place of the tail that begins where it does, which is returned.

        Raises ValueError where it does not follow what is there.
        """
        if not _is_sound(file):
            raise ValueError("a file's numbers or hashes are none")
        files = self.files[file.partition]
        replaced = None
        if files and not self.is_closed(files[-1]) and files[-1].first == file.first:
            replaced = files.pop()
        follows = file.first == (files[-1].next if files else 0) and file.first % self.range_records == 0
        if not follows or not 0 < file.next - file.first <= self.range_records:
            raise ValueError(f"{file.file} does not follow what is archived of partition {file.partition}")
        if file.file != file_name(file.partition, file.first, file.next):
            raise ValueError(f"{file.file} is not the name of partition {file.partition}'s range from {file.first}")
        files.append(file)
        return replaced

    def dump(self) -> bytes:
        """The canonical bytes."""
        body: dict[str, Any] = {
            "files": [file._asdict() for files in self.files.values() for file in files],
            "format": FORMAT,
            "partitions": self.partitions,
            "range_records": self.range_records,
            "topic": LEDGER,
        }
        return _signed(body)


def _is_sound(file: ArchivedFile) -> bool:
    numbers = (file.partition, file.first, file.next, file.size_bytes)
    hashes = (file.sha256, file.chain)
    return all(type(number) is int and number >= 0 for number in numbers) and all(
        type(text) is str and len(text) == 64 and _HEX.issuperset(text) for text in hashes
    )


def load(data: bytes) -> Manifest:
    """The manifest in these bytes. Raises ValueError for any others than `dump` writes, in words for a person."""
    try:
        body: object = json.loads(data)
    except ValueError:
        raise ValueError("it is no JSON") from None
    if not isinstance(body, dict):
        raise ValueError("it is no object")
    fields = cast("dict[str, Any]", body)
    if fields.get("format") == _FORMAT_1:
        raise ValueError("it is of format 1, whose files lack the columns: archive the log again, to a new folder")
    if fields.get("format") != FORMAT:
        raise ValueError(f"its format is not {FORMAT!r}")
    unsigned = {name: value for name, value in fields.items() if name != "sha256"}
    same = _signed(unsigned) == data
    if same:
        try:
            manifest = Manifest(fields["partitions"], fields["range_records"])
            for row in fields["files"]:
                manifest.add(ArchivedFile(**row))
            if manifest.dump() == data:
                return manifest
        except (KeyError, TypeError, AttributeError, ArithmeticError):
            pass
    raise ValueError("it was altered: its content is not what its own hash and its order say")


def _signed(body: Mapping[str, Any]) -> bytes:
    return _text({**body, "sha256": hashlib.sha256(_text(body)).hexdigest()})


def _text(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, sort_keys=True, indent=1).encode() + b"\n"
