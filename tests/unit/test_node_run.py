"""What a node does with a letter, over engines that break."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

import pytest

from schemas.jobs import Cancel, Job, Sampling
from schemas.replies import Rejected, Tally, Verdict, parse
from workers.chat.template import ChatTemplate
from workers.clocks import SkewMeter
from workers.engines.base import EngineCrashed, EngineUnavailable, Generation, GenerationInvalid, Piece
from workers.engines.double import DoubleEngine
from workers.engines.llamacpp_calls import _error_of
from workers.ingresses import Ingresses
from workers.run import RELOADS_MAX, EngineGone, Runner
from workers.served import Served
from workers.slots import Slots

RID = "01890a5d-ac96-774b-bcce-b302099a80"


class Lane:
    held_bytes = 0

    def __init__(self, topic: str) -> None:
        self.topic = topic
        self.values: list[bytes] = []
        self.closed = asyncio.Event()
        self.is_stalled = False

    def append(self, value: bytes) -> None:
        self.values.append(value)

    def close(self) -> None:
        self.closed.set()

    def stalled(self, now_s: float) -> bool:
        return self.is_stalled


class Outbox:
    latency_s = 0.0

    def __init__(self) -> None:
        self.lanes: list[Lane] = []
        self.on_lost: list[Callable[[], None]] = []

    def open(self, topic: str, key: bytes, on_lost: Callable[[], None]) -> Lane:
        self.lanes.append(Lane(topic))
        self.on_lost.append(on_lost)
        return self.lanes[-1]


class Breaking(DoubleEngine):
    """The double, which breaks after two ids while `broken`."""

    broken = True
    loads = 0
    loads_again = True
    refusal: Exception | None = None

    async def load(self) -> None:
        if self.loads and not self.loads_again:
            raise EngineUnavailable("gone")
        self.loads += 1
        await super().load()

    async def generate(self, generation: Generation) -> AsyncGenerator[Piece, None]:
        pieces = super().generate(generation)
        async with contextlib.aclosing(pieces):
            if self.refusal is not None:
                raise self.refusal
            count = 0
            async for piece in pieces:
                yield piece
                count += 1
                if self.broken and count == 2:
                    raise EngineCrashed("boom: the prompt was secret")


class Node:
    def __init__(self, engine: DoubleEngine, slots: int = 4) -> None:
        self.outbox: Any = Outbox()
        self.engine = engine
        template = ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}", special_tokens=())
        self.served = Served("m", engine, template, Slots(slots), 1000)
        self.runner = Runner({"m": self.served}, self.outbox, Ingresses(), SkewMeter())
        self.count = 0

    def job(self, **changes: Any) -> Job:
        self.count += 1
        fields: dict[str, Any] = {
            "request_id": f"{RID}{self.count:02x}",
            "attempt": 1,
            "owner": "o",
            "lane": "replies.o.0",
            "model": "m",
            "messages": [{"role": "user", "content": "hi"}],
            "sampling": Sampling(temperature=0),
            "max_tokens": 8,
            "expires_at_ms": 5_000,
            "deadline_at_ms": 60_000,
        }
        return Job(**(fields | changes))

    def post(self, job: Job, timestamp_ms: int = 0) -> Lane:
        self.runner.take(job, timestamp_ms, asyncio.get_running_loop().time())
        return self.outbox.lanes[-1]

    async def ask(self, **changes: Any) -> Tally:
        job = self.job(**changes)
        lane = self.post(job)
        async with asyncio.timeout(5):
            await lane.closed.wait()
        return self.tally(job, lane)

    @staticmethod
    def tally(job: Job, lane: Lane) -> Tally:
        tally = Tally(job.request_id, job.attempt)
        assert all(tally.add(parse(value)) is Verdict.COUNTS for value in lane.values)
        return tally


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    engine = Breaking(interval_ms=1)
    await engine.load()
    node = Node(engine)
    yield node
    node.runner._broken.cancel()
    await node.runner.drain(0, asyncio.Event())
    await engine.unload()


async def test_the_time_to_the_first_token_is_measured_and_tells_of_late(node: Node) -> None:
    loop = asyncio.get_running_loop()
    node.engine.broken = False

    async def ask(**changes: Any) -> Tally:
        tally = await node.ask(**changes)
        while node.runner.running:
            await asyncio.sleep(0)
        return tally

    assert (await ask(max_tokens=0)).completion_tokens == 0
    assert node.runner.first_token_ms is None  # it had none
    before_s = loop.time()
    await ask()
    first_ms = node.runner.first_token_ms
    assert first_ms is not None
    assert 0 <= first_ms <= (loop.time() - before_s) * 1000
    node.runner.first_token_ms = 10_000.0
    await ask()
    assert node.runner.first_token_ms == pytest.approx(8_000, rel=0.1)


async def test_an_engine_that_crashes_is_loaded_again(node: Node) -> None:
    tally = await node.ask()
    assert (tally.terminal.code, tally.completion_tokens) == ("engine_error", 2)
    assert "secret" not in tally.terminal.detail
    node.engine.broken = False
    assert node.runner.slots == 0
    assert (await node.ask()).terminal.code == "busy"
    await asyncio.sleep(0.05)
    assert (node.engine.loads, node.runner.slots) == (2, 4)
    tally = await node.ask()
    assert (tally.terminal.finish, tally.completion_tokens) == ("length", 8)
    assert node.runner.busy == 0


async def test_choices_that_break_together_are_one_failure_and_no_log_quotes_them(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    tally = await node.ask(n=4)
    assert (tally.terminal.kind, tally.terminal.code) == ("failed", "engine_error")
    await asyncio.sleep(0.05)
    gc.collect()  # asyncio logs an error that nobody asked a task for when the task goes
    assert "secret" not in caplog.text
    assert node.runner.busy == 0


async def test_an_engine_that_keeps_crashing_ends_the_node(node: Node) -> None:
    watch = asyncio.create_task(node.runner.watch())
    for _ in range(RELOADS_MAX + 1):
        await node.ask()
        await asyncio.sleep(0.05)
    with pytest.raises(EngineGone):
        await asyncio.wait_for(watch, 2)


async def test_an_engine_that_does_not_load_again_ends_the_node(node: Node) -> None:
    node.engine.loads_again = False
    watch = asyncio.create_task(node.runner.watch())
    await node.ask()
    with pytest.raises(EngineGone):
        await asyncio.wait_for(watch, 2)


async def test_a_bug_in_an_engine_costs_one_job(node: Node) -> None:
    node.engine._tokens = None  # type: ignore[assignment]
    tally = await node.ask()
    assert (tally.terminal.code, tally.terminal.detail) == ("engine_error", "TypeError")
    assert (node.runner.busy, node.runner.slots) == (0, 4)


async def test_a_cancel_right_behind_its_job(node: Node) -> None:
    job = node.job()
    lane = node.post(job)
    node.runner.take(Cancel(request_id=job.request_id, attempt=1), 0, 0.0)
    assert node.tally(job, lane).terminal.finish == "cancelled"
    await asyncio.sleep(0.02)
    assert len(lane.values) == 1
    assert (node.runner.running, node.runner.busy) == (0, 0)


async def test_a_late_cancel_is_not_kept_for_another_attempt(node: Node) -> None:
    node.engine.broken = False
    await node.ask()
    node.runner.take(Cancel(request_id=f"{RID}01", attempt=1), 0, 0.0)
    assert len(node.runner._early) == 0


async def test_a_job_that_lay_too_long_is_expired_whatever_the_clocks_say(node: Node) -> None:
    node.engine.broken = False
    now_s = asyncio.get_running_loop().time()
    skew_ms = 10**12
    fresh, stale = node.job(expires_at_ms=skew_ms + 5_000, deadline_at_ms=skew_ms + 60_000), None
    node.runner.take(fresh, skew_ms, now_s - 100)  # read at once, a while ago
    stale = node.job(expires_at_ms=skew_ms + 5_000, deadline_at_ms=skew_ms + 60_000)
    node.runner.take(stale, skew_ms, now_s)  # written then, read now
    assert node.tally(stale, node.outbox.lanes[-1]).terminal.code == "expired"


async def test_a_lane_that_is_none_is_not_written_to(node: Node) -> None:
    node.runner.take(node.job(lane="ledger.events"), 0, asyncio.get_running_loop().time())
    assert node.outbox.lanes == []


async def test_stalls_and_lost_lanes_stop_the_engine(node: Node) -> None:
    node.engine.broken = False
    node.engine._interval_s = 30.0
    stalled, lost = node.job(), node.job()
    stalled_lane, lost_lane = node.post(stalled), node.post(lost)
    await asyncio.sleep(0.02)
    assert node.runner.busy == 2
    node.outbox.on_lost[1]()
    stalled_lane.is_stalled = True
    watch = asyncio.create_task(node.runner.watch())
    await asyncio.wait_for(stalled_lane.closed.wait(), 2)
    await asyncio.sleep(0.02)
    watch.cancel()
    assert node.tally(stalled, stalled_lane).terminal.code == "engine_error"
    assert len(lost_lane.values) == 1
    assert (node.runner.busy, node.runner.running) == (0, 0)


@pytest.mark.parametrize(
    ("refusal", "told"),
    [
        (GenerationInvalid("a token id lies outside 0..255"), "a token id lies outside 0..255"),
        (_error_of({"code": 400, "message": "cannot parse: secret"}), "the model does not take this request"),
    ],
)
async def test_a_refusal_says_what_is_wrong_and_quotes_nothing(node: Node, refusal: Exception, told: str) -> None:
    node.engine.refusal = refusal
    last = (await node.ask()).terminal
    assert isinstance(last, Rejected)
    assert (last.code, last.detail) == ("bad_job", told)
