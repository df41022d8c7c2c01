"""The books as a Parquet file: a row for each posting, typed columns. A shell around pyarrow.

Amounts are int64 nano units, balances decimal128, since sums pass 2**63. The rows are those of the CSV, in the same
order; free text stands as it is, because no tool takes a typed column for a formula. Fixed row groups and settings: the
same export gives the same bytes with the same pyarrow, whose version is in the file.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from decimal import Decimal
from typing import Any

import pyarrow  # pyright: ignore[reportMissingTypeStubs]
import pyarrow.parquet  # pyright: ignore[reportMissingTypeStubs]

from ledger.exports.hledger import about
from ledger.exports.transactions import TAGS, ExportError, Head, Transaction
from ledger.exports.write import Moved, told

ROW_GROUP_ROWS = 50_000
BALANCE_DIGITS = 38

_arrow: Any = pyarrow  # ships no types
_parquet: Any = pyarrow.parquet
SCHEMA: Any = _arrow.schema(
    [
        _arrow.field("date", _arrow.date32(), nullable=False),
        _arrow.field("time", _arrow.timestamp("ms", tz="UTC"), nullable=False),
        _arrow.field("partition", _arrow.int32(), nullable=False),
        _arrow.field("offset", _arrow.int64(), nullable=False),
        _arrow.field("posting", _arrow.int32(), nullable=False),
        _arrow.field("event", _arrow.string(), nullable=False),
        _arrow.field("account", _arrow.string(), nullable=False),
        _arrow.field("asset", _arrow.string(), nullable=False),
        _arrow.field("amount_nano", _arrow.int64(), nullable=False),
        _arrow.field("balance_nano", _arrow.decimal128(BALANCE_DIGITS, 0), nullable=False),
        _arrow.field("epoch", _arrow.int64()),
        *(_arrow.field(tag, _arrow.string()) for tag in TAGS),
    ]
)
_SETTINGS: dict[str, Any] = {
    "version": "2.6",
    "data_page_version": "1.0",
    "data_page_size": 1024 * 1024,
    "write_batch_size": 1024,
    "compression": "zstd",
    "compression_level": 3,
    "use_dictionary": ["event", "account", "asset", "wallet", "reason", "operator", "approver", "how", "model"],
    "write_statistics": True,
    "store_schema": False,
}


def export_parquet(head: Head, transactions: Iterable[Transaction]) -> Iterator[bytes]:
    """The file, piece by piece; `transactions` are sorted by day. Its metadata say what CSV's cannot: the cut, the
    digest.

    Raises as `ledger.exports.write.told` does, and ExportError for a balance of more than 38 digits.
    """
    sink = _Sink()
    rows = list[tuple[object, ...]]()
    with _parquet.ParquetWriter(sink, SCHEMA, **_SETTINGS) as writer:
        writer.add_key_value_metadata({"shiver": "\n".join(about(head))})
        for one in told(head, transactions, by_epoch=False):
            if isinstance(one, Moved):
                rows += _rows(one)
            if len(rows) >= ROW_GROUP_ROWS:
                _write(writer, rows[:ROW_GROUP_ROWS])
                del rows[:ROW_GROUP_ROWS]
                yield sink.taken()
        if rows:
            _write(writer, rows)
    yield sink.taken()


def _rows(moved: Moved) -> list[tuple[object, ...]]:
    transaction, day, after_nano = moved
    tags = dict(transaction.tags)
    told_tags = [tags.get(tag) for tag in TAGS]
    where = (day, transaction.at_ms, transaction.partition, transaction.offset)
    return [
        (*where, number, transaction.event, p.account, p.asset, p.amount_nano, _balance(after), epoch, *told_tags)
        for number, (p, after) in enumerate(zip(transaction.postings, after_nano, strict=True))
        for epoch in (transaction.epoch or None,)
    ]


def _balance(nano: int) -> Decimal:
    if abs(nano) >= 10**BALANCE_DIGITS:
        raise ExportError(f"a balance has more than {BALANCE_DIGITS} digits")
    return Decimal(nano)


def _write(writer: Any, rows: list[tuple[object, ...]]) -> None:
    arrays = [_arrow.array(column, field.type) for column, field in zip(zip(*rows, strict=True), SCHEMA, strict=True)]
    writer.write_table(_arrow.Table.from_arrays(arrays, schema=SCHEMA), row_group_size=ROW_GROUP_ROWS)


class _Sink(io.RawIOBase):
    """What was written since it was last taken, and how much there was in all: pyarrow asks for its place."""

    def __init__(self) -> None:
        super().__init__()
        self._pieces = list[bytes]()
        self._place = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def write(self, data: Any, /) -> int:
        piece = bytes(data)
        self._pieces.append(piece)
        self._place += len(piece)
        return len(piece)

    def taken(self) -> bytes:
        pieces, self._pieces = self._pieces, []
        return b"".join(pieces)
