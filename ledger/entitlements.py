"""What each provider may be paid: cumulative, per asset, and never less than before.

Everything is a sum over entries before a cut, so neither the order of partitions nor the bundling of records matters.
Each epoch goes on from the one before it:

    earned            every entry of `provider:<id>` so far
    sandbox earned    of these, what `platform:sandbox` paid (the first posting's account of the transaction)
    sandbox payable   of these, what the sandbox's budget was given to: the epoch's new budget, with what earlier ones
                      left over, is shared by what each has earned and not yet been given, largest remainder first,
                      the lower provider id first among equals; never taken back (S20)
    entitled          earned - sandbox earned + min(sandbox payable, sandbox earned), or what it was, if that is more
    debt              by how much `entitled` is above that sum: later earnings make it good before they count (S15)

The budget is what `sandbox.funded` says, once per `external_ref`, above a limit with another approver.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import NamedTuple

from ledger.books import Posting
from ledger.rules import SANDBOX, approved
from ledger.split import apportion
from schemas.facts import SandboxFunded

_PROVIDER = "provider:"

#: A provider and an asset.
Key = tuple[str, str]


class Earned(NamedTuple):
    """Sums of entries, in nano units; they may fall."""

    earned_nano: int = 0
    sandbox_earned_nano: int = 0

    def plus(self, amount_nano: int, sandbox_nano: int) -> Earned:
        return Earned(self.earned_nano + amount_nano, self.sandbox_earned_nano + sandbox_nano)


class Entitlement(NamedTuple):
    """What a provider is entitled to by the end of an epoch, in nano units, all cumulative."""

    earned_nano: int = 0
    sandbox_earned_nano: int = 0
    sandbox_payable_nano: int = 0
    entitled_nano: int = 0
    debt_nano: int = 0

    @property
    def sandbox_waiting_nano(self) -> int:
        """What free keys used and no budget has paid for yet."""
        return max(0, self.sandbox_earned_nano - self.sandbox_payable_nano)


def earnings_of(postings: Iterable[Posting]) -> list[tuple[Key, int, int]]:
    """Of one transaction: the provider and asset, what it earned, and what of it the sandbox paid."""
    out = list[tuple[Key, int, int]]()
    payer = ""
    for account, asset, amount_nano in postings:
        payer = payer or account
        if account.startswith(_PROVIDER):
            out.append(((account[len(_PROVIDER) :], asset), amount_nano, amount_nano if payer == SANDBOX else 0))
    return out


def entitle(
    before: Mapping[Key, Entitlement], earned: Mapping[Key, Earned], funded_nano: Mapping[str, int]
) -> dict[Key, Entitlement]:
    """The entitlements of the next epoch, in order, from those of the last one, all that is earned, and all budget."""
    keys = sorted({*before, *earned})
    given = {key: before.get(key, Entitlement()).sandbox_payable_nano for key in keys}
    for asset in sorted({asset for _, asset in keys}):
        own = [key for key in keys if key[1] == asset]
        unpaid = [max(0, earned.get(key, Earned()).sandbox_earned_nano - given[key]) for key in own]
        left = funded_nano.get(asset, 0) - sum(given[key] for key in own)
        for key, share in zip(own, apportion(max(0, min(left, sum(unpaid))), unpaid), strict=True):
            given[key] += share
    out = dict[Key, Entitlement]()
    for key in keys:
        total, sandbox = earned.get(key, Earned())
        payable = total - sandbox + min(given[key], sandbox)
        entitled = max(before.get(key, Entitlement()).entitled_nano, payable)
        out[key] = Entitlement(total, sandbox, given[key], entitled, entitled - payable)
    return out


class Verdict(StrEnum):
    """What a `sandbox.funded` came to."""

    COUNTED = "counted"
    DUPLICATE = "duplicate"  # the same was said before
    CONFLICT = "conflict"  # the reference stands for another amount
    NEEDS_APPROVAL = "needs_approval"  # the reference is still free


class Funding(NamedTuple):
    """A `sandbox.funded` of the log, and what it came to."""

    partition: int
    offset: int
    external_ref: str
    asset: str
    amount_nano: int
    reason: str
    operator: str
    approver: str | None
    verdict: str


class Funds:
    """The sandbox's budget, told each `sandbox.funded` in the order of their one partition."""

    def __init__(self) -> None:
        self.funded_nano: dict[str, int] = {}  # per asset
        self._amount_of: dict[str, tuple[str, int]] = {}  # by the references that count

    def take(self, event: SandboxFunded, partition: int, offset: int) -> Funding:
        """One more, and what it comes to."""
        before = self._amount_of.get(event.external_ref)
        if before is not None:
            verdict = Verdict.DUPLICATE if before == (event.asset, event.amount_nano) else Verdict.CONFLICT
        elif not approved(event):
            verdict = Verdict.NEEDS_APPROVAL
        else:
            verdict = Verdict.COUNTED
            self.count(event.external_ref, event.asset, event.amount_nano)
        return Funding(
            partition, offset, event.external_ref, event.asset, event.amount_nano, event.reason, event.operator,
            event.approver, verdict.value,
        )  # fmt: skip

    def count(self, external_ref: str, asset: str, amount_nano: int) -> None:
        """What counted before."""
        self._amount_of[external_ref] = (asset, amount_nano)
        self.funded_nano[asset] = self.funded_nano.get(asset, 0) + amount_nano
