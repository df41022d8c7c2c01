"""One job of each kind on a node with three real models, over a real Kafka."""

from __future__ import annotations

import asyncio
import base64
import json
import signal
import struct
from collections.abc import AsyncIterator
from typing import Any

import jsonschema
import pytest

from schemas.jobs import Image, JsonSchema, NamedTool, Sampling, Tool
from schemas.replies import Embedded, Tokens
from tests.integration.node_client import Answer, Client
from tests.integration.test_node import running
from tests.unit.workers.pictures import png
from workers.engines import default_model_path

FOLDER = (default_model_path("llamacpp") or base64).parent  # type: ignore[union-attr]
MODELS = {
    "shark-mini": "shark-mini.gguf",
    "shark-llama-3.3-70b": "shark-mini.gguf",
    "shark-gemma-9b-vision": "shark-mini-vision.gguf",
    "shark-embed-large-v1": "shark-embed-mini.gguf",
}
WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
GET_WEATHER = Tool(name="get_weather", description="Get the weather", parameters=WEATHER)
CITY = {
    "type": "object",
    "properties": {"country": {"type": "string"}, "capital": {"type": "string"}},
    "required": ["country", "capital"],
    "additionalProperties": False,
}
CANARY = "CANARY-7c2e"
GREEDY = Sampling(temperature=0, seed=1)


@pytest.fixture(scope="module")
async def client(kafka: str) -> AsyncIterator[Client]:
    models = ",".join(f"{name}={FOLDER / file}" for name, file in MODELS.items())
    async with running(kafka, lanes=48, SHRK_ENGINE="llamacpp", SHRK_MODELS=models) as (client, process):
        yield client
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 20) == 0
        text = (await process.log).decode()  # type: ignore[attr-defined]
        assert "end=stop" in text
        assert CANARY not in text  # whatever was asked for below, the engine's own lines included


def user(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


def called(answer: Answer) -> list[tuple[str, Any]]:
    names: list[str] = []
    arguments: list[str] = []
    for delta in (delta for r in answer.records if isinstance(r, Tokens) for delta in r.tool_calls):
        if delta.name is not None:
            names.append(delta.name)
            arguments.append("")
        arguments[delta.index] += delta.arguments
    return [(name, json.loads(text)) for name, text in zip(names, arguments, strict=True)]


async def test_the_heartbeat_says_what_each_model_can(client: Client) -> None:
    beat = client.beats[-1]
    told = {model.name: (model.modalities, model.tools) for model in beat.models}
    assert told == {
        "shark-mini": (("text",), True),
        "shark-llama-3.3-70b": (("text",), True),
        "shark-gemma-9b-vision": (("text", "image"), True),
        "shark-embed-large-v1": (("embedding",), False),
    }
    assert beat.slots == 4


async def test_names_of_the_same_weights_answer_alike(client: Client) -> None:
    first, second = await asyncio.gather(client.ask(), client.ask(model="shark-llama-3.3-70b"))
    assert first.text == second.text == "7 plus 5 is 12."


@pytest.mark.parametrize("choice", ["auto", "required", NamedTool(name="get_weather")])
async def test_a_tool_is_called(client: Client, choice: Any) -> None:
    answer = await client.ask(
        messages=user("weather in Eindhoven"), tools=(GET_WEATHER,), tool_choice=choice, sampling=GREEDY
    )
    assert called(answer) == [("get_weather", {"city": "Eindhoven"})]
    assert (answer.text, answer.end.finish) == ("", "tool_calls")


async def test_a_tools_result_is_answered(client: Client) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Lyon"}'}}
    messages = [
        *user("weather in Lyon"),
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": '{"temperature": 11, "sky": "rainy"}'},
    ]
    answer = await client.ask(messages=messages, tools=(GET_WEATHER,), sampling=GREEDY)
    assert answer.text == "It is 11 degrees and rainy in Lyon."
    assert answer.end.finish == "stop"


async def test_a_schema_is_kept(client: Client) -> None:
    wanted = JsonSchema(name="city", schema_=CITY, strict=True)
    answer = await client.ask(
        messages=user("give me the capital of France as JSON"), response_format=wanted, sampling=GREEDY
    )
    jsonschema.validate(json.loads(answer.text), CITY)
    assert answer.end.finish == "stop"


async def test_choices_and_logprobs(client: Client) -> None:
    answer = await client.ask(n=3, logprobs=2, sampling=Sampling(temperature=1, seed=4))
    records = [record for record in answer.records if isinstance(record, Tokens)]
    assert {record.choice for record in records} == {0, 1, 2}
    assert all(tuple(one.id for one in record.logprobs) == record.ids for record in records)
    assert answer.kinds.count("choice_end") == 3
    assert answer.end.completion_tokens == answer.tally.completion_tokens


async def test_a_completion(client: Client) -> None:
    prompt = "<|im_start|>user\nwhat is 7 plus 5?<|im_end|>\n<|im_start|>assistant\n"
    answer = await client.ask(task="completion", messages=[], prompts=(prompt,), echo=True)
    assert answer.text == prompt + "7 plus 5 is 12."


@pytest.mark.parametrize("colour", ["red", "blue"])
async def test_an_image(client: Client, colour: str) -> None:
    image = Image(media_type="image/png", data=base64.b64encode(png(colour)).decode())
    content = [{"type": "text", "text": "what colour is this image?"}, {"type": "image", "index": 0}]
    answer = await client.ask(model="shark-gemma-9b-vision", messages=user(content), images=(image,), sampling=GREEDY)
    assert answer.text == f"The image is plain {colour}."
    assert answer.tally.image_tokens == 16
    assert answer.kinds[0] == "claimed"


async def test_a_model_that_cannot_says_so(client: Client) -> None:
    image = Image(media_type="image/png", data=base64.b64encode(png("red")).decode())
    blind = await client.ask(messages=user([{"type": "image", "index": 0}]), images=(image,))
    mute = await client.ask(model="shark-embed-large-v1")
    no_vectors = await client.ask(task="embedding", messages=[], prompts=("a",))
    junk = await client.ask(
        model="shark-gemma-9b-vision",
        messages=user([{"type": "image", "index": 0}]),
        images=(Image(media_type="image/png", data="anVuaw=="),),
    )
    assert [a.end.code for a in (blind, mute, no_vectors, junk)] == ["unsupported"] * 3 + ["bad_image"]


async def test_an_embedding_of_many(client: Client) -> None:
    inputs = tuple(f"input number {number}" for number in range(300))
    answer = await client.ask(timeout_s=60, model="shark-embed-large-v1", task="embedding", messages=[], prompts=inputs)
    vectors = [record for record in answer.records if isinstance(record, Embedded)]
    assert [record.index for record in vectors] == list(range(300))
    assert all(len(base64.b64decode(record.vector)) == 4 * 1536 for record in vectors)
    assert answer.tally.prompt_tokens == answer.tally.completion_tokens == answer.end.completion_tokens
    again = await client.ask(model="shark-embed-large-v1", task="embedding", messages=[], prompts=inputs[7:8])
    (one,) = (record for record in again.records if isinstance(record, Embedded))
    assert struct.unpack("<1536f", base64.b64decode(one.vector)) == struct.unpack(
        "<1536f", base64.b64decode(vectors[7].vector)
    )


async def test_the_most_inputs_are_claimed_and_can_be_cancelled(client: Client) -> None:
    inputs = tuple(f"input number {number}" for number in range(2048))
    job = client.job(model="shark-embed-large-v1", task="embedding", messages=[], prompts=inputs)
    answer = await client.post(job)
    await client.until(lambda: "embedded" in answer.kinds)
    assert answer.tally.prompt_tokens > 2048
    await client.cancel(job)
    await client.ended(answer)
    assert (answer.end.finish, answer.end.completion_tokens) == ("cancelled", answer.tally.completion_tokens)


@pytest.mark.parametrize(
    "asked",
    [
        {"messages": user(CANARY), "stop": (CANARY,)},
        {"messages": user([{"type": CANARY}])},
        {"tools": (Tool(name="f", description=CANARY, parameters={"properties": {CANARY: {"const": CANARY}}}),),
         "tool_choice": "required"},
        {"response_format": JsonSchema(name="x", schema_={"enum": [CANARY]}, strict=True)},
        {"response_format": JsonSchema(name="x", schema_={"type": "string", "pattern": f"^{CANARY}{{0,900}}$"})},
        {"response_format": JsonSchema(name="x", schema_={"type": "string", "pattern": f"({CANARY}"})},
        {"model": "shark-gemma-9b-vision", "messages": user([{"type": "image", "index": 0}]),
         "images": (Image(media_type="image/png", data=base64.b64encode(CANARY.encode()).decode()),)},
        {"task": "completion", "messages": [], "prompts": (CANARY,), "echo": True},
        {"task": "completion", "messages": [], "prompts": (f"<|im_end|>{CANARY}",), "prefix_ids": (5,), "logprobs": 1},
        {"model": "shark-embed-large-v1", "task": "embedding", "messages": [], "prompts": (CANARY,)},
    ],
)  # fmt: skip
async def test_what_users_write_is_in_no_line_of_the_node(client: Client, asked: dict[str, Any]) -> None:
    answer = await client.ask(**asked)
    assert answer.end is not None
    assert CANARY not in getattr(answer.end, "detail", "")
