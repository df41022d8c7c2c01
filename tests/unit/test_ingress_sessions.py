"""POST /v1/sessions over a scripted admission: what it takes, what it tells; and what a browser is told of any call."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import httpx
import pytest
from starlette.datastructures import Headers

from ingress.admission import Session
from ingress.app import create_app
from ingress.auth import key_of
from ingress.cors import ANSWER_HEADERS, PATHS
from schemas import keys
from schemas.errors import ApiError
from tests.unit.v1_kit import KEY, ScriptedCore

NOW_S = 1_795_000_000
PAGE = "https://app.example.com"
TOKEN = keys.mint(keys.SESSION, b"1" * keys.ENTROPY_BYTES)
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


class Opened(NamedTuple):
    key: Any
    token: Any
    expires_in_s: int
    models: list[str] | None
    origins: list[str] | None


class Keys:
    """Stands where Admission does: every key and token lives, and may do what its kind may."""

    def __init__(self) -> None:
        self.opened: list[Opened] = []
        self.refuse: ApiError | None = None

    async def check_key(self, key: Any, *, session_may: bool = True) -> None:
        if self.refuse is not None:
            raise self.refuse
        if key.is_session and not session_may:
            raise ApiError("session_not_allowed")

    async def open_session(self, *given: Any) -> Session:
        if self.refuse is not None:
            raise self.refuse
        self.opened.append(Opened(*given))
        return Session(NOW_S + self.opened[-1].expires_in_s, self.opened[-1].models)


@pytest.fixture
def core() -> ScriptedCore:
    core = ScriptedCore("m", "embed")
    core.offers.aliases["other"] = "m"  # type: ignore[index]
    core.admission = Keys()
    return core


@pytest.fixture
async def http(core: ScriptedCore) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(core), raise_app_exceptions=False)  # type: ignore[arg-type]
    headers = {"authorization": f"Bearer {KEY}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://shiver", headers=headers) as client:
        yield client


async def test_what_was_opened_is_told_and_only_its_hash_is_asked_with(
    http: httpx.AsyncClient, core: ScriptedCore
) -> None:
    body = {"expires_in": 60, "models": ["other", "m", "embed"], "origins": [PAGE, "http://localhost:3000"]}
    response = await http.post("/v1/sessions", json=body)
    told = response.json()
    assert response.status_code == 200
    assert response.headers["cache-control"] == "no-store"
    token = keys.parse(told.pop("token"))
    assert token is not None
    assert token.is_session
    assert told == {
        "id": f"ses_{token.key_id}",
        "object": "session",
        "created_at": NOW_S,
        "expires_at": NOW_S + 60,
        "models": ["m", "embed"],
        "origins": ["http://localhost:3000", PAGE],
    }
    (opened,) = core.admission.opened
    assert (opened.key, opened.token, opened.expires_in_s) == (keys.parse(KEY), token, 60)


@pytest.mark.parametrize("content", [b"", b"{}", b'{"models":null,"origins":null,"expires_in":600}'])
async def test_all_may_be_left_out(content: bytes, http: httpx.AsyncClient, core: ScriptedCore) -> None:
    tokens = [(await http.post("/v1/sessions", content=content)).json() for _ in range(2)]
    assert [opened[2:] for opened in core.admission.opened] == [(600, None, None)] * 2
    assert (tokens[0]["models"], tokens[0]["origins"]) == (None, None)
    assert tokens[0]["token"] != tokens[1]["token"]


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"expires_in": 59}, "invalid_request", "expires_in"),
        ({"expires_in": 86_401}, "invalid_request", "expires_in"),
        ({"expires_in": "600"}, "invalid_request", "expires_in"),
        ({"expires_in": 600.5}, "invalid_request", "expires_in"),
        ({"expires_in": True}, "invalid_request", "expires_in"),
        ({"expires_in": None}, "invalid_request", "expires_in"),
        ({"models": []}, "invalid_request", "models"),
        ({"models": "m"}, "invalid_request", "models"),
        ({"models": ["m"] * 65}, "invalid_request", "models"),
        ({"models": ["auto"]}, "model_not_found", "models"),
        ({"origins": []}, "invalid_request", "origins"),
        ({"origins": [PAGE] * 17}, "invalid_request", "origins"),
        ({"max_cost": 5}, "invalid_request", "max_cost"),
        ([], "invalid_request", None),
    ],
)
async def test_malformed(body: Any, code: str, param: str, http: httpx.AsyncClient, core: ScriptedCore) -> None:
    error = (await http.post("/v1/sessions", json=body)).json()["error"]
    assert (error["code"], error["param"]) == (code, param)
    assert not core.admission.opened


@pytest.mark.parametrize(
    "origin",
    ["*", "null", "app.example.com", PAGE + "/", PAGE + "/x", "https://App.example.com", "https://", "https://a b"],
)
async def test_what_no_browser_writes_as_an_origin(origin: str, http: httpx.AsyncClient) -> None:
    response = await http.post("/v1/sessions", json={"origins": [origin]})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "origins.0")
    assert origin not in response.json()["error"]["message"].replace("[a-z]", "")


async def test_a_port_that_browsers_leave_out_is_left_out(http: httpx.AsyncClient, core: ScriptedCore) -> None:
    given = [f"{PAGE}:443", "http://a:80", "http://a:443", "https://[::1]:8443", "capacitor://localhost"]
    await http.post("/v1/sessions", json={"origins": given})
    expected = [PAGE, "http://a", "http://a:443", "https://[::1]:8443", "capacitor://localhost"]
    assert core.admission.opened[0].origins == sorted(expected)


async def test_checks_come_in_their_order(http: httpx.AsyncClient, core: ScriptedCore) -> None:
    async def code(**request: Any) -> str:
        return (await http.post("/v1/sessions", **request)).json()["error"]["code"]

    assert await code(content=b"x" * 1_048_577, headers={"authorization": ""}) == "request_too_large"
    assert await code(content=b"{", headers={"authorization": ""}) == "missing_api_key"
    core.admission.refuse = ApiError("revoked_api_key")
    assert await code(content=b"{") == "revoked_api_key"  # a stranger is not told of the body
    core.admission.refuse = None
    assert await code(content=b"{") == "invalid_json"
    core.admission.refuse = ApiError("session_cap", retry_after_s=7)
    response = await http.post("/v1/sessions")
    assert (response.status_code, response.headers["retry-after"]) == (429, "7")


async def test_a_session_opens_none_and_reads_no_usage(http: httpx.AsyncClient, core: ScriptedCore) -> None:
    session = {"authorization": f"Bearer {TOKEN}"}
    for content in (b"", b"{"):
        refused = await http.post("/v1/sessions", content=content, headers=session)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "session_not_allowed")
    usage = await http.get("/v1/usage", headers=session)
    assert (usage.status_code, usage.json()["code"]) == (403, "session_not_allowed")
    assert (await http.post("/v1/chat", json=CHAT, headers=session)).status_code == 200
    assert (await http.get("/v1/models", headers=session)).status_code == 200
    assert not core.admission.opened


def test_only_a_session_is_asked_with_the_page_that_sent_it() -> None:
    for text, origin in ((TOKEN, PAGE), (KEY, None)):
        assert key_of(Headers({"x-api-key": text, "origin": PAGE})).origin == origin


NODE = [
    f"x-stainless-{name}" for name in ("arch", "lang", "os", "package-version", "retry-count", "runtime", "new-one")
]
ASKED = ["authorization", "content-type", "x-api-key", "x-shiver-strict", *NODE]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v3/chat/completions", "/v1/inference", "/v1/nothing"])
async def test_a_browser_may_ask_before_a_call(path: str, http: httpx.AsyncClient) -> None:
    asked = {
        "origin": PAGE,
        "access-control-request-method": "POST",
        "access-control-request-headers": ",".join([*ASKED, "x-anything", "bad name", "x-stainless-bad\tname"]),
        "authorization": "",
    }
    response = await http.options(path, headers=asked)
    assert (response.status_code, response.content) == (204, b"")
    assert response.headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-credentials" not in response.headers
    granted = response.headers["access-control-allow-headers"].split(", ")
    assert set(ASKED) <= set(granted)
    assert not [name for name in granted if "bad" in name or "anything" in name or "*" in name]
    assert {"GET", "POST"} <= set(response.headers["access-control-allow-methods"].split(", "))
    assert len(response.headers["x-shiver-request-id"]) == 36


async def test_an_options_that_no_browser_sent_is_no_preflight(http: httpx.AsyncClient) -> None:
    assert (await http.options("/v1/chat", headers={"origin": PAGE})).status_code == 405
    assert (await http.options("/healthz", headers={"access-control-request-method": "GET"})).status_code == 405


async def test_a_browser_may_read_every_answer_and_its_headers(http: httpx.AsyncClient, core: ScriptedCore) -> None:
    async def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("secret")

    answers = [
        await http.post("/v1/chat", json=CHAT),
        await http.post("/v1/chat", json={**CHAT, "stream": True}),
        await http.post("/v1/chat", content=b"{"),
        await http.post("/v3/chat/completions", json={}),
        await http.get("/v1/models"),
        await http.get("/v1/nothing"),
        await http.delete("/v1/chat"),
        await http.get("/openapi.json"),
        await http.post("/v1/sessions"),
    ]
    core.open = broken  # type: ignore[method-assign,assignment]
    answers.append(await http.post("/v1/chat", json=CHAT))
    assert [answer.status_code for answer in answers] == [200, 200, 400, 400, 200, 404, 405, 200, 200, 500]
    for answer in answers:
        assert answer.headers.get_list("access-control-allow-origin") == ["*"], answer.url
        exposed = set(answer.headers["access-control-expose-headers"].split(", "))
        assert exposed == set(ANSWER_HEADERS)
        ours = {name for name in answer.headers if name.startswith("x-shiver-") or name == "retry-after"}
        assert ours <= exposed
        assert len(answer.headers["x-shiver-request-id"]) == 36
    assert "access-control-allow-origin" not in (await http.get("/healthz")).headers


def test_every_header_that_we_send_can_be_read(core: ScriptedCore) -> None:
    """And every path of the API is one that browsers may call."""
    import re
    from pathlib import Path

    root = Path(__file__).resolve().parents[2] / "ingress"
    # In quotes, as headers are written; those that clients send are not ours.
    found = {
        name
        for path in root.rglob("*.py")
        if path.name != "cors.py"
        for name in re.findall(r'b?"(x-shiver-[a-z-]+)"', path.read_text())
    }
    assert found - {"x-shiver-strict", "x-shiver-trace"} <= set(ANSWER_HEADERS)
    paths = [getattr(route, "path", "") for route in create_app(core).routes]  # type: ignore[arg-type]
    assert [path for path in paths if not path.startswith(PATHS)] == ["/healthz", "/readyz", "/docs"]


async def test_the_description_has_the_call(http: httpx.AsyncClient) -> None:
    document = (await http.get("/openapi.json")).json()
    operation = document["paths"]["/v1/sessions"]["post"]
    assert operation["requestBody"]["required"] is False
    assert set(operation["responses"]) == {"200", "400", "401", "403", "408", "413", "429", "431", "500", "503"}
    form = document["components"]["schemas"]["SessionRequest"]
    assert form["additionalProperties"] is False
    assert form["properties"]["models"]["anyOf"][0]["items"]["enum"] == ["m", "embed", "other"]
    assert "text/event-stream" not in operation["responses"]["200"]["content"]
