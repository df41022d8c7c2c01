"""The invariants see what is planted, each by its name; books that nobody spoilt break none."""

from __future__ import annotations

from typing import Any

import pytest
from test_ledger_core import IDS, T0, R, accept, adjust, adopt, credit, fail, run, use

from ledger.books import Books
from ledger.invariants import Settlement, broken_by, broken_in
from schemas.events import EpochClosed, PayoutConfirmed, PayoutReorged, Segment

HASHES = ["0x" + f"{n:x}" * 64 for n in range(4)]
BLOCK = HASHES[3]


def charged() -> Books:
    """Books with every account that a charge moves, and a request that is open."""
    return run(credit(), accept(), use(), accept(IDS[1], payer="platform:sandbox"), use(IDS[1]), accept(IDS[2]))[0]


@pytest.mark.parametrize(
    ("account", "nano", "words"),
    [
        ("burn", -501, "burn only gets, and has -1 SHIVER"),
        ("platform", -10_000, "platform only gets"),
        ("provider:p", -(10**6), "provider:p only gets"),
        ("world", 2 * 10**9, "world only gives"),
        ("platform:sandbox", 10**6, "platform:sandbox only gives"),
    ],
)
def test_a_balance_on_the_wrong_side_is_seen(account: str, nano: int, words: str) -> None:
    books = charged()
    assert broken_in(books) == []
    books.accounts[account, "SHIVER"].balance_nano += nano
    books.accounts["wallet:w", "SHIVER"].balance_nano -= nano  # the sum alone does not show it
    (wrong,) = broken_in(books)
    assert words in wrong


def test_wallets_and_adjustments_may_stand_on_either_side() -> None:
    assert broken_in(run(adjust(amount_nano=-5))[0]) == []
    assert broken_in(run(adjust(amount_nano=5))[0]) == []


def test_holds_follow_open_requests() -> None:
    books, _ = run(accept(hold_nano=7), accept(IDS[1], hold_nano=5, asset="USDC"), adopt(2), fail(IDS[3]))
    assert {key: nano for key, nano in books.held_nano.items() if nano} == {
        ("wallet:w", "SHIVER"): 7,
        ("wallet:w", "USDC"): 5,
    }
    run(use(epoch=2), fail(IDS[1]), books=books)
    assert set(books.held_nano.values()) == {0}


@pytest.mark.parametrize("nano", [-1, 1])
def test_a_hold_that_no_request_explains_is_seen(nano: int) -> None:
    books = charged()
    books.held_nano["wallet:w", "SHIVER"] += nano
    (wrong,) = broken_in(books)
    assert f"{1_000_000 + nano} SHIVER is held of wallet:w, but 1000000 by its open requests" in wrong


def test_a_request_that_is_lost_is_seen() -> None:
    books = charged()
    del books.requests[IDS[2]]
    assert len(broken_in(books)) == 2  # the count, and the hold


def test_an_unfair_share_is_seen() -> None:
    segments = tuple(Segment(node=n, provider=p, attempt=1, tokens=5) for n, p in (("a", "p"), ("b", "q")))
    usage = use(segments=segments)
    _, (_, good) = run(accept(), usage)
    assert broken_by(good, usage) == []
    shifted = {"provider:p": 2, "provider:q": -2}
    unfair = tuple(x._replace(amount_nano=x.amount_nano + shifted.get(x.account, 0)) for x in good.postings)
    assert broken_by(good._replace(postings=unfair)) == []  # without the event it cannot be known
    assert len(broken_by(good._replace(postings=unfair), usage)) == 2
    other = tuple(x._replace(account=x.account.replace("provider:q", "provider:x")) for x in good.postings)
    wrong = broken_by(good._replace(postings=other), usage)
    assert any("provider:x delivered nothing" in what for what in wrong)


def closed(epoch: int, *cut: int, **more: Any) -> EpochClosed:
    heads = tuple("a" * 64 if offset else "" for offset in cut)
    fields: dict[str, Any] = {"heads": heads, "digest": "b" * 64, "payout_root": HASHES[0]}
    fields |= {"roots": (), "log_root": "", "terms": None} | more
    return EpochClosed(at_ms=T0, epoch=epoch, cut=cut, **fields)


def test_epochs_follow_one_another_and_never_overlap() -> None:
    facts = Settlement()
    assert facts.broken_by(closed(1, 0, 3), 0, 0) == []
    assert facts.broken_by(closed(1, 9, 9), 0, 1) == []  # another closer lost
    assert facts.last == closed(1, 0, 3)
    assert facts.broken_by(closed(2, 2, 3), 0, 2) == []
    (wrong,) = facts.broken_by(closed(4, 3, 4), 0, 3)
    assert wrong == "epoch 4 is closed where 3 is next"
    (wrong,) = facts.broken_by(closed(5, 3, 3), 0, 4)
    assert "takes back" in wrong
    (wrong,) = facts.broken_by(closed(6, 6, 5), 0, 5)
    assert "reaches past the event that closes it" in wrong
    assert any("takes back" in what for what in facts.broken_by(closed(7, 6), 0, 6))
    assert Settlement().broken_by(closed(2, 0, 1), 0, 0) == ["epoch 2 is closed where 1 is next"]


def test_a_payout_is_paid_once() -> None:
    def confirmed(transaction: str, payout: str = "1:p") -> PayoutConfirmed:
        return PayoutConfirmed(
            at_ms=T0, payout=payout, transaction=transaction, block=BLOCK, block_number=1, amount_nano=1
        )

    def reorged(transaction: str) -> PayoutReorged:
        return PayoutReorged(at_ms=T0, payout="1:p", transaction=transaction, block=BLOCK, block_number=1)

    facts = Settlement()
    for event in (confirmed(HASHES[1]), confirmed(HASHES[1]), confirmed(HASHES[2], "2:p"), reorged(HASHES[2])):
        assert facts.broken_by(event, 0, 0) == []
    assert len(facts.broken_by(confirmed(HASHES[2]), 0, 0)) == 1
    assert facts.broken_by(reorged(HASHES[1]), 0, 0) == []
    assert facts.broken_by(confirmed(HASHES[2]), 0, 0) == []
    assert facts.broken_by(use(R), 0, 0) == []
