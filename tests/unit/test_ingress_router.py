"""Which node is picked, and that no slot is lost whatever a waiter does."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import NamedTuple

import pytest

from ingress import router as routing
from ingress.catalog import Model
from ingress.router import Node, Place, Router
from schemas.heartbeats import STALE_S, NodeHeartbeat, ServedModel


class Any(NamedTuple):
    """The wish of whoever takes any node of a model."""

    model: str
    choices: int = 1

    def places(self, nodes: Iterable[Node]) -> list[Place]:
        model = Model(self.model, "", 0, "chat", False, None, {})
        return [Place(node, model) for node in nodes if self.model in node.models]


M = Any("m")


def _beat(node: str, *, slots: int = 1, model: str = "m", draining: bool = False, **busy: int) -> NodeHeartbeat:
    return NodeHeartbeat(
        node_id=node, provider_id="p", at_ms=0, version="1", engine="double", slots=slots, draining=draining,
        models=(ServedModel(name=model, context_tokens=100),), busy_by_owner=busy,
    )  # fmt: skip


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(routing.time, "monotonic", lambda: now[0])
    return now


def test_the_freshest_node_with_a_free_slot(clock: list[float]) -> None:
    router = Router("me")
    router.hear(_beat("old"))
    clock[0] += 1
    router.hear(_beat("new"))
    picked = [router.reserve(M), router.reserve(M), router.reserve(M)]
    assert [place and place.node.beat.node_id for place in picked] == ["new", "old", None]


def test_stale_draining_and_other_models_are_not_picked(clock: list[float]) -> None:
    router = Router("me")
    router.hear(_beat("stale"))
    clock[0] += STALE_S + 0.1
    router.hear(_beat("draining", draining=True))
    router.hear(_beat("other", model="x"))
    assert router.reserve(M) is None
    assert router.context_tokens("m") is None
    assert router.context_tokens("x") == 100


def test_slots_of_other_ingresses_count_and_ours_by_our_own_count(clock: list[float]) -> None:
    router = Router("me")
    router.hear(_beat("n", slots=3, other=1, me=2))  # our two have ended since: the heartbeat is late
    assert [router.reserve(M) is not None for _ in range(3)] == [True, True, False]


def _free(router: Router) -> int:
    """How many more single answers would be taken now."""
    taken: list[Place] = []
    while (place := router.reserve(M)) is not None:
        taken.append(place)
    for place in taken:
        router.release(place)
    return len(taken)


def test_a_job_of_several_choices_counts_what_it_may_occupy(clock: list[float]) -> None:
    router = Router("me")
    router.hear(_beat("n", slots=4))
    three = router.reserve(Any("m", 3))
    assert three is not None
    assert _free(router) == 1
    # One free slot is enough to begin; then the node is full, and the job will have what comes free.
    eight = router.reserve(Any("m", 8))
    assert eight is not None
    assert router.reserve(M) is None
    router.release(three)
    assert router.reserve(M) is None
    router.release(eight)
    assert _free(router) == 4


def test_choices_that_have_ended_free_their_slots(clock: list[float]) -> None:
    router = Router("me")
    router.hear(_beat("n", slots=4))
    place = router.reserve(Any("m", 6))
    assert place is not None
    # By choices that are left: as long as they fill the node, none is free.
    for left, free in ((5, 0), (4, 0), (3, 1), (1, 3)):
        place = router.keep(place, left)
        assert _free(router) == free, left
    router.release(place)
    assert _free(router) == 4


async def test_a_slot_of_an_ended_choice_goes_to_who_waits(clock: list[float]) -> None:
    router = Router("me")
    router.hear(_beat("n", slots=2))
    place = router.reserve(Any("m", 2))
    assert place is not None
    first, second = (asyncio.create_task(router.wait(M, 5)) for _ in range(2))
    await asyncio.sleep(0)
    place = router.keep(place, 1)
    assert isinstance(await first, Place)
    assert not second.done()
    router.release(place)
    assert isinstance(await second, Place)


async def test_a_waiter_of_several_choices_that_leaves_gives_all_its_slots_back(clock: list[float]) -> None:
    router = Router("me")
    router.hear(_beat("n", slots=3))
    place = router.reserve(Any("m", 3))
    assert place is not None
    waiter = asyncio.create_task(router.wait(Any("m", 3), 5))
    await asyncio.sleep(0)
    router.release(place)
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    assert _free(router) == 3


async def test_waiters_are_served_in_order_and_before_newcomers() -> None:
    router = Router("me")
    router.hear(_beat("n"))
    place = router.reserve(M)
    assert place is not None
    first, second = (asyncio.create_task(router.wait(M, 5)) for _ in range(2))
    await asyncio.sleep(0)
    router.release(place)
    assert router.reserve(M) is None
    assert (await first) == place
    assert not second.done()
    router.release(place)
    assert (await second) == place


async def test_no_slot_is_lost_when_a_waiter_leaves_as_it_is_served() -> None:
    router = Router("me")
    router.hear(_beat("n"))
    place = router.reserve(M)
    assert place is not None
    waiter = asyncio.create_task(router.wait(M, 5))
    await asyncio.sleep(0)
    router.release(place)
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    assert isinstance(router.reserve(M), Place)


async def test_waiting_ends_in_none_and_at_once_without_a_node() -> None:
    router = Router("me")
    assert await router.wait(M, 60) is None
    router.hear(_beat("n"))
    assert router.reserve(M) is not None
    assert await router.wait(M, 0.01) is None
    assert not router._waiters


async def test_a_slot_that_came_free_before_the_wait_is_taken_at_once() -> None:
    router = Router("me")
    router.hear(_beat("n"))
    place = router.reserve(M)
    assert place is not None
    assert router.reserve(M) is None
    router.release(place)  # nobody waits yet, and nothing else will happen
    assert await router.wait(M, 0.01) == place


async def test_a_waiter_for_another_model_does_not_hold_up_the_line() -> None:
    router = Router("me")
    router.hear(_beat("n"))
    router.hear(_beat("x", model="x"))
    held = router.reserve(M)
    other = router.reserve(Any("x"))
    assert held is not None
    assert other is not None
    first, second = asyncio.create_task(router.wait(M, 5)), asyncio.create_task(router.wait(Any("x"), 5))
    await asyncio.sleep(0)
    router.release(other)
    assert await second == other
    assert not first.done()
    router.release(held)
    assert await first == held


async def test_the_estimate_is_the_pace_at_which_slots_came_free(clock: list[float]) -> None:
    router = Router("me")
    router.hear(_beat("n", slots=4))
    assert router.wait_estimate_s() is None
    places = [router.reserve(M) for _ in range(4)]
    for place in places[:3]:
        assert place is not None
        router.release(place)
        clock[0] += 2
    assert router.wait_estimate_s() == 2  # one every two seconds, and nobody waits
    router.hear(_beat("n", slots=0))
    router.hear(_beat("z", model="z", slots=0))
    waiters = [asyncio.create_task(router.wait(M, 5)) for _ in range(3)]
    await asyncio.sleep(0)
    assert router.wait_estimate_s() == 8
    clock[0] += 60
    assert router.wait_estimate_s() is None  # too long ago to say anything
    for waiter in waiters:
        waiter.cancel()


def test_a_node_s_own_word_of_its_latency_goes_before_ours() -> None:
    node = Node(_beat("n"), 0.0)
    assert node.first_token_ms is None
    node.saw_first_token(100.0)
    assert node.first_token_ms == 100.0
    for _ in range(50):
        node.saw_first_token(500.0)
    assert 499 < (node.first_token_ms or 0) <= 500
    node.beat = node.beat.model_copy(update={"first_token_ms": 7})
    assert node.first_token_ms == 7
