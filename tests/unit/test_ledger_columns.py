"""The quick reader of canonical bytes against pydantic: the same columns for any bytes, or none."""

from __future__ import annotations

import random

import pytest
from hostile_log import hostile_log
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ledger.columns import columns_of, columns_of_records, id_bits, id_text
from ledger.log import LedgerCorrupt
from ledger.reader import Record, event_of, event_or_none
from schemas.canonical import Shape
from schemas.event_base import AMOUNT_NANO_MAX, TOKENS_MAX
from schemas.events import AdjustmentPosted, RequestAccepted, RequestFailed, UsageRecorded, WalletCredited, dump
from schemas.facts import EpochClosed

QUICK = settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
#: What may stand where another byte stood: digits, quotes, structure, an escape, UTF-8, and beyond.
BYTES = [char.encode() for char in '019-."\\,{}[] eA\n\x7f\u00e9'] + [b"\xff"]


def records(seed: int, count: int = 60) -> list[Record]:
    return [Record(3, offset, event.key.encode(), dump(event)) for offset, event in enumerate(hostile_log(seed, count))]


def same(some: list[Record]) -> None:
    expected = columns_of([event_or_none(record) for record in some])
    found = columns_of_records(some)
    assert found.equals(expected), (found.to_pylist(), expected.to_pylist())


@QUICK
@given(seed=st.integers(0, 2**32), data=st.data())
def test_any_bytes_come_to_the_same_columns(seed: int, data: st.DataObject) -> None:
    rng = random.Random(seed)
    some = records(seed)
    for at, record in enumerate(some):
        if rng.random() < 0.6:
            value, place = record.value, rng.randrange(len(record.value))
            cut = place + rng.choice((0, 1, 1, 2))
            some[at] = record._replace(value=value[:place] + rng.choice(BYTES) + value[cut:])
        elif rng.random() < 0.1:
            some[at] = record._replace(key=b"another")
    same(some)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"at_ms":1800000000000', b'"at_ms":9007199254740992'),
        (b'"at_ms":1800000000000', b'"at_ms":9007199254740993'),
        (b'"at_ms":1800000000000', b'"at_ms":01800000000000'),
        (b'"at_ms":1800000000000', b'"at_ms":1.8e12'),
        (b'"tokens":5', b'"tokens":%d' % TOKENS_MAX),
        (b'"tokens":5', b'"tokens":%d' % (TOKENS_MAX + 1)),
        (b'"tokens":5', b'"tokens":-0'),
        (b'"hold_nano":7', b'"hold_nano":%d' % AMOUNT_NANO_MAX),
        (b'"hold_nano":7', b'"hold_nano":%d' % (AMOUNT_NANO_MAX + 1)),
        (b'"rules_version":1', b'"rules_version":1000'),
        (b'"rules_version":1', b'"rules_version":1001'),
        (b'"rules_version":1', b'"rules_version":0'),
        (b'"epoch":1', b'"epoch":1000000'),
        (b'"epoch":1', b'"epoch":0'),
        (b'"attempt":1', b'"attempt":16'),
        (b'"attempt":1', b'"attempt":17'),
        (b'"image_factor":2', b'"image_factor":100'),
        (b'"image_factor":2', b'"image_factor":101'),
        (b'"wallet":"w"', b'"wallet":"w","wallet":"v"'),
        (b'"version":1', b'"version":2'),
        (b'"version":1', b'"version":1,"more":1'),
        (b'"how":"stop"', b'"how":"stopped"'),
        (b'"receipt":null', b'"receipt":"\\u0041"'),
        (b'"receipt":null', b'"receipt":"A"'),
        (b'"cap_day":null', b'"cap_day":"2026-11-21"'),
        (b'"cap_day":null', b'"cap_day":"2026-11-2\xd9\xa1"'),
        (b'"amount_nano":9', b'"amount_nano":0'),
        (b'"amount_nano":9', b'"amount_nano":9.0'),
        (b'"external_ref":"r"', b'"external_ref":""'),
        (b'"external_ref":"r"', b'"external_ref":"\\n"'),
        (b'"external_ref":"r"', b'"external_ref":"\\q"'),
        (b'"external_ref":"r"', b'"external_ref":"\xc3\xa9"'),
        (b'"external_ref":"r"', b'"external_ref":"\xff"'),
        (b'"external_ref":"r"', b'"external_ref":"\x7f ]~!"'),
        (b'"external_ref":"r"', b'"external_ref":"\t"'),
        (b'"model":"m"', b'"model":"\\u006d"'),
        (b'"external_ref":"r"', b'"external_ref":"%b"' % (b"r" * 200)),
        (b'"external_ref":"r"', b'"external_ref":"%b"' % (b"r" * 201)),
    ],
)
def test_every_bound_is_pydantics(old: bytes, new: bytes) -> None:
    some = [Record(0, n, b"w", value.replace(old, new)) for n, value in enumerate(VALUES)]
    assert [record.value for record in some] != VALUES
    same(some)


RID = "01a3185d-d4ab-7e31-baa2-3700a58b16cb"
ACCEPT = (
    b'{"version":1,"wallet":"w","at_ms":1800000000000,"type":"request.accepted","request_id":"%b","key_id":"k",'
    b'"owner":"b","rules_version":1,"asset":"USDC","prices":[{"model":"m","in_nano":3,"out_nano":4,"image_factor":2}],'
    b'"rate_nano_usd":1,"cap_day":null,"hold_nano":7,"payer":"wallet:w"}' % RID.encode()
)
USAGE = (
    b'{"version":1,"wallet":"w","at_ms":1800000000000,"type":"usage.recorded","request_id":"%b","epoch":1,'
    b'"how":"stop","model":"m","prompt_tokens":2,"image_tokens":0,"segments":[{"node":"n","provider":"p","attempt":1,'
    b'"tokens":5,"receipt":null}]}' % RID.encode()
)
CREDIT = (
    b'{"version":1,"wallet":"w","at_ms":1800000000000,"type":"wallet.credited","asset":"SHIVER","amount_nano":9,'
    b'"external_ref":"r","reason":"grant","operator":"o"}'
)
VALUES = [ACCEPT, USAGE, CREDIT]


def test_canonical_bytes_are_read_without_pydantic(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = columns_of([event_of(Record(0, n, b"w", value)) for n, value in enumerate(VALUES)])
    asked = list[Record]()
    monkeypatch.setattr("ledger.columns.event_or_none", asked.append)
    assert columns_of_records([Record(0, n, b"w", value) for n, value in enumerate(VALUES)]).equals(expected)
    assert asked == []


def test_a_record_that_is_no_event_of_its_key_is_named() -> None:
    for record, what in (
        (Record(2, 7, b"w", b"{}"), "not a known event"),
        (Record(2, 7, b"v", CREDIT), "its key is not its event's"),
    ):
        assert event_or_none(record) is None
        assert columns_of_records([record]).to_pylist()[0]["type"] is None
        with pytest.raises(LedgerCorrupt, match=rf"ledger.events partition 2 offset 7: {what}"):
            event_of(record)


def test_the_halves_of_an_id() -> None:
    for bits in (0, 1, 2**127, 2**128 - 1, id_bits(RID)):
        assert id_bits(id_text(bits >> 64, bits & (2**64 - 1))) == bits
    assert id_text(id_bits(RID) >> 64, id_bits(RID) & (2**64 - 1)) == RID


def test_a_model_that_a_pattern_cannot_say_has_no_shape() -> None:
    for model in (AdjustmentPosted, EpochClosed):
        with pytest.raises(ValueError, match=r"validator|unknown"):
            Shape(model, ["at_ms"])
    with pytest.raises(ValueError, match="has not the fields"):
        Shape(RequestFailed, ["wallet", "tokens"])
    for model, value in ((RequestAccepted, ACCEPT), (UsageRecorded, USAGE), (WalletCredited, CREDIT)):
        shape = Shape(model, ["wallet", "at_ms"])
        match = shape.match(value.decode())
        assert match is not None
        assert dict(zip(shape.names, match.groups(), strict=True)) == {"wallet": "w", "at_ms": "1800000000000"}
