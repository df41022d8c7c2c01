"""What must hold after every step, and in the books at any point. Each check returns what is wrong, in words.

The nine invariants of the design, and where each is checked:

1. Every transaction sums to zero per asset, and so do all accounts together: `broken_by`, `broken_in`.
2. Burn + providers + platform is the charge, each in its ratio: `broken_by`.
3. Open requests and holds agree, each resolves once, no charge is above its hold, no balance below its floor:
   `broken_by`, `broken_in`. A wallet's floor is kept by admission, not by the log: `overdrawn` names those below it.
4. A rejected event changes nothing but the count of rejections: `broken_by`; that `apply` keeps to it is tested.
5. One digest under any batching and interleaving: tests/unit/test_ledger_model.py.
6. Rows and their offset commit together: tests/integration/test_projection.py.
7. Same id, other body: conflict; same body: same outcome. tests/unit/test_ledger_core.py, and the naive model.
8. Epochs cut by offsets, and an event is in exactly one: `Settlement`. Digest and entitlements need the books at the
   cut: whoever closes or verifies an epoch compares them.
9. At most one final transfer per payout: `Settlement`. Paid + pending + unclaimed is the payer's to check.
"""

from __future__ import annotations

from collections.abc import Iterable

from ledger.books import OPEN, PLATFORM, WORLD, Account, Books, Posting, burn_account, provider_account
from ledger.decide import Decision
from ledger.outcomes import Outcome
from ledger.rules import LOSSES, SANDBOX
from ledger.split import BURN_DIVISOR, PROVIDERS_PERCENT
from schemas.events import EpochClosed, Event, PayoutConfirmed, PayoutReorged, RequestEvent, UsageRecorded

#: What only ever gives, in any order of events; these never have more than nothing.
_GIVERS = frozenset((WORLD, SANDBOX, LOSSES))


def broken_by(decision: Decision, event: Event | None = None) -> list[str]:
    """What one decision breaks: the sums of a transaction, the shares of a charge, the silence of a rejection; or the
    books before it, where it asserts a balance that they do not have.

    With the `event` that it is about, the shares of single providers are checked too.
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
    if isinstance(event, UsageRecorded):
        wrong += _unfair(decision.postings, event)
    if request.charge_nano or decision.postings:
        wrong += _shares(decision, request.charge_nano)
    return wrong


def _shares(decision: Decision, charge_nano: int) -> list[str]:
    burn = platform = providers = 0
    for account, asset, amount_nano in decision.postings:
        if account.startswith("provider:"):
            providers += amount_nano
        elif account == PLATFORM:
            platform += amount_nano
        elif account == burn_account(asset):
            burn += amount_nano
    wrong = list[str]()
    if burn + platform + providers != charge_nano:
        wrong.append(f"burn {burn} + providers {providers} + platform {platform} is not the charge {charge_nano}")
    if burn != charge_nano // BURN_DIVISOR:
        wrong.append(f"burn {burn} is not 1 % of {charge_nano}")
    if providers != (charge_nano - burn) * PROVIDERS_PERCENT // 100:
        wrong.append(f"providers {providers} is not 90 % of {charge_nano - burn}")
    return wrong


def _unfair(postings: tuple[Posting, ...], event: UsageRecorded) -> list[str]:
    """Providers whose part is a unit or more per segment off what their tokens are worth."""
    paid = {p.account: p.amount_nano for p in postings if p.account.startswith("provider:")}
    pool = sum(paid.values())
    tokens: dict[str, int] = {}
    segments: dict[str, int] = {}
    for segment in event.segments:
        account = provider_account(segment.provider)
        tokens[account] = tokens.get(account, 0) + segment.tokens
        segments[account] = segments.get(account, 0) + 1
    total = sum(tokens.values())
    strangers = [f"{account} delivered nothing and gets {paid[account]}" for account in paid if account not in tokens]
    return strangers + [
        f"{account} gets {paid.get(account, 0)} of {pool} for {own} of {total} tokens"
        for account, own in tokens.items()
        if abs(paid.get(account, 0) * total - pool * own) >= segments[account] * total and total
    ]


def broken_in(books: Books) -> list[str]:
    """What the books of one partition break: all accounts sum to zero per asset and keep to their side of it; what was
    opened is open or ended; what is held is held for open requests.

    For books that were folded from the beginning of the log.
    """
    sums: dict[str, int] = {}
    for (_, asset), account in books.accounts.items():
        sums[asset] = sums.get(asset, 0) + account.balance_nano
    wrong = [f"all accounts together hold {total} {asset}" for asset, total in sums.items() if total]
    wrong += _floors(books.accounts)
    open_count = 0
    held: dict[tuple[str, str], int] = {}
    for request in books.requests.values():
        if request.status == OPEN:
            open_count += 1
            key = (request.payer or "", request.asset or "")
            held[key] = held.get(key, 0) + request.hold_nano
    if open_count != books.opened_count - books.ended_count:
        wrong.append(f"{books.opened_count} opened, {books.ended_count} ended, but {open_count} are open")
    for key in sorted(key for key in {*held, *books.held_nano} if held.get(key, 0) != books.held_nano.get(key, 0)):
        wrong.append(
            f"{books.held_nano.get(key, 0)} {key[1]} is held of {key[0]}, but {held.get(key, 0)} by its open requests"
        )
    return [f"partition {books.partition}: {what}" for what in wrong]


def _floors(accounts: dict[tuple[str, str], Account]) -> list[str]:
    wrong = list[str]()
    for (account, asset), row in accounts.items():
        if account in _GIVERS:
            if row.balance_nano > 0:
                wrong.append(f"{account} only gives, and has {row.balance_nano} {asset}")
        elif row.balance_nano < 0 and (account in (PLATFORM, burn_account(asset)) or account.startswith("provider:")):
            wrong.append(f"{account} only gets, and has {row.balance_nano} {asset}")
    return wrong


class Settlement:
    """What the facts of epochs and payments must keep to, told in the order of their partition.

    The first `epoch.closed` of a number counts; later ones are of closers that lost, and mean nothing.
    """

    def __init__(self) -> None:
        self.last: EpochClosed | None = None
        self._paid: dict[str, str] = {}  # the transaction by the payout

    def broken_by(self, event: Event, partition: int, offset: int) -> list[str]:
        """What `event` at its place in the log breaks."""
        if isinstance(event, EpochClosed):
            return self._close(event, partition, offset)
        if isinstance(event, PayoutConfirmed):
            before = self._paid.setdefault(event.payout, event.transaction)
            if before != event.transaction:
                return [f"payout {event.payout} is paid by {before} and again by {event.transaction}"]
        elif isinstance(event, PayoutReorged) and self._paid.get(event.payout) == event.transaction:
            del self._paid[event.payout]
        return []

    def _close(self, event: EpochClosed, partition: int, offset: int) -> list[str]:
        last = self.last
        if last is not None and event.epoch <= last.epoch:
            return []
        self.last = event
        return epoch_faults(last, event, partition, offset)


def epoch_faults(last: EpochClosed | None, event: EpochClosed, partition: int, offset: int) -> list[str]:
    """Why `event` at its place cannot end the epoch behind `last`; empty where it does."""
    expected = 1 if last is None else last.epoch + 1
    wrong = list[str]()
    if event.epoch != expected:
        wrong.append(f"epoch {event.epoch} is closed where {expected} is next")
    if partition >= len(event.cut) or event.cut[partition] > offset:
        wrong.append(f"the cut of epoch {event.epoch} reaches past the event that closes it")
    before = last.cut if last is not None else (0,) * len(event.cut)
    if len(before) != len(event.cut) or any(new < old for old, new in zip(before, event.cut, strict=False)):
        wrong.append(f"the cut of epoch {event.epoch} takes back what was in an epoch before it")
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
        if decision.request is None or not isinstance(event, RequestEvent):
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
