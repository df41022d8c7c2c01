"""The archive of the log: closed ranges of each partition as Parquet files, and a manifest of their hashes.

`write_archive` adds what is new; `Archive` reads. Offsets alone say what a file holds, so everybody who archives the
same log gets the same files, however often and in how many runs. A file is written whole or not at all, and the
manifest after it, so a kill costs the range that was being written and nothing else. Errors:

    LedgerError
      ArchiveUnavailable            it cannot be read or written here, or another process writes it
      LedgerCorrupt
        ArchiveCorrupt              a file or the manifest is missing or altered; names it
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from ledger.digest import chain_link
from ledger.errata import NO_ERRATA, Errata
from ledger.log import LedgerCorrupt, LedgerError
from ledger.manifest import ArchivedFile, Manifest, file_name, load
from ledger.parquet import ArchivedColumns, ColumnsDiffer, decode, encode
from ledger.reader import LedgerReader, Record, check_place
from schemas.errata import ErrataError, Erratum, dump_file, load_file
from schemas.settings import Settings
from schemas.topics import LEDGER

MANIFEST = "manifest.json"
ERRATA = "errata.json"
_LOCK = ".lock"
_PARTIAL = ".partial"


class ArchiveUnavailable(LedgerError):
    """The folder cannot be used now. Nothing is known to be wrong with what is in it."""


class ArchiveCorrupt(LedgerCorrupt):
    """The archive is not what was written."""


class Written(NamedTuple):
    """What a run did."""

    files: int
    records: int
    ends: dict[int, int]


class Archive:
    """An archive that is there: its manifest is whole, and every file has its size. Hashes are checked on reading.

    With `check_columns`, `read` also checks that the columns of a file are what its records say.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self.check_columns = False
        self.errata: Errata = NO_ERRATA
        self.carried: tuple[Erratum, ...] = ()  # those beside the manifest, whether they count or not

    @classmethod
    def open(cls, folder: Path, partitions: int | None = None) -> Archive:
        """`partitions` None takes the archive's own number.

        Raises ArchiveCorrupt, or ArchiveUnavailable where there is none or it has another number.
        """
        manifest = _manifest(folder)
        if manifest is None:
            raise ArchiveUnavailable(f"there is no archive in {folder}: it has no {MANIFEST}")
        if partitions is not None and manifest.partitions != partitions:
            raise ArchiveUnavailable(
                f"the archive in {folder} has {manifest.partitions} partitions where {partitions} are configured"
            )
        for files in manifest.files.values():
            for file in files:
                with _unavailable(folder, "read"):
                    path = folder / file.file
                    if not path.is_file():
                        raise ArchiveCorrupt(f"{_where(folder, file)} is missing")
                    if path.stat().st_size != file.size_bytes:
                        raise ArchiveCorrupt(f"{_where(folder, file)} was altered: its size is another")
        found = cls(folder, manifest)
        found.carried = _carried(folder)
        return found

    def ends(self) -> dict[int, int]:
        """The next offset behind what is archived, per partition."""
        return {partition: self.manifest.end(partition) for partition in self.manifest.files}

    def strays(self) -> list[Path]:
        """Files that the manifest does not name: a killed run left them, or the manifest is older than they are."""
        named = {file.file for files in self.manifest.files.values() for file in files}
        with _unavailable(self.folder, "read"):
            found = sorted(self.folder.glob("partition-*/*.parquet"))
        return [path for path in found if str(path.relative_to(self.folder)) not in named]

    def read(self, starts: Mapping[int, int], ends: Mapping[int, int]) -> Iterator[tuple[ArchivedFile, list[Record]]]:
        """Records from `starts` up to, not with, `ends`, one partition after the other; a list is of one file.

        Raises ArchiveCorrupt and ArchiveUnavailable, naming the file, before it gives any record of that file.
        """
        for partition, files in self.manifest.files.items():
            start, end = starts.get(partition, 0), ends.get(partition, 0)
            for file in files:
                if file.next <= start or file.first >= end:
                    continue
                for records in self._records(file):
                    first = records[0].offset
                    wanted = records[max(start - first, 0) : max(end - first, 0)]
                    if wanted:
                        yield file, wanted

    def last_record(self, file: ArchivedFile) -> Record:
        """The one that ends `file`. Raises as `read` does."""
        with self.altered(file):
            return self.columns(file).records([file.next - file.first - 1])[0]

    def columns(self, file: ArchivedFile) -> ArchivedColumns:
        """The columns of a file, its SHA-256 checked. Raises as `read` does."""
        with self.altered(file):
            found = ArchivedColumns(self._data(file))
            if found.count != file.next - file.first:
                raise ValueError(f"it has {found.count} records")
            return found

    def check_chain(self, file: ArchivedFile, head: bytes) -> None:
        """`head` is the chain behind the last record of `file`, made from the records. Raises ArchiveCorrupt."""
        if head.hex() != file.chain:
            raise ArchiveCorrupt(
                f"{_where(self.folder, file)}: the hash chain over its records and those before is not what the "
                "manifest says: they were altered together"
            )

    def _records(self, file: ArchivedFile) -> Iterator[list[Record]]:
        data, expected = self._data(file), file.first
        with self.altered(file):
            for records in decode(data, check_columns=self.check_columns):
                for record in records:
                    if (record.partition, record.offset) != (file.partition, expected):
                        raise ValueError(f"it has {record.partition}/{record.offset} where {expected} follows")
                    check_place(record, self.manifest.partitions, self.errata)
                    expected += 1
                yield records
            if expected != file.next:
                raise ValueError(f"it ends at {expected}")

    def _data(self, file: ArchivedFile) -> bytes:
        with _unavailable(self.folder, "read"):
            try:
                data = (self.folder / file.file).read_bytes()
            except FileNotFoundError:
                raise ArchiveCorrupt(f"{_where(self.folder, file)} is missing") from None
        if hashlib.sha256(data).hexdigest() != file.sha256:
            raise ArchiveCorrupt(f"{_where(self.folder, file)} was altered: its SHA-256 is not the manifest's")
        return data

    @contextlib.contextmanager
    def altered(self, file: ArchivedFile) -> Generator[None, None, None]:
        try:
            yield
        except ColumnsDiffer as error:
            raise ArchiveCorrupt(f"{_where(self.folder, file)}: {error}") from None
        except (ValueError, LedgerCorrupt) as error:
            if isinstance(error, ArchiveCorrupt):
                raise
            raise ArchiveCorrupt(f"{_where(self.folder, file)} was altered: {error}") from None


async def write_archive(
    settings: Settings,
    folder: Path,
    *,
    range_records: int,
    tail: bool,
    on_start: Callable[[int], None],
    on_file: Callable[[int], None],
    errata: Errata = NO_ERRATA,
) -> Written:
    """Archives what the log has and `folder` has not: whole ranges, with `tail` also the begun one.

    A tail is replaced by a later run. `on_start` is told how many records there are to write, `on_file` how many more
    were. Raises LedgerUnavailable, ArchiveUnavailable, and LedgerCorrupt where the log is not the one archived.
    """
    with _locked(folder):
        manifest = _manifest(folder)
        if manifest is None:
            manifest = Manifest(settings.ledger_partitions, range_records)
            _save(folder, MANIFEST, manifest.dump())
        elif manifest.range_records != range_records:
            raise ArchiveUnavailable(
                f"the archive in {folder} has ranges of {manifest.range_records} records, not of {range_records}"
            )
        archive = Archive.open(folder, settings.ledger_partitions)
        archive.errata = errata
        async with LedgerReader(
            settings.kafka, settings.ledger_partitions, client_id="shiver-archive", errata=errata
        ) as reader:
            ends = await reader.ends()
            await _same_log(archive, reader, ends)
            plan = {p: _plan(manifest, p, end, tail) for p, end in ends.items()}
            on_start(sum(end - start for start, end in plan.values()))
            written = Written(0, 0, {})
            for partition, (start, end) in sorted(plan.items()):
                pending = list[Record]()
                async for records in reader.read({partition: start}, {partition: end}):
                    pending += records
                    while len(pending) >= range_records or (pending and pending[-1].offset == end - 1):
                        count = _add(archive, pending[:range_records])
                        del pending[:range_records]
                        on_file(count)
                        written = Written(written.files + 1, written.records + count, {})
        carried = dump_file([*archive.carried, *errata.before(archive.ends())])
        if carried != dump_file(archive.carried):
            _save(folder, ERRATA, carried)
    return written._replace(ends=archive.ends())


def _plan(manifest: Manifest, partition: int, end: int, tail: bool) -> tuple[int, int]:
    """From where to where to write: a tail is written again from its first record, if there is more of it now."""
    last = manifest.last(partition)
    start = 0
    if last is not None:
        start = last.next if manifest.is_closed(last) else last.first
    whole = end - end % manifest.range_records
    stop = end if tail else max(whole, start)
    return (start, stop) if stop > manifest.end(partition) else (start, start)


def _add(archive: Archive, records: list[Record]) -> int:
    """Writes one file, then the manifest that names it, then removes the tail that it replaces."""
    manifest, folder = archive.manifest, archive.folder
    partition, first, following = records[0].partition, records[0].offset, records[-1].offset + 1
    before = [file for file in manifest.files[partition] if file.next == first]
    head = bytes.fromhex(before[0].chain) if before else b""
    old = manifest.last(partition)
    for record in records:
        head = chain_link(head, *record)
        if old is not None and old.next == record.offset + 1 and old.first == first:
            archive.check_chain(old, head)
    data = encode(records)
    name = file_name(partition, first, following)
    _save(folder, name, data)
    replaced = manifest.add(
        ArchivedFile(partition, first, following, name, len(data), hashlib.sha256(data).hexdigest(), head.hex())
    )
    _save(folder, MANIFEST, manifest.dump())
    if replaced is not None:
        with _unavailable(folder, "written"):
            (folder / replaced.file).unlink(missing_ok=True)
    return len(records)


async def _same_log(archive: Archive, reader: LedgerReader, ends: Mapping[int, int]) -> None:
    """The last record that is archived of each partition is in the log too, byte for byte. Raises LedgerCorrupt."""
    begins = await reader.beginnings()
    for partition, end in archive.ends().items():
        last = archive.manifest.last(partition)
        if begins[partition] > end:
            raise LedgerCorrupt(
                f"{LEDGER} partition {partition} begins at {begins[partition]}, the archive ends at {end}: records "
                "between were deleted"
            )
        if last is None:
            continue
        if ends[partition] < end:
            raise LedgerCorrupt(f"{LEDGER} partition {partition} ends at {ends[partition]}, {last.file} at {end}")
        if begins[partition] == end:
            continue  # the log has kept nothing of what is archived
        archived = archive.last_record(last)
        async for records in reader.read({partition: end - 1}, {partition: end}):
            if records[-1] != archived:
                raise LedgerCorrupt(
                    f"{LEDGER} partition {partition} offset {end - 1} is not the record in {last.file}: the log was "
                    "made anew or changed"
                )


def _manifest(folder: Path) -> Manifest | None:
    with _unavailable(folder, "read"):
        try:
            data = (folder / MANIFEST).read_bytes()
        except FileNotFoundError:
            if any(folder.glob("partition-*/*.parquet")):
                raise ArchiveCorrupt(f"{folder / MANIFEST} is missing, but its files are there") from None
            return None
    try:
        return load(data)
    except ValueError as error:
        raise ArchiveCorrupt(f"{folder / MANIFEST}: {error}") from None


def _carried(folder: Path) -> tuple[Erratum, ...]:
    with _unavailable(folder, "read"):
        try:
            return load_file((folder / ERRATA).read_bytes())
        except FileNotFoundError:
            return ()
        except ErrataError as error:
            raise ArchiveCorrupt(f"{folder / ERRATA}: {error}") from None


@contextlib.contextmanager
def _locked(folder: Path) -> Generator[None, None, None]:
    """Makes the folder; one writer at a time, until it ends, however it ends. Removes what a kill left half written."""
    with contextlib.ExitStack() as stack:
        with _unavailable(folder, "written"):
            folder.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context((folder / _LOCK).open("w"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ArchiveUnavailable(f"another process archives to {folder}") from None
            for left in (*folder.glob(f"*{_PARTIAL}"), *folder.glob(f"partition-*/*{_PARTIAL}")):
                left.unlink()
        yield


def _save(folder: Path, name: str, data: bytes) -> None:
    """Whole or not at all, and on the disk when this returns."""
    path = folder / name
    partial = path.with_name(path.name + _PARTIAL)
    with _unavailable(folder, "written"):
        path.parent.mkdir(exist_ok=True)
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        for place in {path.parent, folder}:
            handle = os.open(place, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


@contextlib.contextmanager
def _unavailable(folder: Path, verb: str) -> Generator[None, None, None]:
    try:
        yield
    except OSError as error:
        raise ArchiveUnavailable(f"the archive in {folder} cannot be {verb}: {error.strerror or error}") from error


def _where(folder: Path, file: ArchivedFile) -> str:
    return f"{folder / file.file} (partition {file.partition}, offsets {file.first} to {file.next - 1})"
