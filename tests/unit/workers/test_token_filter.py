"""Ids that a grammar lets through, over shark-mini's own vocabulary and over all single bytes."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.workers.grammar_kit import say
from workers.chat.schemas import schema_value
from workers.engines import default_model_path
from workers.engines.gguf import read_gguf
from workers.engines.grammar import Builder, Grammar, Matcher, literal
from workers.engines.token_filter import TokenFilter, TokenTree, code_points, split

PATH = default_model_path("llamacpp")
assert PATH is not None
TABLE = read_gguf(PATH).table
END = 2
TREE = TokenTree(TABLE)
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 4}, "kind": {"enum": ["hügé 🦈", "tiny", 3]}},
    "required": ["city", "kind"],
    "additionalProperties": False,
}


def grammar() -> Grammar:
    builder = Builder()
    return builder.grammar(schema_value(builder, SCHEMA))


def fits(before: bytes, token_id: int) -> bool:
    """Slowly and surely: some whole character may end what the token leaves open."""
    found = split(before + TABLE[token_id])
    if found is None or not TABLE[token_id]:
        return False
    matcher = Matcher(grammar())
    if not matcher.feed(found[0]):
        return False
    if not found[1]:
        return True
    points = code_points(found[1])
    assert points is not None
    return any(
        max(low, points[0]) <= min(high, points[1])
        for chars in matcher.next_chars(matcher.state)
        for low, high in chars.ranges
    )


@pytest.mark.parametrize("seed", range(4))
def test_any_walk_ends_in_what_validates_and_misses_nothing(seed: int) -> None:
    draw, text = random.Random(seed), b""
    follower = TokenFilter(TREE, Matcher(grammar()), [END])
    for step in range(200):
        allowed = follower.allowed()
        assert allowed == sorted(set(allowed))
        if step % 9 == 0:
            expected = [token_id for token_id in range(len(TABLE)) if fits(text, token_id)]
            assert [token_id for token_id in allowed if token_id != END] == expected
        token_id = END if END in allowed else draw.choice(allowed)
        if token_id == END:
            break
        follower.feed(token_id)
        text += TABLE[token_id]
    jsonschema.validate(json.loads(text), SCHEMA)
    assert follower.done


def test_it_begins_again() -> None:
    follower = TokenFilter(TREE, Matcher(Builder().grammar(literal("ab"))), [END])
    first = follower.allowed()
    follower.feed(first[0])
    follower.feed(END)
    follower.restart()
    assert follower.allowed() == first


@given(st.text(max_size=8), st.integers(0, 40))
def test_bytes_are_split_behind_the_last_whole_character(text: str, cut: int) -> None:
    data = text.encode(errors="ignore")[:cut]
    found = split(data)
    assert found is not None
    assert found[0].encode() + found[1] == data
    assert found[0] == data.decode(errors="ignore")
    if found[1]:
        points = code_points(found[1])
        assert points is not None
        whole = text.encode(errors="ignore").decode()[len(found[0])]
        assert points[0] <= ord(whole) <= points[1]


def test_what_is_no_utf8_never_comes() -> None:
    for data in (b"\xff", b"\xc0\xaf", b"a\x80", b"\xed\xa0\x80"):
        assert split(data) is None
    assert code_points(b"\xf4\x90") is None


def test_every_text_of_a_grammar_can_be_written() -> None:
    for seed in range(20):
        said = say(grammar(), seed).encode()
        follower = TokenFilter(TREE, Matcher(grammar()), [END])
        at = 0
        while at < len(said):
            ids = [i for i in follower.allowed() if i != END and said.startswith(TABLE[i], at)]
            token_id = max(ids, key=lambda i: len(TABLE[i]))
            follower.feed(token_id)
            at += len(TABLE[token_id])
        assert END in follower.allowed()
