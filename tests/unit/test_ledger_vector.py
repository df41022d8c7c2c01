"""The fold over columns against the plain one: the same books, outcomes and findings, on any log, in any chunks."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import pytest
from hostile_log import hostile_log
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ledger.apply import step
from ledger.books import OPEN, Books
from ledger.columns import columns_of
from ledger.digest import digest
from ledger.invariants import broken_by, broken_in
from ledger.vector import fold as fold_module
from ledger.vector.fold import Fold
from schemas.events import Event
from schemas.topics import LEDGER

QUICK = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


class Plain:
    """The fold as `ledger.replay.Replay` does it, without its bytes."""

    def __init__(self) -> None:
        self.books = Books(0)
        self.outcomes: Counter[str] = Counter()
        self.broken: list[str] = []

    def feed(self, events: Sequence[Event]) -> None:
        for event in events:
            offset = self.books.next_offset
            decision = step(self.books, event, offset)
            self.outcomes[decision.outcome.value] += 1
            self.broken += [f"{LEDGER} partition 0 offset {offset}: {what}" for what in broken_by(decision)]


def feed(fold: Fold, events: Sequence[Event], sizes: random.Random | None = None) -> None:
    at = 0
    while at < len(events):
        some = events[at : at + (sizes.choice((1, 2, 7, 50, 400)) if sizes else len(events))]
        fold.feed(columns_of(some), lambda rows, some=some: [some[row] for row in rows])
        at += len(some)


def picture(books: Books) -> dict[str, object]:
    """All that a later event, the digest or a check could depend on."""
    horizon = Books(0, max_event_ms=books.max_event_ms)
    horizon.requests = dict(books.requests)
    horizon.forget_ended()
    return {
        "accounts": {key: (row.balance_nano, row.entries) for key, row in books.accounts.items()},
        "open": {rid: r for rid, r in books.requests.items() if r.status == OPEN},
        "ended": {
            rid: (r.wallet_id, r.status, r.payer_charge_nano) for rid, r in horizon.requests.items() if r.status != OPEN
        },
        "credits": books.credits,
        "adjustments": books.adjustments,
        "held": books.held_nano,
        "opening": books.opening_nano,
        "counts": (books.next_offset, books.max_event_ms, books.rejected, books.opened_count, books.ended_count),
    }


def same(plain: Plain, fold: Fold) -> None:
    fold.unpack()
    assert picture(fold.books) == picture(plain.books)
    assert fold.outcomes == plain.outcomes
    assert fold.broken == plain.broken
    assert fold.events == plain.books.next_offset
    assert broken_in(fold.books) == broken_in(plain.books)
    assert digest([fold.books]) == digest([plain.books])


@QUICK
@given(
    seed=st.integers(0, 2**32), count=st.integers(0, 400), calm=st.sampled_from((0.0, 0.3, 0.9, 0.98)),
    whole=st.booleans(),
)  # fmt: skip
def test_both_folds_come_to_the_same_books(seed: int, count: int, calm: float, whole: bool) -> None:
    events = list(hostile_log(seed, count, calm))
    plain, fold = Plain(), Fold(Books(0))
    plain.feed(events)
    feed(fold, events, None if whole else random.Random(seed))
    same(plain, fold)


@QUICK
@given(seed=st.integers(0, 2**32), cut=st.integers(0, 300))
def test_the_plain_fold_goes_on_where_the_other_stopped(seed: int, cut: int) -> None:
    events = list(hostile_log(seed, 300, 0.7))
    plain, fold = Plain(), Fold(Books(0))
    plain.feed(events)
    feed(fold, events[:cut], random.Random(seed))
    fold.unpack()
    on = Plain()
    on.books, on.outcomes, on.broken = fold.books, fold.outcomes, fold.broken
    on.feed(events[cut:])
    assert picture(on.books) == picture(plain.books)
    assert on.outcomes == plain.outcomes
    assert on.broken == plain.broken


def test_long_logs_too_and_most_of_a_calm_one_is_not_hard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fold_module, "ROWS_MAX", 1_500)
    for seed, calm in ((1, 0.2), (2, 0.995)):
        events = list(hostile_log(seed, 10_000, calm))
        plain, fold = Plain(), Fold(Books(0))
        plain.feed(events)
        feed(fold, events)
        same(plain, fold)
        assert len(plain.outcomes) >= 8
        if calm > 0.9:
            assert fold.hard < 2_500
