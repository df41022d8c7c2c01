"""Which node takes a request: the one heard of last that serves the model and has a free slot.

Nodes are known by their heartbeats, read from the topic's end: within a second of its start an ingress knows all.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field

from ingress.turns import turn
from schemas.heartbeats import STALE_S, NodeHeartbeat

WAITERS_MAX = 1000


@dataclass(slots=True)
class Node:
    """A node as its last heartbeat and our own jobs show it. `heard_at_s` is our monotonic clock."""

    beat: NodeHeartbeat
    heard_at_s: float
    ours: int = 0
    models: dict[str, int] = field(default_factory=dict)  # name -> context tokens

    def free_slots(self, boot_id: str) -> int:
        """Slots that neither we use by our own exact count nor the other ingresses by the node's last word."""
        others = sum(n for owner, n in self.beat.busy_by_owner.items() if owner != boot_id)
        return self.beat.slots - others - self.ours


class Router:
    """Reserve before admission, release when the attempt is over. Waiting is first come, first served."""

    def __init__(self, boot_id: str) -> None:
        self._boot_id = boot_id
        self._nodes: dict[str, Node] = {}
        self._waiters: deque[tuple[str, asyncio.Future[Node]]] = deque()

    def hear(self, beat: NodeHeartbeat) -> None:
        node = self._nodes.get(beat.node_id)
        if node is None:
            node = self._nodes[beat.node_id] = Node(beat, 0.0)
        node.beat, node.heard_at_s = beat, time.monotonic()
        node.models = {served.name: served.context_tokens for served in beat.models}
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
        return max((node.models[model] for node in self.living(model)), default=None)

    def reserve(self, model: str) -> Node | None:
        """Take a slot at once, or None. Who waits already goes first."""
        if any(waiting == model for waiting, _ in self._waiters):
            return None
        return self._take(model)

    async def wait(self, model: str, timeout_s: float) -> Node | None:
        """Wait for a slot, or None after `timeout_s`, and at once where no living node serves the model."""
        if not self.living(model) or len(self._waiters) >= WAITERS_MAX:
            return None
        future: asyncio.Future[Node] = asyncio.get_running_loop().create_future()
        self._waiters.append((model, future))
        self._serve_waiters()  # a slot may have come free since the caller's reserve()
        try:
            return await turn(future, timeout_s, self.release)
        finally:
            self._waiters = deque(waiter for waiter in self._waiters if waiter[1] is not future)

    def release(self, node: Node) -> None:
        node.ours -= 1
        self._serve_waiters()

    def _take(self, model: str) -> Node | None:
        for node in self.living(model):
            if node.free_slots(self._boot_id) > 0:
                node.ours += 1
                return node
        return None

    def _serve_waiters(self) -> None:
        for model, future in list(self._waiters):
            if not future.done() and (node := self._take(model)):
                future.set_result(node)
