"""OpenAI's completions, the older API: a prompt that is continued as it is, without a chat template.

Decided where OpenAI's own text leaves it open, or no model here can do it:
`prompt` is needed. `best_of` above n would make answers that nobody sees, and is refused. `suffix` is taken and named:
the models here continue a text, they do not fill one in. `logprobs` is a number, 0 to 5. Nobody tells a prompt's own:
with `echo` they begin behind the prompt, which is named as `echo.logprobs`; where nothing is generated, so that the
prompt's must be what is wanted, they are refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar

import orjson
from pydantic import ConfigDict, Field

from ingress.chat import Asked, Chat, Done, Piece, Whole
from ingress.dialects import forms
from ingress.dialects.forms import FIRST, INTEGRAL, INTEGRALS, LogitBias, MaxTokens, Penalty, Seed, Stops, TopP
from ingress.dialects.openai import ModelName, Routed, StreamOptions
from ingress.dialects.openai_answer import usage
from ingress.dialects.rules import either, extra, given, when
from schemas.errors import ApiError
from schemas.jobs import CHOICES_MAX, Sampling, TokenId
from schemas.replies import TokenLogprob

PROMPTS_MAX = 16
PROMPT_IDS_MAX = 131_072
MAX_TOKENS_DEFAULT = 16

Ids = Annotated[list[TokenId], Field(min_length=1, max_length=PROMPT_IDS_MAX), FIRST, INTEGRALS]
Many = Annotated[list[Annotated[str, Field(min_length=1)] | Ids], Field(min_length=1, max_length=PROMPTS_MAX), FIRST]

_IN_TEXT = either({"type": "string"}, {"type": "array", "items": {"type": "string"}})


def _no_less(count: int) -> dict[str, Any]:
    return {"type": "integer", "minimum": count}


class CompletionRequest(Routed):
    IDLE: ClassVar[Mapping[str, tuple[Any, ...]]] = {"suffix": ("",), "user": ()}

    model_config = ConfigDict(
        json_schema_extra=extra(
            when(
                given(echo={"const": True}, logprobs={"type": "integer"}),
                {"properties": {"max_tokens": {"not": {"const": 0}}, "prompt": _IN_TEXT}},
            ),
            *(when(given(best_of=_no_less(n)), given(n=_no_less(n))) for n in range(2, CHOICES_MAX + 1)),
        )
    )

    model: ModelName
    prompt: Annotated[str, Field(min_length=1)] | Ids | Many
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: MaxTokens | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: TopP | None = None
    n: Annotated[int, Field(ge=1, le=CHOICES_MAX), INTEGRAL] | None = None
    best_of: Annotated[int, Field(ge=0, le=20, json_schema_extra={"maximum": CHOICES_MAX}), INTEGRAL] | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=5), INTEGRAL] | None = None
    stop: Stops | None = None
    seed: Seed | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: LogitBias | None = None
    suffix: Annotated[str, Field(max_length=262_144)] | None = None
    user: Annotated[str, Field(max_length=512)] | None = None

    @property
    def echoes_here(self) -> bool:
        """Whether the answer's writer puts the prompt before the text: no node does so beside logprobs."""
        return bool(self.echo) and self.logprobs is not None

    def chat(self) -> Chat:
        prompts = prompts_of(self.prompt)
        n = self.n or 1
        if (self.best_of or 0) > n:
            message = "best_of: more than n answers would be made and paid that are never shown; ask for them with n."
            raise ApiError("unsupported_parameter", message, param="best_of")
        if self.echoes_here and (self.max_tokens == 0 or not all(isinstance(prompt, str) for prompt in prompts)):
            message = "logprobs: those of a prompt are not known; with echo, ask for tokens behind a prompt in text."
            raise ApiError("unsupported_parameter", message, param="logprobs")
        return Chat(
            model=self.model,
            task="completion",
            prompts=prompts,
            echo=bool(self.echo) and not self.echoes_here,
            sampling=Sampling(**forms.sampling_of(self)),
            stop=forms.stops_of(self.stop),
            max_tokens=MAX_TOKENS_DEFAULT if self.max_tokens is None else self.max_tokens,
            n=n,
            logprobs=self.logprobs,
            routing=self.routing(),
        )

    def all_idle(self) -> Iterator[str]:
        yield from self.idle()
        if self.echoes_here:
            yield "echo.logprobs"
        if self.stream_options is not None:
            if self.stream:
                yield from (f"stream_options.{name}" for name in self.stream_options.idle())
            else:
                yield "stream_options"


def prompts_of(given: Any) -> tuple[str | tuple[int, ...], ...]:
    """A text, token ids, or a list of either: always as a list of prompts."""
    if isinstance(given, str):
        return (given,)
    if isinstance(given[0], int):
        return (tuple(given),)
    return tuple(one if isinstance(one, str) else tuple(one) for one in given)


def parse(body: bytes, headers: Mapping[str, str]) -> Asked:
    """Raises ApiError: invalid_json, invalid_request, unsupported_parameter."""
    form = forms.read_form(CompletionRequest, body)
    include_usage = bool(form.stream_options is not None and form.stream_options.include_usage)
    chat = form.chat()
    echoes = tuple(str(prompt) for prompt in chat.prompts for _ in range(chat.n)) if form.echoes_here else ()
    logprobs = form.logprobs is not None
    return Asked(
        chat,
        bool(form.stream),
        lambda request_id, created_s: Answer(
            request_id, form.model, created_s, include_usage=include_usage, logprobs=logprobs, echoes=echoes
        ),
        forms.ignored_names(form.all_idle(), headers),
    )


class Answer:
    """Writes one answer: every chunk has the object of the whole one. `echoes` are put before the choices' texts."""

    def __init__(
        self,
        request_id: str,
        model: str,
        created_s: int,
        *,
        include_usage: bool,
        logprobs: bool = False,
        echoes: tuple[str, ...] = (),
    ) -> None:
        self._head = {"id": f"cmpl-{request_id}", "object": "text_completion", "created": created_s, "model": model}
        self._include_usage = include_usage
        self._logprobs = logprobs
        self._echoes = echoes
        self._offsets = {index: len(echo) for index, echo in enumerate(echoes)}  # characters so far, by choice

    def begin(self) -> bytes:
        return b"".join(self._chunk(index, echo, None) for index, echo in enumerate(self._echoes))

    def delta(self, piece: Piece) -> bytes:
        if not piece.text and not piece.logprobs:
            return b""
        return self._chunk(piece.choice, piece.text, self._told(piece.choice, list(piece.logprobs)))

    def _chunk(self, index: int, text: str, logprobs: Any) -> bytes:
        usage_null = {"usage": None} if self._include_usage else {}
        return _event({**self._head, "choices": [_choice(index, text, logprobs, None)], **usage_null})

    def end(self, done: Done) -> bytes:
        chunks = [
            {**self._head, "choices": [_choice(index, "", None, finish)]} for index, finish in enumerate(done.finishes)
        ]
        if not self._include_usage:
            chunks[-1]["cost"] = done.cost
            return b"".join(map(_event, chunks)) + b"data: [DONE]\n\n"
        last = {**self._head, "choices": [], "usage": {**usage(done), "cost": done.cost}}
        return b"".join(_event({**chunk, "usage": None}) for chunk in chunks) + _event(last) + b"data: [DONE]\n\n"

    def whole(self, choices: list[Whole], done: Done) -> bytes:
        echoes = self._echoes or ("",) * len(choices)
        data = [
            _choice(index, echoes[index] + choice.text, self._told(index, choice.logprobs), done.finishes[index])
            for index, choice in enumerate(choices)
        ]
        return orjson.dumps({**self._head, "choices": data, "usage": usage(done)})

    def error(self, error: ApiError) -> bytes:
        return _event(error.body())

    def _told(self, choice: int, tokens: list[TokenLogprob]) -> dict[str, Any] | None:
        """The older form of logprobs: lists side by side, with the character where each token begins."""
        if not self._logprobs:
            return None
        at = self._offsets.get(choice, 0)
        offsets: list[int] = []
        for token in tokens:
            offsets.append(at)
            at += len(token.text)
        self._offsets[choice] = at
        return {
            "tokens": [token.text for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [{one.text: one.logprob for one in token.top} for token in tokens],
            "text_offset": offsets,
        }


def _choice(index: int, text: str, logprobs: Any, finish: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(data) + b"\n\n"
