"""The key in a request's headers. Whether it is a living key is for admission, in its one round trip."""

from __future__ import annotations

from starlette.datastructures import Headers

from schemas import keys
from schemas.errors import ApiError


def key_of(headers: Headers) -> keys.ApiKey:
    """The well-formed key in Authorization: Bearer or X-API-Key.

    Raises ApiError: missing_api_key, conflicting_api_keys, or invalid_api_key for what cannot be one of ours.
    """
    scheme, _, bearer = headers.get("authorization", "").partition(" ")
    given = {text.strip() for text in (bearer if scheme.lower() == "bearer" else "", headers.get("x-api-key", ""))}
    given.discard("")
    if not given:
        raise ApiError("missing_api_key")
    if len(given) > 1:
        raise ApiError("conflicting_api_keys")
    key = keys.parse(given.pop())
    if key is None:
        raise ApiError("invalid_api_key")
    return key
