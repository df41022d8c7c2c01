"""The facts of the ledger log, in the past tense. This file is the contract of the books.

Every event is a frozen model with a stable `type` and `version`; what was written in an earlier version is read as
today's (`schemas.past`) and never rewritten. A field that is not named is refused, and so is a
value of another type (a float for an amount, say). Money is `int` in nano units (1e-9) of `asset`; times are
milliseconds since 1970 in UTC. The Kafka key of a record is the event's `key`. The facts that concern no wallet are in
`schemas.facts`.

An event is an *input* to `ledger.decide`, in replay too: that it stands in the log does not mean that it had an effect.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

import orjson
from pydantic import BaseModel, Field, TypeAdapter, ValidationError, field_validator

from schemas.event_base import AMOUNT_NANO_MAX as AMOUNT_NANO_MAX
from schemas.event_base import (
    FROZEN,
    SEGMENTS_MAX,
    AmountNano,
    Asset,
    BalanceNano,
    Epoch,
    Id,
    ModelPrice,
    Name,
    PositiveNano,
    RequestEvent,
    RequestId,
    SignedNano,
    Tokens,
    WalletEvent,
)
from schemas.event_base import TimeMs as TimeMs
from schemas.event_base import Unreadable as Unreadable
from schemas.facts import (
    BurnSettled,
    EpochClosed,
    NodeOffline,
    NodeOnline,
    PayoutConfirmed,
    PayoutFailed,
    PayoutPlanned,
    PayoutReorged,
    PayoutSigned,
    PayoutSubmitted,
    PricePublished,
    ProviderRegistered,
    RatePublished,
    SandboxFunded,
)
from schemas.keys import Tier
from schemas.past import PAST


class How(StrEnum):
    """How a request ended; `ledger.rules` says who pays for each."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    CLIENT_GONE = "client_gone"
    NODE_DIED = "node_died"
    DEADLINE = "deadline"
    OWNER_DIED = "owner_died"
    ZERO_TOKENS = "zero_tokens"
    REJECTED = "rejected"
    NO_NODE = "no_node"
    ERROR = "error"
    NOT_ACKED = "not_acked"


class WalletCredited(WalletEvent):
    """A top-up, deposit or grant. `external_ref` makes it idempotent: it counts once per wallet."""

    type: Literal["wallet.credited"] = "wallet.credited"
    asset: Asset
    amount_nano: PositiveNano
    external_ref: Name
    reason: Literal["top_up", "deposit", "grant"]
    operator: Name


class RequestAccepted(RequestEvent):
    """A hold is open and the job goes out with it. Prices and rules are fixed here for the request's whole life."""

    type: Literal["request.accepted"] = "request.accepted"
    request_id: RequestId
    key_id: Id
    owner: Id
    rules_version: Annotated[int, Field(ge=1, le=1000)]
    asset: Asset
    prices: Annotated[tuple[ModelPrice, ...], Field(min_length=1, max_length=9)]  # the model, then its fallbacks
    rate_nano_usd: AmountNano  # nano USD for one whole unit of the asset
    cap_day: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\d$")] | None  # UTC day of the sandbox cap, else None
    hold_nano: AmountNano
    payer: Id  # the account: "wallet:<id>" or "platform:sandbox"


class RequestAdopted(RequestEvent):
    """Another process owns the request now; ends signed with a lower epoch no longer count."""

    type: Literal["request.adopted"] = "request.adopted"
    request_id: RequestId
    epoch: Annotated[int, Field(ge=2, le=10**6)]
    owner: Id


class Segment(BaseModel):
    """The tokens that one attempt delivered. The provider is the one fixed at dispatch."""

    model_config = FROZEN

    node: Id
    provider: Id
    attempt: Annotated[int, Field(ge=1, le=SEGMENTS_MAX)]
    tokens: Tokens
    receipt: str | None = None


class UsageRecorded(RequestEvent):
    """The request ended and these tokens were delivered."""

    type: Literal["usage.recorded"] = "usage.recorded"
    request_id: RequestId
    epoch: Epoch
    how: How
    model: Name  # which of the accepted prices applies
    prompt_tokens: Tokens
    image_tokens: Tokens = 0
    segments: Annotated[tuple[Segment, ...], Field(min_length=1, max_length=SEGMENTS_MAX)]


class RequestFailed(RequestEvent):
    """The request ended with nothing to pay. For an id that the log has not seen it is valid too, and closes it."""

    type: Literal["request.failed"] = "request.failed"
    request_id: RequestId
    epoch: Epoch
    how: How
    detail: Annotated[str, Field(max_length=200)] = ""


class AdjustmentPosted(WalletEvent):
    """A correction by hand: a new entry, since nothing that stands in the log is ever edited.

    `external_ref` makes it idempotent, as a credit's does; the two kinds of references are apart. Above
    `ledger.rules.APPROVAL_ABOVE_NANO` another person than the operator must have approved it.
    """

    type: Literal["adjustment.posted"] = "adjustment.posted"
    asset: Asset
    amount_nano: SignedNano  # what the wallet gets, or loses where it is below zero
    reason: Name
    operator: Name
    external_ref: Name
    approver: Name | None = None

    @field_validator("amount_nano")
    @classmethod
    def _moves_something(cls, amount_nano: int) -> int:
        if amount_nano == 0:
            raise ValueError("an adjustment of nothing")
        return amount_nano


class BalanceAsserted(WalletEvent):
    """What the wallet has at this point of its partition. Where it has not, replay says so loudly; nothing changes."""

    type: Literal["balance.asserted"] = "balance.asserted"
    asset: Asset
    amount_nano: BalanceNano


class KeyIssued(WalletEvent):
    """An API key may spend from the wallet. The log never has the key, nor a hash of it."""

    type: Literal["key.issued"] = "key.issued"
    key_id: Id
    tier: Tier
    operator: Name


class KeyRevoked(WalletEvent):
    """An API key may spend no longer."""

    type: Literal["key.revoked"] = "key.revoked"
    key_id: Id
    operator: Name


Written = Annotated[
    WalletCredited
    | RequestAccepted
    | RequestAdopted
    | UsageRecorded
    | RequestFailed
    | AdjustmentPosted
    | BalanceAsserted
    | KeyIssued
    | KeyRevoked
    | RatePublished
    | PricePublished
    | ProviderRegistered
    | NodeOnline
    | NodeOffline
    | SandboxFunded
    | EpochClosed
    | PayoutPlanned
    | PayoutSigned
    | PayoutSubmitted
    | PayoutConfirmed
    | PayoutFailed
    | PayoutReorged
    | BurnSettled,
    Field(discriminator="type"),
]
#: What readers get of a record. All but `Unreadable` can be written.
Event = Written | Unreadable
_EVENT: TypeAdapter[Written] = TypeAdapter(Written)


class UnreadableEvent(ValueError):
    """The bytes are no event of a known type and version. Readers stop on it: nothing may be skipped in silence."""


def parse(value: bytes) -> Event:
    """The event in a record's value. Raises UnreadableEvent, whose text names fields but never repeats their values."""
    try:
        return _EVENT.validate_json(value)
    except ValidationError as error:
        past = _past(value)
        if past is not None:
            return past
        places = "; ".join(
            f"{'.'.join(map(str, e['loc'])) or 'value'}: {e['type']}"
            for e in error.errors(include_input=False, include_url=False)
        )
        raise UnreadableEvent(f"not a known event: {places}") from None


def _past(value: bytes) -> Event | None:
    """Today's event of one that was written in an earlier version; None where it is not exactly one."""
    try:
        fields = orjson.loads(value)
        model, upcast = PAST[fields["type"], fields["version"]]
        return upcast(model.model_validate_json(value))
    except (ValueError, KeyError, TypeError):  # pydantic's ValidationError is a ValueError
        return None


def request_id_of(event: Event) -> str | None:
    """The request that the event is about."""
    return event.request_id if isinstance(event, RequestEvent) else None


def dump(event: Event) -> bytes:
    """The canonical bytes to append: compact JSON in field order. What is hashed later is what stands in the log."""
    if isinstance(event, Unreadable):
        raise TypeError("what could not be read cannot be written")
    return _EVENT.dump_json(event)
