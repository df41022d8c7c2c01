"""The bytes that `schemas.events.dump` writes, as one regular expression a model, generated from the model itself.

A shape matches nothing but canonical bytes of valid values: fields in order, no space, no escape, ASCII, integers
within their bounds, one item where a tuple is. What matches may be read from the groups; whatever does not is for
pydantic to read or refuse, so that the contract stays pydantic's alone (`schemas.events.parse`).
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any, get_args

from pydantic import BaseModel

# Printable ASCII that JSON writes as it is.
_PLAIN = r"[ !#-\[\]-~]"


class Shape:
    """How a model's canonical text looks. `names` has the fields that are kept, in order of the groups of `match`.

    A field of a nested model is named with a dot: `segments.tokens`. Raises ValueError for a model that has validators
    of its own, a kind of field that is not known here, or not the fields that are to be kept.
    """

    def __init__(self, model: type[BaseModel], keep: Collection[str]) -> None:
        self.names: list[str] = []
        self._keep = keep
        self.match = re.compile(self._object(model, ""), re.ASCII).fullmatch
        if set(self.names) != set(keep):
            raise ValueError(f"{model.__name__} has not the fields {set(keep) - set(self.names)}")

    def _object(self, model: type[BaseModel], within: str) -> str:
        decorators = model.__pydantic_decorators__
        if decorators.field_validators or decorators.model_validators or decorators.validators:
            raise ValueError(f"{model.__name__} has a validator")
        schema = model.model_json_schema()
        parts = list[str]()
        for name, field in model.model_fields.items():
            kind: dict[str, Any] = schema["properties"][name]
            if "$ref" in kind:
                kind = schema["$defs"][kind["$ref"].rpartition("/")[2]]
            text = (
                self._one_item(kind, field.annotation, f"{within}{name}.")
                if kind.get("type") == "array"
                else self._value(kind, within + name)
            )
            parts.append(f'"{name}":{text}')
        return r"\{" + ",".join(parts) + r"\}"

    def _one_item(self, kind: dict[str, Any], annotation: Any, within: str) -> str:
        model = get_args(annotation)[0]
        if not (isinstance(model, type) and issubclass(model, BaseModel)) or kind.get("minItems", 0) > 1:
            raise ValueError(f"{within} is of an unknown kind")
        return rf"\[{self._object(model, within)}\]"

    def _value(self, kind: dict[str, Any], name: str) -> str:
        if "anyOf" in kind:
            some, null = kind["anyOf"]
            if null != {"type": "null"} or name in self._keep:
                raise ValueError(f"{name} is of an unknown kind")
            return f"(?:null|{self._value(some, name)})"
        if kind.get("type") not in ("integer", "string"):
            raise ValueError(f"{name} is of an unknown kind")
        text, quote = (_integer(kind), "") if kind["type"] == "integer" else (_text(kind), '"')
        if name not in self._keep:
            return f"{quote}(?:{text}){quote}"
        self.names.append(name)
        return f"{quote}({text}){quote}"


def _integer(kind: dict[str, Any]) -> str:
    if "const" in kind:
        return re.escape(str(kind["const"]))
    low, high = kind.get("minimum", kind.get("exclusiveMinimum")), kind.get("maximum")
    # One digit less than the bound, so that all that match are within it. Whatever lies between is pydantic's.
    if low not in (0, 1) or high is None or high < 10:
        raise ValueError("an integer of unknown bounds")
    some = rf"[1-9][0-9]{{0,{len(str(high)) - 2}}}"
    return f"0|{some}" if kind.get("minimum") == 0 else some


def _text(kind: dict[str, Any]) -> str:
    if "const" in kind:
        return re.escape(kind["const"])
    if "enum" in kind:
        return "|".join(map(re.escape, kind["enum"]))
    if "pattern" in kind:
        pattern: str = kind["pattern"]
        whole = pattern.startswith("^") and pattern.endswith("$") and not {"minLength", "maxLength"} & set(kind)
        # A group of its own would move ours; what takes a quote or a backslash would not be JSON as it is.
        if not whole or "(" in pattern or '"' in pattern or "|" in pattern:
            raise ValueError("a pattern that is not known to be plain")
        return pattern[1:-1]
    return f"{_PLAIN}{{{kind.get('minLength', 0)},{kind.get('maxLength', '')}}}"
