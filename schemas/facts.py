"""The facts of the log that concern no wallet: what is published, who serves, and the life of epochs and payments.

The books take none of them as a transaction: they are applied, change no account, and move the running maximum of
event times. Keys: `<kind>:<subject>` for what is published and who serves; for epochs and payments the one constant
SETTLEMENT_KEY, so that all of them stand in one order.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field, model_validator

from schemas.event_base import FROZEN, AmountNano, Asset, Fact, Id, ModelPrice, Name, PositiveNano, SecondFact
from schemas.topics import SETTLEMENT_KEY

PARTITIONS_MAX = 1024
RAW_TRANSACTION_CHARS_MAX = 2 + 2 * 32 * 1024

EpochNumber = Annotated[int, Field(ge=1, le=10**9)]
NextOffset = Annotated[int, Field(ge=0, le=2**53)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
ChainHead = Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]  # empty where the partition is
#: As the chain's tools write them: 0x and hexadecimal digits.
Bytes32 = Annotated[str, Field(pattern=r"^0x[0-9a-f]{64}$")]
Address = Annotated[str, Field(pattern=r"^0x[0-9a-fA-F]{40}$")]
RawTransaction = Annotated[str, Field(pattern=r"^0x([0-9a-f]{2})+$", max_length=RAW_TRANSACTION_CHARS_MAX)]
ChainId = Annotated[int, Field(ge=1, le=2**53)]
Nonce = Annotated[int, Field(ge=0, le=2**53)]
BlockNumber = Annotated[int, Field(ge=0, le=2**53)]


class RatePublished(Fact):
    """What one whole unit of an asset is worth, in nano USD."""

    type: Literal["rate.published"] = "rate.published"
    asset: Asset
    rate_nano_usd: PositiveNano
    source: Name

    @property
    def key(self) -> str:
        return f"asset:{self.asset}"


class PricePublished(Fact):
    """What a model costs from now on. A request's own prices are those of its accept."""

    type: Literal["price.published"] = "price.published"
    asset: Asset
    price: ModelPrice

    @property
    def key(self) -> str:
        return f"model:{self.price.model}"


class ProviderRegistered(Fact):
    """Who runs nodes. The id never changes; `recipient`, where payouts go, may, by being registered again."""

    type: Literal["provider.registered"] = "provider.registered"
    provider: Id
    name: Name
    recipient: Address | None

    @property
    def key(self) -> str:
        return f"provider:{self.provider}"


class NodeOnline(Fact):
    """A node serves, for this provider."""

    type: Literal["node.online"] = "node.online"
    node: Id
    provider: Id

    @property
    def key(self) -> str:
        return f"node:{self.node}"


class NodeOffline(Fact):
    """A node serves no longer: it said so, or it was not heard of."""

    type: Literal["node.offline"] = "node.offline"
    node: Id
    provider: Id
    why: Literal["drained", "lost"]

    @property
    def key(self) -> str:
        return f"node:{self.node}"


class SettlementFact(Fact):
    """The kind of facts that stand under the one constant key."""

    @property
    def key(self) -> str:
        return SETTLEMENT_KEY


class SandboxFunded(SettlementFact):
    """So much more may be paid out for what free keys used: without it their providers earn, and are not paid (S20).

    `external_ref` makes it idempotent. As with an adjustment, above a limit another person must have approved it.
    """

    type: Literal["sandbox.funded"] = "sandbox.funded"
    asset: Asset
    amount_nano: PositiveNano
    reason: Name
    operator: Name
    external_ref: Name
    approver: Name | None = None


class Token(BaseModel):
    """What pays an asset on chain. One unit there is 10**-decimals; what is below it stays payable."""

    model_config = FROZEN

    asset: Asset
    token: Address
    decimals: Annotated[int, Field(ge=0, le=36)]


class Terms(BaseModel):
    """Where an epoch is paid. They stand in the log, so that anyone makes the same leaves from it."""

    model_config = FROZEN

    chain_id: ChainId
    contract: Address
    tokens: Annotated[tuple[Token, ...], Field(max_length=8)]

    @model_validator(mode="after")
    def _one_token_an_asset(self) -> Terms:
        if len({token.asset for token in self.tokens}) != len(self.tokens):
            raise ValueError("an asset is paid in one token")
        return self


class EpochClosed(SecondFact):
    """An epoch is what lies between two cuts. Act only on the first of its number that is read back.

    `cut` has the next offset of every partition; there `heads` is the head of its hash chain and `roots` the root of
    the RFC 6962 tree over its records. `log_root` is the root over all partitions (`ledger.merkle.log_root`), `digest`
    that of the books, `payout_root` that of the tree of cumulative entitlements under `terms`. An epoch of version 1
    had no trees over the log and no terms: `roots`, `log_root` and `terms` are empty there.
    """

    type: Literal["epoch.closed"] = "epoch.closed"
    epoch: EpochNumber
    cut: Annotated[tuple[NextOffset, ...], Field(min_length=1, max_length=PARTITIONS_MAX)]
    heads: Annotated[tuple[ChainHead, ...], Field(min_length=1, max_length=PARTITIONS_MAX)]
    roots: Annotated[tuple[Sha256, ...], Field(max_length=PARTITIONS_MAX)]
    log_root: ChainHead
    digest: Sha256
    terms: Terms | None
    payout_root: Bytes32

    @property
    def key(self) -> str:
        return SETTLEMENT_KEY

    @model_validator(mode="after")
    def _each_partition_has_its_own(self) -> EpochClosed:
        check_heads(self.cut, self.heads)
        if len(self.roots) not in (0, len(self.cut)) or bool(self.log_root) != bool(self.roots):
            raise ValueError("a root for each partition of the cut and one over all, or none at all")
        return self


def check_heads(cut: tuple[int, ...], heads: tuple[str, ...]) -> None:
    """Raises ValueError unless there is a head for each partition of the cut that has records, and for no other."""
    if [bool(head) for head in heads] != [offset > 0 for offset in cut]:
        raise ValueError("a head for each partition of the cut that has records, and for no other")


class PayoutPlanned(SettlementFact):
    """A payment will be tried: what the provider is entitled to in all by the epoch, and what of it is to be paid."""

    type: Literal["payout.planned"] = "payout.planned"
    payout: Id
    epoch: EpochNumber
    provider: Id
    asset: Asset
    recipient: Address
    entitled_nano: PositiveNano  # cumulative, as in the leaf
    amount_nano: PositiveNano
    chain_id: ChainId


class PayoutSigned(SettlementFact):
    """The very bytes to send, appended before they are sent: whoever recovers sends the same ones again."""

    type: Literal["payout.signed"] = "payout.signed"
    payout: Id
    nonce: Nonce
    transaction: Bytes32
    raw: RawTransaction


class PayoutSubmitted(SettlementFact):
    """A node of the chain has taken the transaction."""

    type: Literal["payout.submitted"] = "payout.submitted"
    payout: Id
    transaction: Bytes32


class PayoutConfirmed(SettlementFact):
    """The chain's log shows the transfer, whoever claimed it."""

    type: Literal["payout.confirmed"] = "payout.confirmed"
    payout: Id
    transaction: Bytes32
    block: Bytes32
    block_number: BlockNumber
    amount_nano: PositiveNano


class PayoutFailed(SettlementFact):
    """The payment did not happen and will not by this transaction; without one it was never signed."""

    type: Literal["payout.failed"] = "payout.failed"
    payout: Id
    transaction: Bytes32 | None
    reason: Name


class PayoutReorged(SettlementFact):
    """The block of a confirmed payment is no longer part of the chain."""

    type: Literal["payout.reorged"] = "payout.reorged"
    payout: Id
    transaction: Bytes32
    block: Bytes32
    block_number: BlockNumber


class BurnSettled(SettlementFact):
    """An epoch's burn happened on chain."""

    type: Literal["burn.settled"] = "burn.settled"
    epoch: EpochNumber
    amount_nano: AmountNano  # of SHIVER, the one asset that burns
    transaction: Bytes32
    block: Bytes32
    block_number: BlockNumber
