"""When gathered tokens go out."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from workers.gather import LATENCY_FREE_S, WINDOW_S_MAX, Gatherer, window_s


@pytest.mark.parametrize(
    ("streams", "latency_s", "window"),
    [
        (0, 0.0, 0.0),
        (1, 0.0, 0.0),
        (1, LATENCY_FREE_S, 0.0),
        (16, 0.0, 0.045),
        (64, 0.0, 0.060),
        (200, 0.0, 0.100),
        (5000, 0.0, 0.100),
        (1, LATENCY_FREE_S + 0.05, 0.05),
        (200, 9.0, WINDOW_S_MAX),
    ],
)
def test_the_window(streams: int, latency_s: float, window: float) -> None:
    assert window_s(streams, latency_s) == pytest.approx(window)


def test_the_window_never_shrinks_with_load() -> None:
    windows = [window_s(streams, 0.0) for streams in range(400)]
    assert windows == sorted(windows)


class Clock:
    """A loop's clock and its one timer."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.timers: list[tuple[float, Callable[[], None]]] = []

    def call_at(self, when: float, call: Callable[[], None]) -> Clock:
        self.timers.append((when, call))
        return self

    def cancel(self) -> None:
        raise AssertionError("the gatherer has no reason to cancel")

    def run_to(self, when: float) -> None:
        while due := sorted((timer for timer in self.timers if timer[0] <= when), key=lambda timer: timer[0]):
            self.timers.remove(due[0])
            self.now_s = max(self.now_s, due[0][0])
            due[0][1]()
        self.now_s = when


class Stream:
    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.flushed_s: list[float] = []

    def flush(self) -> None:
        self.flushed_s.append(self.clock.now_s)


def gatherer(clock: Clock, streams: int) -> Gatherer:
    return Gatherer(lambda: clock.now_s, clock.call_at, lambda: (streams, 0.0))


def test_one_stream_does_not_gather() -> None:
    clock = Clock()
    stream = Stream(clock)
    gatherer(clock, 1).gathered(stream)
    assert stream.flushed_s == [0.0]
    assert clock.timers == []


def test_one_timer_serves_all_and_each_waits_its_window() -> None:
    clock = Clock()
    gather = gatherer(clock, 200)
    streams = [Stream(clock) for _ in range(50)]
    for number, stream in enumerate(streams):
        clock.run_to(number * 0.001)
        gather.gathered(stream)
        gather.gathered(stream)  # more tokens in the same window
        assert len(clock.timers) == 1
    clock.run_to(1.0)
    for number, stream in enumerate(streams):
        assert len(stream.flushed_s) == 1
        waited_s = stream.flushed_s[0] - number * 0.001
        assert 0.087 <= waited_s <= 0.1001  # the window, or up to an eighth of it less, in company
    assert len({stream.flushed_s[0] for stream in streams}) < 10
    assert clock.timers == []


def test_who_flushed_by_itself_is_forgotten() -> None:
    clock = Clock()
    gather = gatherer(clock, 16)
    gone, stays = Stream(clock), Stream(clock)
    gather.gathered(gone)
    gather.gathered(stays)
    gather.forget(gone)
    gather.forget(gone)
    clock.run_to(1.0)
    assert (len(gone.flushed_s), len(stays.flushed_s)) == (0, 1)
