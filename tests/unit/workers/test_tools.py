"""Tools: what a template's model is told of them, how it writes calls, and that a grammar's calls are read as calls."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.jobs import Job, JsonObject, JsonSchema, NamedTool, Sampling, Tool
from tests.unit.workers.grammar_kit import say, takes
from tests.unit.workers.test_calls import Calls
from workers.chat.calls import HERMES, LLAMA3, MISTRAL, CallParser, Form
from workers.chat.schema_values import BadSchema
from workers.chat.tools import call_id, compacted, constraint_of, described, form_of, messages_for
from workers.engines import default_model_path
from workers.engines.grammar import Matcher

CITY: dict[str, Any] = {
    "$schema": "http://json-schema.org/draft-07/schema#",
    "title": "Args",
    "additionalProperties": False,
    "properties": {"zip": {"type": "integer", "title": "Zip"}, "city": {"description": "which", "type": "string"}},
    "required": ["zip", "city"],
    "type": "object",
}
WEATHER = Tool(name="get_weather", description="Weather", parameters=CITY, strict=True)
TIME = Tool(name="get_time", description="Time", parameters={"type": "object", "properties": {}})
ANY = Tool(name="anything")
BY_NAME = {tool.name: tool for tool in (WEATHER, TIME, ANY)}


def job(**changes: Any) -> Job:
    fields: dict[str, Any] = {
        "request_id": "01890a5d-ac96-774b-bcce-b302099a8057", "attempt": 1, "owner": "o", "lane": "replies.o.0",
        "model": "m", "messages": [{"role": "user", "content": "hi"}], "sampling": Sampling(), "max_tokens": 9,
        "expires_at_ms": 1, "deadline_at_ms": 1, "tools": (WEATHER, TIME, ANY),
    }  # fmt: skip
    return Job(**(fields | changes))


def read(form: Form, text: str, *, sure: bool) -> tuple[str, Calls]:
    parser = CallParser(form, BY_NAME, sure=sure)
    content, calls = "", []
    for passed in (*(parser.feed(char) for char in text), parser.finish()):
        content += passed.content
        for delta in passed.deltas:
            if delta.name is not None:
                calls.append((delta.name, ""))
            calls[-1] = (calls[-1][0], calls[-1][1] + delta.arguments)
    return content, calls


@pytest.mark.parametrize("form", [HERMES, MISTRAL, LLAMA3], ids=lambda form: form.name)
@pytest.mark.parametrize("choice", ["required", NamedTool(name="get_weather")])
@pytest.mark.parametrize("many", [False, True])
def test_what_has_to_be_a_call_is_read_as_one(form: Form, choice: Any, many: bool) -> None:
    grammar = constraint_of(job(tool_choice=choice, parallel_tool_calls=many), form)
    assert grammar is not None
    counts = set()
    for seed in range(40):
        text = say(grammar, seed, loose_chars=150)
        for sure in (False, True):
            content, calls = read(form, text, sure=sure)
            assert content == ""
            counts.add(len(calls))
            for name, arguments in calls:
                assert name == "get_weather" if isinstance(choice, NamedTool) else name in BY_NAME
                jsonschema.validate(json.loads(arguments), BY_NAME[name].parameters or {"type": "object"})
    assert min(counts) == 1
    assert (max(counts) > 1) == (many and choice == "required" and form is not LLAMA3)


@pytest.mark.parametrize("form", [HERMES, MISTRAL, LLAMA3], ids=lambda form: form.name)
def test_a_strict_tool_lets_the_model_speak_or_call_and_nothing_between(form: Form) -> None:
    grammar = constraint_of(job(), form)
    assert grammar is not None
    for text in ("", "Hello!", "a < b, [1] and {x}", "<tool", "[TOOL", f"{form.opener[:-1]} {form.opener[:-1]}"):
        assert takes(grammar, text) or (form.bare and text[:1] in ("<", "{")), text
    arguments = '{"zip": 5611, "city": "Eindhoven"}'
    call = f'{{"name": "get_weather", "{form.arguments}": {arguments}}}'
    whole = {"hermes": f"<tool_call>\n{call}\n</tool_call>", "mistral": f"[TOOL_CALLS][{call}]", "llama3": call}[
        form.name
    ]
    assert takes(grammar, whole)
    assert read(form, whole, sure=True) == ("", [("get_weather", arguments)])
    if not form.bare:
        assert takes(grammar, "Let me see.\n" + whole)
        assert not takes(grammar, form.opener + "x")
    assert not takes(grammar, whole.replace("5611", '"5611"'))
    assert not takes(grammar, whole.replace("get_weather", "get_whether"))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.sampled_from(["<", "tool_call", "<tool_", "call>", ">", "<<tool_call", "_", "é", "a b"]), max_size=9)
)
def test_free_text_is_any_text_without_the_opener(parts: list[str]) -> None:
    grammar = constraint_of(job(), HERMES)
    assert grammar is not None
    text = "".join(parts)
    matcher = Matcher(grammar)
    free = "<tool_call>" not in text
    assert (matcher.feed(text) and matcher.accepts) == free


def test_what_needs_no_constraint_has_none() -> None:
    loose = (TIME, ANY)
    assert constraint_of(job(tools=loose), HERMES) is None
    assert constraint_of(job(tool_choice="none"), HERMES) is None
    assert constraint_of(job(tools=()), HERMES) is None
    assert constraint_of(job(tools=loose, tool_choice="required"), HERMES) is not None
    assert constraint_of(job(tools=loose, tool_choice="none", response_format=JsonObject()), HERMES) is not None


def test_an_answer_in_a_form_or_a_call() -> None:
    wanted = JsonSchema(name="x", schema_={"type": "object", "properties": {"a": {"type": "null"}}, "required": ["a"]})
    grammar = constraint_of(job(response_format=wanted), HERMES)
    assert grammar is not None
    assert takes(grammar, '{"a": null}')
    assert takes(grammar, '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>')
    assert not takes(grammar, "Hello")
    must = constraint_of(job(response_format=wanted, tool_choice="required"), HERMES)
    assert must is not None
    assert not takes(must, '{"a": null}')


def test_schemas_of_tools() -> None:
    odd = {"type": "object", "properties": {"a": {"not": {}}}}
    endless = {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}
    for schema in ({"type": "array"}, endless):
        loose = constraint_of(job(tools=(Tool(name="f", parameters=schema),), tool_choice="required"), LLAMA3)
        assert loose is not None
        assert takes(loose, '{"name": "f", "parameters": {"b": [1]}}')
    loose = constraint_of(job(tools=(Tool(name="f", parameters=odd),), tool_choice="required"), LLAMA3)
    assert loose is not None
    assert takes(loose, '{"name": "f", "parameters": {"a": [1]}}')
    assert not takes(loose, '{"name": "f", "parameters": {"b": [1]}}')
    for schema in (odd, {"type": "array"}, {"properties": {"x": {"$ref": "#/properties/x"}}, "required": ["x"]}):
        with pytest.raises(BadSchema):
            constraint_of(job(tools=(Tool(name="f", parameters=schema, strict=True),), tool_choice="required"), HERMES)
    untyped = Tool(name="f", parameters={"properties": {"a": {"type": "null"}}}, strict=True)
    grammar = constraint_of(job(tools=(untyped,), tool_choice="required"), LLAMA3)
    assert grammar is not None
    assert takes(grammar, '{"name": "f", "parameters": {"a": null}}')


def test_forms_are_known_by_their_templates() -> None:
    folder = default_model_path("llamacpp")
    assert folder is not None
    shark = (folder.parent / "chat_template.jinja").read_text()
    assert form_of(shark) is HERMES
    assert form_of("{% for t in tools %}{{ t }}{% endfor %} <tool_call>") is HERMES
    assert form_of("{{ tools }} [AVAILABLE_TOOLS] [TOOL_CALLS]") is MISTRAL
    assert form_of('{{ tools }} <|python_tag|> "parameters"') is LLAMA3
    assert form_of("{{ messages }}") is None
    assert form_of("{{ tools }}<tool_call><function=x>") is None
    assert form_of("{{ tools }} in a way of its own") is None


def test_the_model_reads_what_a_schema_means_and_no_more() -> None:
    ((told,),) = [described([WEATHER])]
    assert json.dumps(told["function"]["parameters"]) == json.dumps(
        {
            "type": "object",
            "properties": {"zip": {"type": "integer"}, "city": {"type": "string", "description": "which"}},
            "required": ["zip", "city"],
        }
    )
    assert list(told["function"]) == ["name", "description", "parameters"]
    assert described([ANY])[0]["function"]["parameters"] == {"type": "object", "properties": {}}
    # A property that is called like a keyword is a property.
    assert compacted({"properties": {"title": {"title": "T", "type": "string"}}}) == {
        "properties": {"title": {"type": "string"}}
    }
    with pytest.raises(BadSchema):
        compacted({"description": "x" * 200_000})


def test_messages_are_as_templates_expect_them() -> None:
    call = {"id": "call_abc", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    broken = {"id": "call_d", "type": "function", "function": {"name": "f", "arguments": "{oops"}}
    messages = [{"role": "assistant", "content": None, "tool_calls": [call, broken]},
                {"role": "tool", "tool_call_id": "call_abc", "content": "x"}]  # fmt: skip
    asked, answered = messages_for(HERMES, messages)
    assert asked["tool_calls"][0]["function"]["arguments"] == {"a": 1}
    assert asked["tool_calls"][1]["function"]["arguments"] == "{oops"
    assert answered == messages[1]
    asked, answered = messages_for(MISTRAL, messages)
    assert asked["tool_calls"][0]["id"] == answered["tool_call_id"]
    assert len(answered["tool_call_id"]) == 9
    assert messages[0]["tool_calls"][0]["function"]["arguments"] == '{"a": 1}'  # the job's own stays as it was


def test_a_calls_id_is_the_same_in_every_attempt_and_another_for_every_call() -> None:
    assert call_id("r", 0, 0) == call_id("r", 0, 0)
    assert len({call_id("r", 0, 0), call_id("r", 0, 1), call_id("r", 1, 0), call_id("s", 0, 0)}) == 4
