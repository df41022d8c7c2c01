"""The records of one attempt, counted by their reader's fold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.jobs import Job, Sampling
from schemas.replies import Claimed, Tally, Tokens, Verdict, parse
from workers.attempt import Attempt
from workers.cutting import Cutter
from workers.gather import RECORD_IDS_MAX, Flushable

RID = "01890a5d-ac96-774b-bcce-b302099a8057"


class Lane:
    def __init__(self) -> None:
        self.values: list[bytes] = []
        self.closed = 0

    def append(self, value: bytes) -> None:
        assert not self.closed
        self.values.append(value)

    def close(self) -> None:
        self.closed += 1


class Holding:
    """A gatherer whose window never ends."""

    def gathered(self, stream: Flushable) -> None: ...

    def forget(self, stream: Flushable) -> None: ...


class Passing(Holding):
    """A gatherer without a window."""

    def gathered(self, stream: Flushable) -> None:
        stream.flush()


def attempt(stops: Sequence[str] = (), gathering: Any = None) -> tuple[Attempt, Lane]:
    job = Job(
        request_id=RID,
        attempt=1,
        owner="o",
        lane="replies.o.0",
        model="m",
        messages=[{"role": "user", "content": "hi"}],
        sampling=Sampling(),
        stop=tuple(stops),
        max_tokens=9,
        expires_at_ms=1,
        deadline_at_ms=1,
    )
    lane = Lane()
    return Attempt(job, "nonce123", lane, gathering or Holding(), lambda: 0.0, 1.0, 2.0), lane


def read(lane: Lane) -> tuple[Tally, list[Any]]:
    tally = Tally(RID, 1)
    replies = [parse(value) for value in lane.values]
    assert all(tally.add(reply) is Verdict.COUNTS for reply in replies)
    assert [reply.seq for reply in replies] == list(range(len(replies)))
    sent = 0
    for reply in replies:
        if isinstance(reply, Tokens):
            sent += len(reply.text.encode())
            assert reply.text_bytes == sent
    if tally.terminal is not None and tally.terminal.kind == "end":
        assert tally.terminal.completion_tokens == tally.completion_tokens
    return tally, replies


def text(replies: list[Any]) -> str:
    return "".join(reply.text for reply in replies if isinstance(reply, Tokens))


def test_the_first_text_goes_at_once_and_the_end_takes_the_rest() -> None:
    a, lane = attempt()
    a.claim(7)
    a.feed((1,), "")  # half a character: nothing to show yet
    assert len(lane.values) == 1
    a.feed((2,), "é")
    assert len(lane.values) == 2
    a.feed((3,), "b")
    a.feed((4,), "c")
    assert len(lane.values) == 2
    a.finish("length")
    tally, replies = read(lane)
    assert [reply.kind for reply in replies] == ["claimed", "tokens", "tokens", "end"]
    assert isinstance(replies[0], Claimed)
    assert (text(replies), tally.completion_tokens, lane.closed) == ("ébc", 4, 1)


ENDINGS: list[tuple[str, Callable[[Attempt], Any]]] = [
    ("stop", lambda a: a.finish("stop")),
    ("cancelled", lambda a: a.cancelled()),
    ("draining", lambda a: a.fail("draining")),
    ("bad_job", lambda a: a.reject("bad_job", "x" * 1000)),
]


@pytest.mark.parametrize(("outcome", "end"), ENDINGS)
def test_nothing_follows_the_last_record(outcome: str, end: Callable[[Attempt], Any]) -> None:
    a, lane = attempt()
    a.claim(1)
    end(a)
    count = len(lane.values)
    for _, other in ENDINGS:
        other(a)
    a.claim(1)
    a.alive()
    assert a.feed((1,), "x") is True
    a.flush()
    a.abandon()
    assert (len(lane.values), a.outcome, lane.closed) == (count, outcome, 1)


@pytest.mark.parametrize(("outcome", "end"), ENDINGS[1:3])
def test_what_was_gathered_is_written_before_a_sudden_end(outcome: str, end: Callable[[Attempt], Any]) -> None:
    a, lane = attempt()
    a.claim(1)
    for token_id in range(5):
        a.feed((token_id,), "x")
    end(a)
    tally, replies = read(lane)
    assert (tally.completion_tokens, text(replies)) == (5, "xxxxx")


def test_no_sign_of_life_before_the_claim() -> None:
    a, lane = attempt()
    a.alive()
    assert lane.values == []
    a.claim(1)
    a.alive()
    assert read(lane)[1][-1].kind == "alive"


def test_a_record_has_a_bound() -> None:
    a, lane = attempt()
    a.claim(1)
    a.feed((0,), "s")
    a.feed(tuple(range(3 * RECORD_IDS_MAX)), "y" * 200_000)
    a.finish("stop")
    tally, replies = read(lane)
    assert tally.completion_tokens == 3 * RECORD_IDS_MAX + 1
    assert len(text(replies)) == 200_001
    assert max(len(value) for value in lane.values) < 128 * 1024


def test_a_stop_string_cuts_text_and_ids() -> None:
    a, lane = attempt(["END"])
    a.claim(1)
    pieces = [((1,), "one "), ((2,), "twoE"), ((3,), ""), ((4,), "ND more"), ((5,), "never")]
    stopped = [a.feed(ids, piece) for ids, piece in pieces]
    assert stopped == [False, False, False, True, True]
    a.finish("length")
    tally, replies = read(lane)
    assert (text(replies), a.outcome) == ("one two", "stop")
    # 2 has text that was sent; 3 had none and 4's was cut.
    assert [i for reply in replies if isinstance(reply, Tokens) for i in reply.ids] == [1, 2]
    assert tally.completion_tokens == 2


def test_text_held_back_for_a_stop_string_comes_at_the_end() -> None:
    a, lane = attempt(["END"])
    a.claim(1)
    a.feed((1,), "EN")
    assert len(lane.values) == 1
    a.finish("length")
    tally, replies = read(lane)
    assert (text(replies), tally.completion_tokens) == ("EN", 1)


@given(
    pieces=st.lists(st.tuples(st.lists(st.integers(0, 99), max_size=3).map(tuple), st.text("abé", max_size=4))),
    stops=st.lists(st.text("abé", min_size=1, max_size=3), max_size=3),
    passing=st.booleans(),
)
def test_ids_belong_to_text_that_goes_out(
    pieces: list[tuple[tuple[int, ...], str]], stops: list[str], passing: bool
) -> None:
    a, lane = attempt(stops, Passing() if passing else None)
    a.claim(1)
    for ids, piece in pieces:
        if a.feed(ids, piece):
            break
    a.finish("length")
    tally, replies = read(lane)
    whole = "".join(piece for _, piece in pieces)
    assert whole.startswith(text(replies))
    assert not any(stop in text(replies) for stop in stops)
    if a.outcome == "length":
        assert text(replies) == whole
        assert tally.completion_tokens == sum(len(ids) for ids, _ in pieces)


def test_the_cut_keeps_ids_whose_text_has_begun() -> None:
    cutter = Cutter(["bc"])
    assert cutter.feed((1,), "ab") == ((1,), "a")
    assert cutter.feed((2,), "c") == ((), "")
    assert cutter.matched
    assert cutter.finish() == ((), "")
