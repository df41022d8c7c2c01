"""The official client against the real engine: content, streams, usage, cost, headers, errors."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import openai
import pytest

from tests.e2e.conftest import Running
from tests.unit.workers.pictures import png

QUESTION = {"role": "user", "content": "what is 7 plus 5?"}
ANSWER = "7 plus 5 is 12."


@pytest.fixture
async def client(real: Running) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{real.base_url}/v1", api_key=real.pro, max_retries=0) as made:
        yield made


async def test_an_answer_its_usage_and_what_it_cost(client: openai.AsyncOpenAI, real: Running) -> None:
    raw = await client.chat.completions.with_raw_response.create(
        model="shark-mini", messages=[QUESTION], temperature=0, max_tokens=50
    )
    answer = raw.parse()
    assert answer.choices[0].message.content == ANSWER
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == "shark-mini"
    usage = answer.usage
    assert usage is not None
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens > usage.completion_tokens > 5
    request_id = raw.headers["x-shiver-request-id"]
    assert answer.id == f"chatcmpl-{request_id}"
    assert raw.headers["x-shiver-node"].startswith("node_")
    price = await real.db.fetchrow("select in_nano, out_nano from state.models where model = 'shark-mini'")
    nano = price["in_nano"] * usage.prompt_tokens + price["out_nano"] * usage.completion_tokens
    cost, asset = raw.headers["x-shiver-cost"].split()
    assert (int(Decimal(cost) * 10**9), asset) == (nano, "SHIVER")

    async def entries() -> list[tuple[str, int]]:
        rows = await real.db.fetch("select account, amount_nano from derived.entries where request_id = $1", request_id)
        return [(row["account"], row["amount_nano"]) for row in rows]

    booked = dict(await real.until(entries, what="entries"))
    assert sum(booked.values()) == 0
    assert booked["wallet:demo"] == -nano
    assert booked["burn"] == nano // 100
    provider = sum(amount for account, amount in booked.items() if account.startswith("provider:"))
    assert provider == (nano - nano // 100) * 90 // 100


async def test_a_stream_says_the_same(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="shark-mini", messages=[QUESTION], temperature=0, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == ANSWER
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 5
    assert len(chunks) > 5  # token by token, not in one piece


async def test_length_and_stop(client: openai.AsyncOpenAI) -> None:
    cut = await client.chat.completions.create(model="shark-mini", messages=[QUESTION], temperature=0, max_tokens=2)
    assert cut.choices[0].finish_reason == "length"
    assert cut.usage is not None
    assert cut.usage.completion_tokens == 2
    stopped = await client.chat.completions.create(model="shark-mini", messages=[QUESTION], temperature=0, stop=["is"])
    assert stopped.choices[0].message.content == "7 plus 5 "
    assert stopped.choices[0].finish_reason == "stop"


async def test_no_tokens_cost_nothing(client: openai.AsyncOpenAI) -> None:
    raw = await client.chat.completions.with_raw_response.create(model="shark-mini", messages=[QUESTION], max_tokens=0)
    assert raw.parse().choices[0].finish_reason == "length"
    assert raw.headers["x-shiver-cost"] == "0 SHIVER"


async def test_a_sandbox_key_pays_nothing_and_the_platform_does(real: Running) -> None:
    response = await real.post({"model": "shark-mini", "messages": [QUESTION], "temperature": 0}, key=real.dev)
    assert response.status_code == 200
    assert response.json()["choices"][0]["message"]["content"] == ANSWER
    assert response.headers["x-shiver-cost"] == "0 SHIVER"
    request_id = response.headers["x-shiver-request-id"]

    async def payer() -> list[str]:
        rows = await real.db.fetch(
            "select account from derived.entries where request_id = $1 and amount_nano < 0", request_id
        )
        return [row["account"] for row in rows]

    assert await real.until(payer, what="entries") == ["platform:sandbox"]


async def test_models(client: openai.AsyncOpenAI) -> None:
    models = {model.id: model async for model in client.models.list()}
    assert models["shark-mini"].owned_by == "shiver"
    assert models["shark-mini"].created > 0


async def test_the_clients_own_error_classes(client: openai.AsyncOpenAI, real: Running) -> None:
    with pytest.raises(openai.BadRequestError) as unknown:
        await client.chat.completions.create(model="no-such", messages=[QUESTION])
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.AuthenticationError) as bad:
        await client.with_options(api_key="sk-nonsense").chat.completions.create(
            model="shark-mini", messages=[QUESTION]
        )
    assert bad.value.code == "invalid_api_key"
    long = [{"role": "user", "content": "what is 7 plus 5? " * 400}]
    with pytest.raises(openai.BadRequestError) as too_long:
        await client.chat.completions.create(model="shark-mini", messages=long)
    assert too_long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as streamed:
        await client.chat.completions.create(model="shark-mini", messages=long, stream=True)
    assert streamed.value.code == "context_length_exceeded"
    await real.quiet()


async def test_an_image_of_a_tool_costs_what_an_image_of_a_user_costs(real: Running) -> None:
    image = {
        "type": "image_url",
        "image_url": {"url": "data:image/png;base64," + base64.b64encode(png("red")).decode()},
    }
    call = {"id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    body = {"model": "shark-gemma-9b-vision", "max_tokens": 4, "temperature": 0}

    async def nano_of_prompt(where: int, *parts: Any) -> tuple[int, dict[str, Any]]:
        said = [
            {"role": "user", "content": "look around"},
            {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c"},
        ]
        content = [{"type": "text", "text": "a red room"}, *parts]
        messages = [{"content": "a red room", **message} for message in said]
        messages[where] = {**said[where], "content": content}
        response = await real.post({**body, "messages": messages})
        assert response.status_code == 200, response.text
        usage = response.json()["usage"]
        cost_nano = Decimal(response.headers["x-shiver-cost"].removesuffix(" SHIVER")) * 10**9
        return int(cost_nano) - 600_000 * usage["completion_tokens"], usage

    for where in (0, 2):
        text_nano, text = await nano_of_prompt(where)
        seen_nano, seen = await nano_of_prompt(where, image)
        assert text_nano == 300_000 * text["prompt_tokens"]
        image_tokens = seen["prompt_tokens"] - text["prompt_tokens"]
        assert image_tokens == 16
        assert seen_nano - text_nano == 2 * 300_000 * image_tokens
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": [call]}]
    answer = {"role": "tool", "tool_call_id": "c", "content": [image]}
    blind = await real.post({"model": "shark-mini", "messages": [*messages, answer]})
    assert (blind.status_code, blind.json()["error"]["code"]) == (400, "model_cannot")
    junk = {**answer, "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}]}
    refused = await real.post({**body, "messages": [*messages, junk]})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_image")
