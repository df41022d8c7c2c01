"""How long a letter lay in the mailbox, without trusting that two machines' clocks agree.

A job's times are its ingress's clock, and so is its record's timestamp: their difference is a span of time that needs
no common clock. What it does not tell is how long the record waited before we read it. That comes from the fastest
record of the same ingress: `our monotonic clock - its timestamp` is lowest for a record that did not wait at all, and
what another record has above that is its delay. Heartbeats bring such a record every second.
"""

from __future__ import annotations

from collections import OrderedDict

#: How fast two clocks may drift apart: the lowest difference is allowed to rise by this much.
DRIFT_S_PER_S = 0.001
OWNERS_MAX = 1024


class SkewMeter:
    """The lowest `monotonic - timestamp` seen per owner, forgetting slowly. Pure: time comes in as arguments."""

    def __init__(self) -> None:
        self._best: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def delay_s(self, owner: str, timestamp_ms: int, read_at_s: float) -> float:
        """Seconds that a record waited beyond its owner's fastest, 0 for an owner unknown until now.

        Args:
            owner: boot id of the ingress whose clock made the timestamp.
            timestamp_ms: the record's CreateTime.
            read_at_s: our monotonic clock when the record was read.
        """
        sample = read_at_s - timestamp_ms / 1000
        best, at_s = self._best.get(owner, (sample, read_at_s))
        best = min(sample, best + DRIFT_S_PER_S * max(0.0, read_at_s - at_s))
        self._best[owner] = (best, read_at_s)
        self._best.move_to_end(owner)
        if len(self._best) > OWNERS_MAX:
            self._best.popitem(last=False)
        return sample - best


def due_at_s(field_ms: int, timestamp_ms: int, read_at_s: float, delay_s: float) -> float:
    """When a time that an ingress wrote is reached, on our monotonic clock."""
    return read_at_s - delay_s + (field_ms - timestamp_ms) / 1000
