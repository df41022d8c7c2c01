"""Epochs for an operator: close one now, look at them, and say what the sandbox may pay.

Closing is `streams.epochs`, as the schedule does it; what is shown are the read models that it makes.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from typing import Any

from infra.accounts import Append, format_amount
from infra.errors import EpochNotClosed, FactRefused, Unreachable
from infra.postgres import describe_url
from ledger.rules import APPROVAL_ABOVE_NANO, approved
from schemas.events import Asset, ProviderRegistered, SandboxFunded
from schemas.facts import Terms
from schemas.settings import Settings
from streams.epoch_schedule import EpochSettings
from streams.epochs import Closed, EpochError, opened

_SILENT = logging.NullHandler()
_TERMS = ("SHRK_CHAIN_ID", "SHRK_SETTLEMENT_CONTRACT", "SHRK_TOKEN_SHIVER", "SHRK_TOKEN_USDC")


async def close(settings: Settings, env: Mapping[str, str] = os.environ) -> Closed:
    """Closes the epoch that is next, under the terms of `env`, or of the last epoch where it has none.

    Raises EpochNotClosed, also where nothing has happened since the last one, and Unreachable.
    """
    from ledger.log import LedgerError, LedgerUnavailable
    from streams.readiness import DATABASE_ERRORS

    # Where nobody has set up logging they would write to stderr beside our one line.
    for name in ("aiokafka", "ledger", "streams"):
        logging.getLogger(name).addHandler(_SILENT)
    try:
        async with opened(settings, name="shrk-epochs") as epochs:
            terms: Terms | None = None
            if not any(env.get(name) for name in _TERMS):
                last = (await epochs.follow()).last
                terms = None if last is None else last.terms
            terms = terms or EpochSettings.from_environment(env).terms
            return await epochs.close(terms, time.time_ns() // 1_000_000)
    except EpochError as error:
        raise EpochNotClosed(str(error)) from error
    except LedgerUnavailable as error:
        raise Unreachable(str(error)) from error
    except LedgerError as error:
        raise EpochNotClosed(str(error)) from error
    except DATABASE_ERRORS as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise Unreachable(f"PostgreSQL at {describe_url(settings.database_url)} cannot be used: {why}") from error


async def fund_sandbox(
    db: Any,
    append: Append,
    asset: Asset,
    amount_nano: int,
    external_ref: str,
    reason: str,
    operator: str,
    approver: str | None = None,
) -> None:
    """So much more may be paid for what free keys used, once per `external_ref`, by an event in the ledger log.

    Raises FactRefused where it needs an approver other than the operator, or the reference is known to stand for
    another amount. It counts from the next epoch on.
    """
    try:
        event = SandboxFunded(
            at_ms=time.time_ns() // 1_000_000,
            asset=asset,
            amount_nano=amount_nano,
            reason=reason,
            operator=operator,
            external_ref=external_ref,
            approver=approver,
        )
    except ValueError as error:
        raise FactRefused("reason, reference, operator and approver have 1 to 200 characters each") from error
    if not approved(event):
        limit = format_amount(APPROVAL_ABOVE_NANO[asset], asset)
        raise FactRefused(f"above {limit} a budget needs --approver: someone other than {operator}")
    before = await db.fetchrow(
        "select asset, amount_nano from derived.sandbox_funds where external_ref = $1 and verdict = 'counted'",
        external_ref,
    )
    if before is not None and tuple(before) != (asset, amount_nano):
        raise FactRefused(
            f"reference {external_ref} stands for {format_amount(before['amount_nano'], before['asset'])}"
        )
    await append(event)


async def register_provider(db: Any, append: Append, provider: str, name: str, recipient: str) -> None:
    """Says who the provider is and where its payouts go, from the next epoch on, by an event in the ledger log.

    Raises FactRefused for what is no id, name or address.
    """
    try:
        event = ProviderRegistered(at_ms=time.time_ns() // 1_000_000, provider=provider, name=name, recipient=recipient)
    except ValueError as error:
        raise FactRefused(
            "a provider's id has letters, digits and _ . : - (at most 80), its name 1 to 200 characters, and its "
            "recipient is 0x and 40 hexadecimal digits"
        ) from error
    if not int(recipient, 16):
        raise FactRefused("the zero address takes no payments")
    await db.execute(
        "insert into state.providers (provider_id, name) values ($1, $2) "
        "on conflict (provider_id) do update set name = excluded.name",
        provider,
        name,
    )
    await append(event)


async def list_epochs(db: Any, most: int) -> list[Any]:
    """The newest epochs, the last one first: rows of derived.epochs."""
    return await db.fetch("select * from derived.epochs order by number desc limit $1", most)


async def show_epoch(db: Any, number: int) -> dict[str, Any]:
    """The epoch's row, the one before it, its entitlements, and the sandbox's budget up to it.

    Raises EpochNotClosed where there is none.
    """
    row = await db.fetchrow("select * from derived.epochs where number = $1", number)
    if row is None:
        raise EpochNotClosed(f"there is no epoch {number} yet; `shrk epochs list` shows those that there are")
    return {
        "epoch": row,
        "before": await db.fetchrow("select cut from derived.epochs where number = $1", number - 1),
        "entitlements": await db.fetch(
            "select * from derived.entitlements where epoch = $1 order by asset, provider", number
        ),
        "funded": await db.fetch(
            "select asset, sum(amount_nano) as nano from derived.sandbox_funds "
            "where epoch <= $1 and verdict = 'counted' group by 1 order by 1",
            number,
        ),
        "ignored": await db.fetch(
            "select * from derived.sandbox_funds where epoch = $1 and verdict <> 'counted' order by 1, 2", number
        ),
    }
