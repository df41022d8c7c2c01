"""The fold of epochs: what anyone with the log finds at the cut of each `epoch.closed`.

`EpochFold` is told records, facts and earnings up to a cut, in any interleaving of the partitions, and gives the
`Closing` there: tree roots, entitlements, payout leaves. Whoever closes an epoch, keeps its read model or verifies it
uses this one. The digest of the books and the heads of the hash chains are their own affair (`ledger.digest`).

An `epoch.closed` counts where it is the first of the next number and its cut neither takes back what was in an epoch
nor reaches past the event itself (`counts`). All others change nothing: of two closers one is second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ledger.block_tree import BlockTree
from ledger.decide import Decision
from ledger.entitlements import Earned, Entitlement, Funding, Funds, Key, earnings_of, entitle
from ledger.invariants import epoch_faults
from ledger.merkle import log_root, record_leaf
from ledger.payout_tree import Leaf, StandardTree, units_of
from schemas.events import EpochClosed, Event, ProviderRegistered, SandboxFunded
from schemas.facts import Terms, Token
from schemas.topics import SETTLEMENT_KEY


class Registration(NamedTuple):
    """Where a provider's payouts go, by its last `provider.registered`, and where that stands."""

    recipient: str | None
    partition: int
    offset: int


class Payout(NamedTuple):
    """A provider's place in the tree, or why it has none yet."""

    recipient: str | None
    amount: int  # in the token's smallest units; 0 where there is no leaf
    waits: str  # empty where there is a leaf


class Closing(NamedTuple):
    """What the log makes of a cut. Hashes are hexadecimal, as in the event."""

    cut: tuple[int, ...]
    roots: tuple[str, ...]
    entitlements: dict[Key, Entitlement]
    payouts: dict[Key, Payout]
    leaves: tuple[Leaf, ...]
    payout_root: str
    funded_nano: dict[str, int]

    def log_root(self, heads: Sequence[str]) -> str:
        """The root over all partitions, with the heads of their hash chains."""
        return log_root(self.cut, [bytes.fromhex(r) for r in self.roots], [bytes.fromhex(h) for h in heads]).hex()


class EpochFold:
    """What epochs are made of, of the records so far. `partitions` independent parts, and sums over them."""

    def __init__(self, partitions: int) -> None:
        self.trees = [BlockTree() for _ in range(partitions)]
        self.earned: dict[Key, Earned] = {}
        self.entitled: dict[Key, Entitlement] = {}  # by the last epoch
        self.recipients: dict[str, Registration] = {}
        self.funds = Funds()
        # Since the last epoch:
        self.new_recipients: dict[str, Registration] = {}
        self.new_fundings: list[Funding] = []
        self.new_records = 0  # but those that settlement itself wrote

    def leaf(self, partition: int, offset: int, key: bytes, value: bytes) -> None:
        """A record, the next of its partition."""
        self.trees[partition].add(record_leaf(partition, offset, key, value))
        if key != _SETTLEMENT:
            self.new_records += 1

    def fact(self, event: Event, partition: int, offset: int) -> None:
        """The event of a record. What concerns no epoch may be left out."""
        if isinstance(event, ProviderRegistered):
            registered = Registration(event.recipient, partition, offset)
            self.recipients[event.provider] = self.new_recipients[event.provider] = registered
        elif isinstance(event, SandboxFunded):
            self.new_fundings.append(self.funds.take(event, partition, offset))
            self.new_records += 1

    def earn(self, key: Key, amount_nano: int, sandbox_nano: int) -> None:
        """Entries of a provider, summed or single."""
        self.earned[key] = self.earned.get(key, Earned()).plus(amount_nano, sandbox_nano)

    def decided(self, decision: Decision) -> None:
        """What an event came to: its entries."""
        for key, amount_nano, sandbox_nano in earnings_of(decision.postings):
            self.earn(key, amount_nano, sandbox_nano)

    def closing(self, terms: Terms | None) -> Closing:
        """The epoch that would end here. Changes nothing."""
        entitlements = entitle(self.entitled, self.earned, self.funds.funded_nano)
        tokens = {} if terms is None else {token.asset: token for token in terms.tokens}
        payouts = dict[Key, Payout]()
        leaves = list[Leaf]()
        for (provider, asset), entitlement in entitlements.items():
            registered = self.recipients.get(provider)
            payout = _payout(entitlement, registered, tokens.get(asset))
            payouts[provider, asset] = payout
            if terms is not None and payout.recipient is not None and not payout.waits:
                token = tokens[asset].token
                leaves.append(Leaf(terms.chain_id, terms.contract, token, provider, payout.recipient, payout.amount))
        root = StandardTree([leaf.encoded() for leaf in leaves]).root
        return Closing(
            tuple(tree.size for tree in self.trees),
            tuple(tree.root().hex() for tree in self.trees),
            entitlements,
            payouts,
            tuple(leaves),
            "0x" + root.hex(),
            dict(self.funds.funded_nano),
        )

    def close(self, closing: Closing) -> None:
        """The epoch has ended here: what comes is the next one's."""
        self.entitled = closing.entitlements
        self.new_recipients = {}
        self.new_fundings = []
        self.new_records = 0
        for tree in self.trees:
            tree.blocks = []


def counts(last: EpochClosed | None, event: EpochClosed, partition: int, offset: int, partitions: int) -> bool:
    """Whether the event ends an epoch, where `last` is the last one that did."""
    return len(event.cut) == partitions and not epoch_faults(last, event, partition, offset)


def differences(event: EpochClosed, closing: Closing, heads: Sequence[str], digest: str | None = None) -> list[str]:
    """Where the event says otherwise than the log: each field by its name. `digest` is None where it is not known.

    An event of the first version says nothing of trees and terms.
    """
    wrong = list[str]()
    for name, said, found in (("heads", event.heads, heads), ("roots", event.roots, closing.roots)):
        for partition, (one, other) in enumerate(zip(said, found, strict=False)):
            if one != other:
                wrong.append(f"{name} of partition {partition}: it says {one or 'none'}, the log makes {other}")
    if event.log_root and event.log_root != (made := closing.log_root(heads)):
        wrong.append(f"log_root: it says {event.log_root}, the log makes {made}")
    if digest is not None and event.digest != digest:
        wrong.append(f"digest: it says {event.digest}, the books there have {digest}")
    if event.terms is not None and event.payout_root != closing.payout_root:
        wrong.append(f"payout_root: it says {event.payout_root}, the log makes {closing.payout_root}")
    return wrong


def payable_faults(before: Mapping[Key, Entitlement], closing: Closing, terms: Terms | None) -> list[str]:
    """What an epoch must keep to, whoever made it: entitlements never fall, and the leaves sum to the payable."""
    wrong = [
        f"the entitlement of {key[0]} falls from {was.entitled_nano} to {now} {key[1]}"
        for key, was in before.items()
        if (now := closing.entitlements[key].entitled_nano if key in closing.entitlements else 0) < was.entitled_nano
    ]
    decimals = {} if terms is None else {token.asset: token.decimals for token in terms.tokens}
    paid = sum(leaf.amount for leaf in closing.leaves)
    payable = sum(
        units_of(entitlement.entitled_nano, decimals[key[1]])
        for key, entitlement in closing.entitlements.items()
        if not closing.payouts[key].waits
    )
    return wrong if paid == payable else [*wrong, f"the leaves sum to {paid}, what is payable to {payable} token units"]


def _payout(entitlement: Entitlement, registered: Registration | None, token: Token | None) -> Payout:
    recipient = None if registered is None else registered.recipient
    amount = 0 if token is None else units_of(entitlement.entitled_nano, token.decimals)
    if entitlement.entitled_nano == 0:
        waits = "nothing is payable"
    elif token is None:
        waits = "no token pays this asset"
    elif recipient is None:
        waits = "no recipient is registered"
    elif amount == 0:
        waits = "less than the token's smallest unit"
    else:
        return Payout(recipient, amount, "")
    return Payout(recipient, 0, waits)


_SETTLEMENT = SETTLEMENT_KEY.encode()
