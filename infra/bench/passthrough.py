"""The least that a gateway can do: FastAPI in front, aiohttp behind, bytes handed on as they come.

No keys, no limits, no books. It is what Shiver is compared with, run in an environment of its own that has nothing
else (infra/locks/bench-passthrough.txt):

    python passthrough.py PORT UPSTREAM_BASE_URL
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterator

import aiohttp
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse


def make_app(upstream: str) -> FastAPI:
    """The application; `upstream` is a base URL without `/v1`."""
    sessions: list[aiohttp.ClientSession] = []

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            sessions.append(session)
            yield

    app = FastAPI(lifespan=lifespan)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> StreamingResponse:
        body = await request.body()
        answer = await sessions[0].post(
            f"{upstream}/v1/chat/completions", data=body, headers={"Content-Type": "application/json"}
        )

        async def relay() -> AsyncIterator[bytes]:
            async with answer:
                async for data in answer.content.iter_any():
                    yield data

        return StreamingResponse(relay(), answer.status, media_type=answer.content_type)

    return app


def main() -> None:
    """Serves until it is ended."""
    uvicorn.run(make_app(sys.argv[2]), host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
