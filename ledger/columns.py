"""What the fold needs of each event, as typed Arrow columns. A shell around pyarrow; made from `parse(value)` alone.

The archive keeps them beside the bytes, so that a replay need not parse. They are no truth: key and value are, and
`shrk ledger verify --archive` compares the two. Null where an event has no such field.

type                            of the event; null, as everything but at_ms, where the record is no event of its key
wallet                          null for the facts that concern none
at_ms                           0 where it is no event
request_hi, request_lo          the 128 bits of the request's id
epoch, how                      of an adoption or an end
asset, amount_nano              of a credit, an adjustment, an assertion; an accept has the asset too
external_ref                    of a credit or an adjustment
model                           of the accept's first price, or of the usage
parts                           how many prices an accept has, how many segments a usage
in_nano, out_nano, image_factor of the first price
payer, hold_nano, rules_version of an accept
prompt_tokens, image_tokens     of a usage
tokens, provider                of its first segment
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyarrow  # pyright: ignore[reportMissingTypeStubs]

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


def id_bits(request_id: str) -> int:
    """The 128 bits of a request's id."""
    return int(request_id.replace("-", ""), 16)


def id_text(high: int, low: int) -> str:
    """The request's id of two halves."""
    text = f"{high:016x}{low:016x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


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
    return (None, None, None, None, event.asset, event.amount_nano, *_NO[9:])


_ROWS: dict[type, Callable[[Any], tuple[Any, ...]]] = {
    RequestAccepted: _accept,
    RequestAdopted: _adopt,
    UsageRecorded: _usage,
    RequestFailed: _failed,
    WalletCredited: _reference,
    AdjustmentPosted: _reference,
    BalanceAsserted: _assertion,
}
