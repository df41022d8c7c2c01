"""What an ingress writes into a node's mailbox."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from schemas.event_base import Id, Name, RequestId, TimeMs


class Sampling(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: Annotated[float, Field(ge=0, le=2)] = 0.7
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0


class Job(BaseModel):
    """One attempt at one request.

    The node answers on topic `lane`, which is this request's alone until its last record. It must claim before
    `expires_at_ms`, stop at `max_tokens`, and be done by `deadline_at_ms` (times of the ingress's clock: a node
    compares them with the record's own timestamp plus the time that passed since it read it).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["job"] = "job"
    request_id: RequestId
    attempt: Annotated[int, Field(ge=1, le=16)]
    owner: Id  # boot id of the ingress: a node gives up on the jobs of one that is dead
    lane: Name
    model: Name
    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    sampling: Sampling
    stop: Annotated[tuple[str, ...], Field(max_length=4)] = ()
    max_tokens: Annotated[int, Field(ge=0, le=10**7)]
    prefix_ids: tuple[int, ...] = ()
    expires_at_ms: TimeMs
    deadline_at_ms: TimeMs
    trace: Annotated[str, Field(max_length=200)] = ""  # W3C traceparent


class Cancel(BaseModel):
    """Stop this attempt, in prefill too. The node answers with `end` where it had begun."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["cancel"] = "cancel"
    request_id: RequestId
    attempt: Annotated[int, Field(ge=1, le=16)]


Letter = Annotated[Job | Cancel, Field(discriminator="kind")]
_LETTER: TypeAdapter[Letter] = TypeAdapter(Letter)


class UnreadableLetter(ValueError):
    """A mailbox record that is neither a job nor a cancel. Its text never repeats the content: it may hold a prompt."""


def parse(value: bytes) -> Letter:
    try:
        return _LETTER.validate_json(value)
    except ValidationError as error:
        raise UnreadableLetter(
            "; ".join(f"{e['loc']}: {e['type']}" for e in error.errors(include_input=False))
        ) from None


def dump(letter: Letter) -> bytes:
    return _LETTER.dump_json(letter)
