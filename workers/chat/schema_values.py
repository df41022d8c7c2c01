"""What all that reads JSON schemas shares: the one error, the limits of a document, kinds of values. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

SCHEMA_BYTES_MAX = 128 * 1024
DEPTH_MAX = 32
#: Of objects and lists in the document, whatever they mean.
NESTING_MAX = 100


class BadSchema(ValueError):
    """A schema that is wrong, too large, or asks for what is not supported. `where` is a path of keywords.

    The text may be told to the client; it repeats names of keywords and never values.
    """

    def __init__(self, where: Sequence[str], what: str) -> None:
        path = "/".join(where[:DEPTH_MAX])
        super().__init__(f"schema{'/' + path if path else ''}: {what}"[:300])


class Unfollowed(BadSchema):
    """A schema that may well be right, and that no grammar here can follow."""


def check_size(schema: Any) -> None:
    """Raises BadSchema for a schema that is no JSON or too large."""
    try:
        size = len(json.dumps(schema, ensure_ascii=False, allow_nan=False).encode())
    except (ValueError, TypeError, RecursionError, UnicodeEncodeError):
        raise BadSchema((), "it is no JSON, or too deep") from None
    if size > SCHEMA_BYTES_MAX:
        raise BadSchema((), f"it is larger than {SCHEMA_BYTES_MAX} bytes")
    level = [schema]
    for _ in range(NESTING_MAX):
        level = [
            inner
            for outer in level
            if isinstance(outer, Mapping | list)
            for inner in (outer.values() if isinstance(outer, Mapping) else outer)
        ]
    if level:
        raise BadSchema((), f"it is deeper than {NESTING_MAX} objects and lists")


def is_in(value: Any, values: Sequence[Any]) -> bool:
    return any(type(value) is type(one) and value == one for one in values)


def kind_of(value: Any) -> str:
    names = {bool: "boolean", str: "string", int: "number", float: "number", list: "array", dict: "object"}
    return names.get(type(value), "null")


def has_kind(value: Any, kinds: Sequence[str]) -> bool:
    kind = kind_of(value)
    whole = kind == "number" and float(value).is_integer()
    return kind in kinds or (whole and "integer" in kinds)


def texts_of(values: Sequence[Any]) -> frozenset[str]:
    return frozenset(json.dumps(value, sort_keys=True) for value in values)


def tags_of(part: Mapping[str, Any]) -> dict[str, frozenset[str]]:
    """The constants that required properties of an object may have."""
    tags: dict[str, frozenset[str]] = {}
    properties, required = part.get("properties"), part.get("required")
    if isinstance(properties, Mapping) and isinstance(required, list):
        for name, inner in properties.items():
            if name in required and isinstance(inner, Mapping):
                values = [inner["const"]] if "const" in inner else inner.get("enum")
                if isinstance(values, list):
                    tags[name] = texts_of(values)
    return tags
