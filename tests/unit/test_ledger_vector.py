"""The fold over columns against the plain one: the same books, outcomes and findings, on any log, in any chunks."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence

import pytest
from hostile_log import hostile_log
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_ledger_golden import DIGEST, LOG, OUTCOMES

from ledger.apply import step
from ledger.books import OPEN, Books
from ledger.columns import columns_of
from ledger.digest import digest
from ledger.invariants import broken_by, broken_in
from ledger.vector import fold as fold_module
from ledger.vector.fold import Fold
from schemas.event_base import WalletEvent
from schemas.events import Event, parse
from schemas.topics import LEDGER

QUICK = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


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


@pytest.fixture(params=[1, 20, 256])
def pack_from(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ended requests are packed at once, at times, and not in so short a log."""
    monkeypatch.setattr(fold_module, "_PACK_FROM", request.param)


@pytest.mark.usefixtures("pack_from")
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


@pytest.mark.usefixtures("pack_from")
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


def digests_of(seed: int, backwards: bool) -> str:
    """Of three partitions by both folds; told in one line. For another process."""
    logs = [list(hostile_log(seed + partition, 400, 0.8)) for partition in range(3)]
    plain, bulk = list[Books](), list[Books]()
    for partition, events in sorted(enumerate(logs), reverse=backwards):
        books, fold = Books(partition), Fold(Books(partition))
        for offset, event in enumerate(events):
            step(books, event, offset)
        feed(fold, events, random.Random(seed * backwards))
        plain.append(books)
        bulk.append(fold.books)
    return f"{digest(plain)} {digest(bulk)}"


def test_one_digest_under_any_hash_seed_and_locale() -> None:
    here = digests_of(3, False)
    assert len(set(here.split())) == 1
    for seed, locale, backwards in (("1", "C", False), ("2", "tr_TR.UTF-8", True)):
        code = f"import test_ledger_vector as t; print(t.digests_of(3, {backwards}))"
        paths = [*filter(None, sys.path), __file__.rpartition("/")[0]]
        env = {"PYTHONHASHSEED": seed, "LC_ALL": locale, "PYTHONPATH": ":".join(paths)}
        done = subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60, check=True
        )
        assert done.stdout.strip() == here


def test_an_old_log_comes_to_the_same_books() -> None:
    events = [parse(value) for value in LOG.read_bytes().splitlines()]
    folds = [Fold(Books(partition)) for partition in range(3)]
    for partition, fold in enumerate(folds):
        feed(fold, [e for e in events if isinstance(e, WalletEvent) and int(e.wallet[1:]) % 3 == partition])
    assert digest(fold.books for fold in folds) == DIGEST
    assert sum((fold.outcomes for fold in folds), Counter()) == OUTCOMES
