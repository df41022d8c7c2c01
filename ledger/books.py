"""The books of one partition of the log: accounts, requests, credits. Partitions are independent folds.

Accounts are `wallet:<id>`, `provider:<id>`, `platform`, `platform:sandbox` (pays for free keys), `platform:losses`
(pays where a client must not), `burn`, `burn:pending` (burns in another asset than SHIVER gather there until they are
converted), `world`, the other side of every credit, and `adjustments`, that of every correction. An account is kept per
partition; its balance is the sum. The projection uses the same class for a bundle, with the state that the bundle needs
prefetched and all balances from zero, so that what comes out is the bundle's net result; what an account had before
stands in `opening_nano` where an assertion asks for it.
"""

from __future__ import annotations

from typing import NamedTuple

from schemas.events import ModelPrice
from schemas.ids import uuid7_ms

WORLD = "world"
ADJUSTMENTS = "adjustments"
BURN = "burn"
BURN_PENDING = "burn:pending"
PLATFORM = "platform"

DAY_MS = 86_400_000

OPEN = "open"
CHARGED = "charged"
FAILED = "failed"


def wallet_account(wallet_id: str) -> str:
    """The account of a wallet."""
    return f"wallet:{wallet_id}"


def provider_account(provider_id: str) -> str:
    """The account of a provider."""
    return f"provider:{provider_id}"


def burn_account(asset: str) -> str:
    """Where the burn of a charge in `asset` goes: only SHIVER can be burned, other assets are converted first."""
    return BURN if asset == "SHIVER" else BURN_PENDING


class Posting(NamedTuple):
    """One line of a transaction; the amounts of a transaction sum to zero."""

    account: str
    asset: str
    amount_nano: int


class Request(NamedTuple):
    """A request as the log tells it: one row of derived.requests. Where only its end was seen, `key_id` is None."""

    wallet_id: str
    status: str
    owner: str
    owner_epoch: int
    key_id: str | None = None
    payer: str | None = None
    asset: str | None = None
    rules_version: int | None = None
    prices: tuple[ModelPrice, ...] = ()
    rate_nano_usd: int | None = None
    cap_day: str | None = None
    hold_nano: int = 0
    accepted_owner: str | None = None
    accepted_ms: int | None = None
    model: str | None = None  # asked for; once charged, the one that answered
    ended_ms: int | None = None
    how: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    charge_nano: int = 0  # of whoever the rules let pay
    payer_charge_nano: int = 0  # of `payer`: the same, or 0
    clamped: bool = False


class Credit(NamedTuple):
    """What an `external_ref` stood for when it first counted."""

    asset: str
    amount_nano: int
    offset: int


class Adjustment(NamedTuple):
    """What an adjustment's `external_ref` stood for when it first counted."""

    asset: str
    amount_nano: int
    reason: str
    operator: str
    approver: str | None
    offset: int


class Account:
    """A balance in nano units and how many entries made it."""

    __slots__ = ("balance_nano", "entries")

    def __init__(self) -> None:
        self.balance_nano = 0
        self.entries = 0


class Books:
    """The state of one partition after the records before `next_offset`."""

    __slots__ = (
        "accounts",
        "adjustments",
        "credits",
        "ended_count",
        "held_nano",
        "max_event_ms",
        "next_offset",
        "opened_count",
        "opening_nano",
        "partition",
        "rejected",
        "requests",
    )

    def __init__(self, partition: int, *, next_offset: int = 0, max_event_ms: int = 0) -> None:
        self.partition = partition
        self.next_offset = next_offset
        self.max_event_ms = max_event_ms  # over the events that were applied; times in a partition are not monotonic
        self.rejected = 0
        self.opened_count = 0
        self.ended_count = 0  # of those that were opened
        self.held_nano: dict[tuple[str, str], int] = {}  # by open requests, of (payer, asset)
        self.accounts: dict[tuple[str, str], Account] = {}
        self.requests: dict[str, Request] = {}
        self.credits: dict[tuple[str, str], Credit] = {}
        self.adjustments: dict[tuple[str, str], Adjustment] = {}
        self.opening_nano: dict[tuple[str, str], int] = {}  # what `accounts` lacks; empty in books from offset 0

    def balance_nano(self, account: str, asset: str) -> int:
        """What an account has in this partition, from the beginning of the log."""
        row = self.accounts.get((account, asset))
        return self.opening_nano.get((account, asset), 0) + (0 if row is None else row.balance_nano)

    def forget_ended(self) -> int:
        """Drops ended requests whose id is too old to matter, and says how many. No outcome depends on it."""
        horizon_ms = self.max_event_ms - DAY_MS
        old = [rid for rid, r in self.requests.items() if r.status != OPEN and uuid7_ms(rid) < horizon_ms]
        for request_id in old:
            del self.requests[request_id]
        return len(old)
