"""OpenAI's chat completions: the request's form, and the bytes of the answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ingress.chat import Asked, Chat, Done, Piece, Whole
from schemas.errors import ApiError
from schemas.jobs import Sampling

MESSAGES_MAX = 2048
STOPS_MAX = 4
STOP_CHARS_MAX = 256
MAX_TOKENS_MAX = 10**7


class _Form(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class TextPart(_Form):
    type: Literal["text"]
    text: str


class Message(_Form):
    """`developer` is taken as `system`. Content is a string or a list of text parts."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(min_length=1, max_length=MESSAGES_MAX)]
    name: Annotated[str, Field(max_length=64)] | None = None

    def plain(self) -> dict[str, Any]:
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class StreamOptions(_Form):
    include_usage: bool = False


Stop = Annotated[str, Field(min_length=1, max_length=STOP_CHARS_MAX)]


class ChatRequest(_Form):
    """What is taken. A parameter that would have no effect here is refused, not ignored."""

    model: Annotated[str, Field(min_length=1, max_length=200)]
    messages: Annotated[list[Message], Field(min_length=1, max_length=MESSAGES_MAX)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    max_tokens: Annotated[int, Field(ge=0, le=MAX_TOKENS_MAX)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=0, le=MAX_TOKENS_MAX)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=STOPS_MAX)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    n: Literal[1] | None = None
    user: Annotated[str, Field(max_length=512)] | None = None
    metadata: Annotated[dict[str, str], Field(max_length=16)] | None = None

    def chat(self) -> Chat:
        stop = () if self.stop is None else (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        given = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": None if self.seed is None else self.seed % 2**32,
            "frequency_penalty": self.frequency_penalty,
            "presence_penalty": self.presence_penalty,
        }
        return Chat(
            model=self.model,
            messages=[message.plain() for message in self.messages],
            sampling=Sampling(**{name: value for name, value in given.items() if value is not None}),
            stop=stop,
            max_tokens=self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens,
        )


def parse(body: bytes, headers: Mapping[str, str]) -> Asked:
    """Raises ApiError: invalid_json, unsupported_parameter, invalid_request."""
    form = read(body)
    include_usage = form.stream_options is not None and form.stream_options.include_usage
    return Asked(
        form.chat(),
        bool(form.stream),
        lambda request_id, created_s: Answer(request_id, form.model, created_s, include_usage=include_usage),
    )


def read(body: bytes) -> ChatRequest:
    """Raises ApiError: invalid_json, unsupported_parameter, invalid_request; its message never repeats a prompt."""
    try:
        return ChatRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        path = ".".join(str(step) for step in first["loc"] if not isinstance(step, str) or "[" not in step)[:100]
        if first["type"] == "json_invalid":
            raise ApiError("invalid_json") from None
        if first["type"] == "extra_forbidden":
            raise ApiError("unsupported_parameter", f"The parameter {path} is not supported.", param=path) from None
        raise ApiError("invalid_request", f"{path or 'body'}: {first['msg']}", param=path or None) from None


class Answer:
    """Writes one answer's JSON. `model` is echoed as it was asked for."""

    def __init__(self, request_id: str, model: str, created_s: int, *, include_usage: bool) -> None:
        self._include_usage = include_usage
        head = {"id": f"chatcmpl-{request_id}", "object": "chat.completion.chunk", "created": created_s, "model": model}
        self._head = head
        self._open = b"data: " + orjson.dumps(head)[:-1] + b',"choices":[{"index":0,"delta":'
        self._close = b',"logprobs":null,"finish_reason":null}]' + (b',"usage":null}' if include_usage else b"}")

    def begin(self) -> bytes:
        return self._open + b'{"role":"assistant","content":"","refusal":null}' + self._close + b"\n\n"

    def delta(self, piece: Piece) -> bytes:
        if not piece.text:
            return b""
        return self._open + b'{"content":' + orjson.dumps(piece.text) + b"}" + self._close + b"\n\n"

    def end(self, done: Done) -> bytes:
        """The last chunks: the cost stands in the usage chunk where one was asked for, else beside the finish."""
        chunk: dict[str, Any] = {**self._head, "choices": [_choice(done.finishes[0], delta={})]}
        if not self._include_usage:
            return _event({**chunk, "cost": done.cost}) + b"data: [DONE]\n\n"
        last = {**self._head, "choices": [], "usage": {**_usage(done), "cost": done.cost}}
        return _event({**chunk, "usage": None}) + _event(last) + b"data: [DONE]\n\n"

    def whole(self, choices: list[Whole], done: Done) -> bytes:
        message = {"role": "assistant", "content": choices[0].text, "refusal": None}
        return orjson.dumps(
            {
                **self._head,
                "object": "chat.completion",
                "choices": [_choice(done.finishes[0], message=message)],
                "usage": _usage(done),
            }
        )

    def error(self, error: ApiError) -> bytes:
        """The end of a stream that broke: no [DONE] follows, so that nobody takes it for a whole answer."""
        return _event(error.body())


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(data) + b"\n\n"


def _choice(finish: str, **content: Any) -> dict[str, Any]:
    return {"index": 0, **content, "logprobs": None, "finish_reason": finish}


def _usage(done: Done) -> dict[str, int]:
    return {
        "prompt_tokens": done.prompt_tokens,
        "completion_tokens": done.completion_tokens,
        "total_tokens": done.prompt_tokens + done.completion_tokens,
    }
