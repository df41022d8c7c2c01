"""/v3 and /v1/inference: what they take, what they refuse and how, and the bytes of their answers."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest

from ingress.chat import Done, Piece, Whole
from ingress.dialects import shadow, shreyansh
from schemas.errors import ApiError

RID = "01a3185c-5000-7c49-a1dd-273e4d8f5bdb"
MESSAGES = [{"role": "user", "content": "hi"}]
V3: dict[str, Any] = {"model": "qwen/qwen3-4b-fp8", "messages": MESSAGES}
INFERENCE: dict[str, Any] = {"messages": MESSAGES}


def _v3(**changes: Any) -> Any:
    return shreyansh.parse(orjson.dumps({**V3, **changes}), {})


def _inference(**changes: Any) -> Any:
    return shadow.parse(orjson.dumps({**INFERENCE, **changes}), {})


def test_defaults_are_the_documented_ones() -> None:
    chat = _v3().chat
    assert (chat.model, chat.messages, chat.max_tokens) == ("qwen/qwen3-4b-fp8", MESSAGES, None)
    assert (chat.sampling.temperature, chat.sampling.top_p) == (0.7, 1.0)
    chat = _inference().chat
    assert (chat.model, chat.messages, chat.max_tokens) == ("claude-sonnet-4-20250514", MESSAGES, 1024)
    assert chat.sampling.temperature == 0.7


def test_null_is_the_default() -> None:
    plain, nulls = _v3(), _v3(**dict.fromkeys(("stream", "temperature", "max_tokens", "top_p", "presence_penalty")))
    assert (nulls.chat, nulls.stream, nulls.ignored) == (plain.chat, False, ())
    plain, nulls = _inference(), _inference(**dict.fromkeys(("stream", "temperature", "max_tokens")))
    assert (nulls.chat, nulls.stream, nulls.ignored) == (plain.chat, False, ())
    assert _inference(max_tokens=10.0).chat.max_tokens == 10


def test_what_is_given_arrives() -> None:
    asked = _v3(temperature=0.5, max_tokens=500, top_p=0.9, frequency_penalty=0.2, presence_penalty=0.3, stream=True)
    sampling = asked.chat.sampling
    assert (sampling.temperature, sampling.top_p, sampling.frequency_penalty, sampling.presence_penalty) == (
        0.5, 0.9, 0.2, 0.3,
    )  # fmt: skip
    assert (asked.chat.max_tokens, asked.stream) == (500, True)
    asked = _inference(model="m", max_tokens=8192, temperature=0.0, stream=True)
    assert (asked.chat.model, asked.chat.max_tokens, asked.chat.sampling.temperature, asked.stream) == (
        "m", 8192, 0.0, True,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"temperature": 1.01}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"top_p": 0}, "top_p"),
        ({"frequency_penalty": 2.1}, "frequency_penalty"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]}, "messages.0.content"),
        ({"model": ""}, "model"),
        ({"stream": "yes"}, "stream"),
    ],
)
def test_v3_refuses_by_name(changes: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        _v3(**changes)
    assert (caught.value.code, caught.value.param) == ("invalid_request", param)


@pytest.mark.parametrize(
    ("changes", "code", "param"),
    [
        ({"max_tokens": 0}, "invalid_request", "max_tokens"),
        ({"max_tokens": 8193}, "invalid_request", "max_tokens"),
        ({"max_tokens": 1.5}, "invalid_request", "max_tokens"),
        ({"temperature": 1.01}, "invalid_request", "temperature"),
        ({"messages": None}, "invalid_request", "messages"),
        ({"messages": [{"role": "user"}]}, "invalid_request", "messages.0.content"),
        ({"tools": []}, "unsupported_parameter", "tools"),
        ({"context": {"a": 1}}, "unsupported_parameter", "context"),
    ],
)
def test_inference_refuses_by_name(changes: dict[str, Any], code: str, param: str) -> None:
    with pytest.raises(ApiError) as caught:
        _inference(**changes)
    assert (caught.value.code, caught.value.param) == (code, param)


@pytest.mark.parametrize("parse", [shreyansh.parse, shadow.parse])
@pytest.mark.parametrize("body", [b"", b"{", b"\xff"])
def test_what_is_no_json(parse: Any, body: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        parse(body, {})
    assert caught.value.code == "invalid_json"


def test_what_has_no_effect_is_named_and_refused_where_that_is_asked_for() -> None:
    assert _v3(user="me", messages=[{**MESSAGES[0], "name": "me"}]).ignored == ("user", "name")
    assert _inference(top_k=3).ignored == ("top_k",)
    with pytest.raises(ApiError, match="unsupported_parameter"):
        shreyansh.parse(orjson.dumps({**V3, "user": "me"}), {"x-shiver-strict": "1"})


def _events(data: bytes) -> list[Any]:
    return [line if line == "data: [DONE]" else json.loads(line[6:]) for line in data.decode().split("\n\n") if line]


DONE = Done(["length"], 4, 2, "0.1 SHIVER")


def test_the_answer_of_v3() -> None:
    answer = _v3().writer(RID, 7)
    whole = json.loads(answer.whole([Whole("Hi", [], [])], DONE))
    assert whole == {
        "id": "01a3185c50007c49a1dd273e4d8f5bdb",
        "object": "chat.completion",
        "created": 7,
        "model": "qwen/qwen3-4b-fp8",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "length"}],
        "usage": {"prompt_tokens": 4, "completion_tokens": 2, "total_tokens": 6},
    }
    *chunks, done = _events(answer.begin() + answer.delta(Piece("Hi", 2)) + answer.end(DONE))
    assert done == "data: [DONE]"
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": ""},
        {"content": "Hi"},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, "length"]
    assert {(chunk["id"], chunk["object"]) for chunk in chunks} == {(whole["id"], "chat.completion.chunk")}
    assert answer.delta(Piece("", 1)) == b""
    broken = _events(answer.error(ApiError("provider_lost")))
    assert [event["error"]["code"] for event in broken] == [500]


@pytest.mark.parametrize(
    ("finish", "reason"), [("stop", "end_turn"), ("length", "max_tokens"), ("tool_calls", "tool_use")]
)
def test_the_answer_of_inference(finish: str, reason: str) -> None:
    answer = _inference().writer(RID, 7)
    done = DONE._replace(finishes=[finish])
    assert json.loads(answer.whole([Whole("Hi", [], [])], done)) == {
        "id": "req_273e4d8f5bdb",
        "content": "Hi",
        "model": "claude-sonnet-4-20250514",
        "usage": {"input_tokens": 4, "output_tokens": 2, "total_tokens": 6},
        "stop_reason": reason,
    }
    assert _events(answer.begin() + answer.delta(Piece("Hi", 2)) + answer.delta(Piece("", 1)) + answer.end(done)) == [
        {"type": "content_delta", "delta": "Hi"},
        {"type": "message_stop", "usage": {"total_tokens": 6}},
    ]
    assert _events(answer.error(ApiError("provider_lost")))[0]["type"] == "error"
