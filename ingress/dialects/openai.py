"""OpenAI's chat completions: the request's form. The bytes of the answer are `openai_answer`'s.

Beside OpenAI's own it takes the caller's wishes of who may serve it (`tier`, `privacy_mode`, ...): `Routing`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, ConfigDict, Field

from ingress.chat import ANYWHERE, Asked, Chat, Routing
from ingress.dialects import forms
from ingress.dialects.forms import (
    FIRST,
    INTEGRAL,
    Form,
    LogitBias,
    MaxTokens,
    Metadata,
    Penalty,
    Seed,
    Stops,
    TopP,
    Word,
)
from ingress.dialects.openai_answer import Answer
from ingress.dialects.openai_messages import (
    MESSAGES_MAX,
    UNIQUE,
    Format,
    Function,
    FunctionChoice,
    Message,
    Plain,
    SchemaFormat,
    ToolChoice,
    ToolSpec,
    choose,
    idle_in_messages,
    response_format,
    unique,
)
from ingress.dialects.rules import OBJECT, SOME, either, extra, given, having, when
from schemas.errors import ApiError
from schemas.jobs import CHOICES_MAX, TOOLS_MAX, TOP_LOGPROBS_MAX, Sampling, Tool

FALLBACKS_MAX = 8
HOSTERS_MAX = 100
LATENCY_MS_MAX = 600_000

ModelName = Annotated[str, Field(min_length=1, max_length=200)]
#: Of the UUID's usual forms: with its dashes or without.
HOSTER_PATTERN = "^[0-9a-fA-F]{8}-?([0-9a-fA-F]{4}-?){3}[0-9a-fA-F]{12}$"


def _hoster(value: str) -> str:
    if re.fullmatch(HOSTER_PATTERN, value) is None:
        raise ValueError("hosters are named by their UUIDs.")
    return value


Hoster = Annotated[str, AfterValidator(_hoster), Field(json_schema_extra={"pattern": HOSTER_PATTERN})]
Hosters = Annotated[list[Hoster], Field(max_length=HOSTERS_MAX), FIRST]
#: A choice that needs functions to choose from.
CALLS_ONE = either({"const": "required"}, OBJECT)
_OLD_CALL = given(role={"const": "assistant"}, function_call=OBJECT)
_CALL = either(given(role={"const": "assistant"}, tool_calls=SOME), _OLD_CALL)


class StreamOptions(Form):
    IDLE: ClassVar[Mapping[str, tuple[Any, ...]]] = {"include_obfuscation": (False,)}

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Routed(Form):
    """Who may serve the request, and in which order."""

    tier: Literal["cheapest", "balanced", "fastest"] | None = None
    privacy_mode: bool | None = None
    trusted_only: bool | None = None
    max_latency_ms: Annotated[int, Field(ge=1, le=LATENCY_MS_MAX), INTEGRAL] | None = None
    fallback_models: Annotated[list[ModelName], Field(max_length=FALLBACKS_MAX)] | None = None
    allow_hosters: Hosters | None = None
    deny_hosters: Hosters | None = None

    def routing(self) -> Routing:
        if not self.model_fields_set & Routed.model_fields.keys():
            return ANYWHERE
        return Routing(
            self.tier,
            bool(self.privacy_mode),
            bool(self.trusted_only),
            self.max_latency_ms,
            tuple(self.fallback_models or ()),
            tuple(self.allow_hosters or ()),
            tuple(self.deny_hosters or ()),
        )


class ChatRequest(Routed):
    """What is taken. The fields of IDLE have no effect here."""

    model_config = ConfigDict(
        json_schema_extra=extra(
            when(given(top_logprobs={"type": "integer", "minimum": 1}), given(logprobs={"const": True})),
            when(given(tool_choice=CALLS_ONE), either(given(tools=SOME), given(functions=SOME))),
            when(given(messages=having(given(role={"const": "tool"}))), given(messages=having(_CALL))),
            when(given(messages=having(given(role={"const": "function"}))), given(messages=having(_OLD_CALL))),
        )
    )
    IDLE: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "audio": (),
        "metadata": ({},),
        "moderation": (),
        "prediction": (),
        "prompt_cache_key": (),
        "prompt_cache_options": (),
        "prompt_cache_retention": (),
        "reasoning_effort": ("none",),
        "safety_identifier": (),
        "service_tier": ("auto", "default"),
        "store": (False,),
        "user": (),
        "verbosity": ("medium",),
        "web_search_options": (),
    }

    model: ModelName
    messages: Annotated[list[Message], Field(min_length=1, max_length=MESSAGES_MAX), FIRST]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: TopP | None = None
    max_tokens: MaxTokens | None = None
    max_completion_tokens: MaxTokens | None = None
    n: Annotated[int, Field(ge=1, le=CHOICES_MAX), INTEGRAL] | None = None
    stop: Stops | None = None
    seed: Seed | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: LogitBias | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=TOP_LOGPROBS_MAX), INTEGRAL] | None = None
    tools: Annotated[list[ToolSpec], Field(max_length=TOOLS_MAX), UNIQUE] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    functions: Annotated[list[Function], Field(max_length=TOOLS_MAX), UNIQUE] | None = None
    function_call: Literal["auto", "none"] | FunctionChoice | None = None
    response_format: Format | None = None
    modalities: Annotated[list[Literal["text"]], Field(min_length=1, max_length=1)] | None = None
    # Taken without an effect: IDLE.
    audio: dict[str, Any] | None = None
    metadata: Metadata | None = None
    moderation: dict[str, Any] | None = None
    prediction: dict[str, Any] | None = None
    prompt_cache_key: Annotated[str, Field(max_length=1024)] | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: Word | None = None
    reasoning_effort: Word | None = None
    safety_identifier: Annotated[str, Field(max_length=512)] | None = None
    service_tier: Word | None = None
    store: bool | None = None
    user: Annotated[str, Field(max_length=512)] | None = None
    verbosity: Word | None = None
    web_search_options: dict[str, Any] | None = None

    @property
    def old_functions(self) -> bool:
        """Whether the caller speaks the older form, and is to be answered in it."""
        return bool(self.functions) and not self.tools

    def chat(self) -> Chat:
        """Raises ApiError for what only shows when fields are seen together."""
        if self.top_logprobs and not self.logprobs:
            message = "top_logprobs: it needs logprobs: true."
            raise ApiError("invalid_request", message, param="top_logprobs")
        plain = Plain(self.messages)
        tools, choice = self._tools()
        limit = self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens
        return Chat(
            model=self.model,
            messages=plain.messages,
            sampling=Sampling(**forms.sampling_of(self)),
            stop=forms.stops_of(self.stop),
            max_tokens=limit,
            n=self.n or 1,
            tools=tools,
            tool_choice=choice,
            parallel_tool_calls=self.parallel_tool_calls is not False and not self.old_functions,
            response_format=response_format(self.response_format),
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            image_urls=tuple(plain.image_urls),
            routing=self.routing(),
        )

    def _tools(self) -> Any:
        if self.old_functions:
            specs = [one.tool(f"functions.{at}") for at, one in enumerate(self.functions or ())]
            return choose(unique(tuple(specs), "functions"), self.function_call, "function_call")
        tools: list[Tool] = [one.function.tool(f"tools.{at}.function") for at, one in enumerate(self.tools or ())]
        return choose(unique(tuple(tools), "tools"), self.tool_choice)

    def all_idle(self) -> Iterator[str]:
        """Names of everything that was given and has no effect."""
        yield from self.idle()
        yield from idle_in_messages(self.messages)
        if self.stream_options is not None:
            if self.stream:
                yield from (f"stream_options.{name}" for name in self.stream_options.idle())
            else:
                yield "stream_options"
        if self.max_completion_tokens is not None and self.max_tokens not in (None, self.max_completion_tokens):
            yield "max_tokens"
        unused = ("tool_choice", "parallel_tool_calls") if self.old_functions else ("functions", "function_call")
        yield from (name for name in unused if getattr(self, name) not in (None, [], "none", "auto"))
        for tool in self.tools or ():
            yield from (f"tools.{name}" for name in tool.idle())
            yield from (f"tools.function.{name}" for name in tool.function.idle())
        form = self.response_format
        if isinstance(form, SchemaFormat):
            yield from (f"response_format.json_schema.{name}" for name in form.json_schema.idle())


def parse(body: bytes, headers: Mapping[str, str]) -> Asked:
    """Raises ApiError: invalid_json, invalid_request, unsupported_parameter."""
    form = read(body)
    include_usage = bool(form.stream_options is not None and form.stream_options.include_usage)
    chat = form.chat()
    return Asked(
        chat,
        bool(form.stream),
        lambda request_id, created_s: Answer(
            request_id,
            form.model,
            created_s,
            include_usage=include_usage,
            choices=chat.n,
            old_functions=form.old_functions,
            logprobs=chat.logprobs is not None,
        ),
        forms.ignored_names(form.all_idle(), headers),
    )


def read(body: bytes) -> ChatRequest:
    """Raises ApiError: invalid_json, invalid_request; its message never repeats a prompt."""
    return forms.read_form(ChatRequest, body)
