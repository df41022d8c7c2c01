"""What is wrong with a body, as every dialect's error says it; the text never repeats what the body said."""

from __future__ import annotations

from pydantic import ValidationError

from schemas.errors import ApiError

PATH_CHARS_MAX = 100


def fault(error: ValidationError) -> ApiError:
    """The first fault: invalid_json, unsupported_parameter or invalid_request, with the field's path as param."""
    first = error.errors(include_input=False, include_url=False, include_context=False)[0]
    path = ".".join(str(step) for step in first["loc"] if not isinstance(step, str) or "[" not in step)
    path = path[:PATH_CHARS_MAX]
    if first["type"] == "json_invalid":
        return ApiError("invalid_json")
    if first["type"] == "extra_forbidden":
        return ApiError("unsupported_parameter", f"The parameter {path} is not supported here.", param=path)
    return ApiError("invalid_request", f"{path or 'body'}: {first['msg']}", param=path or None)
