"""Parts of JSON schemas: how a form tells, in the description of the API, what it demands of several fields at once.

The code that checks stands beside each use; `infra/docs/api.md` says what no schema can say.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

#: A list with at least one item.
SOME: Schema = {"type": "array", "minItems": 1}
OBJECT: Schema = {"type": "object"}


def given(**fields: Any) -> Schema:
    """An object that has these fields, each as its schema says."""
    return {"properties": fields, "required": list(fields)}


def when(condition: Schema, then: Schema) -> Schema:
    """What meets the condition has to be so."""
    return {"if": condition, "then": then}


def having(item: Schema) -> Schema:
    """A list of which some item is so."""
    return {"type": "array", "contains": item}


def at_most(count: int, item: Schema) -> Schema:
    """A list of which no more items than that are so."""
    return {"contains": item, "minContains": 0, "maxContains": count}


def either(*schemas: Schema) -> Schema:
    return {"anyOf": list(schemas)}


def extra(*rules: Schema) -> Schema:
    """For a form's `model_config`: all of these hold besides what its fields say."""
    return {"allOf": list(rules)}
