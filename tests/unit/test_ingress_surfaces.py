"""/v3 and /v1/inference as HTTP, over a scripted core: the order of checks, and errors in their own form."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from ingress.app import create_app
from schemas.errors import ApiError
from tests.unit.v1_kit import KEY, ScriptedCore

MESSAGES = [{"role": "user", "content": "hi"}]
V3, INFERENCE = "/v3/chat/completions", "/v1/inference"
BODIES: dict[str, dict[str, Any]] = {
    V3: {"model": "m", "messages": MESSAGES},
    INFERENCE: {"model": "m", "messages": MESSAGES},
}


@pytest.fixture
def core() -> ScriptedCore:
    return ScriptedCore()


@pytest.fixture
async def http(core: ScriptedCore) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(core))  # type: ignore[arg-type]
    headers = {"x-api-key": KEY}
    async with httpx.AsyncClient(transport=transport, base_url="http://shiver", headers=headers) as client:
        yield client


def _told(path: str, response: httpx.Response) -> tuple[int, Any]:
    """Status and code, after the form of the path's errors was checked."""
    assert len(response.headers["x-shiver-request-id"]) == 36
    body = response.json()
    if path.startswith("/v3/"):
        assert set(body["error"]) == {"message", "type", "code"}
        assert body["error"]["code"] == response.status_code
        return response.status_code, body["error"]["type"]
    assert set(body) == {"detail", "code"}
    return response.status_code, body["code"]


@pytest.mark.parametrize("path", BODIES)
async def test_checks_come_in_their_order(path: str, http: httpx.AsyncClient, core: ScriptedCore) -> None:
    """Everything is wrong at once; each repair uncovers the next refusal."""

    async def refuse_key(key: Any) -> None:
        raise ApiError("revoked_api_key")

    living, core.admission.check_key = core.admission.check_key, refuse_key
    core.refuse = ApiError("no_provider_available")
    huge = b"x" * 1_048_577
    wrong = {**BODIES[path], "model": "none", "temperature": 7}
    both = {"authorization": "Bearer shvr_other"}

    def status(response: httpx.Response) -> int:
        return _told(path, response)[0]

    form = 400 if path == V3 else 422
    assert status(await http.post(path, content=huge, headers={"x-api-key": ""})) == 413
    assert status(await http.post(path, json=wrong, headers={"x-api-key": ""})) == 401
    assert status(await http.post(path, json=wrong, headers=both)) == 400
    assert status(await http.post(path, json=wrong, headers={"x-api-key": "nothing"})) == 401
    assert status(await http.post(path, json=wrong)) == 401  # the body is bad too: a stranger is not told
    core.admission.check_key = living
    assert status(await http.post(path, content=b"{")) == form
    assert status(await http.post(path, json=wrong)) == form
    assert status(await http.post(path, json={**wrong, "temperature": 1})) == (404 if path == V3 else 422)
    assert status(await http.post(path, json=BODIES[path])) == 503
    core.refuse = None
    assert (await http.post(path, json=BODIES[path])).status_code == 200


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    ("code", "v3", "inference"),
    [
        ("model_not_allowed", 403, 403),
        ("open_request_cap", 429, 429),
        ("insufficient_balance", 402, 402),
        ("daily_cap_exceeded", 402, 402),
        ("all_providers_failed", 500, 502),
        ("catching_up", 503, 503),
    ],
)
async def test_refusals_of_the_core(
    path: str, code: str, v3: int, inference: int, http: httpx.AsyncClient, core: ScriptedCore
) -> None:
    core.refuse = ApiError(code, retry_after_s=9)
    response = await http.post(path, json=BODIES[path])
    assert _told(path, response)[0] == (v3 if path == V3 else inference)
    assert response.headers["retry-after"] == "9"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", V3, 405),
        ("POST", "/v3/models", 405),
        ("GET", "/v3/none", 404),
        ("DELETE", INFERENCE, 405),
        ("GET", "/v1/inference/none", 404),
        ("POST", "/v1/usage", 405),
        ("POST", "/v1/health", 405),
    ],
)
async def test_other_paths_and_methods(method: str, path: str, status: int, http: httpx.AsyncClient) -> None:
    assert _told(path, await http.request(method, path))[0] == status


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/m", "/v1/health", "/v3/models", "/v1/usage"])
async def test_two_different_keys_are_400_everywhere(path: str, http: httpx.AsyncClient) -> None:
    response = await http.get(path, headers={"authorization": "Bearer shvr_other"})
    assert response.status_code == 400


async def test_a_fault_of_ours_is_told_in_the_path_s_form_and_never_in_detail(
    core: ScriptedCore, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*_: Any) -> None:
        raise RuntimeError("secret")

    core.open = broken  # type: ignore[method-assign,assignment]
    transport = httpx.ASGITransport(create_app(core))  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url="http://shiver", headers={"x-api-key": KEY}) as http:
        for path, body in BODIES.items():
            response = await http.post(path, json=body)
            assert _told(path, response)[0] == 500
            assert "secret" not in response.text
            assert response.headers["x-shiver-request-id"] in caplog.text
    assert "RuntimeError" in caplog.text
    assert "in broken" in caplog.text
    assert "secret" not in caplog.text.replace('raise RuntimeError("secret")', "")  # our own line of code


@pytest.mark.parametrize("path", BODIES)
async def test_the_description_names_the_statuses_of_the_path(path: str, http: httpx.AsyncClient) -> None:
    document = (await http.get("/openapi.json")).json()
    operation = document["paths"][path]["post"]
    own = {"404"} if path == V3 else {"422", "502"}
    common = {"200", "400", "401", "402", "403", "408", "413", "429", "431", "500", "503"}
    assert set(operation["responses"]) == common | own
    name = operation["responses"]["401"]["content"]["application/json"]["schema"]["allOf"][0]["$ref"]
    name = name.rpartition("/")[2]
    assert name == ("NumericError" if path == V3 else "Detail")
    form = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
    assert document["components"]["schemas"][form]["properties"]["temperature"]["anyOf"][0]["maximum"] == 1
    assert "auto" in document["components"]["schemas"][form]["properties"]["model"]["enum"]
    assert json.dumps(document["paths"]["/v1/chat"]["post"]["responses"]).count("#/components/schemas/Error")
