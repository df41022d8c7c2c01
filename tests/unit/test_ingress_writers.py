"""The bytes of every OpenAI answer, read back by OpenAI's own types where they have one."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import orjson
import pytest
from openai.types import Completion, CreateEmbeddingResponse
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from ingress.chat import Done, Piece, Whole
from ingress.dialects import openai, openai_completions, openai_embeddings, openai_responses
from schemas.errors import ApiError
from schemas.replies import Alternative, TokenLogprob, ToolDelta

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
MESSAGES = [{"role": "user", "content": "hi"}]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
ID = "call_" + "0a" * 12
CALLS = [ToolDelta(index=0, id=ID, name="f"), ToolDelta(index=0, arguments='{"a"'), ToolDelta(index=0, arguments=":1}")]
TOKEN = TokenLogprob(
    id=7, text="Hi", bytes=(72, 105), logprob=-0.5, top=(Alternative(id=8, text="Ho", bytes=(72, 111), logprob=-1.5),)
)
DONE = Done(["stop"], 5, 2, "0.1 SHIVER")


def writer(dialect: Any, **body: Any) -> Any:
    return dialect.parse(orjson.dumps({"model": "asked", **body}), {}).writer("rid", 7)


def chat(**body: Any) -> Any:
    return writer(openai, messages=MESSAGES, **body)


def events(data: bytes) -> list[Any]:
    blocks = data.decode().split("\n\n")
    assert blocks.pop() == ""
    return [json.loads(block.rpartition("data: ")[2]) for block in blocks if not block.endswith("[DONE]")]


def is_chunk(chunk: Any) -> None:
    ChatCompletionChunk.model_validate(chunk, strict=True)
    assert (chunk["id"], chunk["object"], chunk["created"], chunk["model"]) == (
        "chatcmpl-rid", "chat.completion.chunk", 7, "asked",
    )  # fmt: skip
    for choice in chunk["choices"]:
        assert set(choice) == {"index", "delta", "logprobs", "finish_reason"}


@pytest.mark.parametrize("usage", [True, False])
@pytest.mark.parametrize("n", [1, 3])
def test_a_chat_stream(usage: bool, n: int) -> None:
    answer = chat(n=n, stream=True, stream_options={"include_usage": usage})
    data = answer.begin() + b"".join(answer.delta(Piece("a", 1, choice=index)) for index in range(n))
    data += answer.end(DONE._replace(finishes=["stop"] * (n - 1) + ["length"]))
    assert data.endswith(b"data: [DONE]\n\n")
    chunks = events(data)
    for chunk in chunks:
        is_chunk(chunk)
    spoken = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
    assert [choice["index"] for choice in spoken] == [*range(n)] * 3
    assert all(choice["finish_reason"] is None for choice in spoken[: 2 * n])
    assert [choice["finish_reason"] for choice in spoken[2 * n :]] == ["stop"] * (n - 1) + ["length"]
    assert all(choice["delta"] == {} for choice in spoken[2 * n :])
    if usage:
        assert chunks[-1]["choices"] == []
        assert chunks[-1]["usage"]["total_tokens"] == 7
        assert all(chunk["usage"] is None for chunk in chunks[:-1])
    else:
        assert chunks[-1]["cost"] == "0.1 SHIVER"
        assert all("usage" not in chunk for chunk in chunks)


def test_tool_calls_in_a_stream_have_index_and_function_in_every_delta() -> None:
    answer = chat(tools=TOOLS)
    chunks = events(b"".join(answer.delta(Piece("", 1, tool_calls=(call,))) for call in CALLS))
    deltas = [chunk["choices"][0]["delta"]["tool_calls"][0] for chunk in chunks]
    assert deltas[0] == {"index": 0, "id": ID, "type": "function", "function": {"name": "f", "arguments": ""}}
    assert deltas[1] == {"index": 0, "function": {"arguments": '{"a"'}}
    for chunk in chunks:
        is_chunk(chunk)


def test_the_older_functions_are_answered_in_their_own_form() -> None:
    answer = chat(functions=[{"name": "f"}])
    done = DONE._replace(finishes=["tool_calls"])
    chunks = events(answer.delta(Piece("", 1, tool_calls=tuple(CALLS))) + answer.end(done))
    assert chunks[0]["choices"][0]["delta"] == {"function_call": {"name": "f", "arguments": ""}}
    assert chunks[1]["choices"][0]["delta"] == {"function_call": {"arguments": '{"a"'}}
    assert chunks[-1]["choices"][0]["finish_reason"] == "function_call"
    whole = json.loads(answer.whole([Whole("", [], CALLS)], done))
    message = ChatCompletion.model_validate(whole, strict=True).choices[0].message
    assert message.function_call is not None
    assert message.function_call.arguments == '{"a":1}'
    assert "tool_calls" not in whole["choices"][0]["message"]


def test_a_whole_chat_with_calls_and_choices() -> None:
    done = DONE._replace(finishes=["tool_calls", "stop"], image_tokens=16)
    body = json.loads(chat(n=2, tools=TOOLS).whole([Whole("", [], CALLS), Whole("hi", [], [])], done))
    ChatCompletion.model_validate(body, strict=True)
    assert body["choices"][0]["message"]["content"] is None
    call = {"id": ID, "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    assert body["choices"][0]["message"]["tool_calls"] == [call]
    assert (body["choices"][1]["index"], body["choices"][1]["message"]["content"]) == (1, "hi")
    assert body["usage"] == {
        "prompt_tokens": 21, "completion_tokens": 2, "total_tokens": 23,
        "prompt_tokens_details": {"text_tokens": 5, "image_tokens": 16},
    }  # fmt: skip


def test_logprobs_of_a_chat() -> None:
    answer = chat(logprobs=True, top_logprobs=1)
    wanted = {
        "token": "Hi", "bytes": [72, 105], "logprob": -0.5,
        "top_logprobs": [{"token": "Ho", "bytes": [72, 111], "logprob": -1.5}],
    }  # fmt: skip
    (chunk,) = events(answer.delta(Piece("Hi", 1, logprobs=(TOKEN,))))
    is_chunk(chunk)
    assert chunk["choices"][0]["logprobs"]["content"] == [wanted]
    whole = json.loads(answer.whole([Whole("Hi", [TOKEN], [])], DONE))
    assert whole["choices"][0]["logprobs"]["content"] == [wanted]
    assert json.loads(chat().whole([Whole("Hi", [], [])], DONE))["choices"][0]["logprobs"] is None


@pytest.mark.parametrize("prompt", ["say", [1, 2], ["say"], [[1, 2]]])
def test_completions(prompt: Any) -> None:
    answer = writer(openai_completions, prompt=prompt, logprobs=1)
    body = json.loads(answer.whole([Whole("HiHi", [TOKEN, TOKEN], [])], DONE))
    choice = Completion.model_validate(body, strict=True).choices[0]
    assert choice.text == "HiHi"
    assert choice.logprobs is not None
    assert (choice.logprobs.tokens, choice.logprobs.text_offset) == (["Hi", "Hi"], [0, 2])
    assert choice.logprobs.top_logprobs == [{"Ho": -1.5}] * 2
    answer = writer(openai_completions, prompt=prompt)
    data = answer.begin() + answer.delta(Piece("a", 1)) + answer.delta(Piece("", 1)) + answer.end(DONE)
    chunks = events(data)
    for chunk in chunks:
        Completion.model_validate({**chunk, "choices": [{**chunk["choices"][0], "finish_reason": "stop"}]}, strict=True)
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, "stop"]
    assert data.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize(("form", "wanted"), [(None, [0.5, -1.0]), ("float", [0.5, -1.0]), ("base64", "AAAAPwAAgL8=")])
def test_embeddings(form: str | None, wanted: Any) -> None:
    vector = base64.b64encode(struct.pack("<2f", 0.5, -1.0)).decode()
    body = json.loads(
        writer(openai_embeddings, input=["a", "b"], **({} if form is None else {"encoding_format": form})).whole(
            [Whole("", [], [], vector)] * 2, DONE
        )
    )
    assert [entry["embedding"] for entry in body["data"]] == [wanted] * 2
    assert [entry["index"] for entry in body["data"]] == [0, 1]
    assert (body["object"], body["model"]) == ("list", "asked")
    assert body["usage"] == {"prompt_tokens": 5, "total_tokens": 5}
    if form != "base64":
        CreateEmbeddingResponse.model_validate(body, strict=True)


def test_a_response_as_events() -> None:
    answer = writer(openai_responses, input="hi", tools=[{"type": "function", "name": "f"}], metadata={"a": "b"})
    data = answer.begin() + answer.delta(Piece("He", 1)) + answer.delta(Piece("y", 1))
    data += b"".join(answer.delta(Piece("", 1, tool_calls=(call,))) for call in CALLS)
    data += answer.end(DONE._replace(finishes=["tool_calls"]))
    said = events(data)
    for event in said:
        EVENT.validate_python(event)
    assert [event["sequence_number"] for event in said] == [*range(len(said))]
    assert [event["type"].removeprefix("response.") for event in said] == [
        "created", "in_progress", "output_item.added", "content_part.added", "output_text.delta", "output_text.delta",
        "output_text.done", "content_part.done", "output_item.done", "output_item.added",
        "function_call_arguments.delta", "function_call_arguments.delta", "function_call_arguments.done",
        "output_item.done", "completed",
    ]  # fmt: skip
    response = Response.model_validate(said[-1]["response"])
    assert response.output_text == "Hey"
    assert (response.output[1].name, response.output[1].arguments) == ("f", '{"a":1}')  # type: ignore[union-attr]
    assert response.metadata == {"a": "b"}
    assert b"[DONE]" not in data


def test_the_logprobs_of_a_call_open_no_message() -> None:
    response = writer(openai_responses, input="hi", include=["message.output_text.logprobs"])
    told = TokenLogprob(id=5, text="<", bytes=(60,), logprob=-0.1, top=())
    data = response.begin() + response.delta(Piece("", 1, logprobs=(told,)))
    data += response.delta(
        Piece("", 1, logprobs=(told,), tool_calls=(ToolDelta(index=0, id=f"call_{0:024x}", name="f"),))
    )
    data += response.delta(Piece("", 1, logprobs=(told,), tool_calls=(ToolDelta(index=0, arguments="{}"),)))
    last = events(data + response.end(DONE._replace(finishes=["tool_calls"])))[-1]["response"]
    assert [item["type"] for item in last["output"]] == ["function_call"]
    held = writer(openai_responses, input="hi", include=["message.output_text.logprobs"])
    data = held.begin() + held.delta(Piece("", 1, logprobs=(told,))) + held.delta(Piece("<a", 1, logprobs=(told,)))
    data += held.delta(Piece("", 1, logprobs=(told,)))
    (item,) = events(data + held.end(DONE))[-1]["response"]["output"]
    assert [one["token"] for one in item["content"][0]["logprobs"]] == ["<"] * 3


@pytest.mark.parametrize(("finish", "status"), [("stop", "completed"), ("length", "incomplete")])
def test_a_whole_response_and_one_that_ran_out(finish: str, status: str) -> None:
    done = DONE._replace(finishes=[finish])
    body = json.loads(writer(openai_responses, input="hi").whole([Whole("Hey", [], [])], done))
    response = Response.model_validate(body)
    assert (response.output_text, response.status) == ("Hey", status)
    assert (response.incomplete_details is not None) == (status == "incomplete")
    assert response.usage is not None
    assert response.usage.total_tokens == 7
    assert [item.status for item in response.output] == [status]  # type: ignore[union-attr]
    last = events(writer(openai_responses, input="hi").end(done))[-1]
    assert last["type"] == f"response.{status}"
    assert last["response"]["output"][0]["content"][0]["text"] == ""
    assert last["response"]["output"][0]["status"] == status


@pytest.mark.parametrize("dialect", [openai, openai_completions, openai_responses])
def test_a_stream_that_broke_ends_with_an_error_and_no_done(dialect: Any) -> None:
    body = {openai: {"messages": MESSAGES}, openai_completions: {"prompt": "x"}, openai_responses: {"input": "x"}}
    data = writer(dialect, **body[dialect]).error(ApiError("provider_lost"))
    (event,) = events(data)
    assert event["error"]["code"] == "provider_lost"
    assert event["error"]["param"] is None
    assert b"[DONE]" not in data


F_CALL = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
SHOWN = {"type": "input_image", "image_url": "data:,x", "detail": "low"}
RESPONSES: list[tuple[dict[str, Any], str]] = [
    ({}, "input"),
    ({"input": []}, "input"),
    ({"input": 5}, "input"),
    ({"input": [{"type": "reasoning"}]}, "input"),
    ({"input": "x", "background": 0}, "background"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0"),
    ({"input": [{"role": "robot", "content": "x"}]}, "input.0.role"),
    ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input.0.content.0"),
    ({"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]}, "input.0.content.0"),
    ({"input": [{"role": "system", "content": [{"type": "input_image", "image_url": "data:,x"}]}]}, "input"),
    ({"input": [{"role": "user", "content": []}]}, "input"),
    ({"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}, "messages.0.tool_call_id"),
    *(
        ({"input": [F_CALL, {"type": "function_call_output", "call_id": "c", "output": output}]}, f"input.1.output{at}")
        for output, at in (
            (5, ""),
            ([{"type": "input_file", "file_id": "f"}], ".0"),
            ([{"type": "refusal", "refusal": "no"}], ".0"),
            ([{"type": "input_image"}], ".0.image_url"),
            ([{"type": "input_image", "image_url": "data:,x", "file_id": "f"}], ".0.file_id"),
            ([{"type": "input_image", "image_url": ""}], ".0.image_url"),
            ([{"type": "input_text", "text": "x"}] * 2049, ""),
        )
    ),
    ({"input": [F_CALL, {"type": "function_call_output", "call_id": "c", "output": [SHOWN] * 17}]}, "messages.1"),
    ({"input": "x", "previous_response_id": "resp_1"}, "previous_response_id"),
    ({"input": "x", "conversation": "c"}, "conversation"),
    ({"input": "x", "background": True}, "background"),
    ({"input": "x", "prompt": {"id": "p"}}, "prompt"),
    ({"input": "x", "tools": [{"type": "web_search"}]}, "tools.0.type"),
    ({"input": "x", "tool_choice": {"type": "function", "name": "g"}}, "tool_choice"),
    ({"input": "x", "text": {"format": {"type": "grammar"}}}, "text.format"),
    ({"input": "x", "max_output_tokens": -1}, "max_output_tokens"),
    ({"input": "x", "temperature": 3}, "temperature"),
    ({"input": "x", "instructions": 5}, "instructions"),
]


@pytest.mark.parametrize(("body", "param"), RESPONSES, ids=lambda value: repr(value)[:50])
def test_what_a_response_is_not_made_of(body: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        writer(openai_responses, **body)
    assert caught.value.row.status == 400
    assert (caught.value.param or "").startswith(param)


@pytest.mark.parametrize("begins", [[], [{"role": "assistant", "content": [{"type": "output_text", "text": "Now"}]}]])
def test_calls_that_follow_each_other_are_one_message_s(begins: list[dict[str, Any]]) -> None:
    calls = [{"type": "function_call", "call_id": f"c{at}", "name": "f", "arguments": "{}"} for at in range(129)]
    body = {"model": "m", "input": [*begins, *calls[:128]]}
    (message,) = openai_responses.parse(orjson.dumps(body), {}).chat.messages
    assert [call["id"] for call in message["tool_calls"]] == [f"c{at}" for at in range(128)]
    assert message["content"] == ("Now" if begins else None)
    with pytest.raises(ApiError, match="128 function calls") as caught:
        openai_responses.parse(orjson.dumps({"model": "m", "input": [*begins, *calls]}), {})
    assert caught.value.code == "invalid_request"


def test_a_responses_input_becomes_messages() -> None:
    items = [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "weather?"}]},
        {"type": "reasoning", "summary": []},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "hm", "annotations": []}]},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}", "id": "fc_1", "status": "completed"},
        {"type": "function_call", "call_id": "c2", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "sun"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "rain"}]},
    ]
    body = {"model": "m", "input": items, "instructions": "be kind", "text": {"format": {"type": "json_object"}}}
    asked = openai_responses.parse(orjson.dumps({**body, "store": True}), {})
    messages = asked.chat.messages
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "tool", "tool"]
    assert [call["id"] for call in messages[2]["tool_calls"]] == ["c1", "c2"]
    assert (messages[2]["content"], messages[4]["content"]) == ("hm", "rain")
    assert set(asked.ignored) == {"store", "input.reasoning"}


def test_a_function_s_output_may_hold_images() -> None:
    parts = [{"type": "input_text", "text": "a map"}, SHOWN]
    outputs = [{"type": "function_call_output", "call_id": "c", "output": output} for output in (parts, [])]
    asked = openai_responses.parse(orjson.dumps({"model": "m", "input": [F_CALL, *outputs]}), {})
    assert [message["content"] for message in asked.chat.messages[1:]] == [
        [{"type": "text", "text": "a map"}, {"type": "image", "index": 0}], "",
    ]  # fmt: skip
    assert asked.chat.image_urls == ("data:,x",)
    assert asked.ignored == ("input.output.detail",)


COMPLETIONS: list[tuple[dict[str, Any], str]] = [
    ({}, "prompt"),
    ({"prompt": ""}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": [""]}, "prompt"),
    ({"prompt": [-1]}, "prompt"),
    ({"prompt": [1, "x"]}, "prompt"),
    ({"prompt": {}}, "prompt"),
    ({"prompt": ["x"] * 17}, "prompt"),
    ({"prompt": "x", "logprobs": 6}, "logprobs"),
    ({"prompt": "x", "logprobs": 0, "echo": True, "max_tokens": 0}, "logprobs"),
    ({"prompt": [1, 2], "logprobs": 0, "echo": True}, "logprobs"),
    ({"prompt": "x", "logprobs": True}, "logprobs"),
    ({"prompt": "x", "best_of": 2}, "best_of"),
    ({"prompt": "x", "best_of": 21}, "best_of"),
    ({"prompt": "x", "echo": "yes"}, "echo"),
    ({"prompt": "x", "suffix": 5}, "suffix"),
    ({"prompt": "x", "max_tokens": -1}, "max_tokens"),
]
EMBEDDINGS: list[tuple[dict[str, Any], str]] = [
    ({}, "input"),
    ({"input": ""}, "input"),
    ({"input": []}, "input"),
    ({"input": ["a", ""]}, "input"),
    ({"input": ["a"] * 2049}, "input"),
    ({"input": [[]]}, "input"),
    ({"input": [[1], "a", -1]}, "input"),
    ({"input": 5}, "input"),
    ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
    ({"input": "a", "dimensions": 0}, "dimensions"),
    ({"input": "a", "dimensions": "5"}, "dimensions"),
    ({"input": "a", "user": 5}, "user"),
]


@pytest.mark.parametrize(
    ("dialect", "body", "param"),
    [*((openai_completions, *case) for case in COMPLETIONS), *((openai_embeddings, *case) for case in EMBEDDINGS)],
    ids=lambda value: repr(value)[:50],
)
def test_what_the_other_forms_refuse(dialect: Any, body: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        writer(dialect, **body)
    assert caught.value.row.status == 400
    assert (caught.value.param or "").startswith(param)


def test_the_other_forms_name_what_has_no_effect() -> None:
    body = {"model": "m", "input": [[1, 2], [3]], "temperature": 0.1, "max_tokens": 5, "user": "u"}
    asked = openai_embeddings.parse(orjson.dumps(body), {})
    assert set(asked.ignored) == {"temperature", "max_tokens", "user"}
    assert asked.chat.prompts == ((1, 2), (3,))
    body = {"model": "m", "prompt": "x", "suffix": "end", "best_of": 1, "n": 2, "echo": True}
    asked = openai_completions.parse(orjson.dumps(body), {})
    assert (asked.ignored, asked.chat.n, asked.chat.echo, asked.chat.logprobs) == (("suffix",), 2, True, None)


def test_an_echo_beside_logprobs_is_written_here_and_named() -> None:
    body = {"model": "m", "prompt": ["ab", "c"], "echo": True, "logprobs": 0}
    asked = openai_completions.parse(orjson.dumps(body), {})
    assert (asked.ignored, asked.chat.echo) == (("echo.logprobs",), False)
    whole = json.loads(asked.writer("r", 1).whole([Whole("Hi", [TOKEN], [])] * 2, DONE._replace(finishes=["stop"] * 2)))
    assert [choice["text"] for choice in whole["choices"]] == ["abHi", "cHi"]
    assert [choice["logprobs"]["text_offset"] for choice in whole["choices"]] == [[2], [1]]
    answer = asked.writer("r", 1)
    chunks = events(answer.begin() + answer.delta(Piece("Hi", 1, choice=1, logprobs=(TOKEN,))))
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["ab", "c", "Hi"]
    assert chunks[2]["choices"][0]["logprobs"]["text_offset"] == [1]
