"""/v3, as Shreyansh Cloud documents it: OpenAI's shape, fewer parameters, temperature to 1, ids of 32 hex digits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import orjson
from pydantic import Field

from ingress import surfaces
from ingress.chat import Asked, Chat, Done, Piece, Whole
from ingress.dialects.forms import Form, MaxTokens, Penalty, ignored_names, read_form, sampling_of
from schemas.errors import ApiError
from schemas.jobs import MESSAGES_MAX, Sampling


class Message(Form):
    role: Literal["system", "user", "assistant"]
    content: str


class ShreyanshRequest(Form):
    """What has an effect; anything else is named in x-shiver-ignored. null is what the default is."""

    model: Annotated[str, Field(min_length=1, max_length=200)]
    messages: Annotated[list[Message], Field(min_length=1, max_length=MESSAGES_MAX)]
    stream: bool | None = None
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    max_tokens: MaxTokens | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None


def parse(body: bytes, headers: Mapping[str, str]) -> Asked:
    """Raises ApiError: invalid_json, invalid_request, unsupported_parameter."""
    form = read_form(ShreyanshRequest, body)
    chat = Chat(
        model=form.model,
        messages=[{"role": message.role, "content": message.content} for message in form.messages],
        sampling=Sampling(**sampling_of(form)),
        max_tokens=form.max_tokens,
    )
    ignored = ignored_names(_idle(form), headers)
    return Asked(
        chat, bool(form.stream), lambda request_id, created_s: Answer(request_id, form.model, created_s), ignored
    )


def _idle(form: ShreyanshRequest) -> Iterator[str]:
    yield from form.idle()
    for message in form.messages:
        yield from message.idle()


class Answer:
    """Writes one answer. `model` is echoed as it was asked for; the id is the request's without its dashes."""

    def __init__(self, request_id: str, model: str, created_s: int) -> None:
        self._head = {"id": request_id.replace("-", ""), "created": created_s, "model": model}

    def begin(self) -> bytes:
        return self._chunk({"role": "assistant", "content": ""})

    def delta(self, piece: Piece) -> bytes:
        return self._chunk({"content": piece.text}) if piece.text else b""

    def end(self, done: Done) -> bytes:
        return self._chunk({}, done.finishes[0], usage=_usage(done)) + b"data: [DONE]\n\n"

    def whole(self, choices: list[Whole], done: Done) -> bytes:
        message = {"role": "assistant", "content": choices[0].text}
        choice = {"index": 0, "message": message, "finish_reason": done.finishes[0]}
        return orjson.dumps({**self._head, "object": "chat.completion", "choices": [choice], "usage": _usage(done)})

    def error(self, error: ApiError) -> bytes:
        """No [DONE] follows, so that nobody takes it for a whole answer."""
        return b"data: " + orjson.dumps(surfaces.numeric(error)) + b"\n\n"

    def _chunk(self, delta: dict[str, str], finish: str | None = None, **more: Any) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        chunk = {**self._head, "object": "chat.completion.chunk", "choices": [choice], **more}
        return b"data: " + orjson.dumps(chunk) + b"\n\n"


def _usage(done: Done) -> dict[str, int]:
    total = done.prompt_tokens + done.completion_tokens
    return {
        "prompt_tokens": done.prompt_tokens,
        "completion_tokens": done.completion_tokens,
        "total_tokens": total,
    }
