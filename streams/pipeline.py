"""From bundles to slices: each partition's records in their order, several partitions at once.

While PostgreSQL works for one partition, this process reads and folds another's records. What waits of a partition is
merged, so that transactions grow with the backlog, up to what the slicer allows, and a quiet log is booked at once.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

from streams.projection import Applied

#: Transactions at once. More than these only wait for the same core.
AT_ONCE = 3
#: Records in one transaction. Halved while admission has to wait for a slice's wallets for longer than HELD_LONG_S
#: (S2), or the whole takes longer than SLICE_LONG_S, far below PostgreSQL's own limits; doubled while it is quick.
SLICE_MIN, SLICE_START, SLICE_MAX = 50, 1000, 5000
HELD_LONG_S, HELD_SHORT_S = 0.05, 0.02
SLICE_LONG_S = 1.0
#: Records that may wait here. Then no more bundles are taken, and Faust stops fetching.
WAITING_MAX = 4 * SLICE_MAX

Apply = Callable[[int, Sequence[Any]], Awaitable[Applied]]


class Slicer:
    """How many records the next transaction takes, from how long the last one took and held wallets."""

    def __init__(self) -> None:
        self.records = SLICE_START

    def took(self, seconds: float, held_s: float) -> None:
        if held_s > HELD_LONG_S or seconds > SLICE_LONG_S:
            self.records = max(self.records // 2, SLICE_MIN)
        elif held_s < HELD_SHORT_S and seconds < SLICE_LONG_S / 2:
            self.records = min(self.records * 2, SLICE_MAX)


class _Bundle(NamedTuple):
    records: Sequence[Any]
    ack: Callable[[], object]


class _Lane:
    """What waits of one partition."""

    def __init__(self) -> None:
        self.bundles: deque[_Bundle] = deque()
        self.worker: asyncio.Task[None] | None = None

    def take(self, most: int) -> tuple[list[Any], list[Callable[[], object]]]:
        """The next records, at most so many, and what to ack behind them.

        Bundles are merged only where one follows on the other: after a rebalance the log is read again from where
        PostgreSQL was then, and what was waiting here before overlaps with it.
        """
        part: list[Any] = []
        acks: list[Callable[[], object]] = []
        while self.bundles and len(part) < most:
            records, ack = self.bundles[0]
            if part and records[0].offset != part[-1].offset + 1:
                break
            room = most - len(part)
            part.extend(records[:room])
            if len(records) > room:
                self.bundles[0] = _Bundle(records[room:], ack)
            else:
                self.bundles.popleft()
                acks.append(ack)
        return part, acks


class Pipeline:
    """`put` bundles; `apply` gets slices of them. The first error goes to `on_error`; after it nothing is begun."""

    def __init__(self, apply: Apply, on_error: Callable[[BaseException], Awaitable[None]]) -> None:
        self._apply = apply
        self._on_error = on_error
        self._slicer = Slicer()
        self._lanes: dict[int, _Lane] = {}
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._waiting = 0
        self._room = asyncio.Condition()
        self._closed = False
        self._failing: asyncio.Future[None] | None = None

    async def put(self, partition: int, records: Sequence[Any], ack: Callable[[], object]) -> None:
        """Take a bundle once there is room, which there never is after `close`; `ack` follows its last commit."""
        async with self._room:
            await self._room.wait_for(lambda: self._waiting < WAITING_MAX and not self._closed)
        lane = self._lanes.setdefault(partition, _Lane())
        lane.bundles.append(_Bundle(records, ack))
        self._waiting += len(records)
        if lane.worker is None:
            lane.worker = asyncio.create_task(self._work(partition, lane), name=f"partition {partition}")
            lane.worker.add_done_callback(self._ended)

    def close(self) -> None:
        """Begin nothing more. What is not acked is read again by whoever is next."""
        self._closed = True

    def _ended(self, worker: asyncio.Task[None]) -> None:
        if not worker.cancelled() and (error := worker.exception()) is not None and self._failing is None:
            self._failing = asyncio.ensure_future(self._on_error(error))

    async def _work(self, partition: int, lane: _Lane) -> None:
        try:
            while lane.bundles:
                async with self._turns:
                    if self._closed:
                        return
                    await self._one(partition, lane)
        except BaseException:
            self._closed = True
            raise
        finally:
            lane.worker = None

    async def _one(self, partition: int, lane: _Lane) -> None:
        part, acks = lane.take(self._slicer.records)
        began_s = time.monotonic()
        applied = await self._apply(partition, part)
        self._slicer.took(time.monotonic() - began_s, applied.held_s)
        for ack in acks:
            ack()
        async with self._room:
            self._waiting -= len(part)
            self._room.notify_all()
