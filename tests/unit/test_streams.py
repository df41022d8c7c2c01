"""The parts of the streams that need no server."""

from __future__ import annotations

from types import SimpleNamespace

from streams.app import SLICE_LONG_S, SLICE_MAX, SLICE_MIN, SLICE_SHORT_S, SLICE_START, Slicer
from streams.bundles import bundle


def test_s2_a_slice_is_capped_in_records_and_shrinks_while_it_takes_long() -> None:
    slicer = Slicer()
    assert slicer.records == SLICE_START
    for _ in range(20):
        slicer.took(SLICE_LONG_S * 1.01)
    assert slicer.records == SLICE_MIN
    slicer.took((SLICE_LONG_S + SLICE_SHORT_S) / 2)
    assert slicer.records == SLICE_MIN
    for _ in range(20):
        slicer.took(SLICE_SHORT_S * 0.9)
    assert slicer.records == SLICE_MAX


def test_a_bundle_stands_for_its_last_record() -> None:
    rows = [
        SimpleNamespace(topic="t", partition=3, offset=n, timestamp=n, timestamp_type=0, headers=()) for n in range(5)
    ]
    made = bundle(rows)
    assert (made.topic, made.partition, made.offset) == ("t", 3, 4)
    assert made.value == tuple(rows)
