"""What is no request's life: corrections, assertions, facts that the books do not need; and wallets of both assets."""

from __future__ import annotations

import pytest
from test_ledger_core import IDS, NANO, accept, adjust, balances, claim, credit, picture, run, use
from test_schemas import GOLDEN

from ledger.books import Books
from ledger.decide import Decision
from ledger.invariants import broken_by
from ledger.outcomes import Outcome
from schemas.events import AdjustmentPosted, BalanceAsserted, Event, How, RequestEvent, WalletCredited

BOOKED = RequestEvent | WalletCredited | AdjustmentPosted | BalanceAsserted
FACTS: list[Event] = [event for event in GOLDEN.values() if not isinstance(event, BOOKED)]


def test_an_adjustment_is_booked_against_its_own_account() -> None:
    books, _ = run(credit(), adjust(amount_nano=-7), adjust("up", 3), adjust("up", 3))
    assert balances(books) == {"world": -NANO, "wallet:w": NANO - 4, "adjustments": 4}
    assert books.adjustments["w", "r"][:5] == ("SHIVER", -7, "why", "o", None)


@pytest.mark.parametrize("event", FACTS, ids=lambda e: e.type)
def test_a_fact_that_the_books_do_not_need_changes_nothing_but_the_time(event: Event) -> None:
    books, _ = run(credit(at_ms=0), accept(at_ms=1))
    before = picture(books)
    _, (decision,) = run(event, books=books)
    assert decision == Decision(Outcome.APPLIED)
    assert books.max_event_ms == event.at_ms == 5
    books.max_event_ms = 1
    assert picture(books) == before
    assert (books.next_offset, books.rejected, books.opened_count, books.ended_count) == (3, 0, 1, 0)


def test_a_failed_assertion_is_counted_and_said() -> None:
    books, decisions = run(credit(), claim(1), credit("x", 1), claim(NANO + 1))
    assert books.rejected == 1
    assert broken_by(decisions[1]) == [f"wallet w has {NANO} nano SHIVER where 1 is asserted"]
    assert decisions[3].outcome is Outcome.APPLIED


def test_an_assertion_counts_what_the_account_had_before_these_books() -> None:
    books = Books(0, next_offset=7)
    books.opening_nano["wallet:w", "SHIVER"] = 5
    _, decisions = run(credit(), claim(NANO + 5), claim(NANO), books=books)
    assert [d.outcome for d in decisions[1:]] == [Outcome.APPLIED, Outcome.ASSERTION_FAILED]


@pytest.mark.parametrize(("asset", "burn"), [("SHIVER", "burn"), ("USDC", "burn:pending")])
def test_a_charge_stays_in_its_asset_and_only_shiver_burns_at_once(asset: str, burn: str) -> None:
    books, decisions = run(credit(asset=asset), accept(asset=asset), use(), claim(NANO - 25_000, asset=asset))
    assert {key: row.balance_nano for key, row in books.accounts.items()} == {
        ("world", asset): -NANO,
        ("wallet:w", asset): NANO - 25_000,
        (burn, asset): 250,
        ("provider:p", asset): 22_275,
        ("platform", asset): 2_475,
    }
    assert decisions[-1].outcome is Outcome.APPLIED
    other = {"burn": "burn:pending", "burn:pending": "burn"}
    charged = decisions[2]
    swapped = tuple(p._replace(account=other.get(p.account, p.account)) for p in charged.postings)
    assert broken_by(charged._replace(postings=swapped))


def test_wallets_of_both_assets_share_no_unit() -> None:
    both = [credit(), credit("u", asset="USDC"), accept(), accept(IDS[1], asset="USDC"), use(), use(IDS[1])]
    books, _ = run(*both, claim(NANO - 25_000), claim(NANO - 25_000, asset="USDC"))
    assert {asset for _, asset in books.accounts} == {"SHIVER", "USDC"}
    assert books.balance_nano("burn", "USDC") == books.balance_nano("burn:pending", "SHIVER") == 0


def test_the_platform_bears_a_loss_in_the_asset_of_the_request() -> None:
    books, _ = run(accept(asset="USDC"), use(how=How.OWNER_DIED))
    assert books.balance_nano("platform:losses", "USDC") == -25_000
    assert books.balance_nano("burn:pending", "USDC") == 250
