"""Every call that the five APIs document, as printed, with host and key changed, and what it is answered here."""

from __future__ import annotations

import base64
import json
import re
import struct
import zlib
from typing import Any

import httpx
import pytest

from infra import accounts
from tests.e2e.conftest import Running

HEX12, HEX32 = re.compile(r"req_[0-9a-f]{12}"), re.compile(r"[0-9a-f]{32}")


def _events(response: httpx.Response) -> list[Any]:
    lines = [line for line in response.text.split("\n\n") if line]
    return [line[6:] if line == "data: [DONE]" else json.loads(line[6:]) for line in lines]


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


async def _capped(real: Running) -> str:
    """A key that may have no request open."""
    return await accounts.create_key(real.db, "demo", "pro", open_max=0)


# A · Shiver, B · ShareAI, C · ComputeShare: /v1


@pytest.mark.parametrize(
    ("body", "served"),
    [
        ({"model": "shark-llama-3.3-70b", "messages": [_user("hello shiver")]}, "shark-llama-3.3-70b"),
        ({"model": "gpt-5.4-mini", "messages": [_user("Hello from ShareAI")]}, "shark-mini"),
        (
            {
                "model": "auto",
                "messages": [_system("You are a helpful assistant."), _user("Explain quantum entanglement briefly.")],
                "max_tokens": 200,
            },
            "shark-mini",
        ),
    ],
)
async def test_printed_chats_of_v1(real: Running, body: dict[str, Any], served: str) -> None:
    response = await real.post(body)
    assert response.status_code == 200
    answer = response.json()
    assert answer["choices"][0]["message"]["content"]
    assert (answer["model"], response.headers["x-shiver-model"]) == (body["model"], served)


WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


async def test_the_printed_tool_call_of_a(real: Running) -> None:
    body = {
        "model": "shark-llama-3.3-70b",
        "messages": [_user("weather in eindhoven")],
        "tools": [WEATHER],
        "temperature": 0,
    }
    response = await real.post(body)
    assert response.status_code == 200, response.text
    message = response.json()["choices"][0]["message"]
    (call,) = message["tool_calls"]
    assert call["function"]["name"] == "get_weather"
    assert "city" in json.loads(call["function"]["arguments"])
    result = {"role": "tool", "tool_call_id": call["id"], "content": '{"celsius": 12}'}
    answered = await real.post({**body, "messages": [*body["messages"], message, result]})
    assert answered.status_code == 200, answered.text
    assert answered.json()["choices"][0]["message"]["content"]


@pytest.mark.parametrize("model", ["shark-llama-3.3-70b-vision", "shark-gemma-9b-vision", "auto"])
async def test_printed_images_of_a(real: Running, model: str) -> None:
    image = {"type": "image_url", "image_url": {"url": _png()}}
    content = [{"type": "text", "text": "what is in this image?"}, image]
    response = await real.post({"model": model, "messages": [{"role": "user", "content": content}]})
    assert response.status_code == 200, response.text
    assert response.headers["x-shiver-model"].endswith("-vision")
    assert response.json()["choices"][0]["message"]["content"]
    blind = await real.post({"model": "shark-mini", "messages": [{"role": "user", "content": content}]})
    assert (blind.status_code, blind.json()["error"]["code"]) == (400, "model_cannot")


async def test_printed_embeddings_of_a(real: Running) -> None:
    body = {"model": "shark-embed-large-v1", "input": ["text to embed", "another text"]}
    response = await real.post(body, path="/v1/embeddings")
    assert response.status_code == 200, response.text
    assert [len(one["embedding"]) for one in response.json()["data"]] == [1536, 1536]
    wrong = await real.post({"model": "shark-embed-large-v1", "messages": [_user("hi")]})
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (400, "model_cannot")


def _png() -> str:
    """A red square of 64 x 64 as a data URI."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress((b"\0" + b"\xff\0\0" * 64) * 64)
    head = struct.pack(">IIBBBBB", 64, 64, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(png).decode()


async def test_the_models_need_no_key_and_say_what_really_serves(real: Running) -> None:
    response = await real.http.get("/v1/models")
    models = {model["id"]: model for model in response.json()["data"]}
    published = {"shark-llama-3.3-70b", "shark-llama-3.3-70b-vision", "shark-mistral-24b-cold", "shark-gemma-9b",
                 "shark-gemma-9b-vision", "shark-embed-large-v1", "shark-mini"}  # fmt: skip
    aliases = {"gpt-5.4-mini", "qwen/qwen3-4b-fp8", "llama-3.2-1b-instruct", "claude-sonnet-4-20250514"}
    assert set(models) == published | aliases
    big = models["shark-llama-3.3-70b-vision"]
    assert big["context_window"] == 1024  # the small model's, and not the published one's
    assert big["modalities"] == {"input": ["text", "image"], "output": ["text"]}
    assert big["pricing"] == {
        "SHIVER": {"input": "3500", "output": "7000", "unit": "1M tokens"},
        "USDC": {"input": "0.35", "output": "0.7", "unit": "1M tokens"},
    }
    assert (big["owned_by"], big["nodes_online"]) == ("shiver", 1)
    assert models["shark-embed-large-v1"]["modalities"]["output"] == ["embedding"]
    assert {models[alias]["alias_of"] for alias in aliases} == {"shark-mini"}
    for name in ("shark-mini", "qwen/qwen3-4b-fp8", "qwen%2Fqwen3-4b-fp8"):
        one = (await real.http.get(f"/v1/models/{name}")).json()
        assert one == models[name.replace("%2F", "/")]


async def test_models_that_are_not_there_and_models_stay(real: Running) -> None:
    missing = await real.http.get("/v1/models/qwen/none")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")
    headers = {"authorization": f"Bearer {real.pro}"}
    refused = await real.http.delete("/v1/models/qwen/qwen3-4b-fp8", headers=headers)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "models_read_only")
    stranger = await real.http.delete("/v1/models/shark-mini")
    assert stranger.json()["error"]["code"] == "missing_api_key"


async def test_wishes_nobody_meets_are_a_503_that_says_why(real: Running) -> None:
    body = {
        "model": "auto",
        "messages": [_user("hi")],
        "trusted_only": True,
        "fallback_models": ["gpt-5.4-mini"],
    }
    headers = {"authorization": f"Bearer {real.pro}", "x-shiver-trace": "1"}
    response = await real.http.post("/v1/chat/completions", json=body, headers=headers)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (503, "no_provider_available")
    assert "shark-mini: 1 serve it, trusted_only excluded 1, 0 left" in error["message"]
    assert "trusted_only excluded 1" in response.headers["x-shiver-route"]
    assert "retry-after" not in response.headers  # waiting does not make a node trusted
    for wrong in ({"allow_hosters": ["home"]}, {"tier": "best"}, {"max_latency_ms": -1}, {"privacy_mode": "yes"}):
        refused = await real.post({**body, **wrong})
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_request"), wrong
    unknown = await real.post({**body, "fallback_models": ["none"]})
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (400, "model_not_found")


async def test_an_operator_s_word_makes_a_provider_trusted(real: Running) -> None:
    from infra import catalog

    (provider,) = real.stack.providers.values()
    body = {"model": "shark-mini", "messages": [_user("hi")], "trusted_only": True, "allow_hosters": [provider]}
    try:
        await catalog.set_trust(real.db, provider, "0.9")

        async def served() -> bool:
            return (await real.post(body)).status_code == 200

        await real.until(served, 15, "the ingress has read the trust")
    finally:
        await catalog.set_trust(real.db, provider, "0.5")
    assert re.fullmatch(r"[0-9a-f-]{36}", provider)


async def test_a_key_barred_from_a_model_is_told_so_before_its_limits(real: Running) -> None:
    key = await accounts.create_key(real.db, "demo", "pro", open_max=0, models=["shark-gemma-9b"])
    refused = await real.post({"model": "shark-mini", "messages": [_user("hi")]}, key=key)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "model_not_allowed")


async def test_a_usdc_wallet_is_held_and_charged_at_usdc_prices(real: Running) -> None:
    """The hold of 4,096 tokens at the SHIVER price would be 10,000 times what this wallet has."""
    from infra.append import appending

    wallet = "usdc-e2e"
    async with real.db.acquire() as db:
        await accounts.create_wallet(db, wallet, wallet, 8, "USDC")
    append = appending(real.stack.kafka, 8)
    await accounts.credit(real.db, append, wallet, 2 * 10**6, "usdc-e2e-1", "test")
    key = await accounts.create_key(real.db, wallet, "pro")

    async def booked() -> bool:
        return await accounts.credit_is_booked(real.db, wallet, "usdc-e2e-1")

    await real.until(booked, what="the credit")
    body = {"model": "shark-llama-3.3-70b", "messages": [_user("what is 7 plus 5?")], "temperature": 0}
    response = await real.post(body, key=key)
    assert response.status_code == 200, response.text
    usage = response.json()["usage"]
    nano = 350 * usage["prompt_tokens"] + 700 * usage["completion_tokens"]
    assert response.headers["x-shiver-cost"] == accounts.format_amount(nano, "USDC")

    async def entries() -> dict[str, int]:
        rows = await real.db.fetch(
            "select account, asset, amount_nano from derived.entries where request_id = $1",
            response.headers["x-shiver-request-id"],
        )
        assert {row["asset"] for row in rows} <= {"USDC"}
        return {row["account"]: row["amount_nano"] for row in rows}

    found = await real.until(entries, what="its entries")
    assert found[f"wallet:{wallet}"] == -nano
    assert sum(found.values()) == 0
    too_much = await real.post({**body, "max_tokens": 1024, "n": 8}, key=key)
    error = too_much.json()["error"]
    assert (too_much.status_code, error["code"]) == (402, "insufficient_balance")
    assert "USDC" in error["message"]


# D · Shreyansh Cloud: /v3


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [_user("Hello!")]},
        {"messages": [_user("How are you?")]},
        {
            "messages": [
                _system("You are a helpful assistant that translates English to French."),
                _user("Translate the following English text to French: Hello, how are you?"),
            ],
            "temperature": 0.3,
            "max_tokens": 100,
        },
        {
            "messages": [
                _system("You are a knowledgeable science tutor."),
                _user("Explain quantum computing in simple terms."),
            ],
            "temperature": 0.5,
            "max_tokens": 500,
            "top_p": 0.9,
            "frequency_penalty": 0.2,
            "presence_penalty": 0.3,
        },
    ],
)
@pytest.mark.parametrize("model", ["qwen/qwen3-4b-fp8", "llama-3.2-1b-instruct"])
async def test_printed_chats_of_v3(real: Running, model: str, body: dict[str, Any]) -> None:
    response = await real.post({"model": model, **body}, path="/v3/chat/completions")
    assert response.status_code == 200, response.text
    answer = response.json()
    assert HEX32.fullmatch(answer["id"])
    assert answer["model"] == model
    assert answer["choices"][0]["message"]["content"]
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] + answer["usage"]["completion_tokens"]


async def test_a_stream_of_v3(real: Running) -> None:
    body = {"model": "qwen/qwen3-4b-fp8", "messages": [_user("Hello!")], "stream": True}
    *chunks, done = _events(await real.post(body, path="/v3/chat/completions"))
    assert done == "[DONE]"
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks][-1] == "stop"
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert HEX32.fullmatch(chunks[0]["id"])


async def test_the_models_of_v3_need_a_key(real: Running) -> None:
    refused = await real.http.get("/v3/models")
    assert (refused.status_code, refused.json()["error"]["code"]) == (401, 401)
    listed = await real.http.get("/v3/models", headers={"authorization": f"Bearer {real.pro}"})
    assert {"qwen/qwen3-4b-fp8", "llama-3.2-1b-instruct"} <= {model["id"] for model in listed.json()["data"]}


async def test_errors_of_v3_have_their_numbers(real: Running) -> None:
    good = {"model": "qwen/qwen3-4b-fp8", "messages": [_user("Hello!")]}
    path = "/v3/chat/completions"
    for body, status in (
        ({**good, "temperature": 1.1}, 400),
        ({"messages": good["messages"]}, 400),
        (b"{", 400),
        ({**good, "model": "qwen/none"}, 404),
    ):
        response = await real.post(body, path=path)
        error = response.json()["error"]
        assert (response.status_code, error["code"]) == (status, status)
        assert set(error) == {"message", "type", "code"}
        assert len(response.headers["x-shiver-request-id"]) == 36
    stranger = await real.post(good, path=path, key="sk-nothing")
    assert (stranger.status_code, stranger.json()["error"]["code"]) == (401, 401)
    lost = await real.post(good, path="/v3/nothing")
    assert (lost.status_code, lost.json()["error"]["code"]) == (404, 404)
    capped = await real.post(good, path=path, key=await _capped(real))
    assert capped.status_code == 429
    assert capped.json() == {"error": {"message": "Rate limit exceeded", "type": "rate_limit_exceeded", "code": 429}}
    assert int(capped.headers["retry-after"]) >= 1


# E · Shadow Labs: /v1/inference, /v1/usage, /v1/health

INFERENCE = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 1024}


async def _infer(real: Running, body: Any, key: str | None = None) -> httpx.Response:
    headers = {"x-api-key": real.pro if key is None else key}
    content: dict[str, Any] = {"content": body} if isinstance(body, bytes) else {"json": body}
    return await real.http.post("/v1/inference", headers=headers, **content)


async def test_the_printed_inference(real: Running) -> None:
    response = await _infer(real, INFERENCE)
    answer = response.json()
    assert set(answer) == {"id", "content", "model", "usage", "stop_reason"}
    assert HEX12.fullmatch(answer["id"])
    assert answer["content"]
    assert (answer["model"], answer["stop_reason"]) == ("claude-sonnet-4-20250514", "end_turn")
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert usage["output_tokens"] > 0
    short = (await _infer(real, {**INFERENCE, "max_tokens": 1})).json()
    assert (short["stop_reason"], short["usage"]["output_tokens"]) == ("max_tokens", 1)


async def test_an_inference_stream(real: Running) -> None:
    response = await _infer(real, {**INFERENCE, "temperature": 0.0, "stream": True})
    *deltas, stop = _events(response)
    assert {delta["type"] for delta in deltas} == {"content_delta"}
    whole = (await _infer(real, {**INFERENCE, "temperature": 0.0})).json()
    assert "".join(delta["delta"] for delta in deltas) == whole["content"]
    assert stop == {"type": "message_stop", "usage": {"total_tokens": whole["usage"]["total_tokens"]}}
    assert "[DONE]" not in response.text


async def test_errors_of_inference_carry_detail(real: Running) -> None:
    for change, status in (
        ({"max_tokens": 0}, 422),
        ({"max_tokens": 8193}, 422),
        ({"temperature": 1.01}, 422),
        ({"messages": []}, 422),
        ({"messages": None}, 422),
        ({"model": "gpt-nothing"}, 422),
        ({"tools": []}, 422),
        ({"context": "x"}, 422),
    ):
        response = await _infer(real, {**INFERENCE, **change})
        assert response.status_code == status, change
        assert response.json()["detail"]
    assert (await _infer(real, b"{")).status_code == 422
    assert (await _infer(real, INFERENCE, key="nothing")).status_code == 401
    both = await real.http.post(
        "/v1/inference", json=INFERENCE, headers={"x-api-key": real.pro, "authorization": f"Bearer {real.dev}"}
    )
    assert (both.status_code, both.json()["code"]) == (400, "conflicting_api_keys")
    capped = await _infer(real, INFERENCE, await _capped(real))
    assert (capped.status_code, capped.json()["code"]) == (429, "open_request_cap")
    assert int(capped.headers["retry-after"]) >= 1
    poor = "poor-inference"
    async with real.db.acquire() as db:
        await accounts.create_wallet(db, poor, poor, 8)
    broke = await _infer(real, INFERENCE, await accounts.create_key(real.db, poor, "pro"))
    assert (broke.status_code, broke.json()["code"]) == (402, "insufficient_balance")


async def test_usage_counts_the_month_and_health_needs_no_key(real: Running) -> None:
    headers = {"x-api-key": real.pro}
    before = (await real.http.get("/v1/usage", headers=headers)).json()
    assert before["customer_id"] == "demo"
    assert re.fullmatch(r"\d{4}-\d\d", before["period"])
    assert before["message"] == "Usage is eventually consistent."
    tokens = (await _infer(real, INFERENCE)).json()["usage"]["total_tokens"]

    async def counted() -> bool:
        after = (await real.http.get("/v1/usage", headers=headers)).json()
        return after["total_tokens"] >= before["total_tokens"] + tokens

    await real.until(counted, what="the month's tokens")
    refused = await real.http.get("/v1/usage")
    assert (refused.status_code, list(refused.json())) == (401, ["detail", "code"])
    health = await real.http.get("/v1/health")
    assert health.json() == {"status": "ok", "model": "claude-sonnet-4-20250514"}
