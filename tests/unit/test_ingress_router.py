"""Which node is picked, and that no slot is lost whatever a waiter does."""

from __future__ import annotations

import asyncio

import pytest

from ingress import router as routing
from ingress.router import Node, Router
from schemas.heartbeats import STALE_S, NodeHeartbeat, ServedModel


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
    picked = [router.reserve("m"), router.reserve("m"), router.reserve("m")]
    assert [node and node.beat.node_id for node in picked] == ["new", "old", None]


def test_stale_draining_and_other_models_are_not_picked(clock: list[float]) -> None:
    router = Router("me")
    router.hear(_beat("stale"))
    clock[0] += STALE_S + 0.1
    router.hear(_beat("draining", draining=True))
    router.hear(_beat("other", model="x"))
    assert router.reserve("m") is None
    assert router.context_tokens("m") is None
    assert router.context_tokens("x") == 100


def test_slots_of_other_ingresses_count_and_ours_by_our_own_count(clock: list[float]) -> None:
    router = Router("me")
    router.hear(_beat("n", slots=3, other=1, me=2))  # our two have ended since: the heartbeat is late
    assert [router.reserve("m") is not None for _ in range(3)] == [True, True, False]


async def test_waiters_are_served_in_order_and_before_newcomers() -> None:
    router = Router("me")
    router.hear(_beat("n"))
    node = router.reserve("m")
    assert node is not None
    first, second = (asyncio.create_task(router.wait("m", 5)) for _ in range(2))
    await asyncio.sleep(0)
    router.release(node)
    assert router.reserve("m") is None
    assert (await first) is node
    assert not second.done()
    router.release(node)
    assert (await second) is node


async def test_no_slot_is_lost_when_a_waiter_leaves_as_it_is_served() -> None:
    router = Router("me")
    router.hear(_beat("n"))
    node = router.reserve("m")
    assert node is not None
    waiter = asyncio.create_task(router.wait("m", 5))
    await asyncio.sleep(0)
    router.release(node)
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    assert isinstance(router.reserve("m"), Node)


async def test_waiting_ends_in_none_and_at_once_without_a_node() -> None:
    router = Router("me")
    assert await router.wait("m", 60) is None
    router.hear(_beat("n"))
    assert router.reserve("m") is not None
    assert await router.wait("m", 0.01) is None
    assert not router._waiters


async def test_a_slot_that_came_free_before_the_wait_is_taken_at_once() -> None:
    router = Router("me")
    router.hear(_beat("n"))
    node = router.reserve("m")
    assert node is not None
    assert router.reserve("m") is None
    router.release(node)  # nobody waits yet, and nothing else will happen
    assert await router.wait("m", 0.01) is node
