"""What the fold needs of each event, as typed Arrow columns. A shell around pyarrow; made from `parse(value)` alone.

The archive keeps them beside the bytes, so that a replay need not parse. They are no truth: key and value are, and
`shrk ledger verify --archive` compares the two. Null where an event has no such field.

type                            of the event; null, as everything but at_ms, where the record is no event of its key
wallet                          null for the facts that concern none
at_ms                           0 where it is no event
request_hi, request_lo          the 128 bits of the request's id
epoch, how                      of an adoption or an end
asset, amount_nano              of a credit, an adjustment, an assertion; an accept has the asset too. Of an assertion
                                that is wider than 64 bits the amount is null: it is parsed in any case
external_ref                    of a credit or an adjustment
model                           of the accept's first price, or of the usage
parts                           how many prices an accept has, how many segments a usage
in_nano, out_nano, image_factor of the first price
payer, hold_nano, rules_version of an accept
prompt_tokens, image_tokens     of a usage
tokens, provider                of its first segment

`columns_of` is what they mean; `columns_of_records` makes the same of bytes that `schemas.canonical` knows, by regular
expressions, and asks pydantic about all others.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow  # pyright: ignore[reportMissingTypeStubs]
import pyarrow.compute  # pyright: ignore[reportMissingTypeStubs]

from ledger.reader import Record, event_or_none
from schemas.canonical import Shape
from schemas.event_base import WalletEvent
from schemas.events import (
    AdjustmentPosted,
    BalanceAsserted,
    Event,
    RequestAccepted,
    RequestAdopted,
    RequestFailed,
    UsageRecorded,
    WalletCredited,
)

_arrow: Any = pyarrow  # ships no types
_do: Any = pyarrow.compute

_WORD: Any = _arrow.dictionary(_arrow.int32(), _arrow.string())
_BIG, _SMALL, _HALF = _arrow.int64(), _arrow.int32(), _arrow.uint64()
COLUMNS: Any = _arrow.schema(
    [
        _arrow.field("type", _WORD),
        _arrow.field("wallet", _WORD),
        _arrow.field("at_ms", _BIG, nullable=False),
        _arrow.field("request_hi", _HALF),
        _arrow.field("request_lo", _HALF),
        _arrow.field("epoch", _SMALL),
        _arrow.field("how", _WORD),
        _arrow.field("asset", _WORD),
        _arrow.field("amount_nano", _BIG),
        _arrow.field("external_ref", _arrow.string()),
        _arrow.field("model", _WORD),
        _arrow.field("parts", _SMALL),
        _arrow.field("in_nano", _BIG),
        _arrow.field("out_nano", _BIG),
        _arrow.field("image_factor", _SMALL),
        _arrow.field("payer", _WORD),
        _arrow.field("hold_nano", _BIG),
        _arrow.field("rules_version", _SMALL),
        _arrow.field("prompt_tokens", _BIG),
        _arrow.field("image_tokens", _BIG),
        _arrow.field("tokens", _BIG),
        _arrow.field("provider", _WORD),
    ]
)
NAMES: list[str] = COLUMNS.names
#: Kept in files and in memory as a dictionary and indices into it.
WORDS: list[str] = [field.name for field in COLUMNS if field.type == _WORD]

_NO = (None,) * len(NAMES)
_NONE = (None, None, 0, *_NO[3:])
#: Of the lower half of an id.
LOW = (1 << 64) - 1


def columns_of(events: Sequence[Event | None]) -> Any:
    """One row for each event, in order; None where a record is none."""
    rows = [_NONE if event is None else _row(event) for event in events]
    columns = zip(*rows, strict=True) if rows else [()] * len(NAMES)
    arrays = [_array(column, field) for column, field in zip(columns, COLUMNS, strict=True)]
    return _arrow.RecordBatch.from_arrays(arrays, schema=COLUMNS)


def columns_of_records(records: Sequence[Record]) -> Any:
    """What `columns_of` makes of the events in `records`, several times as fast where their bytes are canonical."""
    matches: dict[str, tuple[list[int], list[tuple[Any, ...]]]] = {name: ([], []) for name in _SHAPES}
    others = list[int]()
    for row, (_, _, key, value) in enumerate(records):
        begin = value.find(b'"type":"') + 8
        name = value[begin : value.find(b'"', begin)]
        shape = _BY_TYPE.get(name)
        if shape is not None and value.isascii():
            match = shape.match(value.decode())
            if match is not None:
                groups = match.groups()
                if groups[0].encode() == key:  # the wallet
                    rows, found = matches[shape.type]
                    rows.append(row)
                    found.append(groups)
                    continue
        others.append(row)
    parts = [_matched(_SHAPES[name], found) for name, (_, found) in matches.items() if found]
    order = [row for rows, found in matches.values() if found for row in rows]
    if others or not parts:
        parts.append(_plain(columns_of([event_or_none(records[row]) for row in others])))
    order += others
    back = _do.inverse_permutation(_arrow.array(order, _arrow.int64()))
    columns = [_arrow.concat_arrays([part[name] for part in parts]).take(back) for name in NAMES]
    arrays = [
        column.dictionary_encode() if field.type == _WORD else column
        for column, field in zip(columns, COLUMNS, strict=True)
    ]
    return _arrow.RecordBatch.from_arrays(arrays, schema=COLUMNS)


def id_bits(request_id: str) -> int:
    """The 128 bits of a request's id."""
    return int(request_id.replace("-", ""), 16)


def id_text(high: int, low: int) -> str:
    """The request's id of two halves."""
    text = f"{high:016x}{low:016x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def _plain(columns: Any) -> dict[str, Any]:
    return {name: columns.column(name).dictionary_decode() if name in WORDS else columns.column(name) for name in NAMES}


def _matched(shape: _Canonical, found: list[tuple[Any, ...]]) -> dict[str, Any]:
    """The columns of canonical events of one type, by the groups of their matches."""
    count = len(found)
    made: dict[str, Any] = {"type": _arrow.repeat(shape.type, count)}
    for name, texts in zip(shape.names, zip(*found, strict=True), strict=True):
        if name == "request_id":
            made["request_hi"], made["request_lo"] = _halves(texts)
        else:
            column = _arrow.array(texts, _arrow.string())
            made[name] = column if name in WORDS else column.cast(COLUMNS.field(name).type)
    if shape.has_parts:
        made["parts"] = _arrow.repeat(_arrow.scalar(1, _SMALL), count)
    for field in COLUMNS:
        if field.name not in made:
            made[field.name] = _arrow.nulls(count, _arrow.string() if field.type == _WORD else field.type)
    return made


def _halves(request_ids: Sequence[str]) -> tuple[Any, Any]:
    bits = array("Q", bytes.fromhex("".join(request_ids).replace("-", "")))
    if sys.byteorder == "little":
        bits.byteswap()
    return tuple(
        _arrow.Array.from_buffers(_HALF, len(request_ids), [None, _arrow.py_buffer(bits[half::2])]) for half in (0, 1)
    )  # pyright: ignore[reportReturnType]


def _array(column: Sequence[Any], field: Any) -> Any:
    if field.type == _WORD:
        return _arrow.array(column, _arrow.string()).dictionary_encode()
    return _arrow.array(column, field.type)


def _row(event: Event) -> tuple[Any, ...]:
    make = _ROWS.get(type(event))
    wallet = event.wallet if isinstance(event, WalletEvent) else None
    return (event.type, wallet, event.at_ms, *(_NO[3:] if make is None else make(event)))


def _accept(event: RequestAccepted) -> tuple[Any, ...]:
    bits, price = id_bits(event.request_id), event.prices[0]
    return (
        bits >> 64, bits & LOW, None, None, event.asset, None, None, price.model, len(event.prices), price.in_nano,
        price.out_nano, price.image_factor, event.payer, event.hold_nano, event.rules_version, None, None, None, None,
    )  # fmt: skip


def _adopt(event: RequestAdopted) -> tuple[Any, ...]:
    bits = id_bits(event.request_id)
    return (bits >> 64, bits & LOW, event.epoch, *_NO[6:])


def _usage(event: UsageRecorded) -> tuple[Any, ...]:
    bits, segment = id_bits(event.request_id), event.segments[0]
    return (
        bits >> 64, bits & LOW, event.epoch, event.how.value, None, None, None, event.model, len(event.segments), None,
        None, None, None, None, None, event.prompt_tokens, event.image_tokens, segment.tokens, segment.provider,
    )  # fmt: skip


def _failed(event: RequestFailed) -> tuple[Any, ...]:
    bits = id_bits(event.request_id)
    return (bits >> 64, bits & LOW, event.epoch, event.how.value, *_NO[7:])


def _reference(event: WalletCredited | AdjustmentPosted) -> tuple[Any, ...]:
    return (None, None, None, None, event.asset, event.amount_nano, event.external_ref, *_NO[10:])


def _assertion(event: BalanceAsserted) -> tuple[Any, ...]:
    amount_nano = event.amount_nano if -(2**63) <= event.amount_nano < 2**63 else None
    return (None, None, None, None, event.asset, amount_nano, *_NO[9:])


_ROWS: dict[type, Callable[[Any], tuple[Any, ...]]] = {
    RequestAccepted: _accept,
    RequestAdopted: _adopt,
    UsageRecorded: _usage,
    RequestFailed: _failed,
    WalletCredited: _reference,
    AdjustmentPosted: _reference,
    BalanceAsserted: _assertion,
}


class _Canonical:
    """The canonical bytes of one type of event, and the columns that its groups are."""

    def __init__(self, model: type[Event], fields: dict[str, str]) -> None:
        shape = Shape(model, fields)
        self.type: str = model.model_fields["type"].default
        self.match = shape.match
        self.names = [fields[name] for name in shape.names]
        self.has_parts = any("." in name for name in fields)
        if self.names[0] != "wallet":
            raise ValueError(f"{self.type} does not begin with its wallet")


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in ("wallet", "at_ms", *names)}


_SHAPES: dict[str, _Canonical] = {
    shape.type: shape
    for shape in (
        _Canonical(
            RequestAccepted,
            _same("request_id", "asset", "payer", "hold_nano", "rules_version")
            | {f"prices.{name}": name for name in ("model", "in_nano", "out_nano", "image_factor")},
        ),
        _Canonical(
            UsageRecorded,
            _same("request_id", "epoch", "how", "model", "prompt_tokens", "image_tokens")
            | {f"segments.{name}": name for name in ("tokens", "provider")},
        ),
        _Canonical(RequestFailed, _same("request_id", "epoch", "how")),
        _Canonical(WalletCredited, _same("asset", "amount_nano", "external_ref")),
    )
}
_BY_TYPE = {name.encode(): shape for name, shape in _SHAPES.items()}
