"""In how many ways the beginning of a value can be read under a JSON schema. Pure.

An engine follows all of them at once. Two arrays, or two objects that nothing tells apart at their beginning, are two
ways; where both hold such a pair again they are four, and so on: at 2^17 llama.cpp takes minutes for a token, and
everybody on the node waits. Counted here is what grows with nesting; a choice that is over within its own names and
constants is bounded by the schema's size and costs little.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from workers.chat.schema_values import tags_of

READINGS_MAX = 1024
#: A schema that refers to itself is looked at so deep.
_LEVELS = 24
_FLAT_MAX = 4096

Resolve = Callable[[Any], Any]


def readings(schema: Any, resolve: Resolve) -> int:
    """No fewer than the ways that are open at once at any place of a text, READINGS_MAX + 1 for any more.

    `resolve` gives what a `$ref` points to.
    """
    return _Reading(resolve).of(schema, _LEVELS)


class _Object(NamedTuple):
    """What tells an alternative that may be an object from others."""

    schema: Any
    names: frozenset[str] | None  # None where it may have others
    tag: str | None  # the name that comes first, where it has to come and is a constant
    values: frozenset[str]

    def apart(self, other: _Object) -> bool:
        """Whether their beginnings differ before anything can nest in them."""
        if self.names is None or other.names is None:
            return False
        if not self.names & other.names:
            return True
        return self.tag is not None and self.tag == other.tag and not self.values & other.values


class _Ways(NamedTuple):
    """The alternatives of a schema: those that may be lists, and objects in groups that nothing tells apart."""

    lists: list[Any]
    objects: list[list[Any]]
    size: int


class _Reading:
    def __init__(self, resolve: Resolve) -> None:
        self._resolve = resolve
        self._known: dict[tuple[int, int], int] = {}
        self._ways: dict[int, _Ways] = {}

    def of(self, schema: Any, levels: int) -> int:
        for _ in range(_LEVELS):
            if isinstance(schema, Mapping) and "$ref" in schema:  # what is referred to by many is looked at once
                schema = self._resolve(schema["$ref"])
        key = id(schema), levels
        if key not in self._known:
            self._known[key] = min(self._count(schema, levels), READINGS_MAX + 1)
        return self._known[key]

    def _count(self, schema: Any, levels: int) -> int:
        if levels == 0:
            return 1
        ways = self._ways.get(id(schema))
        if ways is None:
            ways = self._ways[id(schema)] = _ways_of(list(self._flat(schema)))
        if ways.size > READINGS_MAX:
            return READINGS_MAX + 1
        lists = sum(self._inside(_lists_of(way), levels) for way in ways.lists)
        objects = [sum(self._inside(_values_of(way), levels) for way in group) for group in ways.objects]
        return max(1, lists, *objects)

    def _inside(self, schemas: Iterator[Any], levels: int) -> int:
        return max((self.of(one, levels - 1) for one in schemas), default=1)

    def _flat(self, schema: Any) -> Iterator[Any]:
        """The schema's alternatives, choices within choices taken apart."""
        waiting, seen = [schema], 0
        while waiting:
            one = waiting.pop()
            seen += 1
            if seen > _FLAT_MAX:
                return
            if not isinstance(one, Mapping):
                if one is not False:
                    yield one
                continue
            inner = [way for key in ("anyOf", "oneOf", "allOf") for way in _list(one.get(key))]
            if "$ref" in one:
                inner.append(self._resolve(one["$ref"]))
            if inner:
                waiting += inner
            else:
                yield one


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else ()


def _may_be(schema: Any, kind: str) -> bool:
    if not isinstance(schema, Mapping):
        return True
    if "const" in schema or "enum" in schema:
        return False
    kinds = schema.get("type")
    return kinds is None or kinds == kind or (isinstance(kinds, list) and kind in kinds)


def _lists_of(schema: Any) -> Iterator[Any]:
    if isinstance(schema, Mapping):
        yield schema.get("items", True)
        yield from _list(schema.get("prefixItems"))


def _values_of(schema: Any) -> Iterator[Any]:
    if isinstance(schema, Mapping):
        properties = schema.get("properties")
        yield from properties.values() if isinstance(properties, Mapping) else ()
        yield schema.get("additionalProperties", True)


def _ways_of(flat: list[Any]) -> _Ways:
    groups: list[list[_Object]] = []
    for way in flat[: READINGS_MAX + 1]:
        if _may_be(way, "object"):
            one = _object_of(way)
            alike = [group for group in groups if any(not one.apart(other) for other in group)]
            groups = [group for group in groups if group not in alike]
            groups.append([one, *(other for group in alike for other in group)])
    lists = [way for way in flat if _may_be(way, "array")]
    return _Ways(lists, [[one.schema for one in group] for group in groups], len(flat))


def _object_of(schema: Any) -> _Object:
    properties = schema.get("properties") if isinstance(schema, Mapping) else None
    if not isinstance(properties, Mapping) or schema.get("additionalProperties") not in (None, False):
        return _Object(schema, None, None, frozenset())
    names = list(properties)
    tags = tags_of(schema) if names else {}
    tag = names[0] if names and names[0] in tags else None
    return _Object(schema, frozenset(names), tag, tags[tag] if tag is not None else frozenset())
