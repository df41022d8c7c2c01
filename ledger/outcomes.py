"""What an event of the log came to: stable codes, because they are stored, compared by replay and shown to people.

Precedence, the first that holds wins. For an event about a request:

    the id is open       wrong_wallet, then
                           accepted: duplicate | conflict
                           adopted:  applied (epoch + 1) | duplicate | stale_owner | not_next_epoch
                           an end:   stale_owner | not_next_epoch | unknown_model (usage) | applied
    the id is not open   too_old (also where the end is still remembered: forgetting it must change nothing)
    the id has ended     already_ended
    the id is unknown    accepted: unknown_rules | wrong_payer | applied
                         failed:   applied (it closes the id, so that a late accept finds already_ended)
                         others:   unknown_request

For a credit:          duplicate | conflict | applied
For an adjustment:     duplicate | conflict | needs_approval | applied
For an assertion:      assertion_failed | applied
For any other fact:    applied (it moves the running maximum of event times and changes nothing else)
For no event at all:   unreadable, where an erratum lets the log be read on (ledger/errata.py)
"""

from __future__ import annotations

from enum import StrEnum


class Outcome(StrEnum):
    """One code for each way that an event can end. Everything but `applied` changed nothing in the books."""

    APPLIED = "applied"
    DUPLICATE = "duplicate"
    CONFLICT = "conflict"
    WRONG_WALLET = "wrong_wallet"
    STALE_OWNER = "stale_owner"
    NOT_NEXT_EPOCH = "not_next_epoch"
    UNKNOWN_MODEL = "unknown_model"
    TOO_OLD = "too_old"
    ALREADY_ENDED = "already_ended"
    UNKNOWN_RULES = "unknown_rules"
    WRONG_PAYER = "wrong_payer"
    UNKNOWN_REQUEST = "unknown_request"
    NEEDS_APPROVAL = "needs_approval"
    ASSERTION_FAILED = "assertion_failed"
    UNREADABLE = "unreadable"


MEANINGS: dict[Outcome, str] = {
    Outcome.APPLIED: "it took effect",
    Outcome.DUPLICATE: "the same fact stands in the log before it",
    Outcome.CONFLICT: "another fact with the same id stands in the log before it",
    Outcome.WRONG_WALLET: "the request is open for another wallet",
    Outcome.STALE_OWNER: "its epoch is over: another owner has adopted the request",
    Outcome.NOT_NEXT_EPOCH: "its epoch has not begun: an adoption is missing before it",
    Outcome.UNKNOWN_MODEL: "the model has no price in what was accepted",
    Outcome.TOO_OLD: "the id is not open and more than a day older than the partition's newest event",
    Outcome.ALREADY_ENDED: "the request has ended, and ids end once",
    Outcome.UNKNOWN_RULES: "these books do not know its rules_version",
    Outcome.WRONG_PAYER: "the payer is neither the event's own wallet nor the sandbox",
    Outcome.UNKNOWN_REQUEST: "no such request was accepted",
    Outcome.NEEDS_APPROVAL: "an adjustment this large needs an approver other than its operator",
    Outcome.ASSERTION_FAILED: "the wallet does not have what was asserted",
    Outcome.UNREADABLE: "it is no event; a signed erratum says so",
}
