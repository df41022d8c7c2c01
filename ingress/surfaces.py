"""How an error is written: one surface for each path prefix. A path that names none gets OpenAI's.

A dialect with errors of its own adds a row here; status, body and headers come from it, for its own refusals as for a
404, 405 or 413 under its path.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import orjson

from schemas.errors import ApiError


class Refusal(NamedTuple):
    """An error as HTTP."""

    status: int
    body: bytes
    headers: dict[str, str]


def openai(error: ApiError) -> Refusal:
    """OpenAI's error object; Retry-After where waiting helps."""
    return Refusal(error.row.status, orjson.dumps(error.body()), waiting(error))


def waiting(error: ApiError) -> dict[str, str]:
    return {} if error.retry_after_s is None else {"retry-after": str(error.retry_after_s)}


#: The first prefix that the path begins with decides.
SURFACES: list[tuple[str, Callable[[ApiError], Refusal]]] = []


def refusal(path: str, error: ApiError) -> Refusal:
    """What a caller of `path` is answered."""
    return next((surface for prefix, surface in SURFACES if path.startswith(prefix)), openai)(error)
