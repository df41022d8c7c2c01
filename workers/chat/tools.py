"""Tools in a chat: how a template's model writes calls, what it is told of them, and what it may then say. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from schemas.jobs import Job, JsonObject, JsonSchema, NamedTool, Tool
from workers.chat.calls import HERMES, LLAMA3, MISTRAL, Form
from workers.chat.schema_values import BadSchema, check_size
from workers.chat.schemas import any_object, schema_value
from workers.engines.grammar import Alternative, Builder, Grammar, GrammarTooLarge, but, chars, literal

#: Of what a schema says to the model, this is for machines.
_SILENT = ("$schema", "$id", "$comment", "title", "additionalProperties", "strict")
_ORDER = ("type", "description", "enum", "properties", "required", "items")
_MISTRAL_ID_CHARS = 9


def form_of(template_source: str) -> Form | None:
    """How the model of this chat template writes tool calls; None where it knows of no tools, or writes them unlike
    anything known here."""
    if "tools" not in template_source:
        return None
    if "<tool_call>" in template_source:
        return None if "<function=" in template_source else HERMES
    if "[TOOL_CALLS]" in template_source:
        return None if "[ARGS]" in template_source else MISTRAL
    if "<|python_tag|>" in template_source or '"parameters"' in template_source:
        return LLAMA3
    return None


def described(tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """The tools as templates expect them, their schemas compacted."""
    return [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                "description": tool.description,
                "parameters": compacted(tool.parameters or {"type": "object", "properties": {}}),
            },
        }
        for tool in tools
    ]


def compacted(schema: Any) -> Any:
    """A schema without what a model need not read, its keywords in the usual order; properties as they were declared.

    Raises: BadSchema for one that is too large or too deep.
    """
    check_size(schema)
    return _compacted(schema)


def _compacted(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_compacted(one) for one in schema]
    if not isinstance(schema, Mapping):
        return schema
    kept = [key for key in _ORDER if key in schema] + [k for k in schema if k not in _ORDER and k not in _SILENT]
    return {key: _kept(key, schema[key]) for key in kept}


def _kept(keyword: str, value: Any) -> Any:
    if keyword in ("properties", "$defs", "definitions", "patternProperties") and isinstance(value, Mapping):
        return {name: _compacted(inner) for name, inner in value.items()}
    return value if keyword in ("enum", "const", "default", "examples", "required") else _compacted(value)


def format_instruction(wanted: JsonObject | JsonSchema | None) -> str:
    """What the model is told of the form of its answer, "" for nothing."""
    if not isinstance(wanted, JsonSchema):
        return ""
    return "Answer in JSON that follows this schema:\n" + json.dumps(compacted(wanted.schema_), ensure_ascii=False)


def messages_for(form: Form | None, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages as templates expect them: arguments of calls as objects, ids as the family wants them."""
    return [_message_for(form, message) for message in messages]


def _message_for(form: Form | None, message: Mapping[str, Any]) -> dict[str, Any]:
    changed = dict(message)
    if isinstance(calls := message.get("tool_calls"), list):
        changed["tool_calls"] = [_call_for(form, call) for call in calls]
    if form is MISTRAL and isinstance(one := message.get("tool_call_id"), str):
        changed["tool_call_id"] = _short_id(one)
    return changed


def _call_for(form: Form | None, call: Any) -> Any:
    if not isinstance(call, Mapping) or not isinstance(function := call.get("function"), Mapping):
        return call
    changed = dict(call)
    try:
        arguments = json.loads(function.get("arguments") or "{}")
    except (ValueError, TypeError, RecursionError):
        arguments = None
    if isinstance(arguments, dict):
        changed["function"] = {**function, "arguments": arguments}
    if form is MISTRAL and isinstance(call.get("id"), str):
        changed["id"] = _short_id(call["id"])
    return changed


def _short_id(call_id: str) -> str:
    """Mistral's templates take ids of nine characters and no others."""
    return hashlib.sha256(call_id.encode()).hexdigest()[:_MISTRAL_ID_CHARS]


def call_id(request_id: str, choice: int, index: int) -> str:
    """The id of a call: the same in every attempt, so that one that goes on does not name it anew."""
    return "call_" + hashlib.sha256(f"{request_id}:{choice}:{index}".encode()).hexdigest()[:24]


def constraint_of(job: Job, form: Form | None) -> Grammar | None:
    """What the answer may be, None for anything.

    Raises: BadSchema.
    """
    wanted, choice = job.response_format, job.tool_choice
    calling = form is not None and bool(job.tools) and choice != "none"
    must = calling and choice != "auto"
    if not must and wanted is None and not (calling and any(tool.strict for tool in job.tools)):
        return None
    builder = Builder()
    try:
        answer: Alternative | None = None
        if not must:
            answer = _answer(builder, wanted) if wanted is not None else None
        if calling and form is not None:
            named = choice.name if isinstance(choice, NamedTool) else None
            tools = [tool for tool in job.tools if named in (None, tool.name)]
            calls = _calls(builder, form, tools, many=job.parallel_tool_calls and named is None)
            if must:
                return builder.grammar(calls)
            answer = (builder.rule(answer, calls),) if answer is not None else _free(builder, form, calls)
        assert answer is not None  # there is a format, or there are calls
        return builder.grammar(answer)
    except GrammarTooLarge as error:
        raise BadSchema((), str(error)) from None


def _answer(builder: Builder, wanted: JsonObject | JsonSchema) -> Alternative:
    if isinstance(wanted, JsonSchema):
        return schema_value(builder, wanted.schema_, strict=wanted.strict)
    return any_object(builder)


def _calls(builder: Builder, form: Form, tools: Sequence[Tool], *, many: bool) -> Alternative:
    """One call, or several, as the family writes them."""
    objects = builder.rule(*(_call(builder, form, tool) for tool in tools))
    if form.listed:
        more = builder.many((*literal(", "), objects)) if many else ()
        return (*literal(form.opener + "["), objects, *more, *literal("]"))
    if form.bare:  # its models are not made for several at once
        return (objects,)
    one = (*literal(form.opener + "\n"), objects, *literal("\n" + form.closer))
    return (*one, *builder.many((*literal("\n"), *one))) if many else one


def _call(builder: Builder, form: Form, tool: Tool) -> Alternative:
    head = f'{{"name": {json.dumps(tool.name)}, "{form.arguments}": '
    return (*literal(head), *_arguments(builder, tool), *literal("}"))


def _arguments(builder: Builder, tool: Tool) -> Alternative:
    """Of a strict tool, or of one whose schema can be followed, what validates; else any object."""
    if tool.parameters is None:
        return any_object(builder)
    schema = tool.parameters if "type" in tool.parameters else {"type": "object", **tool.parameters}
    if schema["type"] != "object":
        if tool.strict:
            raise BadSchema((), "the parameters of a tool have to be of type object")
        return any_object(builder)
    if not tool.strict:
        try:
            scratch = Builder()
            scratch.grammar(schema_value(scratch, schema, strict=False))
        except (BadSchema, GrammarTooLarge):
            return any_object(builder)
    return schema_value(builder, schema, strict=tool.strict)


def _free(builder: Builder, form: Form, calls: Alternative) -> Alternative:
    """Any text in which no call begins; or such a text, and then calls.

    As a machine that knows how much of the opener the text ends with.
    """
    opener = form.opener
    if form.bare:
        # A call is the whole answer; any other answer begins unlike one.
        other = builder.rule((but(chars("{<")), *builder.many((but(chars()),))), ())
        return (builder.rule((other,), calls),)
    names = [builder.name() for _ in opener]
    letters = chars(opener)
    for known, name in enumerate(names):
        ways: list[Alternative] = [(but(letters), names[0])]
        for letter in sorted(set(opener)):
            after = _overlap(opener[:known] + letter, opener)
            if after < len(opener):
                ways.append((*literal(letter), names[after]))
            else:
                ways.append((*literal(letter), *calls[len(opener) :]))
        builder.define(name, *ways, ())
    return (names[0],)


def _overlap(text: str, word: str) -> int:
    """Length of the longest end of a text that begins a word."""
    return next(size for size in range(min(len(text), len(word)), -1, -1) if text.endswith(word[:size]))
