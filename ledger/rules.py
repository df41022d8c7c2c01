"""Who pays for a request, by how it ended. One table for each `rules_version`, which the accept fixes for its request.

The client pays for tokens delivered to it, once; nothing for a request that delivered none, nor for one whose owner
died unadopted (C6): those tokens may never have reached it, so the platform bears them and the providers are paid.

A table that requests were accepted under never changes: another way to pay is another version, and old requests keep
theirs. `shrk ledger rules` prints what stands here; infra/docs/ledger.md says the same, and a test compares the two.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from ledger.money import NANO, cost_nano
from schemas.events import AdjustmentPosted, Asset, How, ModelPrice, SandboxFunded, UsageRecorded

RULES_VERSION = 1

SANDBOX = "platform:sandbox"
LOSSES = "platform:losses"

#: Corrections up to this, either way, need one person; above it two; so do budgets of the sandbox. It belongs to
#: version 1 of `adjustment.posted` and `sandbox.funded`:
#: another limit comes with another version of the event, so that what stands in the log comes to the same for ever.
APPROVAL_ABOVE_NANO: dict[Asset, int] = {"SHIVER": 10_000 * NANO, "USDC": 1_000 * NANO}


class Pays(Enum):
    """Whose account a charge is taken from."""

    CLIENT = "client"  # the payer named in the accept: the wallet, or the sandbox for a free key
    LOSSES = "losses"
    NOBODY = "nobody"


_VERSION_1: dict[How, Pays] = {
    How.STOP: Pays.CLIENT,
    How.LENGTH: Pays.CLIENT,
    How.TOOL_CALLS: Pays.CLIENT,
    How.CLIENT_GONE: Pays.CLIENT,  # what was delivered before it left
    How.NODE_DIED: Pays.CLIENT,  # what was delivered, also where nobody could go on
    How.DEADLINE: Pays.CLIENT,
    How.ERROR: Pays.CLIENT,
    How.OWNER_DIED: Pays.LOSSES,
    # These mean that nothing was delivered; a usage.recorded that says so anyway costs nobody anything.
    How.ZERO_TOKENS: Pays.NOBODY,
    How.REJECTED: Pays.NOBODY,
    How.NO_NODE: Pays.NOBODY,
    How.NOT_ACKED: Pays.NOBODY,
}
TABLES: dict[int, dict[How, Pays]] = {1: _VERSION_1}

ENDINGS: dict[How, str] = {
    How.STOP: "the model ended its answer, also where another node went on for one that died",
    How.LENGTH: "the budget of tokens was used up",
    How.TOOL_CALLS: "the model called tools",
    How.CLIENT_GONE: "the client left; it had what was delivered before",
    How.NODE_DIED: "the node died and nobody could go on",
    How.DEADLINE: "the time for the request ran out",
    How.ERROR: "the engine failed",
    How.OWNER_DIED: "the ingress died and nobody carried on",
    How.ZERO_TOKENS: "it ended without a token",
    How.REJECTED: "the node refused it: the context is too long",
    How.NO_NODE: "no node took it",
    How.NOT_ACKED: "the log did not acknowledge its accept in time, so it never began",
}
PAYERS: dict[Pays, str] = {Pays.CLIENT: "the client", Pays.LOSSES: LOSSES, Pays.NOBODY: "nobody"}


class Row(NamedTuple):
    """One line of a billing table, in words."""

    how: str
    paid_by: str
    ending: str


def billing_table(rules_version: int) -> list[Row]:
    """The table for people, a row for each way to end. Raises KeyError for a version that is not ours."""
    table = TABLES[rules_version]
    return [Row(how.value, PAYERS[table[how]], ENDINGS[how]) for how in How]


def approved(event: AdjustmentPosted | SandboxFunded) -> bool:
    """Whether enough people stand behind a correction, or a budget, of this size."""
    if abs(event.amount_nano) <= APPROVAL_ABOVE_NANO[event.asset]:
        return True
    return event.approver is not None and event.approver != event.operator


def delivered_tokens(event: UsageRecorded) -> int:
    """Completion tokens over all segments."""
    segments = event.segments
    return segments[0].tokens if len(segments) == 1 else sum(segment.tokens for segment in segments)


def who_pays(rules_version: int, how: How, delivered: int) -> Pays:
    """Who is charged where `delivered` completion tokens were. Raises KeyError for a version that is not ours."""
    return TABLES[rules_version][how] if delivered > 0 else Pays.NOBODY


def charge_nano(price: ModelPrice, event: UsageRecorded, hold_nano: int, rules_version: int = RULES_VERSION) -> int:
    """What the *accepted payer* is charged: what `state.settle` shrinks the hold to. Never above the hold (S9)."""
    delivered = delivered_tokens(event)
    if who_pays(rules_version, event.how, delivered) is not Pays.CLIENT:
        return 0
    return min(hold_nano, cost_nano(price, event.prompt_tokens, event.image_tokens, delivered))
