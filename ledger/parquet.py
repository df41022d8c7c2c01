"""The form of an archived range: a Parquet file whose bytes depend on its records alone. A shell around pyarrow.

Key and value are what stands in the log; beside them are the columns that are made of them (ledger/columns.py), so that
a replay need not parse. Fixed row groups, pages and compression; no schema of Arrow's, no time, and no version of the
writer in the footer. The same pyarrow gives the same bytes for ever; another one may compress otherwise, and what then
stays the same is the hash chain over the records. Any reader of Parquet reads it: DuckDB, Polars, pandas.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow  # pyright: ignore[reportMissingTypeStubs]
import pyarrow.compute  # pyright: ignore[reportMissingTypeStubs]
import pyarrow.parquet  # pyright: ignore[reportMissingTypeStubs]

from ledger.columns import COLUMNS, NAMES, WORDS, columns_of, columns_of_records
from ledger.reader import Record, event_or_none

ROW_GROUP_RECORDS = 1 << 15
CREATED_BY = b"shiver ledger archive 2"
_TAIL_BYTES = 8  # the footer's length in four, "PAR1" in four

_arrow: Any = pyarrow  # ships no types
_do: Any = pyarrow.compute
_parquet: Any = pyarrow.parquet
_RECORD: list[Any] = [
    _arrow.field("partition", _arrow.int32(), nullable=False),
    _arrow.field("offset", _arrow.int64(), nullable=False),
    _arrow.field("key", _arrow.binary(), nullable=False),
    _arrow.field("value", _arrow.binary(), nullable=False),
]
_SCHEMA: Any = _arrow.schema(_RECORD + list(COLUMNS))
#: As a file says it, where nobody asks for dictionaries.
_PLAIN: Any = _arrow.schema(
    _RECORD + [_arrow.field(f.name, _arrow.string(), f.nullable) if f.name in WORDS else f for f in COLUMNS]
)
_SETTINGS: dict[str, Any] = {
    "version": "2.6",
    "data_page_version": "1.0",
    "data_page_size": 1024 * 1024,
    "write_batch_size": 1024,
    "compression": "zstd",
    "compression_level": 3,
    "use_dictionary": WORDS,
    "write_statistics": ["partition", "offset"],
    "store_schema": False,
}


class ColumnsDiffer(ValueError):
    """A record whose columns are not what its bytes say."""


def encode(records: Sequence[Record]) -> bytes:
    """The file of these records. In memory: a range is 131,072 records of some hundred bytes."""
    sink = io.BytesIO()
    with _parquet.ParquetWriter(sink, _SCHEMA, **_SETTINGS) as writer:
        for at in range(0, len(records), ROW_GROUP_RECORDS):
            some = records[at : at + ROW_GROUP_RECORDS]
            arrays = [_arrow.array(c, field.type) for c, field in zip(zip(*some, strict=True), _RECORD, strict=True)]
            arrays += columns_of_records(some).columns
            writer.write_table(_arrow.Table.from_arrays(arrays, schema=_SCHEMA), row_group_size=ROW_GROUP_RECORDS)
    return _without_version(sink.getvalue())


class ArchivedColumns:
    """A file's columns, and its records where they are asked for. ValueError for what `encode` does not write."""

    def __init__(self, data: bytes) -> None:
        self._file = _opened(data, read_dictionary=WORDS)
        self.count: int = self._file.metadata.num_rows
        self._group: tuple[int, Any] = -1, None

    def columns(self, partition: int, first: int) -> Any:
        """Those of all records. Raises ValueError unless they are of `partition`, from `first` on without a gap."""
        try:
            table = self._file.read(columns=["partition", "offset", *NAMES], use_threads=False)
            batch = table.unify_dictionaries().combine_chunks().to_batches()[0]
        except (_arrow.ArrowException, OSError) as error:
            raise _unreadable(error) from None
        for field in COLUMNS:
            column = batch.column(field.name)
            if column.type != field.type or (column.null_count and not field.nullable):
                raise ValueError(f"its column {field.name} is of another kind")
        offsets, partitions = batch.column("offset"), batch.column("partition")
        steps = _do.subtract(offsets.slice(1), offsets.slice(0, self.count - 1))
        ends = offsets[0].as_py(), offsets[self.count - 1].as_py()
        if (
            ends != (first, first + self.count - 1)
            or _do.any(_do.not_equal(steps, 1)).as_py()
            or not _do.all(_do.equal(partitions, partition)).as_py()
        ):
            raise ValueError("its records are not those of its range")
        return batch.select(NAMES)

    def records(self, rows: Sequence[int]) -> list[Record]:
        """The records in these rows, which rise."""
        found, at, base = list[Record](), 0, 0
        for group in range(self._file.num_row_groups):
            size = self._file.metadata.row_group(group).num_rows
            begin = at
            while at < len(rows) and rows[at] < base + size:
                at += 1
            if at > begin:
                found += self._taken(group, [row - base for row in rows[begin:at]])
            base += size
        return found

    def _taken(self, group: int, rows: list[int]) -> list[Record]:
        if group != self._group[0]:
            try:
                table = self._file.read_row_group(group, columns=[field.name for field in _RECORD], use_threads=False)
            except (_arrow.ArrowException, OSError) as error:
                raise _unreadable(error) from None
            self._group = group, table
        return _records(self._group[1].take(_arrow.array(rows, _arrow.int64())))


def decode(data: bytes, *, check_columns: bool = False) -> Iterator[list[Record]]:
    """The records of a file, by row group.

    Raises ValueError for what `encode` does not write, with `check_columns` also for columns of other records, naming
    the first.
    """
    file = _opened(data)
    names = None if check_columns else [field.name for field in _RECORD]
    for group in range(file.num_row_groups):
        try:
            table = file.read_row_group(group, columns=names, use_threads=False)
        except (_arrow.ArrowException, OSError) as error:
            raise _unreadable(error) from None
        records = _records(table)
        if check_columns:
            _check_columns(records, table)
        yield records


def _check_columns(records: list[Record], table: Any) -> None:
    # The slow way, so that what wrote them is checked too.
    made = _arrow.Table.from_batches([columns_of([event_or_none(record) for record in records])])
    for name in NAMES:
        found, wanted = table.column(name).combine_chunks(), made.column(name).combine_chunks()
        wanted = wanted.dictionary_decode() if name in WORDS else wanted
        if found.equals(wanted):
            continue
        for record, is_there, is_said in zip(records, found.to_pylist(), wanted.to_pylist(), strict=True):
            if is_there != is_said:
                raise ColumnsDiffer(
                    f"partition {record.partition} offset {record.offset}: its column {name} is not what its bytes say"
                )


def _records(table: Any) -> list[Record]:
    columns = [table.column(field.name).to_pylist() for field in _RECORD]
    return [Record(*fields) for fields in zip(*columns, strict=True)]


def _opened(data: bytes, **options: Any) -> Any:
    try:
        file = _parquet.ParquetFile(_arrow.BufferReader(data), **options)
        if not options and not file.schema_arrow.equals(_PLAIN):
            raise ValueError("its columns are others than those of an archive")
    except (_arrow.ArrowException, OSError) as error:
        raise _unreadable(error) from None
    return file


def _unreadable(error: BaseException) -> ValueError:
    return ValueError(f"it is no Parquet that can be read ({type(error).__name__})")


def _without_version(data: bytes) -> bytes:
    """The footer names the version of pyarrow; we put a constant there. Its length stands before it (Thrift)."""
    length = int.from_bytes(data[-_TAIL_BYTES:-4], "little")
    body, footer = data[: -_TAIL_BYTES - length], data[-_TAIL_BYTES - length : -_TAIL_BYTES]
    named: bytes = _parquet.read_metadata(_arrow.BufferReader(data)).created_by.encode()
    there = bytes([len(named)]) + named
    if footer.count(there) != 1:
        raise RuntimeError("this pyarrow writes its version in another way than the one that the archive removes")
    footer = footer.replace(there, bytes([len(CREATED_BY)]) + CREATED_BY)
    return b"".join((body, footer, len(footer).to_bytes(4, "little"), data[-4:]))
