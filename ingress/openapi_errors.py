"""Refusals in the description of the API: by status, with the codes that it can have there, and its body's schema.

All of it follows from `schemas.errors`: what an operation can be refused with is a set of codes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from schemas.errors import TABLE, Surface

_TEXT = {"type": "string"}
#: The schema of each surface's errors, by its name in the document.
ERRORS: dict[Surface, tuple[str, dict[str, Any]]] = {
    "v1": (
        "Error",
        {
            "type": "object",
            "required": ["error"],
            "properties": {
                "error": {
                    "type": "object",
                    "required": ["message", "type", "param", "code"],
                    "properties": {
                        "message": _TEXT,
                        "type": _TEXT,
                        "param": {"type": ["string", "null"], "description": "The field at fault, with dots"},
                        "code": {"type": "string", "enum": list(TABLE)},
                    },
                }
            },
        },
    ),
    "v3": (
        "NumericError",
        {
            "type": "object",
            "required": ["error"],
            "properties": {
                "error": {
                    "type": "object",
                    "required": ["message", "type", "code"],
                    "properties": {
                        "message": _TEXT,
                        "type": _TEXT,
                        "code": {"type": "integer", "description": "The HTTP status"},
                    },
                }
            },
        },
    ),
    "inference": (
        "Detail",
        {
            "type": "object",
            "required": ["detail", "code"],
            "properties": {"detail": _TEXT, "code": {"type": "string", "enum": list(TABLE)}},
        },
    ),
}
REQUEST_ID = {
    "description": "The id of this request, on every answer",
    "required": True,
    "schema": {"type": "string", "pattern": "^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"},
}
_RETRY_AFTER = {
    "description": "Seconds after which the same request may be taken, where waiting helps",
    "schema": {"type": "integer", "minimum": 1},
}

#: What any operation can come to, and what any that takes a key can.
OURS = ("internal_error",)
KEYED = (
    "missing_api_key",
    "conflicting_api_keys",
    "invalid_api_key",
    "revoked_api_key",
    "session_expired",
    "origin_not_allowed",
    "database_unavailable",
)
#: What opening a session can be refused with.
SESSION = (
    "head_too_large",
    "request_timeout",
    "request_too_large",
    *KEYED,
    "session_not_allowed",
    "invalid_json",
    "invalid_request",
    "model_not_found",
    "model_not_allowed",
    "session_cap",
    "catching_up",
    *OURS,
)
_PATHS = ("not_found", "method_not_allowed", "models_read_only", "session_not_allowed", "session_cap")
_RICH = ("invalid_schema", "invalid_image", "invalid_image_url")


def of_tokens(*, rich: bool) -> list[str]:
    """What a request for tokens can be refused with. A `rich` one may have images, tools and response formats."""
    return [code for code in TABLE if code not in _PATHS and (rich or code not in _RICH)]


def refusals(
    surface: Surface, codes: Iterable[str], words: dict[str, str], statuses: Mapping[str, int] = MappingProxyType({})
) -> dict[str, Any]:
    """The `responses` of these codes. `words` says what a status means, `statuses` a code's where it is not the
    table's."""
    by_status: dict[int, list[str]] = {}
    for code in codes:
        status = statuses.get(code) or TABLE[code].status_on(surface)
        by_status.setdefault(status, []).append(code)
    return {str(status): _refusal(surface, status, by_status[status], words) for status in sorted(by_status)}


def _refusal(surface: Surface, status: int, codes: list[str], words: dict[str, str]) -> dict[str, Any]:
    name = ERRORS[surface][0]
    schema = {"allOf": [{"$ref": f"#/components/schemas/{name}"}, _narrow(surface, status, codes)]}
    headers: dict[str, Any] = {"x-shiver-request-id": REQUEST_ID}
    if any(TABLE[code].retryable for code in codes):
        headers["Retry-After"] = _RETRY_AFTER
    return {
        "description": f"{words.get(str(status), 'Refused')}. Codes: {', '.join(f'`{code}`' for code in codes)}.",
        "headers": headers,
        "content": {"application/json": {"schema": schema, "example": _example(surface, status, codes[0])}},
    }


def _narrow(surface: Surface, status: int, codes: list[str]) -> dict[str, Any]:
    types = sorted({TABLE[code].type for code in codes})
    if surface == "inference":
        return {"properties": {"code": {"enum": codes}}}
    if surface == "v1":
        error: dict[str, Any] = {"code": {"enum": codes}, "type": {"enum": types}}
    elif status == 429:  # one wording, whatever limit was met
        error = {
            "code": {"const": 429},
            "type": {"const": "rate_limit_exceeded"},
            "message": {"const": "Rate limit exceeded"},
        }
    else:
        error = {"code": {"const": status}, "type": {"enum": types}}
    return {"properties": {"error": {"properties": error}}}


def _example(surface: Surface, status: int, code: str) -> dict[str, Any]:
    row = TABLE[code]
    if surface == "inference":
        return {"detail": row.message, "code": code}
    if surface == "v1":
        return {"error": {"message": row.message, "type": row.type, "param": None, "code": code}}
    if status == 429:
        return {"error": {"message": "Rate limit exceeded", "type": "rate_limit_exceeded", "code": status}}
    return {"error": {"message": row.message, "type": row.type, "code": status}}
