"""The HTTP front: routes, request ids, errors. The way of a request for tokens is in `ingress.serve`."""

from __future__ import annotations

import logging
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ingress import cors, openapi, routes, sessions, surfaces
from ingress.bootstrap import Ingress
from ingress.chat import Dialect
from ingress.dialects import openai as openai_chat
from ingress.dialects import openai_completions, openai_embeddings, openai_responses
from ingress.dispatch import new_request_id
from ingress.serve import endpoint
from schemas.errors import ApiError

log = logging.getLogger(__name__)

#: What is asked for tokens in OpenAI's forms.
V1: dict[str, Dialect] = {
    "/v1/chat/completions": openai_chat,
    "/v1/chat": openai_chat,
    "/v1/completions": openai_completions,
    "/v1/embeddings": openai_embeddings,
    "/v1/responses": openai_responses,
}


def create_app(ingress: Ingress) -> FastAPI:
    """The application over an Ingress that its lifespan starts and stops."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await ingress.start()
        yield
        await ingress.stop()

    app = FastAPI(title="Shiver", lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None)
    # A redirect would name the Host that the client sent, over http, and a client that follows it may lose its key.
    app.router.redirect_slashes = False
    app.add_middleware(cors.Cors)
    app.add_middleware(RequestIds)  # the outermost: a preflight has an id too
    app.add_exception_handler(ApiError, _on_api_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(ClientDisconnect, _on_client_gone)

    for path, dialect in V1.items():
        app.add_route(path, endpoint(ingress, dialect), methods=["POST"])

    routes.add(app, ingress)
    sessions.add(app, ingress)

    @app.get("/healthz")
    async def healthz() -> Response:
        """The process answers."""
        return _json(200, {"status": "ok"})

    @app.get("/readyz")
    async def readyz() -> Response:
        """The process can serve; else 503 and why not."""
        missing = await ingress.missing()
        return _json(503 if missing else 200, {"status": "waiting" if missing else "ready", "missing": missing})

    openapi.add(app, ingress)
    return app


class BrokeOff(Exception):
    """An answer that had begun cannot go on; the server closes the connection."""


class RequestIds:
    """Gives every request its id and puts it on every answer, errors included; ours too."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        request_id = new_request_id()
        scope.setdefault("state", {})["request_id"] = request_id

        begun = False

        async def send_with_id(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                message["headers"] = [*message.get("headers", ()), (b"x-shiver-request-id", request_id.encode())]
            await send(message)

        try:
            return await self._app(scope, receive, send_with_id)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is answered and told in the log
            # Where it happened and never what it says: an exception's text may hold what a user wrote.
            where = "".join(traceback.format_tb(error.__traceback__))
            log.error("request %s failed: %s\n%s", request_id, type(error).__name__, where)
        if begun:
            raise BrokeOff
        refused = surfaces.refusal(scope["path"], ApiError("internal_error"))
        response = Response(refused.body, refused.status, refused.headers, "application/json")
        if scope["path"].startswith(cors.PATHS):  # Cors is inside, and the error came past it
            response.headers.update({name.decode(): value.decode() for name, value in cors.HEADERS})
        return await response(scope, receive, send_with_id)


def _json(status: int, data: Any, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(data), status, headers, "application/json")


async def _on_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    refused = surfaces.refusal(request.url.path, error)
    return Response(refused.body, refused.status, refused.headers, "application/json")


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
    response = await _on_api_error(request, ApiError(code))
    response.headers.update(error.headers or {})  # a 405 says which methods it takes
    return response


async def _on_client_gone(request: Request, error: Exception) -> Response:
    """The client left in the middle of its body: nobody reads this, and it is no error of ours."""
    return Response(status_code=400)
