"""The one function that decides: state x event -> decision. Pure and total; a business result is never an exception.

Precedence of the outcomes: see ledger/outcomes.py. Rules marked C and S: infra/docs/ledger.md.
"""

from __future__ import annotations

from typing import NamedTuple

from ledger.books import (
    ADJUSTMENTS,
    CHARGED,
    DAY_MS,
    FAILED,
    OPEN,
    PLATFORM,
    WORLD,
    Adjustment,
    Books,
    Credit,
    Posting,
    Request,
    burn_account,
    provider_account,
    wallet_account,
)
from ledger.money import cost_nano
from ledger.outcomes import Outcome
from ledger.rules import LOSSES, SANDBOX, TABLES, Pays, approved, delivered_tokens, who_pays
from ledger.split import split
from schemas.event_base import AnyFact
from schemas.events import (
    AdjustmentPosted,
    BalanceAsserted,
    Event,
    KeyIssued,
    KeyRevoked,
    ModelPrice,
    RequestAccepted,
    RequestAdopted,
    RequestEvent,
    RequestFailed,
    Segment,
    Unreadable,
    UsageRecorded,
    WalletCredited,
)
from schemas.ids import uuid7_ms


class Decision(NamedTuple):
    """What an event comes to. Only an applied one carries changes.

    `released_nano` is not None where the id is closed for good, now or before: its admission may go, and its accepted
    payer was charged that much. `contradiction` is what an assertion finds wrong with the books, in words.
    """

    outcome: Outcome
    postings: tuple[Posting, ...] = ()
    request: Request | None = None
    credit: Credit | None = None
    released_nano: int | None = None
    adjustment: Adjustment | None = None
    contradiction: str = ""


_DUPLICATE = Decision(Outcome.DUPLICATE)
_CONFLICT = Decision(Outcome.CONFLICT)
_WRONG_WALLET = Decision(Outcome.WRONG_WALLET)
_STALE_OWNER = Decision(Outcome.STALE_OWNER)
_NOT_NEXT_EPOCH = Decision(Outcome.NOT_NEXT_EPOCH)
_UNKNOWN_MODEL = Decision(Outcome.UNKNOWN_MODEL)
# An id that is not open and too old will never be open again, so an admission of it holds money for nothing.
_TOO_OLD = Decision(Outcome.TOO_OLD, released_nano=0)
_UNKNOWN_RULES = Decision(Outcome.UNKNOWN_RULES)
_WRONG_PAYER = Decision(Outcome.WRONG_PAYER)
_UNKNOWN_REQUEST = Decision(Outcome.UNKNOWN_REQUEST)
_NEEDS_APPROVAL = Decision(Outcome.NEEDS_APPROVAL)
_FACT = Decision(Outcome.APPLIED)
_UNREADABLE = Decision(Outcome.UNREADABLE)


def decide(books: Books, event: Event, offset: int) -> Decision:
    """What `event` at `offset` of the partition of `books` comes to. Changes nothing."""
    if not isinstance(event, RequestEvent):
        return _decide_other(books, event, offset)
    request = books.requests.get(event.request_id)
    if request is not None and request.status == OPEN:
        if request.wallet_id != event.wallet:
            return _WRONG_WALLET
        if isinstance(event, RequestAccepted):
            return _DUPLICATE if request_of(event)[4:14] == request[4:14] else _CONFLICT
        if isinstance(event, RequestAdopted):
            return _adopt(request, event)
        return _end(request, event)
    if uuid7_ms(event.request_id) < books.max_event_ms - DAY_MS:
        return _TOO_OLD
    if request is not None:
        # An event of another wallet must not free what is not its own.
        released = request.payer_charge_nano if request.wallet_id == event.wallet else None
        return Decision(Outcome.ALREADY_ENDED, released_nano=released)
    if isinstance(event, RequestAccepted):
        return _accept(event)
    if isinstance(event, RequestFailed):
        return _close_unknown(event)
    return _UNKNOWN_REQUEST


def request_of(event: RequestAccepted) -> Request:
    """The open request that an accept makes."""
    return Request(
        event.wallet,
        OPEN,
        event.owner,
        1,
        event.key_id,
        event.payer,
        event.asset,
        event.rules_version,
        event.prices,
        event.rate_nano_usd,
        event.cap_day,
        event.hold_nano,
        event.owner,
        event.at_ms,
        event.prices[0].model,
    )


def _decide_other(
    books: Books,
    event: WalletCredited | AdjustmentPosted | BalanceAsserted | KeyIssued | KeyRevoked | AnyFact,
    offset: int,
) -> Decision:
    if isinstance(event, WalletCredited):
        return _credit(books, event, offset)
    if isinstance(event, AdjustmentPosted):
        return _adjust(books, event, offset)
    if isinstance(event, BalanceAsserted):
        return _assert(books, event)
    if isinstance(event, Unreadable):
        return _UNREADABLE
    return _FACT  # the books keep nothing of it


def _adjust(books: Books, event: AdjustmentPosted, offset: int) -> Decision:
    before = books.adjustments.get((event.wallet, event.external_ref))
    if before is not None:
        same = before.asset == event.asset and before.amount_nano == event.amount_nano
        return _DUPLICATE if same else _CONFLICT
    if not approved(event):
        return _NEEDS_APPROVAL
    postings = (
        Posting(ADJUSTMENTS, event.asset, -event.amount_nano),
        Posting(wallet_account(event.wallet), event.asset, event.amount_nano),
    )
    kept = Adjustment(event.asset, event.amount_nano, event.reason, event.operator, event.approver, offset)
    return Decision(Outcome.APPLIED, postings, adjustment=kept)


def _assert(books: Books, event: BalanceAsserted) -> Decision:
    has_nano = books.balance_nano(wallet_account(event.wallet), event.asset)
    if has_nano == event.amount_nano:
        return _FACT
    return Decision(
        Outcome.ASSERTION_FAILED,
        contradiction=f"wallet {event.wallet} has {has_nano} nano {event.asset} where {event.amount_nano} is asserted",
    )


def _credit(books: Books, event: WalletCredited, offset: int) -> Decision:
    before = books.credits.get((event.wallet, event.external_ref))
    if before is not None:
        same = before.asset == event.asset and before.amount_nano == event.amount_nano
        return _DUPLICATE if same else _CONFLICT
    postings = (
        Posting(WORLD, event.asset, -event.amount_nano),
        Posting(wallet_account(event.wallet), event.asset, event.amount_nano),
    )
    return Decision(Outcome.APPLIED, postings, credit=Credit(event.asset, event.amount_nano, offset))


def _accept(event: RequestAccepted) -> Decision:
    if event.rules_version not in TABLES:
        return _UNKNOWN_RULES
    if event.payer not in (wallet_account(event.wallet), SANDBOX):
        return _WRONG_PAYER
    # No look at the balance: admission has made sure of it, and the tokens of an acked accept are delivered.
    return Decision(Outcome.APPLIED, request=request_of(event))


def _adopt(request: Request, event: RequestAdopted) -> Decision:
    if event.epoch == request.owner_epoch + 1:
        return Decision(Outcome.APPLIED, request=request._replace(owner=event.owner, owner_epoch=event.epoch))
    if event.epoch > request.owner_epoch:
        return _NOT_NEXT_EPOCH
    if event.epoch == request.owner_epoch and event.owner == request.owner:
        return _DUPLICATE
    return _STALE_OWNER


def _end(request: Request, event: UsageRecorded | RequestFailed) -> Decision:
    if event.epoch < request.owner_epoch:
        return _STALE_OWNER
    if event.epoch > request.owner_epoch:
        return _NOT_NEXT_EPOCH
    if isinstance(event, RequestFailed):
        ended = request._replace(status=FAILED, ended_ms=event.at_ms, how=event.how.value)
        return Decision(Outcome.APPLIED, request=ended, released_nano=0)
    price = _price(request.prices, event.model)
    if price is None:
        return _UNKNOWN_MODEL
    return _charge(request, event, price)


def _charge(request: Request, event: UsageRecorded, price: ModelPrice) -> Decision:
    # What `_accept` has set is there in every open request.
    assert request.asset is not None
    assert request.payer is not None
    assert request.rules_version is not None
    delivered = delivered_tokens(event)
    pays = who_pays(request.rules_version, event.how, delivered)
    cost = 0
    if pays is not Pays.NOBODY:
        cost = cost_nano(price, event.prompt_tokens, event.image_tokens, delivered)
    clamped = cost > request.hold_nano  # S9: a hold is a promise of what a request costs at most
    charge = request.hold_nano if clamped else cost
    by_client = charge if pays is Pays.CLIENT else 0
    postings = ()
    if charge:
        account = request.payer if pays is Pays.CLIENT else LOSSES
        postings = postings_of(charge, request.asset, account, event.segments)
    ended = Request(
        request.wallet_id,
        CHARGED,
        *request[2:14],
        event.model,
        event.at_ms,
        event.how.value,
        event.prompt_tokens + event.image_tokens,
        delivered,
        charge,
        by_client,
        clamped,
    )
    return Decision(Outcome.APPLIED, postings, ended, None, by_client)


def postings_of(charge_nano: int, asset: str, payer: str, segments: tuple[Segment, ...]) -> tuple[Posting, ...]:
    """The transaction of a charge above zero: payer, burn, providers in order of their first segment, platform."""
    shares = split(charge_nano, [segment.tokens for segment in segments])
    lines = [Posting(payer, asset, -charge_nano)]
    if shares.burn:
        lines.append(Posting(burn_account(asset), asset, shares.burn))
    earned: dict[str, int] = {}
    for segment, share in zip(segments, shares.providers, strict=True):
        earned[segment.provider] = earned.get(segment.provider, 0) + share
    lines += [Posting(provider_account(provider), asset, share) for provider, share in earned.items() if share]
    if shares.platform:
        lines.append(Posting(PLATFORM, asset, shares.platform))
    return tuple(lines)


def _close_unknown(event: RequestFailed) -> Decision:
    closed = Request(event.wallet, FAILED, "", event.epoch, ended_ms=event.at_ms, how=event.how.value)
    return Decision(Outcome.APPLIED, request=closed, released_nano=0)


def _price(prices: tuple[ModelPrice, ...], model: str) -> ModelPrice | None:
    for price in prices:
        if price.model == model:
            return price
    return None
