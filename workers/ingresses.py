"""Which ingresses live, as this node hears them. Pure: arrivals and the clock come in as arguments.

An ingress lives while it is heard: what counts is arrival here, never its clock. While the broker is away nobody is
heard, and that is nobody's death: silence counts only from the moment the broker answered again.
"""

from __future__ import annotations

from schemas.heartbeats import STALE_S, IngressHeartbeat
from schemas.topics import lane

#: Jobs of an ingress unheard for this long are cancelled. Longer than an adoption takes: another ingress may read on.
OWNER_DEAD_S = 10.0
#: Lanes known ahead, of all ingresses together; more would make every metadata refresh slow (58 ms at 1,000).
WARM_LANES_MAX = 4096
INGRESSES_MAX = 1024


class Ingresses:
    """Arrivals per boot id."""

    def __init__(self) -> None:
        self._lanes: dict[str, int] = {}
        self._heard_at_s: dict[str, float] = {}
        self._broker_since_s: float | None = None

    def heard(self, beat: IngressHeartbeat, now_s: float) -> None:
        """A heartbeat arrived."""
        self._lanes[beat.boot_id] = beat.lanes
        self.seen(beat.boot_id, now_s)

    def seen(self, boot_id: str, now_s: float) -> None:
        """Any other sign of life, such as a letter."""
        self._heard_at_s.pop(boot_id, None)
        self._heard_at_s[boot_id] = now_s  # at the end: the dict is in order of arrival
        while len(self._heard_at_s) > INGRESSES_MAX:
            oldest = next(iter(self._heard_at_s))
            del self._heard_at_s[oldest]
            self._lanes.pop(oldest, None)

    def broker(self, answers: bool, now_s: float) -> None:
        """Whether the broker answers us at present."""
        if not answers:
            self._broker_since_s = None
        elif self._broker_since_s is None:
            self._broker_since_s = now_s

    def dead(self, boot_id: str, now_s: float) -> bool:
        """Unheard for OWNER_DEAD_S while the broker answered. One never heard of counts from its first letter."""
        if self._broker_since_s is None:
            return False
        heard_at_s = self._heard_at_s.get(boot_id, self._broker_since_s)
        return now_s - max(heard_at_s, self._broker_since_s) > OWNER_DEAD_S

    def lanes(self, now_s: float) -> frozenset[str]:
        """The lanes of the living, the freshest first up to WARM_LANES_MAX. Forgets the long dead."""
        for boot_id in [b for b, at_s in self._heard_at_s.items() if now_s - at_s > 6 * OWNER_DEAD_S]:
            del self._heard_at_s[boot_id]
            self._lanes.pop(boot_id, None)
        names: set[str] = set()
        for boot_id in reversed(self._heard_at_s):
            if now_s - self._heard_at_s[boot_id] > max(STALE_S, OWNER_DEAD_S):
                break
            count = self._lanes.get(boot_id, 0)
            names.update(lane(boot_id, number) for number in range(min(count, WARM_LANES_MAX - len(names))))
        return frozenset(names)
