"""When gathered tokens go out: the first at once, later ones in a window that grows with the load.

Every record costs its share of a batch in the producer, in the broker and in the reader, and with a lane per request
nothing shares a batch. So the busier the node is, the longer it gathers; a node with one stream does not gather at all.
One timer serves all streams.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

#: (live streams, window in seconds), joined by straight lines and level after the last. The design had 20 ms at 16
#: streams; why it is more: infra/docs/performance.md.
WINDOW_BY_STREAMS = ((1, 0.0), (16, 0.045), (64, 0.060), (200, 0.100))
#: Produce latency up to this does not widen the window; what is above does, one for one.
LATENCY_FREE_S = 0.020
WINDOW_S_MAX = 0.200
#: Streams due within this share of the window go with the one that is due now: fewer, fuller requests.
SLACK_SHARE = 0.125
#: A record takes no more than this, whatever the window.
RECORD_IDS_MAX = 1024
RECORD_CHARS_MAX = 65_536
#: With the alternatives of each id a record would outgrow a batch.
RECORD_LOGPROBS_MAX = 64


def window_s(live_streams: int, latency_s: float) -> float:
    """Seconds that tokens may wait for company.

    Args:
        live_streams: attempts that generate now.
        latency_s: what a produce takes at present, from append to ack.
    """
    window = WINDOW_BY_STREAMS[-1][1]
    below, low = WINDOW_BY_STREAMS[0]
    if live_streams <= below:
        window = low
    else:
        for above, high in WINDOW_BY_STREAMS[1:]:
            if live_streams <= above:
                window = low + (high - low) * (live_streams - below) / (above - below)
                break
            below, low = above, high
    return min(WINDOW_S_MAX, max(window, latency_s - LATENCY_FREE_S))


class Flushable(Protocol):
    """A stream with gathered tokens."""

    def flush(self) -> None:
        """Write what is gathered, now. Never waits."""
        ...


class Timer(Protocol):
    """What `loop.call_at` returns."""

    def cancel(self) -> None: ...


class Gatherer:
    """Flushes streams when their window is over.

    Args:
        now: the clock, in seconds.
        call_at: calls a function at a time of that clock (`loop.call_at`).
        load: live streams and produce latency in seconds, asked at each first token of a window.
    """

    def __init__(
        self,
        now: Callable[[], float],
        call_at: Callable[[float, Callable[[], None]], Timer],
        load: Callable[[], tuple[int, float]],
    ) -> None:
        self._now = now
        self._call_at = call_at
        self._load = load
        self._due: dict[Flushable, float] = {}
        self._timer: Timer | None = None

    def gathered(self, stream: Flushable) -> None:
        """A stream has tokens to write, and has written before. Flushes at once where the window is 0."""
        if stream in self._due:
            return
        window = window_s(*self._load())
        if window <= 0:
            stream.flush()
            return
        due = self._now() + window
        self._due[stream] = due
        if self._timer is None:
            self._timer = self._call_at(due, self._fire)

    def forget(self, stream: Flushable) -> None:
        """It flushed by itself, or ended."""
        self._due.pop(stream, None)

    def _fire(self) -> None:
        self._timer = None
        now = self._now()
        limit = now + SLACK_SHARE * window_s(*self._load())
        # In order of their first token. The window changes slowly, so the first that is not due ends the search; one
        # behind it that was due sooner waits for at most the change of the window.
        ready = []
        for stream, due in self._due.items():
            if due > limit:
                break
            ready.append(stream)
        for stream in ready:
            del self._due[stream]
        if self._due:
            self._timer = self._call_at(next(iter(self._due.values())), self._fire)
        for stream in ready:
            stream.flush()
