"""The whole surface over a scripted core: headers, order, errors, streams as they go over a socket, its description."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import socket
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import uvicorn

from ingress.app import V1
from ingress.connection import Connection
from ingress.openapi import CALLS
from schemas.errors import ApiError
from schemas.events import How
from tests.unit.v1_kit import KEY, ScriptedCore, app

HELLO: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": HELLO,
    "/v1/chat": HELLO,
    "/v1/completions": {"model": "m", "prompt": "hi"},
    "/v1/embeddings": {"model": "embed", "input": "hi"},
    "/v1/responses": {"model": "m", "input": "hi"},
}
STREAMS = [path for path in BODIES if path != "/v1/embeddings"]


@pytest.fixture
def core() -> ScriptedCore:
    return ScriptedCore()


@pytest.fixture
async def http(core: ScriptedCore) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app(core))
    headers = {"authorization": f"Bearer {KEY}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://shiver", headers=headers) as client:
        yield client


@pytest.mark.parametrize("path", BODIES)
async def test_every_call_answers_whatever_is_accepted(path: str, http: httpx.AsyncClient) -> None:
    for accept in ("*/*", "text/html", "application/xml"):
        response = await http.post(path, json=BODIES[path], headers={"accept": accept})
        assert response.status_code == 200
        assert response.headers["content-type"] == "application/json"
        assert response.headers["x-shiver-cost"].endswith(" SHIVER")
        assert len(response.headers["x-shiver-request-id"]) == 36
        assert "x-shiver-ignored" not in response.headers


@pytest.mark.parametrize("path", BODIES)
async def test_what_has_no_effect_is_in_the_header(path: str, http: httpx.AsyncClient, core: ScriptedCore) -> None:
    body = {**BODIES[path], "wizardry": 1, "user": "u"}
    response = await http.post(path, json=body)
    assert set(response.headers["x-shiver-ignored"].split(", ")) == {"wizardry", "user"}
    opened = len(core.requests)
    response = await http.post(path, json=body, headers={"x-shiver-strict": "1"})
    assert (response.status_code, response.json()["error"]["code"]) == (400, "unsupported_parameter")
    assert len(core.requests) == opened


@pytest.mark.parametrize("path", STREAMS)
async def test_every_stream(path: str, http: httpx.AsyncClient) -> None:
    response = await http.post(path, json={**BODIES[path], "stream": True})
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["x-shiver-request-id"]
    assert response.text.endswith("\n\n")
    assert response.text.endswith("data: [DONE]\n\n") == (path != "/v1/responses")
    for block in response.text.split("\n\n")[:-1]:
        assert block.rpartition("data: ")[2] == "[DONE]" or json.loads(block.rpartition("data: ")[2])


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    ("code", "status", "waits"), [("no_provider_available", 503, True), ("insufficient_balance", 402, False)]
)
async def test_refusals_have_code_message_id_and_where_it_helps_a_wait(
    path: str, code: str, status: int, waits: bool, http: httpx.AsyncClient, core: ScriptedCore
) -> None:
    core.refuse = ApiError(code)
    response = await http.post(path, json=BODIES[path])
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (status, code)
    assert error["message"]
    assert set(error) == {"message", "type", "param", "code"}
    assert response.headers["x-shiver-request-id"]
    assert ("retry-after" in response.headers) == waits


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"5", b'"x"', b"\xff", b'{"model": NaN'])
@pytest.mark.parametrize("path", BODIES)
async def test_what_is_no_object(path: str, body: bytes, http: httpx.AsyncClient) -> None:
    response = await http.post(path, content=body)
    assert response.status_code == 400
    assert response.json()["error"]["code"] in ("invalid_json", "invalid_request")


@pytest.mark.parametrize("path", BODIES)
async def test_other_methods_and_a_body_that_is_too_large(path: str, http: httpx.AsyncClient) -> None:
    response = await http.get(path)
    assert (response.status_code, response.json()["error"]["code"]) == (405, "method_not_allowed")
    assert response.headers["allow"] == "POST"
    response = await http.post(path, content=b"x" * 1_048_577)
    assert (response.status_code, response.json()["error"]["code"]) == (413, "request_too_large")


async def test_completions_of_several_prompts_are_several_requests(http: httpx.AsyncClient, core: ScriptedCore) -> None:
    body = {"model": "m", "prompt": ["a", [1, 2], "c"], "n": 2}
    response = await http.post("/v1/completions", json=body)
    choices = response.json()["choices"]
    assert [choice["index"] for choice in choices] == [*range(6)]
    assert all(choice["text"] == "The shark swims." for choice in choices)
    assert [request.chat.prompts for request in core.requests] == [("a",), ((1, 2),), ("c",)]
    assert [request.counted for request in core.requests] == [True, False, False]  # by a limit a minute
    assert [request.ended for request in core.requests] == [[(How.STOP, 6)]] * 3
    assert response.json()["usage"]["completion_tokens"] == 18
    assert response.headers["x-shiver-cost"] == "0.000018 SHIVER"
    assert len({request.id for request in core.requests}) == 3


async def test_a_later_prompt_that_is_refused_breaks_the_stream(http: httpx.AsyncClient, core: ScriptedCore) -> None:
    opened = core.open

    async def once(request_id: str, key: Any, chat: Any, *, counted: bool = True) -> Any:
        if core.requests:
            raise ApiError("insufficient_balance")
        return await opened(request_id, key, chat, counted=counted)

    core.open = once  # type: ignore[method-assign]
    body = {"model": "m", "prompt": ["a", "b"]}
    response = await http.post("/v1/completions", json=body)
    assert (response.status_code, core.requests[0].ended) == (402, [(How.STOP, 0)])
    core.requests.clear()
    response = await http.post("/v1/completions", json={**body, "stream": True})
    assert json.loads(response.text.split("data: ")[-1])["error"]["code"] == "insufficient_balance"
    assert "[DONE]" not in response.text
    assert core.requests[0].ended == [(How.STOP, 3)]


@pytest.fixture
async def port(core: ScriptedCore) -> AsyncIterator[int]:
    """A true server: what a socket sees."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app(core), port=free, log_level="error", http=Connection, lifespan="off"))
    running = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    yield free
    server.should_exit = server.force_exit = True
    await running


@pytest.mark.parametrize("path", STREAMS)
async def test_after_a_stream_the_connection_is_kept_or_its_end_is_announced(path: str, port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for _ in range(2):
        body = json.dumps({**BODIES[path], "stream": True}).encode()
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\ncontent-length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        answer = await asyncio.wait_for(reader.readuntil(b"0\r\n\r\n"), 5)
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"connection: close" not in answer.lower()
    writer.close()


@pytest.mark.parametrize("n", [1, 2])
async def test_a_client_that_leaves_stops_the_request_and_pays_what_it_had(
    n: int, port: int, core: ScriptedCore
) -> None:
    core.hang = True
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers={"x-api-key": KEY}) as client:
        async with client.stream("POST", "/v1/chat", json={**HELLO, "stream": True, "n": n}) as response:
            async for line in response.aiter_lines():
                if "swims" in line and f'"index":{n - 1}' in line:
                    break
        async with asyncio.timeout(5):
            while not core.requests[0].ended:
                await asyncio.sleep(0.01)
    assert core.requests[0].ended == [(How.CLIENT_GONE, 3 * n)]


async def test_a_path_is_not_redirected_to(http: httpx.AsyncClient) -> None:
    for path in ("/v1/chat/completions/", "/v1/embeddings/", "/v3/chat/completions/"):
        response = await http.post(path, json=HELLO)
        assert (response.status_code, "location" in response.headers) == (404, False)


async def test_no_prompt_and_no_key_is_logged(http: httpx.AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for path, body in BODIES.items():
        for name in ("input", "prompt", "messages"):
            if name in body:
                await http.post(path, json={**body, name: "canary-1"})
                await http.post(path, json={**body, name: {"canary-1": "canary-1"}})
    assert "canary-1" not in caplog.text
    assert KEY not in caplog.text


async def test_the_description_has_every_call_with_an_example_that_is_taken(http: httpx.AsyncClient) -> None:
    document = (await http.get("/openapi.json")).json()
    for path in V1:
        operation = document["paths"][path]["post"]
        assert operation["description"]
        body = operation["requestBody"]["content"]["application/json"]
        assert body["schema"]["$ref"].rpartition("/")[2] in document["components"]["schemas"]
        assert body["examples"]["simple"]["value"]
    for call in CALLS:
        call.form.model_validate_json(json.dumps(call.example))
    refs = set(json.dumps(document).split('"#/components/schemas/')[1:])
    assert {ref.partition('"')[0] for ref in refs} <= set(document["components"]["schemas"])


async def test_the_page_loads_nothing_from_elsewhere(http: httpx.AsyncClient) -> None:
    page = (await http.get("/docs")).text
    assert "POST /v1/chat/completions" in page
    assert "<script" not in page
    # Examples name origins; what would load something is a tag's attribute or a style's url().
    assert set(re.findall(r"(?:href|src)=(\S+?)>", page)) == {"/openapi.json"}
    assert not re.search(r"url\(|@import|<(?:link|img|iframe|object|base)\b", page)
