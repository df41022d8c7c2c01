"""The description of the API: whole, with words and examples, and as strict as the server, no more and no less."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from ingress.openapi import CALLS, TAGS, describe
from schemas.errors import TABLE, ApiError
from tests.unit.openapi_kit import (
    CHAT,
    COMPLETION,
    ELSEWHERE,
    OLD_CALL,
    PARSERS,
    PLAIN,
    RESPONSE,
    TOOL,
    body_schema,
    validator,
)
from tests.unit.v1_kit import KEY, ScriptedCore, app


@pytest.fixture
def core() -> ScriptedCore:
    return ScriptedCore()


@pytest.fixture
async def http(core: ScriptedCore) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app(core), raise_app_exceptions=False)
    headers = {"authorization": f"Bearer {KEY}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://shiver", headers=headers) as client:
        yield client


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return describe(ScriptedCore().offers)


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


def test_all_that_is_routed_is_described(document: dict[str, Any]) -> None:
    routed = {
        (method.lower(), route.path.replace(":any", ""))  # type: ignore[attr-defined]
        for route in app(ScriptedCore()).routes
        for method in route.methods - {"HEAD"}  # type: ignore[attr-defined]
    }
    assert {(method, path) for method, path, _ in operations(document)} == routed
    ids = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(set(ids)) == len(ids)


def test_every_call_has_words_examples_and_errors_with_their_bodies(document: dict[str, Any]) -> None:
    for method, path, operation in operations(document):
        assert operation["summary"], path
        assert operation["description"].endswith("."), path
        assert set(operation["tags"]) <= TAGS.keys()
        assert "500" in operation["responses"]
        for status, response in operation["responses"].items():
            assert response["headers"]["x-shiver-request-id"]["required"]
            for kind, content in response["content"].items():
                schema = validator(document, content["schema"])
                if kind == "application/json" and path != "/openapi.json":
                    schema.validate(content["example"])
                if kind == "application/json" and status >= "400" and path != "/readyz":
                    assert not schema.is_valid({"error": {"message": "", "type": "", "param": None, "code": "no"}})
                    assert not schema.is_valid({"detail": "", "code": "no"})
        if method == "post":
            for example in operation["requestBody"]["content"]["application/json"]["examples"].values():
                body_schema(document, path).validate(example["value"])
                if path in PARSERS:
                    PARSERS[path].parse(json.dumps(example["value"]).encode(), {"x-shiver-strict": "1"})


async def test_the_description_follows_the_offers(http: httpx.AsyncClient, core: ScriptedCore) -> None:
    async def models() -> list[str]:
        document = (await http.get("/openapi.json")).json()
        return document["components"]["schemas"]["ChatRequest"]["properties"]["model"]["enum"]

    assert await models() == ["auto", "m"]
    core.offers = core.offers._replace(aliases={"other": "m"})
    assert await models() == ["auto", "m", "other"]

    async def away() -> Any:
        raise ApiError("database_unavailable")

    core.catalog.offers = away
    document = (await http.get("/openapi.json")).json()
    assert "enum" not in document["components"]["schemas"]["ChatRequest"]["properties"]["model"]


def test_every_field_of_a_body_has_words(document: dict[str, Any]) -> None:
    for call in CALLS:
        for name, field in document["components"]["schemas"][call.form.__name__]["properties"].items():
            assert field["description"] or call.form.__name__ in ("InferenceRequest", "ShreyanshRequest"), name


@pytest.mark.parametrize("path", PLAIN)
async def test_every_refusal_is_as_it_is_described(
    path: str, http: httpx.AsyncClient, core: ScriptedCore, document: dict[str, Any]
) -> None:
    responses = document["paths"][path]["post"]["responses"]
    for code in TABLE.keys() - ELSEWHERE:
        if path not in (CHAT, RESPONSE) and code in ("invalid_schema", "invalid_image", "invalid_image_url"):
            continue
        core.refuse = ApiError(code)
        response = await http.post(path, json=PLAIN[path])
        schema = responses[str(response.status_code)]["content"]["application/json"]["schema"]
        validator(document, schema, closed=True).validate(response.json())


ANSWERED: list[tuple[str, dict[str, Any]]] = [
    *((path, {}) for path in PLAIN),
    *((path, {"max_tokens": 0}) for path in PLAIN if path != "/v1/inference"),
    (CHAT, {"n": 3, "logprobs": True, "top_logprobs": 2}),
    (CHAT, {"tools": [TOOL], "tool_choice": "required"}),
    (CHAT, {"functions": [{"name": "f"}], "function_call": {"name": "f"}}),
    (COMPLETION, {"n": 2, "logprobs": 2, "echo": True}),
    (COMPLETION, {"prompt": ["a", [1, 2]]}),
    ("/v1/embeddings", {"encoding_format": "base64", "input": ["a", "b"]}),
    (RESPONSE, {"tools": [{"type": "function", "name": "f"}], "tool_choice": "required", "metadata": {"a": "b"}}),
    (RESPONSE, {"top_logprobs": 2, "max_output_tokens": 5, "instructions": "x"}),
    (RESPONSE, {"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "object"}}}}),
]


@pytest.mark.parametrize(("path", "changes"), ANSWERED, ids=lambda value: repr(value)[:50])
async def test_every_answer_is_as_it_is_described(
    path: str, changes: dict[str, Any], http: httpx.AsyncClient, document: dict[str, Any]
) -> None:
    content = document["paths"][path]["post"]["responses"]["200"]["content"]
    body = {**PLAIN[path], **changes}
    body_schema(document, path).validate(body)
    whole = (await http.post(path, json=body)).json()
    validator(document, content["application/json"]["schema"], closed=True).validate(whole)
    if "text/event-stream" not in content:
        return
    event = content["text/event-stream"]["schema"]["properties"]["data"]
    chunk = validator(document, event.get("else", event)["contentSchema"])
    stream = (await http.post(path, json={**body, "stream": True, "stream_options": {"include_usage": True}})).text
    events = [block.rpartition("data: ")[2] for block in stream.split("\n\n")[:-1]]
    assert events[-1] == "[DONE]" or path in (RESPONSE, "/v1/inference")
    for text in events:
        if text != "[DONE]":
            chunk.validate(json.loads(text))
            assert "error" not in json.loads(text)


@pytest.mark.parametrize(
    "path",
    ["/v1/models", "/v3/models", "/v1/models/m", "/v1/usage", "/v1/health", "/healthz", "/readyz", "/openapi.json"],
)
async def test_every_read_is_as_it_is_described(path: str, http: httpx.AsyncClient, document: dict[str, Any]) -> None:
    described = document["paths"].get(path) or document["paths"]["/v1/models/{name}"]
    response = await http.get(path)
    schema = described["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    validator(document, schema, closed=path != "/openapi.json").validate(response.json())


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("get", "/v1/models/{name}", {}, 404),
        ("delete", "/v1/models/{name}", {}, 403),
        ("delete", "/v1/models/{name}", {"authorization": ""}, 401),
        ("get", "/v3/models", {"authorization": ""}, 401),
        ("get", "/v1/usage", {"authorization": "Bearer sk-none"}, 401),
        *(
            ("get", path, {"x-api-key": "other"}, 400)
            for path in ("/v1/models", "/v1/models/{name}", "/v3/models", "/v1/usage", "/v1/health")
        ),
    ],
)
async def test_every_refusal_of_a_read_is_as_it_is_described(
    method: str, path: str, headers: dict[str, str], status: int, http: httpx.AsyncClient, document: dict[str, Any]
) -> None:
    response = await http.request(method, path.replace("{name}", "none"), headers=headers)
    assert response.status_code == status
    content = document["paths"][path][method]["responses"][str(status)]["content"]
    validator(document, content["application/json"]["schema"], closed=True).validate(response.json())


async def test_a_model_is_read_and_not_removed_and_a_405_names_both_methods(http: httpx.AsyncClient) -> None:
    assert (await http.delete("/v1/models/m")).status_code == 403
    for name in ("none/such", "%0Ax", "%00", "..%2F", "%20"):
        assert (await http.get(f"/v1/models/{name}")).json()["error"]["code"] == "model_not_found"
    response = await http.post("/v1/models/m")
    assert response.status_code == 405
    assert {method.strip() for method in response.headers["allow"].split(",")} == {"GET", "DELETE"}


HUGE = 10**30


@pytest.mark.parametrize(
    ("path", "changes"),
    [
        (CHAT, {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"maximum": HUGE}}}]}),
        (RESPONSE, {"tools": [{"type": "function", "name": "f", "parameters": {"maximum": HUGE}}]}),
        (RESPONSE, {"text": {"format": {"type": "text", "wish": HUGE}}}),
    ],
)
async def test_integers_beyond_64_bits_are_no_fault(
    path: str, changes: dict[str, Any], http: httpx.AsyncClient
) -> None:
    response = await http.post(path, json={**PLAIN[path], **changes})
    assert response.status_code == 200
    assert path == CHAT or str(HUGE) in response.text


async def test_a_number_that_no_float_holds_is_refused_in_a_schema(http: httpx.AsyncClient) -> None:
    tool = b'{"type":"function","name":"f","parameters":{"maximum":1e999}}'
    response = await http.post(RESPONSE, content=b'{"model":"m","input":"hi","tools":[' + tool + b"]}")
    assert (response.status_code, response.json()["error"]["param"]) == (400, "tools.0.parameters")


@pytest.mark.parametrize(
    "more",
    [
        {"seed": "x"},
        {"seed": 5.5},
        {"logit_bias": [1]},
        {"logit_bias": {"x": 1}},
        {"frequency_penalty": "x"},
        {"presence_penalty": 9},
        {"stop": {}},
        {"n": []},
        {"input": [{"type": "function_call", "call_id": "c", **OLD_CALL, "content": [{"type": "x"}], "role": {}}]},
    ],
    ids=str,
)
async def test_what_a_response_does_not_know_is_named_whatever_it_is(
    more: dict[str, Any], http: httpx.AsyncClient
) -> None:
    """Fields of other forms are unknown here: not looked at, and without an effect."""
    response = await http.post(RESPONSE, json={**PLAIN[RESPONSE], **more})
    assert response.status_code == 200
    assert response.headers["x-shiver-ignored"]


async def test_function_calls_in_a_row_have_a_number(http: httpx.AsyncClient) -> None:
    calls = [{"type": "function_call", "call_id": f"c{number}", **OLD_CALL} for number in range(129)]
    for count, status in ((128, 200), (129, 400)):
        response = await http.post(RESPONSE, json={"model": "m", "input": calls[:count]})
        assert response.status_code == status
