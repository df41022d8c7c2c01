"""Tool calls out of streamed text: every split gives the same, and nothing is lost."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.chat.calls import CALL_CHARS_MAX, HERMES, LLAMA3, MISTRAL, CallParser, Form

NAMES = ("get_weather", "get_time")
EINDHOVEN = '{"city": "Eindhoven"}'
Calls = list[tuple[str, str]]


def parse(form: Form, pieces: list[str], *, sure: bool = False) -> tuple[str, Calls]:
    """Content and calls of a stream."""
    parser = CallParser(form, NAMES, sure=sure)
    content, calls = "", []
    for passed in [*(parser.feed(piece) for piece in pieces), parser.finish()]:
        content += passed.content
        for delta in passed.deltas:
            if delta.name is not None:
                assert delta.index == len(calls)
                calls.append((delta.name, ""))
            assert delta.index == len(calls) - 1
            calls[-1] = (calls[-1][0], calls[-1][1] + delta.arguments)
    assert parser.calls == len(calls)
    return content, calls


W = '{"name": "get_weather", "arguments": {"city": "Eindhoven"}}'
T = '{"name": "get_time", "arguments": {}}'
TRICKY = '{"name": "get_weather", "arguments": {"city": "a}\\"</tool_call>]{", "x": [{}]}}'
L = W.replace("arguments", "parameters")

CASES: list[tuple[Form, str, str, Calls]] = [
    (HERMES, "Hello there.", "Hello there.", []),
    (HERMES, f"<tool_call>\n{W}\n</tool_call>", "", [("get_weather", EINDHOVEN)]),
    (HERMES, f"\n\n<tool_call>{W}</tool_call>\n", "", [("get_weather", EINDHOVEN)]),
    (HERMES, f"Let me look.\n<tool_call>{W}</tool_call>\n<tool_call>\n{T}</tool_call>", "Let me look.",
     [("get_weather", EINDHOVEN), ("get_time", "{}")]),
    (HERMES, f"<tool_call>{TRICKY}</tool_call>", "", [("get_weather", '{"city": "a}\\"</tool_call>]{", "x": [{}]}')]),
    (HERMES, f"<tool_call>{W}", "", [("get_weather", EINDHOVEN)]),
    (HERMES, f"<tool_call>{W}</tool", "", [("get_weather", EINDHOVEN)]),
    (HERMES, f"<tool_call>{W}</tool_call> Done.", " Done.", [("get_weather", EINDHOVEN)]),
    (HERMES, '<tool_call>{"arguments": {"city": "x"}, "name": "get_weather"}</tool_call>', "",
     [("get_weather", '{"city": "x"}')]),
    (HERMES, '<tool_call>{"name": "get_time", "arguments": "{\\"a\\": 1}"}</tool_call>', "",
     [("get_time", '{"a": 1}')]),
    (HERMES, '<tool_call>{"name": "get_time"}</tool_call>', "", [("get_time", "{}")]),
    (HERMES, '<tool_call>{"name": "get_time", "arguments": {"a": 1}, "id": 7}</tool_call>', "",
     [("get_time", '{"a": 1}')]),
    # What is no call comes out to the letter.
    (HERMES, "a <tool_call> b", "a <tool_call> b", []),
    (HERMES, "\n<tool_call>\n", "\n<tool_call>\n", []),
    (HERMES, "a < b <tool", "a < b <tool", []),
    (HERMES, '<tool_call>{"name": "no_such", "arguments": {}}</tool_call>',
     '<tool_call>{"name": "no_such", "arguments": {}}</tool_call>', []),
    (HERMES, '<tool_call>{"name": "get_time", "arguments": [1]}</tool_call>',
     '<tool_call>{"name": "get_time", "arguments": [1]}</tool_call>', []),
    (HERMES, '<tool_call>{"name": "get_time", "arguments": {"a": }}</tool_call>',
     '<tool_call>{"name": "get_time", "arguments": {"a": }}</tool_call>', []),
    (HERMES, '<tool_call>{"name": "get_time", "arguments": {"a": 1}',
     '<tool_call>{"name": "get_time", "arguments": {"a": 1}', []),
    (HERMES, "no <tool_call>{x}</tool_call> and " + f"<tool_call>{T}</tool_call>", "no <tool_call>{x}</tool_call> and",
     [("get_time", "{}")]),
    (HERMES, "  ", "  ", []),
    (HERMES, "", "", []),
    (MISTRAL, f"[TOOL_CALLS][{W}]", "", [("get_weather", EINDHOVEN)]),
    (MISTRAL, f"[TOOL_CALLS] [{W}, {T}]", "", [("get_weather", EINDHOVEN), ("get_time", "{}")]),
    (MISTRAL, f"Well. [TOOL_CALLS]{W}", "Well.", [("get_weather", EINDHOVEN)]),
    (MISTRAL, "[TOOL_CALLS][", "[TOOL_CALLS][", []),
    (MISTRAL, "[TOOL_CALLS]x", "[TOOL_CALLS]x", []),
    (MISTRAL, "[1, 2] is a list", "[1, 2] is a list", []),
    (LLAMA3, L, "", [("get_weather", EINDHOVEN)]),
    (LLAMA3, f"\n{L}; {L}", "", [("get_weather", EINDHOVEN)] * 2),
    (LLAMA3, f"<|python_tag|>{L}", "", [("get_weather", EINDHOVEN)]),
    (LLAMA3, f'<|python_tag|>{{"type": "function", {L[1:]}', "", [("get_weather", EINDHOVEN)]),
    (LLAMA3, '{"a": 1} is JSON', '{"a": 1} is JSON', []),
    (LLAMA3, "<|python_tag|>print(1)", "<|python_tag|>print(1)", []),
    (LLAMA3, f"Here: {L}", f"Here: {L}", []),
]  # fmt: skip
SURE = [case for case in CASES if case[3] and '"get_time"}' not in case[1] and "no <" not in case[1]]


@pytest.mark.parametrize(("form", "text", "content", "calls"), CASES)
def test_every_split_gives_the_same(form: Form, text: str, content: str, calls: Calls) -> None:
    for cut in range(len(text) + 1):
        assert parse(form, [text[:cut], text[cut:]]) == (content, calls), cut
    assert parse(form, list(text)) == (content, calls)


@pytest.mark.parametrize(("form", "text", "content", "calls"), SURE)
def test_a_sure_stream_gives_the_same_calls(form: Form, text: str, content: str, calls: Calls) -> None:
    for cut in range(len(text) + 1):
        assert parse(form, [text[:cut], text[cut:]], sure=True) == (content, calls), cut
    assert parse(form, list(text), sure=True) == (content, calls)


def test_a_sure_stream_tells_arguments_as_they_come() -> None:
    parser = CallParser(HERMES, NAMES, sure=True)
    begun = parser.feed('<tool_call>\n{"name": "get_weather", "arguments": {"ci')
    assert [delta.name for delta in begun.deltas] == ["get_weather", None]
    assert begun.deltas[1].arguments == '{"ci'
    assert parser.feed('ty": "Eind').deltas[0].arguments == 'ty": "Eind'
    assert parser.finish() == ("", ())


def test_text_is_withheld_no_longer_than_needed() -> None:
    parser = CallParser(HERMES, NAMES)
    assert parser.feed("a <b").content == "a <b"
    assert parser.feed(" <tool").content == ""
    assert parser.feed("box").content == " <toolbox"


def test_a_call_has_a_limit() -> None:
    text = '<tool_call>{"name": "get_time", "arguments": {"a": "' + "x" * CALL_CHARS_MAX
    content, calls = parse(HERMES, [text, text])
    assert (content, calls) == (text * 2, [])


FRAGMENTS = st.sampled_from([
    "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|python_tag|>", "<tool", "[", "]", ",", ";", "{", "}", " ", "\n",
    W, T, L, TRICKY, '"', "\\", "é🦈", "text", '{"name": "get_time"',
])  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(
    form=st.sampled_from([HERMES, MISTRAL, LLAMA3]),
    parts=st.lists(FRAGMENTS, max_size=8),
    cuts=st.lists(st.integers(0, 200), max_size=6),
)
def test_any_text_in_any_pieces(form: Form, parts: list[str], cuts: list[int]) -> None:
    text = "".join(parts)
    borders = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    whole = parse(form, [text])
    assert parse(form, [text[a:b] for a, b in itertools.pairwise(borders)]) == whole
    content, calls = whole
    if not calls:
        assert content == text
    for name, arguments in calls:
        assert name in NAMES
        assert isinstance(json.loads(arguments), dict)
