"""Every field of OpenAI's chat form: what it takes, what is refused by name, what is named as ignored."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ingress.chat import Asked
from ingress.dialects import forms, openai
from schemas.errors import ApiError
from schemas.jobs import JsonObject, JsonSchema, NamedTool, Sampling

PLAIN: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
HOSTER = "019A0000-0000-7000-8000-00000000000a"
PIXEL = "data:image/png;base64,aGk="


def parse(headers: dict[str, str] | None = None, **changes: Any) -> Asked:
    return openai.parse(json.dumps({**PLAIN, **changes}).encode(), headers or {})


def refused(headers: dict[str, str] | None = None, **changes: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse(headers, **changes)
    return caught.value


NUMBERS = [
    (name, bad)
    for name, bads in {
        "temperature": [-0.1, 2.1, "1", [], True],
        "top_p": [-0.1, 1.1, "1", {}],
        "frequency_penalty": [-2.1, 2.1, "0"],
        "presence_penalty": [-2.1, 2.1, []],
        "max_tokens": [-1, 1.5, "5", 10**8, True],
        "max_completion_tokens": [-1, 1.5, "5", 10**8],
        "n": [0, 9, 1.5, "1", True],
        "seed": [1.5, "1", 2**63, -(2**63) - 1],
        "top_logprobs": [-1, 21, "1", 1.5],
        "max_latency_ms": [0, 600_001, "5", 1.5],
    }.items()
    for bad in bads
]
SHAPES: list[tuple[str, Any]] = [
    *((name, bad) for name in ("stream", "parallel_tool_calls", "store", "privacy_mode") for bad in ("yes", 1, [])),
    ("logprobs", 5),
    ("model", None),
    ("model", 7),
    ("model", ""),
    ("model", "x" * 201),
    ("stream_options", []),
    ("stream_options", {"include_usage": "yes"}),
    ("stop", 5),
    ("stop", ""),
    ("stop", ["a"] * 5),
    ("stop", [""]),
    ("stop", [None]),
    ("stop", "x" * 257),
    ("logit_bias", []),
    ("logit_bias", {"x": 1}),
    ("logit_bias", {"-1": 1}),
    ("logit_bias", {"1": 101}),
    ("logit_bias", {"1": "5"}),
    ("logit_bias", {str(2**31): 1}),
    ("logit_bias", {str(n): 1 for n in range(301)}),
    ("tools", {}),
    ("tools", [5]),
    ("tools", [{}]),
    ("tools", [{"type": "custom", "custom": {"name": "x"}}]),
    ("tools", [{"type": "web_search"}]),
    ("tools", [{"type": "function"}]),
    ("tools", [{"type": "function", "function": {}}]),
    ("tools", [{"type": "function", "function": {"name": "a b"}}]),
    ("tools", [{"type": "function", "function": {"name": "x" * 129}}]),
    ("tools", [{"type": "function", "function": {"name": "x", "parameters": []}}]),
    ("tools", [{"type": "function", "function": {"name": "x", "strict": "yes"}}]),
    ("tools", [WEATHER, WEATHER]),
    ("tools", [{"type": "function", "function": {"name": f"f{n}"}} for n in range(129)]),
    ("tool_choice", "any"),
    ("tool_choice", 5),
    ("tool_choice", "required"),
    ("tool_choice", {"type": "function"}),
    ("tool_choice", {"type": "function", "function": {"name": "none_such"}}),
    ("tool_choice", {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}),
    ("functions", [{}]),
    ("functions", [{"name": "a"}, {"name": "a"}]),
    ("function_call", "required"),
    ("function_call", {}),
    ("response_format", "json"),
    ("response_format", {}),
    ("response_format", {"type": "xml"}),
    ("response_format", {"type": "json_schema"}),
    ("response_format", {"type": "json_schema", "json_schema": {"schema": {}}}),
    ("response_format", {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}),
    ("response_format", {"type": "json_schema", "json_schema": {"name": "a", "schema": []}}),
    ("modalities", []),
    ("modalities", ["audio"]),
    ("modalities", ["text", "audio"]),
    ("metadata", {"k": 1}),
    ("metadata", {"k": "v" * 513}),
    ("metadata", {f"k{n}": "v" for n in range(17)}),
    ("user", 5),
    ("user", "x" * 513),
    ("reasoning_effort", 3),
    ("verbosity", 3),
    ("prediction", "text"),
    ("service_tier", 1),
    ("web_search_options", []),
    ("audio", "loud"),
    ("tier", "best"),
    ("trusted_only", "yes"),
    ("fallback_models", "m"),
    ("fallback_models", ["m"] * 9),
    ("fallback_models", [""]),
    ("allow_hosters", "x"),
    ("deny_hosters", ["a b"]),
    ("deny_hosters", ["x"] * 101),
]


@pytest.mark.parametrize(("name", "bad"), NUMBERS + SHAPES, ids=lambda value: repr(value)[:40])
def test_what_a_field_does_not_take_is_refused_by_its_name(name: str, bad: Any) -> None:
    error = refused(**{name: bad})
    assert error.row.status == 400
    assert (error.param or "").split(".")[0] == name
    assert error.message.startswith(name)


def _user(*parts: Any) -> list[Any]:
    return [{"role": "user", "content": list(parts)}]


CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
SHOWN = {"type": "image_url", "image_url": {"url": PIXEL}}


def _answered(*contents: Any) -> list[Any]:
    """A tool that was called once, and its answers."""
    asked = [{"role": "user", "content": "look"}, {"role": "assistant", "tool_calls": [CALL]}]
    return [*asked, *({"role": "tool", "tool_call_id": "call_1", "content": content} for content in contents)]


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        ("hi", "messages"),
        ({}, "messages"),
        ([5], "messages.0.role"),
        ([{}], "messages.0.role"),
        ([{"role": "robot", "content": "x"}], "messages.0.role"),
        ([{"role": 5, "content": "x"}], "messages.0.role"),
        ([{"role": "user"}], "messages.0.content"),
        ([{"role": "user", "content": None}], "messages.0.content"),
        ([{"role": "user", "content": 5}], "messages.0.content"),
        ([{"role": "user", "content": []}], "messages.0.content"),
        ([{"role": "user", "content": "x", "name": 5}], "messages.0.name"),
        (_user(5), "messages.0.content.0"),
        (_user({}), "messages.0.content.0"),
        (_user({"type": "text"}), "messages.0.content.0.text"),
        (_user({"type": "text", "text": 5}), "messages.0.content.0.text"),
        (_user({"type": "video", "text": "x"}), "messages.0.content.0"),
        (_user({"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}), "messages.0.content.0"),
        (_user({"type": "file", "file": {"file_id": "x"}}), "messages.0.content.0"),
        (_user({"type": "image_url"}), "messages.0.content.0.image_url"),
        (_user({"type": "image_url", "image_url": PIXEL}), "messages.0.content.0.image_url"),
        (_user({"type": "image_url", "image_url": {"url": ""}}), "messages.0.content.0.image_url.url"),
        (_user({"type": "image_url", "image_url": {"url": PIXEL, "detail": 3}}), "messages.0.content.0.image_url"),
        (_user(*({"type": "image_url", "image_url": {"url": PIXEL}},) * 17), "messages.0"),
        ([{"role": "system", "content": [{"type": "image_url", "image_url": {"url": PIXEL}}]}], "messages.0.content.0"),
        ([{"role": "assistant"}], "messages.0.content"),
        ([{"role": "assistant", "content": None}], "messages.0.content"),
        ([{"role": "assistant", "tool_calls": [{}]}], "messages.0.tool_calls.0"),
        ([{"role": "assistant", "tool_calls": [{**CALL, "type": "custom"}]}], "messages.0.tool_calls.0.type"),
        ([{"role": "assistant", "content": "x", "audio": {"id": "a"}}], "messages.0.audio"),
        ([{"role": "tool", "content": "x"}], "messages.0.tool_call_id"),
        ([{"role": "tool", "content": "x", "tool_call_id": "call_1"}], "messages.0.tool_call_id"),
        (_answered(None), "messages.2.content"),
        (_answered([]), "messages.2.content"),
        (_answered([5]), "messages.2.content.0"),
        (_answered([{"type": "refusal", "refusal": "no"}]), "messages.2.content.0"),
        (_answered([{"type": "file", "file": {"file_id": "x"}}]), "messages.2.content.0"),
        (_answered([{"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}]), "messages.2.content.0"),
        (_answered([{"type": "image_url", "image_url": PIXEL}]), "messages.2.content.0.image_url"),
        (_answered([{"type": "image_url", "image_url": {"url": ""}}]), "messages.2.content.0.image_url.url"),
        (_answered([{"type": "text", "text": "x"}] * 2049), "messages.2.content"),
        (_answered([SHOWN] * 9, [SHOWN] * 8), "messages.3"),
        ([{"role": "tool", "tool_call_id": "call_1", "content": [SHOWN]}], "messages.0.tool_call_id"),
        (
            [
                {"role": "assistant", "function_call": CALL["function"]},
                {"role": "function", "content": [SHOWN], "name": "f"},
            ],
            "messages.1.content.0",
        ),
        ([{"role": "function", "content": "x", "name": "f"}], "messages.0"),
        ([{"role": "function", "content": "x"}], "messages.0.name"),
        ([PLAIN["messages"][0]] * 2049, "messages"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_message_is_refused_by_the_way_to_what_is_wrong(messages: Any, param: str) -> None:
    error = refused(messages=messages)
    assert error.row.status == 400
    assert (error.param or "").startswith(param)


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": {"canary": "canary"}}],
        [{"role": "canary", "content": "canary"}],
        [{"role": "user", "content": [{"type": "canary", "text": "canary"}]}],
        [{"role": "tool", "content": "canary", "tool_call_id": "canary"}],
        ["canary"],
    ],
)
def test_an_error_never_repeats_what_was_sent(messages: Any) -> None:
    assert "canary" not in json.dumps(refused(messages=messages).body())
    assert "canary" not in json.dumps(refused(temperature="canary").body())


def test_top_logprobs_without_logprobs() -> None:
    assert refused(top_logprobs=2).param == "top_logprobs"
    assert parse(top_logprobs=0).chat.logprobs is None


def test_everything_that_has_an_effect_arrives() -> None:
    chat = parse(
        temperature=0.5, top_p=0.9, seed=-1, frequency_penalty=0.2, presence_penalty=0.3,
        logit_bias={"5": -100, "foo": 0},
        n=3, stop=["a", "b"], logprobs=True, top_logprobs=4, max_tokens=7, parallel_tool_calls=False,
        tools=[WEATHER], tool_choice={"type": "function", "function": {"name": "get_weather"}},
        tier="fastest", privacy_mode=True, trusted_only=True, max_latency_ms=900, fallback_models=["b"],
        allow_hosters=[HOSTER], deny_hosters=[HOSTER.replace("-", "")],
    ).chat  # fmt: skip
    assert chat.sampling == Sampling(
        temperature=0.5, top_p=0.9, seed=2**32 - 1, frequency_penalty=0.2, presence_penalty=0.3, logit_bias={5: -100}
    )
    assert (chat.n, chat.choices, chat.stop, chat.logprobs, chat.max_tokens) == (3, 3, ("a", "b"), 4, 7)
    assert chat.tools[0].name == "get_weather"
    assert chat.tools[0].parameters == WEATHER["function"]["parameters"]  # type: ignore[index]
    assert (chat.tool_choice, chat.parallel_tool_calls) == (NamedTool(name="get_weather"), False)
    routing = chat.routing
    assert (routing.tier, routing.privacy_mode, routing.trusted_only, routing.max_latency_ms) == (
        "fastest", True, True, 900,
    )  # fmt: skip
    assert (routing.fallback_models, routing.allow_hosters, routing.deny_hosters) == (
        ("b",), (HOSTER,), (HOSTER.replace("-", ""),),
    )  # fmt: skip


def test_response_formats() -> None:
    schema = {"$schema": "x", "title": "T", "type": "object", "additionalProperties": False}
    assert parse(response_format={"type": "text"}).chat.response_format is None
    assert parse(response_format={"type": "json_object"}).chat.response_format == JsonObject()
    form = {"type": "json_schema", "json_schema": {"name": "t", "schema": schema, "strict": True}}
    assert parse(response_format=form).chat.response_format == JsonSchema(name="t", schema_=schema, strict=True)


def test_schemas_have_a_size_and_a_depth() -> None:
    deep: dict[str, Any] = {}
    for _ in range(70):
        deep = {"properties": deep}
    for schema in (deep, {"enum": ["x" * 70_000]}):
        tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
        assert refused(tools=[tool]).param == "tools.0.function.parameters"
        form = {"type": "json_schema", "json_schema": {"name": "t", "schema": schema}}
        assert refused(response_format=form).param == "response_format.json_schema.schema"


def test_allowed_tools_are_the_only_ones() -> None:
    other = {"type": "function", "function": {"name": "other"}}
    named = {"type": "function", "function": {"name": "other"}}
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [named]}}
    chat = parse(tools=[WEATHER, other], tool_choice=choice).chat
    assert ([tool.name for tool in chat.tools], chat.tool_choice) == (["other"], "required")


def test_a_conversation_with_tools() -> None:
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": "be "}, {"type": "text", "text": "kind"}]},
        {"role": "user", "content": "weather?", "name": "ann"},
        {"role": "assistant", "content": None, "refusal": None, "tool_calls": [CALL], "function_call": None},
        {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "sun"}]},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
    ]
    asked = parse(messages=messages)
    assert asked.chat.messages == [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sun"},
        {"role": "assistant", "content": "no"},
    ]
    assert asked.ignored == ("messages.name",)


def test_the_older_functions() -> None:
    old_call = {"name": "f", "arguments": "{}"}
    chat = parse(
        functions=[{"name": "f"}],
        function_call={"name": "f"},
        messages=[
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": None, "function_call": old_call},
            {"role": "function", "name": "f", "content": "1"},
        ],
    ).chat
    assert ([tool.name for tool in chat.tools], chat.tool_choice) == (["f"], NamedTool(name="f"))
    assert not chat.parallel_tool_calls
    call = chat.messages[1]["tool_calls"][0]
    assert call["function"] == old_call
    assert chat.messages[2] == {"role": "tool", "tool_call_id": call["id"], "name": "f", "content": "1"}


def test_images_are_numbered_in_their_order() -> None:
    image = {"type": "image_url", "image_url": {"url": PIXEL, "detail": "original"}}
    asked = parse(messages=_user({"type": "text", "text": "what?"}, image, image))
    assert asked.chat.messages[0]["content"] == [
        {"type": "text", "text": "what?"}, {"type": "image", "index": 0}, {"type": "image", "index": 1},
    ]  # fmt: skip
    assert asked.chat.image_urls == (PIXEL, PIXEL)
    assert asked.ignored == ("messages.content.image_url.detail",)


def test_a_tool_s_answer_may_hold_images_among_all_others() -> None:
    messages = _answered([{"type": "text", "text": "a map"}, SHOWN, SHOWN])
    messages[0]["content"] = [{"type": "image_url", "image_url": {"url": "https://x/0.png"}}]
    asked = parse(messages=[*messages, *_user({"type": "image_url", "image_url": {"url": "https://x/3.png"}})])
    assert asked.chat.messages[2] == {
        "role": "tool", "tool_call_id": "call_1",
        "content": [{"type": "text", "text": "a map"}, {"type": "image", "index": 1}, {"type": "image", "index": 2}],
    }  # fmt: skip
    assert asked.chat.image_urls == ("https://x/0.png", PIXEL, PIXEL, "https://x/3.png")
    assert parse(messages=_answered([SHOWN] * 16)).chat.image_urls == (PIXEL,) * 16


IDLE: list[tuple[str, Any]] = [
    ("prediction", {"type": "content", "content": "x"}),
    ("prompt_cache_key", "k"),
    ("prompt_cache_options", {"mode": "implicit"}),
    ("prompt_cache_retention", "24h"),
    ("service_tier", "flex"),
    ("verbosity", "low"),
    ("moderation", {"model": "m"}),
    ("web_search_options", {}),
    ("store", True),
    ("reasoning_effort", "high"),
    ("reasoning_effort", "max"),
    ("audio", {"voice": "alloy", "format": "wav"}),
    ("safety_identifier", "s"),
    ("user", "u"),
    ("metadata", {"a": "b"}),
    ("top_k", 40),
    ("wizardry", {"deep": 1}),
    ("stream_options", {"include_usage": True}),
    ("function_call", {"name": "x"}),
]


@pytest.mark.parametrize(("name", "value"), IDLE)
def test_what_has_no_effect_is_taken_and_named_or_refused_where_that_is_asked_for(name: str, value: Any) -> None:
    assert parse(**{name: value}).ignored == (name,)
    error = refused({"x-shiver-strict": "1"}, **{name: value})
    assert (error.code, error.param, error.row.status) == ("unsupported_parameter", name, 400)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, None) for name, _ in IDLE),
        ("store", False),
        ("service_tier", "auto"),
        ("reasoning_effort", "none"),
        ("modalities", ["text"]),
        ("tools", []),
        ("tool_choice", "none"),
        ("metadata", {}),
    ],
)
def test_what_asks_for_what_happens_anyway_is_not_ignored(name: str, value: Any) -> None:
    assert parse({"x-shiver-strict": "1"}, **{name: value}).ignored == ()


def test_a_name_in_the_header_is_harmless_and_there_are_not_too_many() -> None:
    assert parse(**{"a\r\nset-cookie: x": 1}).ignored == ("a__set-cookie__x",)
    names = parse(**{f"x{n}": 1 for n in range(100)}).ignored
    assert (len(names), names[-1]) == (forms.IGNORED_MAX + 1, "...")


def test_nested_parameters_are_named_too() -> None:
    tool = {"type": "function", "function": {"name": "f", "wish": 1}, "cache_control": {}}
    message = {"role": "user", "content": [{"type": "text", "text": "x", "cache_control": {}}], "mood": "good"}
    asked = parse(tools=[tool], messages=[message], stream=True, stream_options={"include_obfuscation": True})
    assert set(asked.ignored) == {
        "tools.cache_control", "tools.function.wish", "messages.mood", "messages.content.cache_control",
        "stream_options.include_obfuscation",
    }  # fmt: skip
