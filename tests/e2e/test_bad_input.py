"""What is malformed gets one clear 4xx in OpenAI's error shape, and leaves no hold behind."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import Running

GOOD: dict[str, Any] = {"model": "shark-mini", "messages": [{"role": "user", "content": "hello shiver"}]}


def _is_refusal(response: httpx.Response, status: int, code: str) -> None:
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (status, code)
    assert error["message"]
    assert set(error) == {"message", "type", "param", "code"}
    assert len(response.headers["x-shiver-request-id"]) == 36


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "invalid_json"),
        (b"", 400, "invalid_json"),
        (b"[]", 400, "invalid_request"),
        ({"model": "shark-mini"}, 400, "invalid_request"),
        ({"messages": GOOD["messages"]}, 400, "invalid_request"),
        ({**GOOD, "model": "gpt-nothing"}, 400, "model_not_found"),
        ({**GOOD, "messages": [{"role": "user", "content": 5}]}, 400, "invalid_request"),
        ({**GOOD, "temperature": "warm"}, 400, "invalid_request"),
        ({**GOOD, "max_tokens": -1}, 400, "invalid_request"),
        ({**GOOD, "tools": [{}]}, 400, "invalid_request"),
        ({**GOOD, "messages": [{"role": "user", "content": "x" * 1_048_577}]}, 413, "request_too_large"),
    ],
)
async def test_refused(real: Running, body: Any, status: int, code: str) -> None:
    _is_refusal(await real.post(body), status, code)
    assert await real.db.fetchval("select count(*) from state.admissions") == 0


@pytest.mark.parametrize("path", ["/v1/chat", "/v1/chat/completions"])
async def test_both_paths_answer(real: Running, path: str) -> None:
    response = await real.post({**GOOD, "temperature": 0}, path=path)
    assert response.status_code == 200
    assert response.json()["choices"][0]["message"]["content"]


async def test_keys(real: Running) -> None:
    _is_refusal(await real.post(GOOD, key=""), 401, "missing_api_key")
    _is_refusal(await real.post(GOOD, key="sk-wrong"), 401, "invalid_api_key")
    other = real.pro[:-1] + ("A" if real.pro[-1] != "A" else "B")
    _is_refusal(await real.post(GOOD, key=other), 401, "invalid_api_key")
    # The key is judged before the form: a stranger learns nothing of what is wrong with a body.
    _is_refusal(await real.post(b"{", key="sk-wrong"), 401, "invalid_api_key")
    both = await real.http.post(
        "/v1/chat", json=GOOD, headers={"authorization": f"Bearer {real.pro}", "x-api-key": real.dev}
    )
    _is_refusal(both, 400, "conflicting_api_keys")
    x_api_key = await real.http.post("/v1/chat", json=GOOD, headers={"x-api-key": real.pro})
    assert x_api_key.status_code == 200


async def test_a_body_without_a_length_is_cut_off_too(real: Running) -> None:
    async def endless() -> Any:
        for _ in range(40):
            yield b"x" * 65_536

    response = await real.http.post("/v1/chat", content=endless(), headers={"authorization": f"Bearer {real.pro}"})
    _is_refusal(response, 413, "request_too_large")


async def test_other_paths_and_methods(real: Running) -> None:
    _is_refusal(await real.http.get("/v1/nothing"), 404, "not_found")
    _is_refusal(await real.http.get("/v1/chat/completions"), 405, "method_not_allowed")


async def test_money_and_slots(real: Running) -> None:
    from infra import accounts

    async with real.db.acquire() as db:
        await accounts.create_wallet(db, "poor", "poor", 8)
    key = await accounts.create_key(real.db, "poor", "pro")
    _is_refusal(await real.post(GOOD, key=key), 402, "insufficient_balance")
    capped = await accounts.create_key(real.db, "demo", "pro", open_max=0)
    _is_refusal(await real.post(GOOD, key=capped), 409, "open_request_cap")
    await accounts.revoke_key(real.db, capped)
    _is_refusal(await real.post(GOOD, key=capped), 401, "revoked_api_key")


async def test_no_prompt_and_no_key_reach_a_log(real: Running) -> None:
    canary = "canary-5d0c71"
    await real.post({**GOOD, "messages": [{"role": "user", "content": canary}]})
    await real.post({**GOOD, "messages": [{"role": "user", "content": canary}], "temperature": 9})
    for path in real.stack.state.logs.glob("*"):
        text = path.read_text(errors="replace")
        assert canary not in text, path.name
        assert real.pro not in text, path.name
    assert json.dumps(real.said).count(canary) == 0
