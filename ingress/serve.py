"""The way of every request for tokens, whatever its dialect: size, key, form, model, then the dispatcher's own checks.

A dialect's router adds a route with `endpoint(ingress, dialect)`; nothing else of a request's life is its concern.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from fastapi import Request as HttpRequest
from starlette.responses import Response

from ingress import dropping
from ingress.answer import ChatAnswer
from ingress.auth import key_of
from ingress.bootstrap import Ingress
from ingress.chat import Chat, Dialect
from ingress.dispatch import Dispatcher, Request
from ingress.several import Several
from schemas.errors import ApiError
from schemas.keys import ApiKey

BODY_BYTES_MAX = 1_048_576
BODY_S = 60.0
ROUTE_CHARS_MAX = 4000


def endpoint(ingress: Ingress, dialect: Dialect) -> Callable[[HttpRequest], Awaitable[Response]]:
    """A POST endpoint that speaks `dialect`."""

    async def serve(request: HttpRequest) -> Response:
        check_length(request)
        key = key_of(request.headers)
        body = await read_body(request)
        try:
            drops = (await ingress.catalog.offers()).drops
            asked = dropping.parse(dialect, body, request.headers, drops)
            await ingress.dispatcher.placer.wish(asked.chat)
        except ApiError:
            await ingress.admission.check_key(key)  # a body is only judged for a caller with a key
            raise
        chat = asked.chat
        if chat.image_urls:
            await ingress.admission.check_key(key)  # nothing is fetched for a stranger
            chat = await ingress.egress.with_images(chat)
        route = await _route(ingress, request, chat)
        try:
            opened = await _open(ingress.dispatcher, request.state.request_id, key, chat)
        except ApiError as error:
            if route is not None:
                error.headers["x-shiver-route"] = route
            raise
        return ChatAnswer(  # type: ignore[return-value]  # any ASGI callable is a response to Starlette
            opened,
            asked.writer(opened.id, int(time.time())),
            stream=asked.stream,
            ignored=asked.ignored,
            route=route,
        )

    return serve


async def _open(dispatcher: Dispatcher, request_id: str, key: ApiKey, chat: Chat) -> Request | Several:
    if chat.task == "completion" and len(chat.prompts) > 1:
        return await Several.open(dispatcher, request_id, key, chat)
    return await dispatcher.open(request_id, key, chat)


async def _route(ingress: Ingress, request: HttpRequest, chat: Chat) -> str | None:
    """For x-shiver-route, where the caller sent x-shiver-trace: which nodes each constraint excludes now."""
    if "x-shiver-trace" not in request.headers:
        return None
    trace = await ingress.dispatcher.placer.trace(chat)
    return trace.encode("ascii", "replace").decode()[:ROUTE_CHARS_MAX]


def check_length(request: HttpRequest) -> None:
    """Raises ApiError request_too_large for a Content-Length above the limit, before anything is read."""
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > BODY_BYTES_MAX:
        raise ApiError("request_too_large")


async def read_body(request: HttpRequest) -> bytes:
    """At most BODY_BYTES_MAX bytes in BODY_S, whatever was declared.

    Raises ApiError: request_too_large, request_timeout.
    """
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_S):
            async for part in request.stream():
                size += len(part)
                if size > BODY_BYTES_MAX:
                    raise ApiError("request_too_large")
                parts.append(part)
    except TimeoutError:
        raise ApiError("request_timeout", headers={"connection": "close"}) from None
    return b"".join(parts)
