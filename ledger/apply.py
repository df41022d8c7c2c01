"""Carries a decision out. It never decides: whatever `decide` said is done, in the memory of one partition's books."""

from __future__ import annotations

from ledger.books import OPEN, Account, Books, Request
from ledger.decide import Decision, decide
from ledger.outcomes import Outcome
from schemas.events import AdjustmentPosted, Event, RequestEvent, WalletCredited


def apply(books: Books, event: Event, offset: int, decision: Decision) -> None:
    """Books `decision`, which `decide` made of these books and this event at `offset`."""
    books.next_offset = offset + 1
    if decision.outcome is not Outcome.APPLIED:
        books.rejected += 1
        return
    if event.at_ms > books.max_event_ms:
        books.max_event_ms = event.at_ms
    accounts = books.accounts
    for account, asset, amount_nano in decision.postings:
        row = accounts.get((account, asset))
        if row is None:
            row = accounts[account, asset] = Account()
        row.balance_nano += amount_nano
        row.entries += 1
    request = decision.request
    if request is None or not isinstance(event, RequestEvent):
        _remember_ref(books, event, decision)
        return
    before = books.requests.get(event.request_id)
    books.requests[event.request_id] = request
    if request.status == OPEN:
        if before is None:
            books.opened_count += 1
            _hold(books, request, request.hold_nano)
    elif before is not None:
        books.ended_count += 1
        _hold(books, before, -before.hold_nano)


def _hold(books: Books, request: Request, more_nano: int) -> None:
    key = (request.payer or "", request.asset or "")  # both are there in every request that was open
    books.held_nano[key] = books.held_nano.get(key, 0) + more_nano


def _remember_ref(books: Books, event: Event, decision: Decision) -> None:
    if isinstance(event, WalletCredited) and decision.credit is not None:
        books.credits[event.wallet, event.external_ref] = decision.credit
    elif isinstance(event, AdjustmentPosted) and decision.adjustment is not None:
        books.adjustments[event.wallet, event.external_ref] = decision.adjustment


def step(books: Books, event: Event, offset: int) -> Decision:
    """Decide, then apply: the fold's one step."""
    decision = decide(books, event, offset)
    apply(books, event, offset, decision)
    return decision
