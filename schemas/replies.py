"""What a node writes into a request's lane, and the one way to count it.

Per attempt, in this order: `claimed`, then any of `tokens`, `choice_end`, `embedded` and `alive`, then one of `end`,
`rejected`, `failed`. Every record carries the attempt, the nonce of the process that claimed it, and `seq` counting
from 0 without a gap. `Tally` is that protocol as a fold; the ingress and the expiry both count by it, so they cannot
disagree.

A job of one choice ends with `end` alone. Of several choices each ends with its own `choice_end`, in any order, and
nothing of that choice follows; `end` comes behind the last of them. A cancel, or a failure, may leave choices open.
"""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from schemas.event_base import RequestId

ALIVE_INTERVAL_S = 0.5
CLAIM_TIMEOUT_S = 2.0
#: In its stead where there are images: a claim says how many tokens they are, so the model has to look at them first.
CLAIM_IMAGES_TIMEOUT_S = 30.0
SILENCE_TIMEOUT_S = 2.0

CHOICES_MAX = 8
TOP_LOGPROBS_MAX = 20
TOKEN_BYTES_MAX = 1024
#: Base64 of 8,192 numbers of four bytes.
VECTOR_CHARS_MAX = 43_692
INPUTS_MAX = 2048


def claim_timeout_s(images: int) -> float:
    """How long a node may take from a job to its claim."""
    return CLAIM_IMAGES_TIMEOUT_S if images else CLAIM_TIMEOUT_S


TokenId = Annotated[int, Field(ge=0, lt=2**31)]
ChoiceIndex = Annotated[int, Field(ge=0, lt=CHOICES_MAX)]
#: JSON has no infinity: a token that cannot come has -9999.
LogProb = Annotated[float, Field(ge=-9999.0, le=0.0)]


class _Reply(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    request_id: RequestId
    attempt: Annotated[int, Field(ge=1, le=16)]
    nonce: Annotated[str, Field(min_length=8, max_length=32)]
    seq: Annotated[int, Field(ge=0, le=10**9)]


class Claimed(_Reply):
    """The job is ours. `prompt_tokens` are those of text; `image_tokens`, priced apart, come on top of them."""

    kind: Literal["claimed"] = "claimed"
    prompt_tokens: Annotated[int, Field(ge=0, le=10**8)]
    image_tokens: Annotated[int, Field(ge=0, le=10**8)] = 0


class Alive(_Reply):
    kind: Literal["alive"] = "alive"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Alternative(_Part):
    """A token that could have come. `text` has U+FFFD where `bytes` are no whole characters."""

    id: TokenId
    text: Annotated[str, Field(max_length=TOKEN_BYTES_MAX)]
    bytes: Annotated[tuple[Annotated[int, Field(ge=0, le=255)], ...], Field(max_length=TOKEN_BYTES_MAX)]
    logprob: LogProb


class TokenLogprob(Alternative):
    """A token that came, and the likeliest in its place, itself among them where it is one of these."""

    top: Annotated[tuple[Alternative, ...], Field(max_length=TOP_LOGPROBS_MAX)] = ()


class ToolDelta(_Part):
    """A piece of the `index`-th tool call. Its first piece has id ("call_" and 24 hexadecimal digits) and name."""

    index: Annotated[int, Field(ge=0, lt=1024)]
    id: Annotated[str, Field(pattern=r"^call_[0-9a-f]{24}$")] | None = None
    name: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    arguments: Annotated[str, Field(max_length=262_144)] = ""


class Tokens(_Reply):
    """Generated token ids of one choice, and what the client sees of them.

    `text` is content and nothing else: a tool call comes as `tool_calls`, and text that may yet become one, or a stop
    string, is withheld, so ids may come alone. `text_bytes` is cumulative for the choice, in UTF-8 bytes of content,
    over all attempts. With `logprobs` asked for there is one for each of `ids`, those of tool calls too.
    """

    kind: Literal["tokens"] = "tokens"
    choice: ChoiceIndex = 0
    ids: Annotated[tuple[TokenId, ...], Field(max_length=4096)]
    text: Annotated[str, Field(max_length=262_144)]
    text_bytes: Annotated[int, Field(ge=0)]
    logprobs: Annotated[tuple[TokenLogprob, ...], Field(max_length=4096)] = ()
    tool_calls: Annotated[tuple[ToolDelta, ...], Field(max_length=4096)] = ()


class ChoiceEnd(_Reply):
    """One of several choices is over."""

    kind: Literal["choice_end"] = "choice_end"
    choice: ChoiceIndex
    finish: Literal["stop", "length", "tool_calls", "cancelled"]


class Embedded(_Reply):
    """The vector of input `index`: base64 of little-endian float32. `tokens` is what the input had."""

    kind: Literal["embedded"] = "embedded"
    index: Annotated[int, Field(ge=0, lt=INPUTS_MAX)]
    vector: Annotated[str, Field(max_length=VECTOR_CHARS_MAX)]
    tokens: Annotated[int, Field(ge=0, le=10**8)]


class End(_Reply):
    """The attempt is over. `completion_tokens` is the node's own count of what it sent: ids, over all choices, or an
    embedding's tokens. Of several choices `finish` is the first one's, or "cancelled" where the attempt was."""

    kind: Literal["end"] = "end"
    finish: Literal["stop", "length", "tool_calls", "cancelled"]
    completion_tokens: Annotated[int, Field(ge=0)]


class Rejected(_Reply):
    """The job cannot be run by anybody as it is; nothing was generated. `detail` may be told to the client.

    bad_schema: a tool's or the response format's JSON schema is wrong, too large, or asks for what is not supported.
    bad_image: an image cannot be read. unsupported: this model cannot do this (images, embeddings, tools).
    """

    kind: Literal["rejected"] = "rejected"
    code: Literal["context_too_long", "bad_template", "bad_job", "bad_schema", "bad_image", "unsupported"]
    detail: Annotated[str, Field(max_length=300)]


class Failed(_Reply):
    """This node cannot go on (engine crash, drain, unknown model, no free slot)."""

    kind: Literal["failed"] = "failed"
    code: Literal["engine_error", "draining", "busy", "unknown_model", "expired", "deadline"]
    detail: Annotated[str, Field(max_length=300)] = ""


Reply = Annotated[
    Claimed | Alive | Tokens | ChoiceEnd | Embedded | End | Rejected | Failed, Field(discriminator="kind")
]
_REPLY: TypeAdapter[Reply] = TypeAdapter(Reply)
_SELDOM = {"logprobs", "tool_calls"}


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
    """What most records do not have is left out of them: a record a token is written, and read as the default."""
    if isinstance(reply, Tokens) and not reply.logprobs and not reply.tool_calls:
        return _REPLY.dump_json(reply, exclude=_SELDOM)
    return _REPLY.dump_json(reply)


class Verdict(Enum):
    """What a record in the lane is to its reader."""

    COUNTS = "counts"
    STRAY = "stray"  # another request, attempt or nonce: ignored
    GAP = "gap"  # a record of ours is missing: the attempt failed


class Tally:
    """The fold over one attempt's records: which count, and how many tokens they make.

    The first claim binds its nonce (C4). `completion_tokens` is what was delivered: the ids of all choices, or the
    tokens of the inputs that have their vector.
    """

    __slots__ = (
        "attempt",
        "completion_tokens",
        "image_tokens",
        "nonce",
        "prompt_tokens",
        "request_id",
        "seq",
        "terminal",
    )

    def __init__(self, request_id: str, attempt: int) -> None:
        self.request_id = request_id
        self.attempt = attempt
        self.nonce: str | None = None
        self.seq = 0
        self.prompt_tokens: int | None = None
        self.image_tokens = 0
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
            self.image_tokens = reply.image_tokens
        elif isinstance(reply, Tokens):
            self.completion_tokens += len(reply.ids)
        elif isinstance(reply, Embedded):
            self.completion_tokens += reply.tokens
        elif isinstance(reply, End | Rejected | Failed):
            self.terminal = reply
        return Verdict.COUNTS
