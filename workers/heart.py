"""The node's own heartbeat: once a second, and at once when what the router goes by changes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from aiokafka.errors import KafkaError

from schemas.heartbeats import INTERVAL_S, NodeHeartbeat
from schemas.topics import NODE_HEARTBEATS
from workers import kafka

log = logging.getLogger(__name__)

#: At once is not more often than this.
GAP_S_MIN = 0.1
#: A heartbeat without an ack after this long: the broker is away.
ACK_S_MAX = 3.0


class Heart:
    """Beats on a producer of its own, so that no backlog of replies delays it.

    Args:
        bootstrap: Kafka's `host:port`.
        node_id: the key.
        describe: makes the heartbeat of this moment.
        edge: what a router must know at once, such as whether a place is free.
        on_broker: told after each beat whether the broker answered.
    """

    def __init__(
        self,
        bootstrap: str,
        node_id: str,
        describe: Callable[[], NodeHeartbeat],
        edge: Callable[[], tuple[object, ...]],
        on_broker: Callable[[bool], None],
    ) -> None:
        self._bootstrap = bootstrap
        self._node_id = node_id
        self._describe = describe
        self._edge = edge
        self._on_broker = on_broker
        self._producer: Any = None
        self._pending: asyncio.Future[Any] | None = None
        self._nudge = asyncio.Event()
        self._told: tuple[object, ...] | None = None
        self._answered = True

    def changed(self) -> None:
        """Something changed: beats soon if a router would decide otherwise now."""
        if self._edge() != self._told:
            self._nudge.set()

    async def run(self) -> None:
        """Beats for ever, also through times without a broker."""
        while True:
            self._nudge.clear()
            answered = await self._beat()
            if answered != self._answered:
                self._answered = answered
                log.warning("Kafka %s", "answers again" if answered else "is away: heartbeats do not get through")
            self._on_broker(answered)
            await asyncio.sleep(GAP_S_MIN)
            try:
                async with asyncio.timeout(INTERVAL_S - GAP_S_MIN):
                    await self._nudge.wait()
            except TimeoutError:
                pass  # the ordinary beat

    async def close(self) -> None:
        if self._producer is not None:
            producer, self._producer = self._producer, None
            await kafka.stop(producer)

    async def _beat(self) -> bool:
        """One heartbeat; False where no ack came. One at most is on its way: an idempotent producer never drops any."""
        if self._producer is None:
            producer = kafka.producer(self._bootstrap, f"{self._node_id}-heart")
            if await kafka.try_start(producer) is not None:
                return False
            self._producer, self._pending = producer, None
        try:
            async with asyncio.timeout(ACK_S_MAX):
                if self._pending is not None:
                    await asyncio.shield(self._pending)
                edge, beat = self._edge(), self._describe()
                sent = await self._producer.send(
                    NODE_HEARTBEATS, beat.model_dump_json().encode(), self._node_id.encode()
                )
                self._pending = sent
                await asyncio.shield(sent)
        except TimeoutError:
            return False
        except KafkaError as error:
            log.warning("a heartbeat failed (%s): replacing the producer", type(error).__name__)
            await self.close()
            return False
        self._pending = None
        self._told = edge
        return True
