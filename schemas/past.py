"""Earlier versions of events: still read, never written again.

What stands in the log is never rewritten. `schemas.events.parse` checks such bytes as strictly as on the day they were
written, and then gives the event of today that says the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, model_validator

from schemas.event_base import FROZEN, First, TimeMs
from schemas.facts import (
    PARTITIONS_MAX,
    Bytes32,
    ChainHead,
    EpochClosed,
    EpochNumber,
    NextOffset,
    Sha256,
    check_heads,
)


class EpochClosed1(BaseModel):
    """Before the log had trees and the event said where it is paid."""

    model_config = FROZEN

    version: First = 1
    at_ms: TimeMs
    type: Literal["epoch.closed"] = "epoch.closed"
    epoch: EpochNumber
    cut: Annotated[tuple[NextOffset, ...], Field(min_length=1, max_length=PARTITIONS_MAX)]
    heads: Annotated[tuple[ChainHead, ...], Field(min_length=1, max_length=PARTITIONS_MAX)]
    digest: Sha256
    payout_root: Bytes32

    @model_validator(mode="after")
    def _each_partition_has_a_head(self) -> EpochClosed1:
        check_heads(self.cut, self.heads)
        return self


def _epoch_closed(old: EpochClosed1) -> EpochClosed:
    return EpochClosed(
        at_ms=old.at_ms, epoch=old.epoch, cut=old.cut, heads=old.heads, roots=(), log_root="", digest=old.digest,
        terms=None, payout_root=old.payout_root,
    )  # fmt: skip


#: By type and version: the model of then, and what it is today.
PAST: dict[tuple[str, int], tuple[type[BaseModel], Callable[[Any], Any]]] = {
    ("epoch.closed", 1): (EpochClosed1, _epoch_closed),
}
