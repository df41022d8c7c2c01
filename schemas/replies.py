"""What a node writes into a request's lane, and the one way to count it.

Per attempt, in this order: `claimed`, then any of `tokens` and `alive`, then one of `end`, `rejected`, `failed`. Every
record carries the attempt, the nonce of the process that claimed it, and `seq` counting from 0 without a gap.
`Tally` is that protocol as a fold; the ingress and the expiry both count by it, so they cannot disagree.
"""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from schemas.event_base import RequestId

ALIVE_INTERVAL_S = 0.5
CLAIM_TIMEOUT_S = 2.0
SILENCE_TIMEOUT_S = 2.0


class _Reply(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    request_id: RequestId
    attempt: Annotated[int, Field(ge=1, le=16)]
    nonce: Annotated[str, Field(min_length=8, max_length=32)]
    seq: Annotated[int, Field(ge=0, le=10**9)]


class Claimed(_Reply):
    kind: Literal["claimed"] = "claimed"
    prompt_tokens: Annotated[int, Field(ge=0, le=10**8)]


class Alive(_Reply):
    kind: Literal["alive"] = "alive"


class Tokens(_Reply):
    """Generated token ids and their text. `text_bytes` is cumulative, in UTF-8 bytes, for a later resume."""

    kind: Literal["tokens"] = "tokens"
    ids: Annotated[tuple[int, ...], Field(max_length=4096)]
    text: Annotated[str, Field(max_length=262_144)]
    text_bytes: Annotated[int, Field(ge=0)]


class End(_Reply):
    """The attempt is over. `completion_tokens` is the node's own count of the ids that it sent."""

    kind: Literal["end"] = "end"
    finish: Literal["stop", "length", "cancelled"]
    completion_tokens: Annotated[int, Field(ge=0)]


class Rejected(_Reply):
    """The job cannot be run by anybody as it is; nothing was generated."""

    kind: Literal["rejected"] = "rejected"
    code: Literal["context_too_long", "bad_template", "bad_job"]
    detail: Annotated[str, Field(max_length=300)]


class Failed(_Reply):
    """This node cannot go on (engine crash, drain, unknown model, no free slot)."""

    kind: Literal["failed"] = "failed"
    code: Literal["engine_error", "draining", "busy", "unknown_model", "expired", "deadline"]
    detail: Annotated[str, Field(max_length=300)] = ""


Reply = Annotated[Claimed | Alive | Tokens | End | Rejected | Failed, Field(discriminator="kind")]
_REPLY: TypeAdapter[Reply] = TypeAdapter(Reply)


class UnreadableReply(ValueError):
    """A lane record that is no reply. It fails the attempt; its text never repeats the content."""


def parse(value: bytes) -> Reply:
    try:
        return _REPLY.validate_json(value)
    except ValidationError as error:
        raise UnreadableReply(
            "; ".join(f"{e['loc']}: {e['type']}" for e in error.errors(include_input=False))
        ) from None


def dump(reply: Reply) -> bytes:
    return _REPLY.dump_json(reply)


class Verdict(Enum):
    """What a record in the lane is to its reader."""

    COUNTS = "counts"
    STRAY = "stray"  # another request, attempt or nonce: ignored
    GAP = "gap"  # a record of ours is missing: the attempt failed


class Tally:
    """The fold over one attempt's records: which count, and how many tokens they make.

    The first claim binds its nonce (C4).
    """

    __slots__ = ("attempt", "completion_tokens", "nonce", "prompt_tokens", "request_id", "seq", "terminal")

    def __init__(self, request_id: str, attempt: int) -> None:
        self.request_id = request_id
        self.attempt = attempt
        self.nonce: str | None = None
        self.seq = 0
        self.prompt_tokens: int | None = None
        self.completion_tokens = 0
        self.terminal: End | Rejected | Failed | None = None

    def add(self, reply: Reply) -> Verdict:
        if reply.request_id != self.request_id or reply.attempt != self.attempt or self.terminal is not None:
            return Verdict.STRAY
        if self.nonce is None:
            if reply.seq != 0:
                return Verdict.GAP
            self.nonce = reply.nonce
        elif reply.nonce != self.nonce or reply.seq < self.seq:
            return Verdict.STRAY
        if reply.seq != self.seq:
            return Verdict.GAP
        self.seq += 1
        if isinstance(reply, Claimed):
            self.prompt_tokens = reply.prompt_tokens
        elif isinstance(reply, Tokens):
            self.completion_tokens += len(reply.ids)
        elif not isinstance(reply, Alive):
            self.terminal = reply
        return Verdict.COUNTS
