"""A browser's way through the whole stack: a session of a server's key, what it may do, how it ends; and the limits
that an operator sets."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest

from infra import accounts
from schemas import keys
from tests.e2e.conftest import Running

QUESTION = {"role": "user", "content": "what is 7 plus 5?"}
CHAT: dict[str, Any] = {"model": "shark-mini", "messages": [QUESTION], "temperature": 0, "max_tokens": 50}
PAGE = {"origin": "https://app.example.com"}


async def opened(real: Running, key: str, **body: Any) -> dict[str, Any]:
    response = await real.post(body, key=key, path="/v1/sessions")
    assert response.status_code == 200, response.text
    return response.json()


def code(response: httpx.Response) -> tuple[int, str]:
    body = response.json()
    return response.status_code, body["error"]["code"] if "error" in body else body["code"]


async def test_a_browser_s_session_streams_an_answer_for_its_key(real: Running) -> None:
    key = await accounts.create_key(real.db, "demo", "pro")
    session = await opened(real, key, models=["shark-mini"], origins=[PAGE["origin"]])
    assert session["models"] == ["shark-mini"]
    async with openai.AsyncOpenAI(
        base_url=f"{real.base_url}/v1", api_key=session["token"], max_retries=0, default_headers=PAGE
    ) as client:
        raw = await client.chat.completions.with_raw_response.create(**CHAT, stream=True)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in raw.parse() if chunk.choices])
        assert text == "7 plus 5 is 12."
        assert raw.headers["access-control-allow-origin"] == "*"
        assert "x-shiver-request-id" in raw.headers["access-control-expose-headers"]
        with pytest.raises(openai.PermissionDeniedError) as barred:
            await client.embeddings.create(model="shark-embed-large-v1", input="text")
        assert barred.value.code == "model_not_allowed"
    owner = keys.parse(key)
    assert owner is not None

    async def booked() -> Any:
        return await real.db.fetchrow(
            "select key_id, wallet_id from derived.requests where request_id = $1 and status = 'charged'",
            raw.headers["x-shiver-request-id"],
        )

    assert tuple(await real.until(booked, what="the books have it")) == (owner.key_id, "demo")

    token = session["token"]
    elsewhere = {"authorization": f"Bearer {token}", "origin": "https://evil.example"}
    assert code(await real.http.post("/v1/chat", json=CHAT, headers=elsewhere)) == (403, "origin_not_allowed")
    assert code(await real.post(CHAT, key=token)) == (403, "origin_not_allowed")


async def test_what_a_session_may_and_may_not(real: Running) -> None:
    token = (await opened(real, real.pro))["token"]
    for path, body in (
        ("/v1/chat", CHAT),
        ("/v1/completions", {"model": "shark-mini", "prompt": ["a", "b"], "max_tokens": 2}),
        ("/v1/embeddings", {"model": "shark-embed-large-v1", "input": "text to embed"}),
        ("/v1/responses", {"model": "shark-mini", "input": "hi", "temperature": 0, "max_output_tokens": 16}),
        ("/v1/inference", {"messages": [QUESTION], "max_tokens": 5}),
        ("/v3/chat/completions", {**CHAT, "model": "qwen/qwen3-4b-fp8"}),
    ):
        response = await real.post(body, key=token, path=path)
        assert response.status_code == 200, (path, response.text)
    bearer = {"authorization": f"Bearer {token}"}
    for path in ("/v1/models", "/v3/models"):
        assert (await real.http.get(path, headers=bearer)).status_code == 200
    assert code(await real.http.get("/v1/usage", headers=bearer)) == (403, "session_not_allowed")
    assert code(await real.post({}, key=token, path="/v1/sessions")) == (403, "session_not_allowed")
    assert code(await real.post({"max_cost": 1}, key=real.pro, path="/v1/sessions")) == (400, "invalid_request")
    assert code(await real.post({}, key="", path="/v1/sessions")) == (401, "missing_api_key")


async def test_a_session_ends_with_its_time_or_its_key(real: Running) -> None:
    key = await accounts.create_key(real.db, "demo", "pro")
    first, second = [await opened(real, key, expires_in=60) for _ in range(2)]
    for session in (first, second):
        assert (await real.post(CHAT, key=session["token"])).status_code == 200
    token = keys.parse(first["token"])
    assert token is not None
    await real.db.execute(
        "update state.sessions set expires_at = clock_timestamp() where session_id = $1", token.key_id
    )
    async with openai.AsyncOpenAI(base_url=f"{real.base_url}/v1", api_key=first["token"], max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError) as over:
            await client.chat.completions.create(**CHAT)
    assert over.value.code == "session_expired"
    # Its form is not judged either: a malformed body is told to the living alone.
    assert code(await real.post(b"{", key=first["token"])) == (401, "session_expired")
    assert (await real.post(CHAT, key=second["token"])).status_code == 200
    await accounts.revoke_key(real.db, key)
    assert code(await real.post(CHAT, key=second["token"])) == (401, "revoked_api_key")
    assert code(await real.post({}, key=key, path="/v1/sessions")) == (401, "revoked_api_key")
    await real.quiet()
    for path in real.stack.state.logs.glob("*"):
        text = path.read_text(errors="replace")
        for session in (first, second):
            assert session["token"] not in text, path.name


async def test_a_browser_s_question_before_a_call(real: Running) -> None:
    asked = "authorization,content-type,x-shiver-strict,x-stainless-arch,x-stainless-retry-count,x-stainless-timeout"
    response = await real.http.options(
        "/v1/chat/completions",
        headers={**PAGE, "access-control-request-method": "POST", "access-control-request-headers": asked},
    )
    assert (response.status_code, response.headers["access-control-allow-origin"]) == (204, "*")
    assert set(asked.split(",")) <= set(response.headers["access-control-allow-headers"].split(", "))
    refused = await real.http.post("/v1/chat", json=CHAT, headers=PAGE)
    assert code(refused) == (401, "missing_api_key")
    assert refused.headers["access-control-allow-origin"] == "*"


async def test_requests_a_minute(real: Running) -> None:
    key = await accounts.create_key(real.db, "demo", "pro", rpm=1)
    token = (await opened(real, key))["token"]  # is none of the requests that are counted
    several = {"model": "shark-mini", "prompt": ["a", "b", "c"], "max_tokens": 1}
    assert (await real.post(several, key=token, path="/v1/completions")).status_code == 200
    refused = [await real.post(CHAT, key=one, path="/v1/chat") for one in (key, token)]
    refused.append(await real.post(CHAT, key=key, path="/v3/chat/completions"))
    refused.append(await real.post({"messages": [QUESTION]}, key=key, path="/v1/inference"))
    assert [response.status_code for response in refused] == [429] * 4
    assert all(1 <= int(response.headers["retry-after"]) <= 60 for response in refused)
    assert code(refused[0])[1] == code(refused[3])[1] == "rate_limit_exceeded"
    assert refused[2].json() == {
        "error": {"message": "Rate limit exceeded", "type": "rate_limit_exceeded", "code": 429}
    }
    await accounts.limit_key(real.db, key, None)
    assert (await real.post(CHAT, key=key)).status_code == 200


async def test_tokens_a_month(real: Running) -> None:
    async with real.db.acquire() as db:
        await accounts.create_wallet(db, "starter", "starter", 8)
    await accounts.limit_tokens(real.db, "starter", 20)
    key = await accounts.create_key(real.db, "starter", "dev")
    first = await real.post({**CHAT, "max_tokens": 16}, key=key)
    assert first.status_code == 200
    tokens = first.json()["usage"]["total_tokens"]
    assert tokens >= 20

    async def booked() -> bool:
        view = await accounts.show_wallet(real.db, "starter")
        return view.tokens_month == tokens

    await real.until(booked, what="the books have it")
    for path in ("/v1/chat", "/v3/chat/completions"):
        refused = await real.post(CHAT, key=key, path=path)
        assert refused.status_code == 429
        assert 0 < int(refused.headers["retry-after"]) <= 31 * 86_400
    inference = await real.post({"messages": [QUESTION]}, key=key, path="/v1/inference")
    assert code(inference) == (429, "monthly_tokens_exceeded")
    assert int(inference.headers["retry-after"]) > 0
    usage = (await real.http.get("/v1/usage", headers={"x-api-key": key})).json()
    assert usage["total_tokens"] == tokens
    await accounts.limit_tokens(real.db, "starter", None)
    assert (await real.post(CHAT, key=key)).status_code == 200
