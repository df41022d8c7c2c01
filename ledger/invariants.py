"""What must hold after every step, and in the books at any point. Each check returns what is wrong, in words."""

from __future__ import annotations

from collections.abc import Iterable

from ledger.books import BURN, OPEN, PLATFORM, Books
from ledger.decide import Decision
from ledger.outcomes import Outcome
from ledger.split import BURN_DIVISOR, PROVIDERS_PERCENT
from schemas.events import Event, WalletCredited


def broken_by(decision: Decision) -> list[str]:
    """What one decision breaks: the sums of a transaction, the shares of a charge, the silence of a rejection."""
    if decision.outcome is not Outcome.APPLIED:
        changes = bool(decision.postings) or decision.request is not None or decision.credit is not None
        return [f"a rejected event ({decision.outcome}) changes the books"] if changes else []
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
    if request.charge_nano or decision.postings:
        wrong += _shares(decision, request.charge_nano)
    return wrong


def _shares(decision: Decision, charge_nano: int) -> list[str]:
    burn = platform = providers = 0
    for account, _, amount_nano in decision.postings:
        if account == BURN:
            burn += amount_nano
        elif account == PLATFORM:
            platform += amount_nano
        elif account.startswith("provider:"):
            providers += amount_nano
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


class Running:
    """The invariants at every prefix of one partition, by what a step touches, so that a long log costs no more a step.

    It keeps balances, open requests and rejections from the decisions alone; books that `apply` got wrong differ from
    that. `take` each step from the first one on, then `wrong` as often as wanted, and `wrong_in_all` at the end.
    """

    def __init__(self) -> None:
        self._balances: dict[tuple[str, str], int] = {}
        self._totals: dict[str, int] = {}
        self._open: set[str] = set()
        self._ended: set[str] = set()
        self._rejected = 0
        self._touched: set[tuple[str, str]] = set()
        self._twice: list[str] = []

    def take(self, event: Event, decision: Decision) -> None:
        """One step more."""
        if decision.outcome is not Outcome.APPLIED:
            self._rejected += 1
            return
        for account, asset, amount_nano in decision.postings:
            self._balances[account, asset] = self._balances.get((account, asset), 0) + amount_nano
            self._totals[asset] = self._totals.get(asset, 0) + amount_nano
            self._touched.add((account, asset))
        if decision.request is None or isinstance(event, WalletCredited):
            return
        request_id = event.request_id
        if request_id in self._ended:
            self._twice.append(f"request {request_id} goes on after its end")
        elif decision.request.status == OPEN:
            self._open.add(request_id)
        else:
            self._open.discard(request_id)
            self._ended.add(request_id)

    def wrong(self, books: Books) -> list[str]:
        """What is wrong in `books`, which took the same steps, in the accounts touched since the last call."""
        wrong, self._twice = self._twice, []
        for key in sorted(self._touched):
            row = books.accounts.get(key)
            if row is None or row.balance_nano != self._balances[key]:
                has = "nothing" if row is None else row.balance_nano
                wrong.append(f"{key[0]} has {has} {key[1]}, its postings make {self._balances[key]}")
        wrong += [
            f"all accounts together hold {self._totals[asset]} {asset}"
            for asset in sorted({asset for _, asset in self._touched})
            if self._totals[asset]
        ]
        self._touched.clear()
        open_count = books.opened_count - books.ended_count
        if open_count != len(self._open):
            wrong.append(f"{open_count} requests count as open, {len(self._open)} are")
        if books.rejected != self._rejected:
            wrong.append(f"{books.rejected} events count as rejected, {self._rejected} were")
        return wrong

    def wrong_in_all(self, books: Books) -> list[str]:
        """As `wrong`, in every account and open request."""
        self._touched = set(self._balances) | set(books.accounts)
        for key in self._touched:
            self._balances.setdefault(key, 0)
            self._totals.setdefault(key[1], 0)
        wrong = self.wrong(books)
        found = {request_id for request_id, request in books.requests.items() if request.status == OPEN}
        return wrong + [f"request {request_id} is open on one side alone" for request_id in sorted(found ^ self._open)]
