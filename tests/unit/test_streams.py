"""The parts of the streams that need no server."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from streams.bundles import bundle
from streams.pipeline import (
    AT_ONCE,
    HELD_LONG_S,
    HELD_SHORT_S,
    SLICE_LONG_S,
    SLICE_MAX,
    SLICE_MIN,
    SLICE_START,
    WAITING_MAX,
    Pipeline,
    Slicer,
)
from streams.projection import Applied
from streams.sql import statements


def test_s2_a_slice_shrinks_while_admission_waits_long_for_its_wallets() -> None:
    slicer = Slicer()
    assert slicer.records == SLICE_START
    for _ in range(20):
        slicer.took(0.1, HELD_LONG_S * 1.01)
    assert slicer.records == SLICE_MIN
    slicer.took(0.1, (HELD_LONG_S + HELD_SHORT_S) / 2)
    assert slicer.records == SLICE_MIN
    for _ in range(20):
        slicer.took(0.1, HELD_SHORT_S * 0.9)
    assert slicer.records == SLICE_MAX
    slicer.took(SLICE_LONG_S * 1.01, 0.0)
    assert slicer.records == SLICE_MAX // 2


def test_a_bundle_stands_for_its_last_record() -> None:
    rows = [
        SimpleNamespace(topic="t", partition=3, offset=n, timestamp=n, timestamp_type=0, headers=()) for n in range(5)
    ]
    made = bundle(rows)
    assert (made.topic, made.partition, made.offset) == ("t", 3, 4)
    assert made.value == tuple(rows)


def test_a_schema_of_another_name_reaches_every_statement_and_cannot_carry_sql() -> None:
    for name, text in statements("rebuilt").items():
        assert "derived" not in text, name
    assert any("rebuilt.accounts" in text for text in statements("rebuilt").values())
    with pytest.raises(ValueError, match="cannot be the name of a schema"):
        statements("x; drop schema derived")


class _Target:
    """What a pipeline applies to: says what came, and waits until it is let go."""

    def __init__(self) -> None:
        self.slices: list[tuple[int, list[int]]] = []
        self.acked: list[str] = []
        self.errors: list[BaseException] = []
        self.running = 0
        self.most = 0
        self.go = asyncio.Event()
        self.fails_at: int | None = None

    async def apply(self, partition: int, records: Sequence[Any]) -> Applied:
        self.running += 1
        self.most = max(self.most, self.running)
        offsets = [record.offset for record in records]
        self.slices.append((partition, offsets))
        await self.go.wait()
        self.running -= 1
        if self.fails_at in offsets:
            raise RuntimeError("planted")
        return Applied(len(records), 0.0)

    async def on_error(self, error: BaseException) -> None:
        self.errors.append(error)

    def of(self, partition: int) -> list[int]:
        return [number for p, numbers in self.slices if p == partition for number in numbers]


def _records(first: int, end: int) -> list[Any]:
    return [SimpleNamespace(offset=offset) for offset in range(first, end)]


async def _settled() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


async def test_partitions_go_side_by_side_and_each_in_its_order() -> None:
    target = _Target()
    pipeline = Pipeline(target.apply, target.on_error)
    for partition in range(AT_ONCE + 2):
        for at in range(0, 3000, 100):
            name = f"{partition}/{at}"
            await pipeline.put(partition, _records(at, at + 100), lambda name=name: target.acked.append(name))
    await _settled()
    assert target.most == AT_ONCE
    assert target.acked == []  # nothing is acked before it is committed
    target.go.set()
    await _settled()
    for partition in range(AT_ONCE + 2):
        assert target.of(partition) == list(range(3000))
    assert len(target.slices) < 5 * (AT_ONCE + 2)  # what waited was merged
    assert sorted(target.acked) == sorted(f"{p}/{at}" for p in range(AT_ONCE + 2) for at in range(0, 3000, 100))


async def test_a_bundle_is_acked_when_its_last_record_is_committed() -> None:
    target = _Target()
    pipeline = Pipeline(target.apply, target.on_error)
    await pipeline.put(0, _records(0, SLICE_START - 1), lambda: target.acked.append("first"))
    await pipeline.put(0, _records(SLICE_START - 1, SLICE_START + 5), lambda: target.acked.append("second"))
    target.fails_at = SLICE_START + 2  # in the second slice, which the second bundle reaches into
    target.go.set()
    await _settled()
    assert target.acked == ["first"]
    assert [str(error) for error in target.errors] == ["planted"]


async def test_what_a_rebalance_reads_again_is_not_taken_for_what_follows() -> None:
    """Each slice is contiguous, or the projection would stop at a gap that the log has not."""
    target = _Target()
    target.go.set()
    pipeline = Pipeline(target.apply, target.on_error)
    for first, end in ((0, 10), (10, 20), (5, 25), (25, 30), (40, 50)):
        await pipeline.put(0, _records(first, end), lambda first=first: target.acked.append(str(first)))
    await _settled()
    assert target.slices == [(0, [*range(20)]), (0, [*range(5, 30)]), (0, [*range(40, 50)])]
    assert target.acked == ["0", "10", "5", "25", "40"]


async def test_after_an_error_nothing_is_begun_and_nothing_taken() -> None:
    target = _Target()
    pipeline = Pipeline(target.apply, target.on_error)
    target.fails_at = 0
    for partition in range(AT_ONCE + 2):
        await pipeline.put(partition, _records(partition, partition + 1), lambda: None)
    await _settled()
    target.go.set()
    await _settled()
    assert len(target.errors) == 1
    assert {partition for partition, _ in target.slices} == set(range(AT_ONCE))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(pipeline.put(0, _records(1, 2), lambda: None), 0.01)


async def test_what_waits_is_bounded() -> None:
    target = _Target()
    pipeline = Pipeline(target.apply, target.on_error)
    await pipeline.put(0, _records(0, WAITING_MAX), lambda: None)
    more: Any = asyncio.create_task(pipeline.put(1, _records(1, 2), lambda: None))
    await _settled()
    assert not more.done()
    target.go.set()
    await _settled()
    assert more.done()
    assert target.of(1) == [1]
