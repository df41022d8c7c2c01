"""OpenAI's messages, tools and response formats: their forms, and the job's own terms for them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag

from ingress.dialects.forms import FIRST, Form, Word
from ingress.dialects.rules import OBJECT, SOME, at_most, either, given
from schemas.errors import ApiError
from schemas.jobs import IMAGES_MAX, TOOLS_MAX, JsonObject, JsonSchema, NamedTool, ResponseFormat, Tool

MESSAGES_MAX = 2048
PARTS_MAX = 2048
CALLS_MAX = 128
#: Of one JSON schema, as compact JSON, and how deep it may nest.
SCHEMA_BYTES_MAX = 65_536
SCHEMA_DEPTH_MAX = 64
URL_CHARS_MAX = 1_048_576

FunctionName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,128}$")]
CallId = Annotated[str, Field(min_length=1, max_length=200)]
Arguments = Annotated[str, Field(max_length=262_144)]
#: Where an image is, as `ingress.egress` takes it; whether there is one, and who may be asked, only it can say.
URL_PATTERN = "^([Dd][Aa][Tt][Aa]:[^,]*;[Bb][Aa][Ss][Ee]64,[A-Za-z0-9+/]*={0,2}|[Hh][Tt][Tt][Pp][Ss]?://[!-~]{1,2040})$"
Url = Annotated[str, Field(min_length=1, max_length=URL_CHARS_MAX, json_schema_extra={"pattern": URL_PATTERN})]
#: Of a list of functions: two of them never have the same name. That is more than a schema can say.
UNIQUE = Field(json_schema_extra={"uniqueItems": True})


class TextPart(Form):
    type: Literal["text"]
    text: str


class RefusalPart(Form):
    """What an assistant refused earlier: to the model it is text."""

    type: Literal["refusal"]
    refusal: str


class ImageUrl(Form):
    IDLE: ClassVar[Mapping[str, tuple[Any, ...]]] = {"detail": ("auto",)}

    url: Url
    detail: Word | None = None


class ImagePart(Form):
    type: Literal["image_url"]
    image_url: ImageUrl


UserPart = Annotated[TextPart | ImagePart, Field(discriminator="type")]
Texts = str | Annotated[list[TextPart], Field(min_length=1, max_length=PARTS_MAX), FIRST]
UserContent = (
    str
    | Annotated[
        list[UserPart],
        Field(
            min_length=1,
            max_length=PARTS_MAX,
            json_schema_extra=at_most(IMAGES_MAX, given(type={"const": "image_url"})),
        ),
        FIRST,
    ]
)
SaidPart = Annotated[TextPart | RefusalPart, Field(discriminator="type")]
SaidContent = str | Annotated[list[SaidPart], Field(min_length=1, max_length=PARTS_MAX), FIRST]
Speaker = Annotated[str, Field(max_length=128)]


class SystemMessage(Form):
    """`developer` is taken as `system`."""

    IDLE: ClassVar[Mapping[str, tuple[Any, ...]]] = {"name": ()}

    role: Literal["system", "developer"]
    content: Texts
    name: Speaker | None = None


class UserMessage(Form):
    IDLE: ClassVar[Mapping[str, tuple[Any, ...]]] = {"name": ()}

    role: Literal["user"]
    content: UserContent
    name: Speaker | None = None


class CalledFunction(Form):
    name: FunctionName
    arguments: Arguments


class CalledTool(Form):
    id: CallId
    type: Literal["function"] = "function"
    function: CalledFunction


class AssistantMessage(Form):
    IDLE: ClassVar[Mapping[str, tuple[Any, ...]]] = {"name": (), "annotations": ([],)}

    model_config = ConfigDict(
        json_schema_extra=either(
            given(content={"type": ["string", "array"]}),
            given(refusal={"type": "string"}),
            given(tool_calls=SOME),
            given(function_call=OBJECT),
        )
    )

    role: Literal["assistant"]
    content: SaidContent | None = None
    name: Speaker | None = None
    refusal: str | None = None
    audio: None = None  # we make none, so there is none to refer to
    annotations: list[Any] | None = None
    tool_calls: Annotated[list[CalledTool], Field(max_length=CALLS_MAX)] | None = None
    function_call: CalledFunction | None = None


class ToolMessage(Form):
    """A tool's answer. It may hold images, which OpenAI's own chat form does not have, and its responses do."""

    role: Literal["tool"]
    content: UserContent
    tool_call_id: CallId
    name: Speaker | None = None


class FunctionMessage(Form):
    """The older form of a tool's answer: text alone."""

    role: Literal["function"]
    content: Texts | None
    name: FunctionName


_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}


def _role(value: Any) -> str | None:
    role = value.get("role") if isinstance(value, dict) else getattr(value, "role", None)
    return "function" if role == "function" else _ROLES.get(role) if isinstance(role, str) else None


Message = Annotated[
    Annotated[SystemMessage, Tag("system")]
    | Annotated[UserMessage, Tag("user")]
    | Annotated[AssistantMessage, Tag("assistant")]
    | Annotated[ToolMessage, Tag("tool")]
    | Annotated[FunctionMessage, Tag("function")],
    Discriminator(
        _role,
        custom_error_type="unknown_role",
        custom_error_message="a message is an object with role system, developer, user, assistant, tool or function",
    ),
]


class Plain:
    """Messages as the job has them; `image_urls` are what their image parts point to, by index."""

    def __init__(self, messages: list[Any]) -> None:
        self.image_urls: list[str] = []
        self._called: set[str] = set()
        self._function_calls = 0
        self.messages = [self._message(message, f"messages.{index}") for index, message in enumerate(messages)]

    def _message(self, message: Any, where: str) -> dict[str, Any]:
        if isinstance(message, UserMessage):
            return {"role": "user", "content": self._seen(message.content, where)}
        if isinstance(message, SystemMessage):
            return {"role": "system", "content": _text(message.content)}
        if isinstance(message, AssistantMessage):
            return self._assistant(message, where)
        if isinstance(message, ToolMessage):
            if message.tool_call_id not in self._called:
                raise _bad(f"{where}.tool_call_id", "no earlier assistant message has a tool call of this id.")
            named = {} if message.name is None else {"name": message.name}
            content = self._seen(message.content, where)
            return {"role": "tool", "tool_call_id": message.tool_call_id, "content": content, **named}
        if not self._function_calls:
            raise _bad(where, "no earlier assistant message has a function_call.")
        call_id = _function_call_id(self._function_calls)
        return {"role": "tool", "tool_call_id": call_id, "name": message.name, "content": _text(message.content)}

    def _seen(self, content: Any, where: str) -> Any:
        if isinstance(content, str) or all(isinstance(part, TextPart) for part in content):
            return _text(content)
        parts: list[dict[str, Any]] = []
        for part in content:
            if isinstance(part, TextPart):
                parts.append({"type": "text", "text": part.text})
            else:
                parts.append({"type": "image", "index": len(self.image_urls)})
                self.image_urls.append(part.image_url.url)
        if len(self.image_urls) > IMAGES_MAX:
            raise _bad(where, f"a request has at most {IMAGES_MAX} images.")
        return parts

    def _assistant(self, message: AssistantMessage, where: str) -> dict[str, Any]:
        calls = [(call.id, call.function) for call in message.tool_calls or ()]
        if message.function_call is not None:
            self._function_calls += 1
            calls.append((_function_call_id(self._function_calls), message.function_call))
        if message.content is None and message.refusal is None and not calls:
            raise _bad(f"{where}.content", "an assistant's message has content or tool_calls.")
        content = message.refusal if message.content is None else message.content
        plain: dict[str, Any] = {"role": "assistant", "content": None if content is None else _text(content)}
        if calls:
            self._called.update(call_id for call_id, _ in calls)
            plain["tool_calls"] = [
                {"id": id_, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for id_, call in calls
            ]
        return plain


def _function_call_id(number: int) -> str:
    """The old form has no ids; a template may want them."""
    return f"call_{number:024x}"


def _text(content: Any) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part.refusal if isinstance(part, RefusalPart) else part.text for part in content)


def idle_in_messages(messages: list[Any]) -> Iterator[str]:
    """Names of what has no effect in the messages, without their numbers."""
    for message in messages:
        for name in message.idle():
            yield f"messages.{name}"
        content = message.content
        if isinstance(content, list):
            for part in content:
                for name in part.idle():
                    yield f"messages.content.{name}"
                if isinstance(part, ImagePart):
                    for name in part.image_url.idle():
                        yield f"messages.content.image_url.{name}"


def exact_json(value: Any, where: str) -> bytes:
    """What was sent, as compact JSON: integers beyond 64 bits too, which orjson refuses. Raises ApiError where a number
    is beyond a float, and so was lost when it was read."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except ValueError:
        raise _bad(where, "a number in it is too large.") from None


def checked_schema(schema: dict[str, Any], where: str) -> dict[str, Any]:
    """The schema, if it is within our limits; what it means is the node's to judge. Raises ApiError."""
    if len(exact_json(schema, where)) > SCHEMA_BYTES_MAX:
        raise _bad(where, f"a JSON schema has at most {SCHEMA_BYTES_MAX} bytes.")
    level: list[Any] = [schema]
    for _ in range(SCHEMA_DEPTH_MAX):
        level = [
            item
            for value in level
            for item in (value.values() if isinstance(value, dict) else value if isinstance(value, list) else ())
        ]
        if not level:
            return schema
    raise _bad(where, f"a JSON schema nests at most {SCHEMA_DEPTH_MAX} deep.")


class Function(Form):
    name: FunctionName
    description: Annotated[str, Field(max_length=65_536)] | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    def tool(self, where: str) -> Tool:
        parameters = None if self.parameters is None else checked_schema(self.parameters, f"{where}.parameters")
        return Tool(name=self.name, description=self.description or "", parameters=parameters, strict=bool(self.strict))


class ToolSpec(Form):
    type: Literal["function"]
    function: Function


class FunctionChoice(Form):
    name: FunctionName


class NamedChoice(Form):
    type: Literal["function"]
    function: FunctionChoice


class AllowedTools(Form):
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedChoice], Field(min_length=1, max_length=TOOLS_MAX)]


class AllowedChoice(Form):
    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


ToolChoice = Literal["auto", "none", "required"] | Annotated[NamedChoice | AllowedChoice, Field(discriminator="type")]


class SchemaSpec(Form):
    """`title`, `$schema` and the like stand inside `schema`, where they are the schema's own business."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    description: str | None = None
    json_schema: Annotated[dict[str, Any], Field(alias="schema", default_factory=dict)]
    strict: bool | None = None


class TextFormat(Form):
    type: Literal["text"]


class JsonFormat(Form):
    type: Literal["json_object"]


class SchemaFormat(Form):
    type: Literal["json_schema"]
    json_schema: SchemaSpec


Format = Annotated[TextFormat | JsonFormat | SchemaFormat, Field(discriminator="type")]


def response_format(form: Any) -> ResponseFormat | None:
    """The job's own. Raises ApiError for a schema beyond our limits."""
    if isinstance(form, JsonFormat):
        return JsonObject()
    if isinstance(form, SchemaFormat):
        spec = form.json_schema
        schema = checked_schema(spec.json_schema, "response_format.json_schema.schema")
        return JsonSchema(name=spec.name, schema_=schema, strict=bool(spec.strict))
    return None


def unique(tools: tuple[Tool, ...], where: str) -> tuple[Tool, ...]:
    names = [tool.name for tool in tools]
    if len(set(names)) < len(names):
        raise _bad(where, "two functions have the same name.")
    return tools


def choose(
    tools: tuple[Tool, ...], choice: Any, where: str = "tool_choice"
) -> tuple[tuple[Tool, ...], Literal["auto", "none", "required"] | NamedTool]:
    """The tools that may be called, and whether one has to be. Raises ApiError for a choice that the tools lack."""
    names = {tool.name for tool in tools}
    if isinstance(choice, AllowedChoice):
        allowed = {one.function.name for one in choice.allowed_tools.tools}
        if not allowed <= names:
            raise _bad(where, "it names a function that is not among the tools.")
        return tuple(tool for tool in tools if tool.name in allowed), choice.allowed_tools.mode
    if isinstance(choice, NamedChoice | FunctionChoice):
        name = choice.name if isinstance(choice, FunctionChoice) else choice.function.name
        if name not in names:
            raise _bad(where, "it names a function that is not among the tools.")
        return tools, NamedTool(name=name)
    if choice == "required" and not tools:
        raise _bad(where, "a call is required, and there are no tools.")
    return tools, choice or "auto"


def _bad(param: str, message: str) -> ApiError:
    return ApiError("invalid_request", f"{param}: {message}", param=param)
