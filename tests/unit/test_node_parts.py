"""Clocks, places, ingresses and configuration of a node."""

from __future__ import annotations

import asyncio

import pytest

from schemas.heartbeats import IngressHeartbeat
from workers.clocks import DRIFT_S_PER_S, OWNERS_MAX, SkewMeter, due_at_s
from workers.config import BadConfig, NodeConfig
from workers.ingresses import OWNER_DEAD_S, WARM_LANES_MAX, Ingresses
from workers.slots import WAITING_MIN, Busy, Slots

SKEW_S = 5_000_000.0  # our monotonic clock and theirs have nothing in common


def test_a_delay_is_seen_whatever_the_clocks_say() -> None:
    meter = SkewMeter()
    assert meter.delay_s("a", 1_000, SKEW_S + 1.003) == 0  # nothing to compare it with
    assert meter.delay_s("a", 2_000, SKEW_S + 2.000) == 0  # the fastest so far
    assert meter.delay_s("a", 3_000, SKEW_S + 3.500) == pytest.approx(0.5, abs=0.01)
    assert meter.delay_s("b", 3_000, SKEW_S + 9.000) == 0
    assert meter.delay_s("a", 4_000, SKEW_S + 64.000) == pytest.approx(60, abs=0.1)


def test_clocks_may_drift() -> None:
    meter = SkewMeter()
    for second in range(3600):
        assert meter.delay_s("a", second * 1000, second * (1 + DRIFT_S_PER_S / 2)) < 0.01


def test_owners_are_bounded() -> None:
    meter = SkewMeter()
    for number in range(2 * OWNERS_MAX):
        meter.delay_s(str(number), 0, 0)
    assert len(meter._best) == OWNERS_MAX


def test_when_a_time_is_due() -> None:
    # Written to last 5 s, 2 of which it lay in the mailbox.
    assert due_at_s(15_000, 10_000, read_at_s=100.0, delay_s=2.0) == 103.0


async def test_places_wait_in_order_and_not_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.slots.WAIT_S_MAX", 0.05)
    slots = Slots(1)
    await slots.take()
    order: list[int] = []

    async def wait(number: int) -> None:
        await slots.take()
        order.append(number)

    waiting = [asyncio.create_task(wait(number)) for number in range(WAITING_MIN)]
    await asyncio.sleep(0)
    with pytest.raises(Busy):
        await slots.take()  # enough others wait
    slots.give()
    await waiting[0]
    assert (order, slots.busy) == ([0], 1)
    with pytest.raises(Busy):
        await waiting[1]
    slots.give()
    assert slots.busy == 0


async def test_a_place_is_not_lost_with_who_waited_for_it() -> None:
    slots = Slots(1)
    await slots.take()
    gone = asyncio.create_task(slots.take())
    stays = asyncio.create_task(slots.take())
    await asyncio.sleep(0)
    slots.give()  # to `gone`, which is cancelled before it runs
    gone.cancel()
    await stays
    assert slots.busy == 1
    slots.give()
    assert slots.busy == 0
    await slots.take()


def beat(boot_id: str, lanes: int) -> IngressHeartbeat:
    return IngressHeartbeat(boot_id=boot_id, at_ms=0, lanes=lanes)


def test_an_ingress_dies_of_silence_only_while_the_broker_answers() -> None:
    ingresses = Ingresses()
    ingresses.broker(True, 0)
    ingresses.heard(beat("a", 1), 0)
    assert not ingresses.dead("a", OWNER_DEAD_S)
    assert ingresses.dead("a", OWNER_DEAD_S + 1)
    ingresses.broker(False, 5)
    assert not ingresses.dead("a", 1000)
    ingresses.broker(True, 1000)
    assert not ingresses.dead("a", 1000 + OWNER_DEAD_S)
    assert ingresses.dead("a", 1001 + OWNER_DEAD_S)
    ingresses.seen("a", 1012)
    assert not ingresses.dead("a", 1013)


def test_lanes_of_the_living_the_freshest_first() -> None:
    ingresses = Ingresses()
    ingresses.heard(beat("old", 3), 0)
    ingresses.heard(beat("new", WARM_LANES_MAX - 1), 1)
    lanes = ingresses.lanes(2)
    assert len(lanes) == WARM_LANES_MAX
    assert len([name for name in lanes if ".old." in name]) == 1
    assert ingresses.lanes(OWNER_DEAD_S + 0.5) == {name for name in lanes if ".new." in name}
    assert ingresses.lanes(1000) == frozenset()


GOOD = {"SHRK_KAFKA": "k:1", "SHRK_NODE_ID": "n-1", "SHRK_PROVIDER_ID": "p"}


def test_configuration() -> None:
    config = NodeConfig.from_environment(GOOD)
    assert (config.engine, config.slots, config.drain_s) == ("llamacpp", None, 20)
    assert [(model.name, model.path) for model in config.models] == [("shark-mini", None)]
    config = NodeConfig.from_environment(GOOD | {"SHRK_MODELS": "a, b=dir/b.gguf", "SHRK_SLOTS": "3"})
    assert [(model.name, str(model.path)) for model in config.models] == [("a", "None"), ("b", "dir/b.gguf")]


@pytest.mark.parametrize(
    "wrong",
    [
        {"SHRK_KAFKA": ""},
        {"SHRK_NODE_ID": ""},
        {"SHRK_NODE_ID": "a:b"},
        {"SHRK_PROVIDER_ID": "a b"},
        {"SHRK_MODELS": "a,a"},
        {"SHRK_MODELS": "a="},
        {"SHRK_MODELS": ","},
        {"SHRK_SLOTS": "0"},
        {"SHRK_SLOTS": "-1"},
        {"SHRK_SLOTS": "many"},
        {"SHRK_DRAIN_S": "-1"},
        {"SHRK_DRAIN_S": "nan"},
    ],
)
def test_a_wrong_setting_is_named_in_one_line(wrong: dict[str, str]) -> None:
    with pytest.raises(BadConfig) as caught:
        NodeConfig.from_environment(GOOD | wrong)
    assert next(iter(wrong)) in str(caught.value)
    assert "\n" not in str(caught.value)
