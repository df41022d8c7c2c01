"""Which node takes a request: a living one that the request's wishes leave, best first, with a free slot.

Nodes are known by their heartbeats, read from the topic's end: within a second of its start an ingress knows all. What
a request wishes is in `ingress.placing`; here is who lives, who is free, and whose turn it is.

A job needs one free slot. It is counted as what it may come to occupy: the node runs its choices at once as far as it
has slots, also those that come free later. So a request of n choices counts n slots, never more than the node has, and
one less with each choice that has ended once fewer are left than that. A node that is filled by one job is offered no
other.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from ingress.catalog import Model
from ingress.turns import turn
from schemas.heartbeats import STALE_S, NodeHeartbeat, ServedModel

WAITERS_MAX = 1000
#: How fast slots came free is judged by at most so many of the last ones, none older than this.
_FREED_MAX = 64
_FREED_S = 60.0
_WAIT_S_MAX = 30
#: What the last first token counts in a node's typical time to it.
_RECENT = 0.2


@dataclass(slots=True)
class Node:
    """A node as its last heartbeat and our own jobs show it. `heard_at_s` is our monotonic clock; `ours` are the slots
    that our jobs there are counted as."""

    beat: NodeHeartbeat
    heard_at_s: float
    ours: int = 0
    models: dict[str, ServedModel] = field(default_factory=dict)
    seen_ms: float | None = None

    @property
    def first_token_ms(self) -> float | None:
        """From a job's sending to its first token: as the node measures it, else as we saw it here; None before any."""
        return self.seen_ms if self.beat.first_token_ms is None else self.beat.first_token_ms

    def saw_first_token(self, after_ms: float) -> None:
        self.seen_ms = after_ms if self.seen_ms is None else self.seen_ms + _RECENT * (after_ms - self.seen_ms)

    def free_slots(self, boot_id: str) -> int:
        """Slots that neither we use by our own exact count nor the other ingresses by the node's last word."""
        others = sum(n for owner, n in self.beat.busy_by_owner.items() if owner != boot_id)
        return self.beat.slots - others - self.ours


class Place(NamedTuple):
    """A node, for one of the models that it serves; `slots` are counted for it where it is reserved."""

    node: Node
    model: Model
    slots: int = 0

    @property
    def context_tokens(self) -> int:
        return self.node.models[self.model.name].context_tokens


class Chooser(Protocol):
    @property
    def choices(self) -> int:
        """How many slots its job takes where they are free."""
        ...

    def places(self, nodes: Iterable[Node]) -> Sequence[Place]:
        """Those of the nodes that may serve it, and with what, the best first. `nodes` come freshest first."""
        ...


class Router:
    """Reserve before admission, release when the attempt is over. Waiting is first come, first served."""

    def __init__(self, boot_id: str) -> None:
        self._boot_id = boot_id
        self._nodes: dict[str, Node] = {}
        self._waiters: deque[tuple[Chooser, asyncio.Future[Place]]] = deque()
        self._freed_at_s: deque[float] = deque(maxlen=_FREED_MAX)

    def hear(self, beat: NodeHeartbeat) -> None:
        node = self._nodes.get(beat.node_id)
        if node is None:
            node = self._nodes[beat.node_id] = Node(beat, 0.0)
        node.beat, node.heard_at_s = beat, time.monotonic()
        node.models = {served.name: served for served in beat.models}
        self._serve_waiters()

    def living(self, model: str | None = None) -> list[Node]:
        """Nodes that may take work now, freshest first."""
        horizon = time.monotonic() - STALE_S
        nodes = [
            node
            for node in self._nodes.values()
            if node.heard_at_s > horizon and not node.beat.draining and (model is None or model in node.models)
        ]
        nodes.sort(key=lambda node: node.heard_at_s, reverse=True)
        return nodes

    def context_tokens(self, model: str) -> int | None:
        """The greatest context of the living nodes that serve the model, or None without such a node."""
        return max((node.models[model].context_tokens for node in self.living(model)), default=None)

    def reserve(self, wish: Chooser) -> Place | None:
        """Take a slot at once, or None. Who waits is not overtaken: they are served as it comes free."""
        return self._take(wish, self._free())

    async def wait(self, wish: Chooser, timeout_s: float) -> Place | None:
        """Wait for a slot, or None after `timeout_s`, and at once where no living node may serve the wish."""
        if not wish.places(self.living()) or len(self._waiters) >= WAITERS_MAX:
            return None
        future: asyncio.Future[Place] = asyncio.get_running_loop().create_future()
        self._waiters.append((wish, future))
        self._serve_waiters()  # a slot may have come free since the caller's reserve()
        try:
            return await turn(future, timeout_s, self.release)
        finally:
            self._waiters = deque(waiter for waiter in self._waiters if waiter[1] is not future)

    def release(self, place: Place) -> None:
        """The attempt is over, or will have no place: all its slots are free."""
        self.keep(place, 0)

    def keep(self, place: Place, choices: int) -> Place:
        """So many choices of the attempt have not ended. Returns the place as it is counted now."""
        freed = place.slots - choices
        if freed <= 0:
            return place
        place.node.ours -= freed
        self._freed_at_s.extend([time.monotonic()] * freed)
        self._serve_waiters()
        return place._replace(slots=choices)

    def wait_estimate_s(self) -> int | None:
        """How long until everyone who waits now and one more has a slot, at the pace at which slots came free lately;
        None where none did. At most _WAIT_S_MAX: who has waited so long may as well ask again."""
        now_s = time.monotonic()
        recent = [at_s for at_s in self._freed_at_s if now_s - at_s < _FREED_S]
        if not recent:
            return None
        each_s = (now_s - recent[0]) / len(recent)
        return min(_WAIT_S_MAX, max(1, math.ceil(each_s * (len(self._waiters) + 1))))

    def _free(self) -> list[Node]:
        return [node for node in self.living() if node.free_slots(self._boot_id) > 0]

    def _take(self, wish: Chooser, free: list[Node]) -> Place | None:
        places = wish.places(free)
        if not places:
            return None
        place = places[0]._replace(slots=min(wish.choices, places[0].node.beat.slots))
        place.node.ours += place.slots
        return place

    def _serve_waiters(self) -> None:
        free = self._free() if self._waiters else []
        for wish, future in list(self._waiters):
            if not free:
                return
            if not future.done() and (place := self._take(wish, free)):
                future.set_result(place)
                free = self._free()
