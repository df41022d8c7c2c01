"""How an error is written: one surface for each path prefix. A path that names none gets OpenAI's.

A dialect with errors of its own adds a row here; status, body and headers come from it, for its own refusals as for a
404, 405 or 413 under its path. The statuses stand in `schemas.errors`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import orjson

from schemas.errors import ApiError


class Refusal(NamedTuple):
    """An error as HTTP."""

    status: int
    body: bytes
    headers: dict[str, str]


def openai(error: ApiError) -> Refusal:
    """OpenAI's error object; Retry-After where waiting helps."""
    return Refusal(error.status_on("v1"), orjson.dumps(error.body()), waiting(error))


def shreyansh(error: ApiError) -> Refusal:
    """/v3: the same object without a param, and its code is the status."""
    return Refusal(error.status_on("v3"), orjson.dumps(numeric(error)), waiting(error))


def numeric(error: ApiError) -> dict[str, dict[str, Any]]:
    """The body of /v3. A 429 has one wording there, whatever limit was met."""
    status = error.status_on("v3")
    if status == 429:
        return {"error": {"message": "Rate limit exceeded", "type": "rate_limit_exceeded", "code": 429}}
    return {"error": {"message": error.message, "type": error.row.type, "code": status}}


def shadow(error: ApiError) -> Refusal:
    """/v1/inference and its siblings: `detail`, and our code beside it."""
    return Refusal(error.status_on("inference"), orjson.dumps(detail(error)), waiting(error))


def detail(error: ApiError) -> dict[str, str]:
    return {"detail": error.message, "code": error.code}


def waiting(error: ApiError) -> dict[str, str]:
    """The headers of an error: Retry-After where waiting helps, and what came with it."""
    wait = {} if error.retry_after_s is None else {"retry-after": str(error.retry_after_s)}
    return {**wait, **error.headers}


#: The first prefix that the path begins with decides.
SURFACES: list[tuple[str, Callable[[ApiError], Refusal]]] = [
    ("/v3/", shreyansh),
    ("/v1/inference", shadow),
    ("/v1/usage", shadow),
    ("/v1/health", shadow),
]


def refusal(path: str, error: ApiError) -> Refusal:
    """What a caller of `path` is answered."""
    return next((surface for prefix, surface in SURFACES if path.startswith(prefix)), openai)(error)
