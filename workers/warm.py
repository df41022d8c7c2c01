"""Ingresses' heartbeats: whose lanes the reply producer should know ahead, who is dead, and how late letters come."""

from __future__ import annotations

import asyncio
import logging

from pydantic import ValidationError

from schemas.heartbeats import IngressHeartbeat
from schemas.topics import INGRESS_HEARTBEATS
from workers.clocks import SkewMeter
from workers.ingresses import OWNER_DEAD_S, Ingresses
from workers.outbox import Outbox
from workers.tail import Tail

log = logging.getLogger(__name__)


class Warmer:
    """Reads `ingress.heartbeats` from its beginning and goes on.

    Args:
        bootstrap: Kafka's `host:port`.
        node_id: for the client's name.
        ingresses: told of every arrival.
        skew: told how fast the fastest record of an ingress came.
        outbox: told which lanes to know.
    """

    def __init__(self, bootstrap: str, node_id: str, ingresses: Ingresses, skew: SkewMeter, outbox: Outbox) -> None:
        self._tail = Tail(bootstrap, INGRESS_HEARTBEATS, "beginning", f"{node_id}-ingresses")
        self._ingresses = ingresses
        self._skew = skew
        self._outbox = outbox
        self._time = asyncio.get_running_loop().time
        self._warm: frozenset[str] = frozenset()
        self._unreadable = 0

    async def open(self) -> None:
        """Reads what is there already. Raises TopicMissing."""
        await self._tail.open()
        latest: dict[str, tuple[int, IngressHeartbeat]] = {}
        while not self._tail.caught_up():
            for record in await self._tail.poll():
                if (beat := self._read(record.value)) is not None:
                    latest[beat.boot_id] = (record.timestamp, beat)
        # The topic is compacted, so it names the dead of weeks. By its own clock those that beat last with the newest
        # one may live; a wrong guess costs some metadata until it goes stale here.
        newest_ms = max((timestamp_ms for timestamp_ms, _ in latest.values()), default=0)
        now_s = self._time()
        for timestamp_ms, beat in latest.values():
            if newest_ms - timestamp_ms <= OWNER_DEAD_S * 1000:
                self._ingresses.heard(beat, now_s)
        await self._apply()

    async def run(self) -> None:
        """Goes on for ever. Raises TopicMissing."""
        while True:
            records = await self._tail.poll()
            now_s = self._time()
            for record in records:
                if (beat := self._read(record.value)) is not None:
                    self._ingresses.heard(beat, now_s)
                    self._skew.delay_s(beat.boot_id, record.timestamp, now_s)
            await self._apply()

    async def close(self) -> None:
        await self._tail.close()

    async def _apply(self) -> None:
        lanes = self._ingresses.lanes(self._time())
        if lanes == self._warm:
            return
        try:
            await self._outbox.warm(lanes)
        except TimeoutError:
            log.warning("Kafka did not describe %d lanes in time: trying again", len(lanes))
            return
        self._warm = lanes

    def _read(self, value: bytes | None) -> IngressHeartbeat | None:
        if value is None:
            return None  # a tombstone
        try:
            return IngressHeartbeat.model_validate_json(value)
        except ValidationError as error:
            self._unreadable += 1
            if self._unreadable == 1:
                log.warning("an ingress's heartbeat is unreadable (%d faults); more are not named", error.error_count())
            return None
