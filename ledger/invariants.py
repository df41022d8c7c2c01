"""What must hold after every step, and in the books at any point. Each check returns what is wrong, in words."""

from __future__ import annotations

from collections.abc import Iterable

from ledger.books import OPEN, PLATFORM, Books, burn_account
from ledger.decide import Decision
from ledger.outcomes import Outcome
from ledger.split import BURN_DIVISOR, PROVIDERS_PERCENT


def broken_by(decision: Decision) -> list[str]:
    """What one decision breaks: the sums of a transaction, the shares of a charge, the silence of a rejection; or the
    books before it, where it asserts a balance that they do not have.
    """
    if decision.outcome is not Outcome.APPLIED:
        refs = (decision.request, decision.credit, decision.adjustment)
        wrong = [decision.contradiction] if decision.contradiction else []
        if decision.postings or any(ref is not None for ref in refs):
            wrong.append(f"a rejected event ({decision.outcome}) changes the books")
        return wrong
    wrong = list[str]()
    sums: dict[str, int] = {}
    for posting in decision.postings:
        sums[posting.asset] = sums.get(posting.asset, 0) + posting.amount_nano
    wrong += [f"a transaction sums to {total} {asset}" for asset, total in sums.items() if total]
    request = decision.request
    if request is None:
        return wrong
    if request.charge_nano > request.hold_nano:
        wrong.append(f"a charge of {request.charge_nano} is above its hold of {request.hold_nano}")
    if request.payer_charge_nano not in (0, request.charge_nano):
        wrong.append("the accepted payer is charged another amount than was booked")
    return wrong + _shares(decision, request.charge_nano)


def _shares(decision: Decision, charge_nano: int) -> list[str]:
    burn = sum(p.amount_nano for p in decision.postings if p.account == burn_account(p.asset))
    platform = sum(p.amount_nano for p in decision.postings if p.account == PLATFORM)
    providers = sum(p.amount_nano for p in decision.postings if p.account.startswith("provider:"))
    wrong = list[str]()
    if burn + platform + providers != charge_nano:
        wrong.append(f"burn {burn} + providers {providers} + platform {platform} is not the charge {charge_nano}")
    if burn != charge_nano // BURN_DIVISOR:
        wrong.append(f"burn {burn} is not 1 % of {charge_nano}")
    if providers != (charge_nano - burn) * PROVIDERS_PERCENT // 100:
        wrong.append(f"providers {providers} is not 90 % of {charge_nano - burn}")
    return wrong


def broken_in(books: Books) -> list[str]:
    """What the books of one partition break: all accounts sum to zero per asset; what was opened is open or ended.

    For books that were folded from the beginning of the log.
    """
    wrong = list[str]()
    sums: dict[str, int] = {}
    for (_, asset), account in books.accounts.items():
        sums[asset] = sums.get(asset, 0) + account.balance_nano
    place = f"partition {books.partition}"
    wrong += [f"{place}: all accounts together hold {total} {asset}" for asset, total in sums.items() if total]
    open_count = sum(request.status == OPEN for request in books.requests.values())
    if open_count != books.opened_count - books.ended_count:
        wrong.append(f"{place}: {books.opened_count} opened, {books.ended_count} ended, but {open_count} are open")
    return wrong


def overdrawn(all_books: Iterable[Books]) -> list[tuple[str, str, int]]:
    """Wallets whose balance is below zero: (account, asset, nano). Admission prevents it; the log cannot undo it."""
    sums: dict[tuple[str, str], int] = {}
    for books in all_books:
        for key, account in books.accounts.items():
            if key[0].startswith("wallet:"):
                sums[key] = sums.get(key, 0) + account.balance_nano
    return sorted((account, asset, nano) for (account, asset), nano in sums.items() if nano < 0)
