"""Browsers: which pages may call the API, and what they may read of an answer. All pages, and all that we send.

The answer to every page is `*`. What a page could gain by our trust in its browser are cookies, and we have none: every
call brings its own key or token in a header that the page set itself, and a call without one is served to anybody. For
the same reason nothing here depends on the page: who wants a token bound to pages says so when the session is opened,
and that is judged where keys are.
"""

from __future__ import annotations

import re

from starlette.types import ASGIApp, Message, Receive, Scope, Send

#: Everything below them, errors included.
PATHS = ("/v1/", "/v3/", "/openapi.json")
METHODS = "GET, POST, DELETE"
#: What clients are known to send. `*` would not do: it never stands for Authorization.
REQUEST_HEADERS = (
    "authorization",
    "x-api-key",
    "content-type",
    "accept",
    "user-agent",
    "idempotency-key",
    "last-event-id",
    "x-shiver-strict",
    "x-shiver-trace",
    "openai-organization",
    "openai-project",
    "openai-beta",
    *(f"x-stainless-{name}" for name in (
        "lang", "package-version", "os", "arch", "runtime", "runtime-version", "async", "retry-count", "timeout",
        "read-timeout", "helper-method", "poll-helper", "custom-poll-interval",
    )),
)  # fmt: skip
ANSWER_HEADERS = (
    "x-shiver-request-id",
    "x-shiver-node",
    "x-shiver-model",
    "x-shiver-cost",
    "x-shiver-ignored",
    "x-shiver-route",
    "retry-after",
)
#: How long a browser may remember the answer to its question; none remembers it for longer.
PREFLIGHT_S = 7200
#: Of a family that a client adds to with each release: granted by the name's beginning.
_FAMILIES = re.compile(r"x-(?:shiver|stainless)-[a-z0-9-]{1,60}")
_MORE_MAX = 16

#: On every answer, to whatever caller: one that depended on the page could not be cached for another.
HEADERS: tuple[tuple[bytes, bytes], ...] = (
    (b"access-control-allow-origin", b"*"),
    (b"access-control-expose-headers", ", ".join(ANSWER_HEADERS).encode()),
)


class Cors:
    """Answers the question that a browser asks before a call, and puts HEADERS on every answer of the API."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(PATHS):
            return await self._app(scope, receive, send)
        if scope["method"] == "OPTIONS" and (answer := _preflight(scope)) is not None:
            await send(answer)
            return await send({"type": "http.response.body", "body": b""})

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *HEADERS]
            await send(message)

        return await self._app(scope, receive, send_with_headers)


def _preflight(scope: Scope) -> Message | None:
    """None where an OPTIONS is no browser's question."""
    asked = {name: value for name, value in scope["headers"] if name.startswith(b"access-control-request-")}
    if b"access-control-request-method" not in asked:
        return None
    wanted = asked.get(b"access-control-request-headers", b"").decode("latin-1").lower().split(",")
    more = [name for name in map(str.strip, wanted) if name not in REQUEST_HEADERS and _FAMILIES.fullmatch(name)]
    headers = [
        *HEADERS,
        (b"access-control-allow-methods", METHODS.encode()),
        (b"access-control-allow-headers", ", ".join((*REQUEST_HEADERS, *more[:_MORE_MAX])).encode()),
        (b"access-control-max-age", str(PREFLIGHT_S).encode()),
        (b"vary", b"access-control-request-headers"),
    ]
    return {"type": "http.response.start", "status": 204, "headers": headers}
