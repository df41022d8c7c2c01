"""/v1/inference, /v1/usage and /v1/health, as Shadow Labs documents them. Their enrichment with context and tools is
not offered: a body that asks for it is refused by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import orjson
from pydantic import ConfigDict, Field

from ingress import surfaces
from ingress.chat import Asked, Chat, Done, Piece, Whole
from ingress.dialects import rules
from ingress.dialects.forms import INTEGRAL, Form, ignored_names, read_form, sampling_of
from schemas.errors import ApiError
from schemas.jobs import MESSAGES_MAX, Sampling

MODEL_DEFAULT = "claude-sonnet-4-20250514"
MAX_TOKENS_DEFAULT = 1024
HEALTH = {"status": "ok", "model": MODEL_DEFAULT}
_ID_DIGITS = 12
_NOT_OFFERED = ("context", "tools")
#: Ours to theirs. A stop string is told as `stop` by nodes, so it is `end_turn` too: the form has no stop strings.
_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


class Message(Form):
    role: Literal["system", "user", "assistant"]
    content: str


class InferenceRequest(Form):
    """What has an effect; anything else is named in x-shiver-ignored. null is what the default is."""

    model_config = ConfigDict(json_schema_extra={"not": rules.either(*({"required": [one]} for one in _NOT_OFFERED))})

    messages: Annotated[list[Message], Field(min_length=1, max_length=MESSAGES_MAX)]
    model: Annotated[str, Field(min_length=1, max_length=200)] = MODEL_DEFAULT
    max_tokens: Annotated[int, Field(ge=1, le=8192), INTEGRAL] | None = None
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    stream: bool | None = None


def parse(body: bytes, headers: Mapping[str, str]) -> Asked:
    """Raises ApiError: invalid_json, invalid_request, unsupported_parameter."""
    form = read_form(InferenceRequest, body)
    for name in [name for name in _NOT_OFFERED if name in (form.model_extra or {})]:
        raise ApiError(
            "unsupported_parameter", f"{name}: enrichment with context and tools is not offered.", param=name
        )
    chat = Chat(
        model=form.model,
        messages=[{"role": message.role, "content": message.content} for message in form.messages],
        sampling=Sampling(**sampling_of(form)),
        max_tokens=form.max_tokens or MAX_TOKENS_DEFAULT,
    )
    ignored = ignored_names(_idle(form), headers)
    return Asked(chat, bool(form.stream), lambda request_id, _: Answer(request_id, form.model), ignored)


def _idle(form: InferenceRequest) -> Iterator[str]:
    yield from form.idle()
    for message in form.messages:
        yield from message.idle()


class Answer:
    """Writes one answer. `model` is echoed as it was asked for."""

    def __init__(self, request_id: str, model: str) -> None:
        self._id = "req_" + request_id.replace("-", "")[-_ID_DIGITS:]
        self._model = model

    def begin(self) -> bytes:
        return b""

    def delta(self, piece: Piece) -> bytes:
        return _event({"type": "content_delta", "delta": piece.text}) if piece.text else b""

    def end(self, done: Done) -> bytes:
        return _event({"type": "message_stop", "usage": {"total_tokens": done.prompt_tokens + done.completion_tokens}})

    def whole(self, choices: list[Whole], done: Done) -> bytes:
        return orjson.dumps(
            {
                "id": self._id,
                "content": choices[0].text,
                "model": self._model,
                "usage": {
                    "input_tokens": done.prompt_tokens,
                    "output_tokens": done.completion_tokens,
                    "total_tokens": done.prompt_tokens + done.completion_tokens,
                },
                "stop_reason": _REASONS[done.finishes[0]],
            }
        )

    def error(self, error: ApiError) -> bytes:
        """No message_stop follows, so that nobody takes it for a whole answer."""
        return _event({"type": "error", **surfaces.detail(error)})


def usage(customer_id: str, month: str, tokens: int) -> dict[str, Any]:
    """The answer of GET /v1/usage; `month` is YYYY-MM."""
    return {
        "customer_id": customer_id,
        "period": month,
        "total_tokens": tokens,
        "message": "Usage is eventually consistent.",
    }


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(data) + b"\n\n"
