"""The key, or the token of a session, in a request's headers. Whether it lives is for admission, in its one round
trip."""

from __future__ import annotations

from starlette.datastructures import Headers

from schemas import keys
from schemas.errors import ApiError


def key_of(headers: Headers) -> keys.ApiKey:
    """The well-formed key or token in Authorization: Bearer or X-API-Key.

    Raises ApiError: missing_api_key, conflicting_api_keys, or invalid_api_key for what cannot be one of ours.
    """
    text = given(headers)
    if text is None:
        raise ApiError("missing_api_key")
    key = keys.parse(text)
    if key is None:
        raise ApiError("invalid_api_key")
    return key._replace(origin=headers.get("origin")) if key.is_session else key


def given(headers: Headers) -> str | None:
    """What stands in the headers where a key does; None for nothing. Raises ApiError conflicting_api_keys."""
    found = {text.strip() for text in headers.getlist("x-api-key")}
    for text in headers.getlist("authorization"):
        scheme, _, bearer = text.partition(" ")
        if scheme.lower() == "bearer":
            found.add(bearer.strip())
    found.discard("")
    if len(found) > 1:
        raise ApiError("conflicting_api_keys")
    return found.pop() if found else None
