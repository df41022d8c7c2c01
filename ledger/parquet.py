"""The form of an archived range: a Parquet file whose bytes depend on its records alone. A shell around pyarrow.

Fixed row groups, pages and compression; no schema of Arrow's, no time, and no version of the writer in the footer. The
same pyarrow gives the same bytes for ever; another one may compress otherwise, and what then stays the same is the hash
chain over the records. Any reader of Parquet reads it: DuckDB, Polars, pandas.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow  # pyright: ignore[reportMissingTypeStubs]
import pyarrow.parquet  # pyright: ignore[reportMissingTypeStubs]

from ledger.reader import Record

ROW_GROUP_RECORDS = 10_000
_CREATED_BY = b"shiver ledger archive 1"
_TAIL_BYTES = 8  # the footer's length in four, "PAR1" in four

_arrow: Any = pyarrow  # ships no types
_parquet: Any = pyarrow.parquet
_SCHEMA: Any = _arrow.schema(
    [
        _arrow.field("partition", _arrow.int32(), nullable=False),
        _arrow.field("offset", _arrow.int64(), nullable=False),
        _arrow.field("key", _arrow.binary(), nullable=False),
        _arrow.field("value", _arrow.binary(), nullable=False),
    ]
)
_SETTINGS: dict[str, Any] = {
    "version": "2.6",
    "data_page_version": "1.0",
    "data_page_size": 1024 * 1024,
    "write_batch_size": 1024,
    "compression": "zstd",
    "compression_level": 3,
    "use_dictionary": False,
    "write_statistics": ["partition", "offset"],
    "store_schema": False,
}


def encode(records: Sequence[Record]) -> bytes:
    """The file of these records. In memory: a range is 100,000 records of some hundred bytes."""
    sink = io.BytesIO()
    with _parquet.ParquetWriter(sink, _SCHEMA, **_SETTINGS) as writer:
        for at in range(0, len(records), ROW_GROUP_RECORDS):
            columns = zip(*records[at : at + ROW_GROUP_RECORDS], strict=True)
            arrays = [_arrow.array(column, field.type) for column, field in zip(columns, _SCHEMA, strict=True)]
            writer.write_table(_arrow.Table.from_arrays(arrays, schema=_SCHEMA), row_group_size=ROW_GROUP_RECORDS)
    return _without_version(sink.getvalue())


def decode(data: bytes) -> Iterator[list[Record]]:
    """The records of a file, by row group. Raises ValueError for what `encode` does not write."""
    try:
        file = _parquet.ParquetFile(_arrow.BufferReader(data))
        if not file.schema_arrow.equals(_SCHEMA):
            raise ValueError("its columns are not partition, offset, key, value")
        for group in range(file.num_row_groups):
            columns = file.read_row_group(group, use_threads=False).to_pydict()
            yield [
                Record(*fields)
                for fields in zip(
                    columns["partition"], columns["offset"], columns["key"], columns["value"], strict=True
                )
            ]
    except (_arrow.ArrowException, OSError) as error:
        raise ValueError(f"it is no Parquet that can be read ({type(error).__name__})") from None


def _without_version(data: bytes) -> bytes:
    """The footer names the version of pyarrow; we put a constant there. Its length stands before it (Thrift)."""
    length = int.from_bytes(data[-_TAIL_BYTES:-4], "little")
    body, footer = data[: -_TAIL_BYTES - length], data[-_TAIL_BYTES - length : -_TAIL_BYTES]
    named: bytes = _parquet.read_metadata(_arrow.BufferReader(data)).created_by.encode()
    there = bytes([len(named)]) + named
    if footer.count(there) != 1:
        raise RuntimeError("this pyarrow writes its version in another way than the one that the archive removes")
    footer = footer.replace(there, bytes([len(_CREATED_BY)]) + _CREATED_BY)
    return b"".join((body, footer, len(footer).to_bytes(4, "little"), data[-4:]))
