"""OpenAI's responses: create, whole or as typed events, over the same core as a chat.

Nothing is stored here, so what leans on something stored is refused: `previous_response_id`, `conversation`, `prompt`,
`background`, item references. So are tools that OpenAI itself runs. `store` is named as without effect.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

import orjson
from pydantic import AfterValidator, ConfigDict, Discriminator, Field, Tag

from ingress.chat import Asked, Chat
from ingress.dialects import forms
from ingress.dialects.forms import FIRST, INTEGRAL, Form, MaxTokens, Metadata, TopP, Word
from ingress.dialects.openai import CALLS_ONE, ModelName, Routed
from ingress.dialects.openai_messages import (
    CALLS_MAX,
    MESSAGES_MAX,
    PARTS_MAX,
    UNIQUE,
    AllowedChoice,
    Arguments,
    AssistantMessage,
    CalledFunction,
    CalledTool,
    CallId,
    Function,
    FunctionChoice,
    FunctionName,
    JsonFormat,
    Plain,
    SchemaFormat,
    SchemaSpec,
    SystemMessage,
    TextFormat,
    ToolMessage,
    Url,
    UserMessage,
    choose,
    exact_json,
    response_format,
    unique,
)
from ingress.dialects.openai_responses_answer import Answer, Echo
from ingress.dialects.rules import SOME, at_most, either, extra, given, having, when
from schemas.errors import ApiError
from schemas.jobs import IMAGES_MAX, TOOLS_MAX, TOP_LOGPROBS_MAX, Sampling

LOGPROBS = "message.output_text.logprobs"


class TextPart(Form):
    """`input_text` of a caller, `output_text` of an earlier answer."""

    type: Literal["input_text", "output_text"]
    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


class RefusalPart(Form):
    type: Literal["refusal"]
    refusal: str


class ImagePart(Form):
    IDLE: ClassVar[Mapping[str, tuple[Any, ...]]] = {"detail": ("auto",)}

    type: Literal["input_image"]
    image_url: Url
    file_id: None = None
    detail: Word | None = None


Part = Annotated[TextPart | RefusalPart | ImagePart, Field(discriminator="type")]
OutputPart = Annotated[TextPart | ImagePart, Field(discriminator="type")]


_IMAGES = at_most(IMAGES_MAX, given(type={"const": "input_image"}))
_WITHOUT_IMAGES = either({"type": "string"}, {"type": "array", "items": {"not": given(type={"const": "input_image"})}})


class MessageItem(Form):
    """Of messages, only a user's shows images."""

    model_config = ConfigDict(
        json_schema_extra=when(
            {"properties": {"role": {"not": {"const": "user"}}}}, {"properties": {"content": _WITHOUT_IMAGES}}
        )
    )

    type: Literal["message"] | None = None
    role: Literal["user", "assistant", "system", "developer"]
    content: str | Annotated[list[Part], Field(min_length=1, max_length=PARTS_MAX, json_schema_extra=_IMAGES), FIRST]
    id: str | None = None
    status: str | None = None
    phase: str | None = None


class CallItem(Form):
    type: Literal["function_call"]
    call_id: CallId
    name: FunctionName
    arguments: Arguments
    id: str | None = None
    status: str | None = None


class OutputItem(Form):
    type: Literal["function_call_output"]
    call_id: CallId
    output: str | Annotated[list[OutputPart], Field(max_length=PARTS_MAX, json_schema_extra=_IMAGES), FIRST]
    id: str | None = None
    status: str | None = None


class ReasoningItem(Form):
    """What another model thought earlier: it says nothing to ours, and is named."""

    type: Literal["reasoning"]


def _type(value: Any) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    kind = "message" if kind is None and isinstance(value, dict | MessageItem) else kind
    return kind if isinstance(kind, str) else None


Item = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[CallItem, Tag("function_call")]
    | Annotated[OutputItem, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")],
    Discriminator(
        _type,
        custom_error_type="unknown_item",
        custom_error_message="an item is a message, function_call, function_call_output or reasoning",
    ),
]


class FunctionTool(Function):
    type: Literal["function"]


class FunctionToolChoice(FunctionChoice):
    type: Literal["function"]


class AllowedTools(Form):
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[FunctionToolChoice], Field(min_length=1, max_length=TOOLS_MAX)]


Choice = Literal["auto", "none", "required"] | Annotated[FunctionToolChoice | AllowedTools, Field(discriminator="type")]


class SchemaTextFormat(SchemaSpec):
    type: Literal["json_schema"]


TextFormats = Annotated[TextFormat | JsonFormat | SchemaTextFormat, Field(discriminator="type")]


class TextConfig(Form):
    IDLE: ClassVar[Mapping[str, tuple[Any, ...]]] = {"verbosity": ("medium",)}

    format: TextFormats | None = None
    verbosity: Word | None = None


def _no(value: bool) -> bool:
    if value:
        raise ValueError("nothing runs here without its caller.")
    return value


No = Annotated[bool, AfterValidator(_no), Field(json_schema_extra={"const": False})]


class ResponsesRequest(Routed):
    IDLE: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "max_tool_calls": (),
        "reasoning": ({}, {"effort": "none"}),
        "safety_identifier": (),
        "service_tier": ("auto", "default"),
        "store": (False,),
        "stream_options": ({}, {"include_obfuscation": False}),
        "truncation": ("disabled",),
        "user": (),
    }

    model_config = ConfigDict(
        json_schema_extra=extra(
            when(given(tool_choice=CALLS_ONE), given(tools=SOME)),
            when(
                given(input=having(given(type={"const": "function_call_output"}))),
                given(input=having(given(type={"const": "function_call"}))),
            ),
            either(
                given(instructions={"type": "string", "minLength": 1}),
                given(input=either({"type": "string"}, having({"not": given(type={"const": "reasoning"})}))),
            ),
        )
    )

    model: ModelName
    input: str | Annotated[list[Item], Field(min_length=1, max_length=MESSAGES_MAX), FIRST]
    instructions: str | None = None
    stream: bool | None = None
    max_output_tokens: MaxTokens | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: TopP | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=TOP_LOGPROBS_MAX), INTEGRAL] | None = None
    include: Annotated[list[Annotated[str, Field(max_length=100)]], Field(max_length=16)] | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=TOOLS_MAX), UNIQUE] | None = None
    tool_choice: Choice | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    metadata: Metadata | None = None
    # What needs something stored, or runs without its caller: only "no" is taken.
    background: No | None = None
    conversation: None = None
    previous_response_id: None = None
    prompt: None = None
    # Taken without an effect: IDLE.
    max_tool_calls: Annotated[int, Field(ge=0), INTEGRAL] | None = None
    reasoning: dict[str, Any] | None = None
    safety_identifier: Annotated[str, Field(max_length=512)] | None = None
    service_tier: Word | None = None
    store: bool | None = None
    stream_options: dict[str, Any] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    user: Annotated[str, Field(max_length=512)] | None = None

    def chat(self) -> Chat:
        """Raises ApiError for what only shows when fields are seen together."""
        plain = Plain(self._messages())
        specs = unique(tuple(one.tool(f"tools.{at}") for at, one in enumerate(self.tools or ())), "tools")
        tools, choice = choose(specs, self._choice())
        form = self.text.format if self.text is not None else None
        if isinstance(form, SchemaTextFormat):
            form = SchemaFormat.model_construct(type="json_schema", json_schema=form)
        logprobs = (self.top_logprobs or 0) if self.top_logprobs or LOGPROBS in (self.include or ()) else None
        return Chat(
            model=self.model,
            messages=plain.messages,
            sampling=Sampling(**forms.sampling_of(self)),
            max_tokens=self.max_output_tokens,
            tools=tools,
            tool_choice=choice,
            parallel_tool_calls=self.parallel_tool_calls is not False,
            response_format=response_format(form),
            logprobs=logprobs,
            image_urls=tuple(plain.image_urls),
            routing=self.routing(),
        )

    def _choice(self) -> Any:
        choice = self.tool_choice
        if isinstance(choice, AllowedTools):
            named = [{"type": "function", "function": {"name": tool.name}} for tool in choice.tools]
            return AllowedChoice.model_validate(
                {"type": "allowed_tools", "allowed_tools": {"mode": choice.mode, "tools": named}}
            )
        return choice

    def _messages(self) -> list[Any]:
        """The input as a chat's messages; calls that follow each other, or their text, are one message's."""
        said: list[Any] = [_message("system", self.instructions)] if self.instructions else []
        if isinstance(self.input, str):
            return [*said, _message("user", self.input)]
        for item in self.input:
            if isinstance(item, MessageItem):
                said.append(_message(item.role, item.content))
            elif isinstance(item, CallItem):
                call = CalledTool(id=item.call_id, function=CalledFunction(name=item.name, arguments=item.arguments))
                last = said[-1] if said else None
                if not isinstance(last, AssistantMessage):
                    said.append(AssistantMessage(role="assistant", tool_calls=[call]))
                elif last.tool_calls is None:
                    said[-1] = last.model_copy(update={"tool_calls": [call]})
                elif len(last.tool_calls) < CALLS_MAX:
                    last.tool_calls.append(call)
                else:
                    message = f"input: at most {CALLS_MAX} function calls follow each other."
                    raise ApiError("invalid_request", message, param="input")
            elif isinstance(item, OutputItem):
                output = item.output if isinstance(item.output, str) else [_part(part) for part in item.output]
                answer = {"role": "tool", "tool_call_id": item.call_id, "content": output or ""}
                said.append(ToolMessage.model_validate(answer))
        if not said:
            raise ApiError("invalid_request", "input: it has no message.", param="input")
        return said

    def all_idle(self) -> Iterator[str]:
        """Names of everything that was given and has no effect."""
        yield from self.idle()
        yield from (f"include.{one}" for one in self.include or () if one != LOGPROBS)
        if self.text is not None:
            yield from (f"text.{name}" for name in self.text.idle())
            if isinstance(self.text.format, SchemaTextFormat):
                yield from (f"text.format.{name}" for name in self.text.format.idle())
        for tool in self.tools or ():
            yield from (f"tools.{name}" for name in tool.idle())
        for item in () if isinstance(self.input, str) else self.input:
            if isinstance(item, ReasoningItem):
                yield "input.reasoning"
                continue
            yield from (f"input.{name}" for name in item.idle())
            field = "output" if isinstance(item, OutputItem) else "content"
            content = getattr(item, field) if isinstance(item, OutputItem | MessageItem) else None
            for part in content if isinstance(content, list) else ():
                yield from (f"input.{field}.{name}" for name in part.idle())


def _message(role: str, content: Any) -> SystemMessage | UserMessage | AssistantMessage:
    if not isinstance(content, str):
        content = [
            {"type": "refusal", "refusal": part.refusal}
            if isinstance(part, RefusalPart) and role == "assistant"
            else _part(part)
            for part in content
        ]
    form = {"user": UserMessage, "assistant": AssistantMessage}.get(role, SystemMessage)
    return forms.remade(form, {"role": role, "content": content}, "input")


def _part(part: TextPart | RefusalPart | ImagePart) -> dict[str, Any]:
    """A chat's part of it."""
    if isinstance(part, ImagePart):
        return {"type": "image_url", "image_url": {"url": part.image_url}}
    return {"type": "text", "text": part.refusal if isinstance(part, RefusalPart) else part.text}


def parse(body: bytes, headers: Mapping[str, str]) -> Asked:
    """Raises ApiError: invalid_json, invalid_request."""
    form = forms.read_form(ResponsesRequest, body)
    chat = form.chat()
    echo = Echo(
        model=form.model,
        instructions=form.instructions,
        metadata=dict(form.metadata or {}),
        temperature=chat.sampling.temperature,
        top_p=chat.sampling.top_p if form.top_p is None else form.top_p,
        max_output_tokens=form.max_output_tokens,
        parallel_tool_calls=chat.parallel_tool_calls,
        tools=[
            {
                "type": "function",
                "name": tool.name,
                "description": tool.description,
                "parameters": _exactly(tool.parameters, "tools"),
                "strict": tool.strict,
            }
            for tool in chat.tools
        ],
        tool_choice=form.tool_choice
        if isinstance(form.tool_choice, str)
        else _dumped(form.tool_choice, "tool_choice") or "auto",
        text={"format": _dumped(form.text.format if form.text else None, "text.format") or {"type": "text"}},
        logprobs=chat.logprobs is not None,
    )
    return Asked(
        chat,
        bool(form.stream),
        lambda request_id, created_s: Answer(request_id, created_s, echo),
        forms.ignored_names(form.all_idle(), headers),
    )


def _dumped(form: Form | None, where: str) -> orjson.Fragment | None:
    return None if form is None else _exactly(form.model_dump(by_alias=True, exclude_none=True), where)


def _exactly(value: Any, where: str) -> orjson.Fragment:
    """As it was sent. Raises ApiError."""
    return orjson.Fragment(exact_json(value, where))
