"""OpenAI's form: what is taken, what is refused and how, and the bytes of the answer."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest

from ingress.chat import Chat, Done, Piece
from ingress.dialects import openai
from ingress.metering import budget_tokens, hold_bound_nano, prompt_bound_tokens
from schemas.errors import ApiError
from schemas.events import ModelPrice

PLAIN: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def _parse(**changes: Any) -> openai.ChatRequest:
    return openai.read(orjson.dumps({**PLAIN, **changes}))


def test_the_smallest_request() -> None:
    chat = _parse().chat()
    assert (chat.model, chat.messages, chat.stop, chat.max_tokens) == ("m", PLAIN["messages"], (), None)
    assert (chat.sampling.temperature, chat.sampling.top_p, chat.sampling.seed) == (0.7, 1.0, None)


def test_parts_and_developer_become_plain_messages() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    chat = _parse(messages=[{"role": "developer", "content": "s"}, {"role": "user", "content": parts}]).chat()
    assert chat.messages == [{"role": "system", "content": "s"}, {"role": "user", "content": "ab"}]


def test_max_completion_tokens_goes_before_max_tokens() -> None:
    assert _parse(max_tokens=5, max_completion_tokens=3).chat().max_tokens == 3
    assert _parse(max_tokens=0).chat().max_tokens == 0
    assert _parse(stop="x").chat().stop == ("x",)
    assert _parse(seed=-1).chat().sampling.seed == 2**32 - 1


@pytest.mark.parametrize(
    ("changes", "code", "param"),
    [
        ({"messages": []}, "invalid_request", "messages"),
        ({"messages": "hi"}, "invalid_request", "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "invalid_request", "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "invalid_request", "messages.0.content"),
        ({"model": 7}, "invalid_request", "model"),
        ({"model": ""}, "invalid_request", "model"),
        ({"temperature": 2.1}, "invalid_request", "temperature"),
        ({"temperature": "hot"}, "invalid_request", "temperature"),
        ({"top_p": -0.1}, "invalid_request", "top_p"),
        ({"max_tokens": -1}, "invalid_request", "max_tokens"),
        ({"max_tokens": 1.5}, "invalid_request", "max_tokens"),
        ({"stop": ["a"] * 5}, "invalid_request", "stop"),
        ({"stop": ""}, "invalid_request", "stop"),
        ({"n": 0}, "invalid_request", "n"),
        ({"n": 9}, "invalid_request", "n"),
        ({"stream": "yes"}, "invalid_request", "stream"),
    ],
)
def test_bad_input_is_refused_by_name(changes: dict[str, Any], code: str, param: str) -> None:
    with pytest.raises(ApiError) as caught:
        _parse(**changes)
    assert caught.value.code == code
    assert (caught.value.param or "").startswith(param)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff\xfe", b'{"model":"m","messages":[{"role":"user","content":"\xff"}]}']
)
def test_what_is_no_json(body: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        openai.read(body)
    assert caught.value.code == "invalid_json"


def test_what_is_no_json_says_where_and_never_what() -> None:
    with pytest.raises(ApiError) as caught:
        openai.read(b'{"model": "canary", "messages": "canary \\ud800 canary"}')
    assert caught.value.message.endswith("hex escape at line 1 column 47.")
    assert "canary" not in caught.value.message


def test_a_mark_before_the_text_is_passed_over() -> None:
    assert openai.read(b"\xef\xbb\xbf" + orjson.dumps(PLAIN)).model == PLAIN["model"]


def test_no_nucleus_at_all_is_the_smallest() -> None:
    assert 0 < _parse(top_p=0).chat().sampling.top_p < 1e-5


@pytest.mark.parametrize("body", [b"[]", b"null", b'"x"', b"{}"])
def test_json_of_another_shape(body: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        openai.read(body)
    assert caught.value.code == "invalid_request"


def test_a_missing_model_is_named() -> None:
    with pytest.raises(ApiError) as caught:
        openai.read(orjson.dumps({"messages": PLAIN["messages"]}))
    assert caught.value.param == "model"


def test_an_error_never_repeats_the_prompt() -> None:
    with pytest.raises(ApiError) as caught:
        _parse(messages=[{"role": "user", "content": {"secret": "canary"}}])
    assert "canary" not in json.dumps(caught.value.body())


def _chunks(data: bytes) -> list[Any]:
    return [json.loads(line[6:]) for line in data.decode().split("\n\n") if line and line != "data: [DONE]"]


@pytest.mark.parametrize("include_usage", [True, False])
def test_stream_chunks(include_usage: bool) -> None:
    answer = openai.Answer("id", "m", 7, include_usage=include_usage)
    data = answer.begin() + answer.delta(Piece('7 "plus"\n', 2)) + answer.end(Done(["stop"], 4, 2, "0.1 SHIVER"))
    assert data.endswith(b"data: [DONE]\n\n")
    chunks = _chunks(data)
    for chunk in chunks:
        assert (chunk["id"], chunk["object"], chunk["created"], chunk["model"]) == (
            "chatcmpl-id", "chat.completion.chunk", 7, "m",
        )  # fmt: skip
        assert ("usage" in chunk) == include_usage
    assert [c["choices"][0]["finish_reason"] for c in chunks if c["choices"]] == [None, None, "stop"]
    assert chunks[1]["choices"][0]["delta"] == {"content": '7 "plus"\n'}
    assert chunks[2]["choices"][0]["delta"] == {}
    if include_usage:
        usage = {"prompt_tokens": 4, "completion_tokens": 2, "total_tokens": 6, "cost": "0.1 SHIVER"}
        assert (chunks[3]["choices"], chunks[3]["usage"]) == ([], usage)
    else:
        assert chunks[2]["cost"] == "0.1 SHIVER"


def test_the_bound_is_no_less_than_a_token_for_each_byte() -> None:
    messages = [{"role": "user", "content": "é" * 100}, {"role": "system", "content": "x"}]
    assert prompt_bound_tokens(Chat("m", messages)) > 200 + 1 + len("usersystem")


def test_the_hold_is_capped_by_the_context() -> None:
    price = ModelPrice(model="m", in_nano=10, out_nano=100)
    chat = _parse(max_tokens=50).chat()
    assert hold_bound_nano(chat, price, 1000) == 10 * prompt_bound_tokens(chat) + 100 * 50
    assert hold_bound_nano(chat, price, 20) == 10 * 20 + 100 * 20
    assert budget_tokens(_parse().chat(), 100_000) == 4096
