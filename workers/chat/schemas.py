"""JSON schemas as grammars: whatever the grammar lets through validates against the schema. Pure.

The grammar says no more than the schema allows, often less: properties come in the order in which they are declared,
no property comes that is not declared unless the schema says what it may be, and there is no white space but a space
behind a comma or a colon. A keyword that would narrow what is valid and is not known here is an error (`BadSchema`);
one that only describes is passed over. Where the schema is not strict such a keyword is passed over too, and a part
that cannot be followed may be any value of its type.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any
from urllib.parse import unquote

from workers.chat import numerals
from workers.chat.patterns import BadPattern, pattern
from workers.chat.readings import READINGS_MAX, readings
from workers.chat.schema_values import (
    DEPTH_MAX,
    BadSchema,
    Unfollowed,
    check_size,
    has_kind,
    is_in,
    kind_of,
    tags_of,
    texts_of,
)
from workers.chat.strings import (
    FORMATS,
    literal_json,
    space,
    string,
    string_but,
    string_of,
)
from workers.engines.grammar import Alternative, Builder, GrammarTooLarge, literal

#: llama.cpp takes no rule that repeats more often.
REPEAT_MAX = 2000
PROPERTIES_MAX = 1000
ENUM_MAX = 2000

_TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
#: Keywords that narrow what is valid in ways that no grammar here can follow.
_UNSUPPORTED = (
    "not", "if", "then", "else", "dependentRequired", "dependentSchemas", "dependencies", "patternProperties",
    "propertyNames", "contains", "minContains", "maxContains", "unevaluatedProperties", "unevaluatedItems",
    "multipleOf", "uniqueItems", "minProperties", "maxProperties", "additionalItems", "$dynamicRef", "$recursiveRef",
)  # fmt: skip
#: Values with which an unsupported keyword says nothing.
_HARMLESS: Mapping[str, tuple[Any, ...]] = {
    "not": (False, {"not": {}}),
    "uniqueItems": (False,),
    "minProperties": (0,),
    "multipleOf": (),
    "unevaluatedProperties": (True, False),  # nothing undeclared is ever said
    "unevaluatedItems": (True, False),
}
#: Of these, what else stands in the schema says too little without them.
_WIDENING = ("patternProperties", "additionalItems", "$dynamicRef", "$recursiveRef")
_OF_OBJECTS = ("properties", "required", "additionalProperties")
_OF_ARRAYS = ("items", "prefixItems", "minItems", "maxItems")
_OF_STRINGS = ("minLength", "maxLength", "pattern")
_OF_NUMBERS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")


def any_object(builder: Builder) -> Alternative:
    """Any JSON object."""
    return (Converter(builder, {}).generic("object"),)


def schema_value(builder: Builder, schema: Mapping[str, Any] | bool, *, strict: bool = True) -> Alternative:
    """A value that validates against the schema, or nearly so where it is not strict. Raises BadSchema."""
    check_size(schema)
    converter = Converter(builder, schema, strict=strict)
    if readings(schema, converter.target) > READINGS_MAX:
        if strict:
            raise Unfollowed((), "it can be read in too many ways: put what tells the parts of an anyOf apart first")
        is_object = isinstance(schema, Mapping) and schema.get("type") == "object"
        return (converter.generic("object" if is_object else "value"),)
    try:
        return converter.value(schema, ())
    except GrammarTooLarge as error:
        raise BadSchema((), str(error)) from None


class Converter:
    """Makes rules of one schema document.

    Args:
        builder: takes the rules.
        document: what `$ref` points into.
        strict: whether what cannot be followed is an error.
    """

    def __init__(self, builder: Builder, document: Mapping[str, Any] | bool, *, strict: bool = True) -> None:
        self._strict = strict
        self._builder = builder
        self._document = document
        self._refs: dict[str, str] = {}
        self._generic: dict[str, str] = {}

    def generic(self, kind: str) -> str:
        """The rule of any value of a type; of any type for "value"."""
        if not self._generic:
            builder = self._builder
            value, item, obj, arr = (builder.name() for _ in range(4))
            self._generic = {"value": value, "object": obj, "array": arr}
            text = self._generic["string"] = builder.rule(string(builder))
            number = self._generic["number"] = builder.rule(numerals.any_number(builder))
            self._generic["integer"] = builder.rule(numerals.any_integer(builder))
            boolean = self._generic["boolean"] = builder.rule(literal("true"), literal("false"))
            null = self._generic["null"] = builder.rule(literal("null"))
            pair = builder.rule((text, *literal(":"), space(builder), value))
            builder.define(item, (pair, *builder.many((*literal(","), space(builder), pair))))
            builder.define(obj, literal("{}"), (*literal("{"), item, *literal("}")))
            values = (value, *builder.many((*literal(","), space(builder), value)))
            builder.define(arr, literal("[]"), (*literal("["), *values, *literal("]")))
            builder.define(value, (obj,), (arr,), (text,), (number,), (boolean,), (null,))
        return self._generic[kind]

    def value(self, schema: Any, where: tuple[str, ...]) -> Alternative:
        """A value of a schema at a place in the document."""
        try:
            return self._value(schema, where)
        except Unfollowed:
            if self._strict:
                raise
            kinds = self._kinds({"type": schema["type"]} if "type" in schema else {}, where)
            return (self._builder.rule(*((self.generic(kind),) for kind in kinds)),)

    def _value(self, schema: Any, where: tuple[str, ...]) -> Alternative:
        if len(where) > DEPTH_MAX * 2:
            raise BadSchema(where, f"it is deeper than {DEPTH_MAX * 2} keywords")
        if schema is True:
            return (self.generic("value"),)
        if schema is False:
            raise BadSchema(where, "it allows nothing")
        if not isinstance(schema, Mapping):
            raise BadSchema(where, "it is neither an object nor a boolean")
        self._refuse(schema, where)
        if "$ref" in schema:
            return self._ref(schema, where)
        if "allOf" in schema:
            return self.value(self._all_of(schema, where), where)
        for keyword in ("anyOf", "oneOf"):
            if keyword in schema:
                return self._any_of(schema, keyword, where)
        if "const" in schema:
            return self._enum([schema["const"]], schema, where)
        if "enum" in schema:
            return self._enum(schema["enum"], schema, where)
        kinds = self._kinds(schema, where)
        return (self._builder.rule(*(self._of_kind(kind, schema, where) for kind in kinds)),)

    def _refuse(self, schema: Mapping[str, Any], where: tuple[str, ...]) -> None:
        for keyword in schema:
            if not self._strict and keyword not in _WIDENING:
                continue
            if keyword in _UNSUPPORTED and not is_in(schema[keyword], _HARMLESS.get(keyword, ())):
                raise Unfollowed((*where, keyword), "this keyword is not supported")

    def _kinds(self, schema: Mapping[str, Any], where: tuple[str, ...]) -> list[str]:
        kinds = schema.get("type")
        if kinds is None:
            groups = (("object", _OF_OBJECTS), ("array", _OF_ARRAYS), ("string", _OF_STRINGS), ("number", _OF_NUMBERS))
            kinds = [kind for kind, keywords in groups if any(keyword in schema for keyword in keywords)]
            return kinds or [kind for kind in _TYPES if kind != "integer"]
        kinds = [kinds] if isinstance(kinds, str) else kinds
        if not isinstance(kinds, list) or not kinds or not all(is_in(kind, _TYPES) for kind in kinds):
            raise BadSchema((*where, "type"), "it names no types, or unknown ones")
        return list(dict.fromkeys(kinds))

    def _of_kind(self, kind: str, schema: Mapping[str, Any], where: tuple[str, ...]) -> Alternative:
        if kind == "object":
            return self._object(schema, where)
        if kind == "array":
            return self._array(schema, where)
        if kind == "string":
            return self._string(schema, where)
        if kind in ("integer", "number"):
            return self._number(kind, schema, where)
        return (self.generic(kind),)

    def _ref(self, schema: Mapping[str, Any], where: tuple[str, ...]) -> Alternative:
        narrowing = [k for k in schema if k != "$ref" and k in (*_OF_OBJECTS, *_OF_ARRAYS, *_OF_STRINGS, *_OF_NUMBERS)]
        narrowing += [k for k in ("type", "enum", "const", "anyOf", "oneOf", "allOf") if k in schema]
        if narrowing:
            raise Unfollowed((*where, "$ref"), f"it stands beside {narrowing[0]}, which is not supported")
        pointer = schema["$ref"]
        target = self.resolve(pointer, where)
        if pointer not in self._refs:
            name = self._refs[pointer] = self._builder.name()
            self._builder.define(name, self.value(target, ("$ref",)))
        return (self._refs[pointer],)

    def target(self, pointer: Any) -> Any:
        """What a reference points to, True where it is none that is followed. Raises BadSchema."""
        try:
            return self.resolve(pointer, ())
        except Unfollowed:
            return True

    def resolve(self, pointer: Any, where: tuple[str, ...]) -> Any:
        """What a reference points to. Raises BadSchema."""
        if not isinstance(pointer, str) or not (pointer == "#" or pointer.startswith("#/")):
            raise Unfollowed((*where, "$ref"), "only references within the schema (#/...) are supported")
        at: Any = self._document
        for step in pointer[1:].split("/")[1:]:
            step = unquote(step).replace("~1", "/").replace("~0", "~")
            if isinstance(at, Mapping) and step in at:
                at = at[step]
            elif isinstance(at, list) and step.isdecimal() and int(step) < len(at):
                at = at[int(step)]
            else:
                raise BadSchema((*where, "$ref"), "it points to nothing")
        return at

    def _all_of(self, schema: Mapping[str, Any], where: tuple[str, ...]) -> Mapping[str, Any]:
        """One schema that says the same: parts may each bring what the others do not have, and their properties."""
        parts = schema["allOf"]
        if not isinstance(parts, list) or not parts:
            raise BadSchema((*where, "allOf"), "it is no list of schemas")
        merged = {keyword: value for keyword, value in schema.items() if keyword != "allOf"}
        if len(parts) == 1 and not any(self._narrows(keyword) for keyword in merged):
            return parts[0] if isinstance(parts[0], Mapping) else {}
        for number, part in enumerate(parts):
            place = (*where, "allOf", str(number))
            for _ in range(DEPTH_MAX):
                if isinstance(part, Mapping) and set(part) - {"description", "title"} == {"$ref"}:
                    part = self.resolve(part["$ref"], place)
            if not isinstance(part, Mapping):
                raise BadSchema(place, "it is no object")
            for keyword, value in part.items():
                if keyword == "properties" and isinstance(merged.get(keyword), Mapping) and isinstance(value, Mapping):
                    if set(merged[keyword]) & set(value):
                        raise Unfollowed((*place, keyword), "two parts of an allOf describe the same property")
                    merged[keyword] = {**merged[keyword], **value}
                elif keyword == "required" and isinstance(merged.get(keyword), list) and isinstance(value, list):
                    merged[keyword] = [*merged[keyword], *value]
                elif self._narrows(keyword) and keyword in merged and merged[keyword] != value:
                    raise Unfollowed((*place, keyword), "two parts of an allOf say different things")
                else:
                    merged[keyword] = value
        if "properties" in merged and merged.get("additionalProperties", True) is not True:
            merged["additionalProperties"] = False
        return merged

    @staticmethod
    def _narrows(keyword: str) -> bool:
        known = (*_OF_OBJECTS, *_OF_ARRAYS, *_OF_STRINGS, *_OF_NUMBERS)
        return keyword in known or keyword in ("type", "enum", "const", "anyOf", "oneOf", "allOf", "$ref")

    def _any_of(self, schema: Mapping[str, Any], keyword: str, where: tuple[str, ...]) -> Alternative:
        parts = schema[keyword]
        if not isinstance(parts, list) or not parts:
            raise BadSchema((*where, keyword), "it is no list of schemas")
        beside = [k for k in schema if k != keyword and self._narrows(k)]
        if beside == ["type"] and isinstance(schema["type"], str):
            parts = [{"type": schema["type"], **part} if isinstance(part, Mapping) else part for part in parts]
            if any(part["type"] != schema["type"] for part in parts if isinstance(part, Mapping)):
                raise Unfollowed((*where, keyword), "its parts have other types than the schema")
        elif beside:
            raise Unfollowed((*where, keyword), f"it stands beside {beside[0]}, which is not supported")
        if keyword == "oneOf" and len(parts) > 1 and not self._apart(parts, where):
            raise Unfollowed((*where, keyword), "its parts are not seen to exclude each other: use anyOf")
        return (
            self._builder.rule(
                *(
                    self.value(part, (*where, keyword, str(number)))
                    for number, part in enumerate(parts)
                    if part is not False
                )
            ),
        )

    def _apart(self, parts: list[Any], where: tuple[str, ...]) -> bool:
        """Whether no value can be of two parts: other types, or objects that a required constant tells apart."""
        seen: list[tuple[frozenset[str], dict[str, frozenset[str]]]] = []
        for part in parts:
            for _ in range(DEPTH_MAX):
                if isinstance(part, Mapping) and "$ref" in part:
                    part = self.resolve(part["$ref"], where)
            if not isinstance(part, Mapping):
                return False
            values = [part["const"]] if "const" in part else part.get("enum")
            if isinstance(values, list):
                kinds, tags = frozenset(kind_of(value) for value in values), {"": texts_of(values)}
            else:
                kinds = frozenset("number" if kind == "integer" else kind for kind in self._kinds(part, where))
                tags = tags_of(part)
            for other_kinds, other_tags in seen:
                told = any(not tags[name] & other_tags[name] for name in tags.keys() & other_tags.keys())
                if kinds & other_kinds and not told:
                    return False
            seen.append((kinds, tags))
        return True

    def _enum(self, values: Any, schema: Mapping[str, Any], where: tuple[str, ...]) -> Alternative:
        if not isinstance(values, list) or not 1 <= len(values) <= ENUM_MAX:
            raise BadSchema((*where, "enum"), f"it has to list 1 to {ENUM_MAX} values")
        if "type" in schema:
            kinds = self._kinds(schema, where)
            values = [value for value in values if has_kind(value, kinds)]
        beside = [k for k in (*_OF_OBJECTS, *_OF_ARRAYS, *_OF_STRINGS, *_OF_NUMBERS) if k in schema]
        if not values or beside:
            raise BadSchema((*where, "enum"), "no value is of its type, or other keywords narrow it")
        return (self._builder.rule(*(literal_json(value) for value in values)),)

    def _object(self, schema: Mapping[str, Any], where: tuple[str, ...]) -> Alternative:
        properties, required = schema.get("properties", {}), schema.get("required", [])
        if not isinstance(properties, Mapping) or len(properties) > PROPERTIES_MAX:
            raise BadSchema((*where, "properties"), f"it has to be an object of at most {PROPERTIES_MAX} properties")
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            raise BadSchema((*where, "required"), "it is no list of names")
        extra = schema.get("additionalProperties", None if "properties" in schema else True)
        if not properties and not required and extra is True:
            return (self.generic("object"),)
        builder, names = self._builder, [*properties, *(name for name in required if name not in properties)]
        names = list(dict.fromkeys(names))
        if len(names) > PROPERTIES_MAX or (extra is False and len(names) > len(properties)):
            raise BadSchema((*where, "required"), "it names too many properties, or one that is not allowed")
        comma, colon = (*literal(","), space(builder)), (*literal(":"), space(builder))
        begun: Alternative = ()
        empty: Alternative = ()
        if extra is not None and extra is not False:
            other = self.value(extra, (*where, "additionalProperties"))
            pair = builder.rule((*string_but(builder, names), *colon, *other))
            begun = builder.many((*comma, pair))
            empty = (builder.rule((pair, *begun), ()),)
        for name in reversed(names):
            inner = properties.get(name, True if extra is None else extra)
            if inner is False:
                if name in required:
                    raise BadSchema((*where, "required"), "it names a property that may not be there")
                continue
            value = self.value(inner, (*where, "properties", name))
            pair = builder.rule((*literal_json(name), *colon, *value))
            optional = name not in required
            # Before the first property there is no comma; so each stands in two chains.
            empty = (builder.rule((pair, *begun), *([empty] if optional else [])),)
            begun = (builder.rule((*comma, pair, *begun), *([begun] if optional else [])),)
        return (*literal("{"), *empty, *literal("}"))

    def _array(self, schema: Mapping[str, Any], where: tuple[str, ...]) -> Alternative:
        builder = self._builder
        first, low, high = schema.get("prefixItems", []), schema.get("minItems", 0), schema.get("maxItems")
        items = schema.get("items", True)
        if not isinstance(first, list) or isinstance(items, list):
            raise BadSchema((*where, "items"), "prefixItems is a list of schemas, items is one")
        low, high = self._bounds(low, high, (*where, "minItems"))
        if items is False:
            high = len(first) if high is None else min(high, len(first))
        if high is not None and high < low:
            raise BadSchema((*where, "maxItems"), "it allows fewer items than there have to be")
        heads = [
            self.value(part, (*where, "prefixItems", str(number)))
            for number, part in enumerate(first[: high if high is not None else len(first)])
        ]
        comma = (*literal(","), space(builder))
        left = None if high is None else high - len(heads)
        more: Alternative = ()
        none: Alternative = ()
        if left is None or left > 0:
            item = self.value(items, (*where, "items"))
            need = max(0, low - len(heads))
            more = builder.many((*comma, *item), need, left)
            if heads:
                none = more
            elif need:
                none = (*item, *builder.many((*comma, *item), need - 1, None if left is None else left - 1))
            else:
                none = (builder.rule((*item, *builder.many((*comma, *item), 0, left and left - 1)), ()),)
        for number in range(len(heads) - 1, -1, -1):
            must = number < low
            joined = (*heads[number], *more) if number == 0 else (*comma, *heads[number], *more)
            more = joined if must else (builder.rule(joined, ()),)
            none = more
        return (*literal("["), *none, *literal("]"))

    def _string(self, schema: Mapping[str, Any], where: tuple[str, ...]) -> Alternative:
        builder = self._builder
        low, high = self._bounds(schema.get("minLength", 0), schema.get("maxLength"), (*where, "minLength"))
        if high is not None and high < low:
            raise BadSchema((*where, "maxLength"), "it allows less than minLength asks for")
        form = schema.get("format")
        if "pattern" in schema:
            if "minLength" in schema or "maxLength" in schema:
                raise Unfollowed((*where, "pattern"), "it is not supported together with a length")
            try:
                return (*literal('"'), *pattern(builder, schema["pattern"]), *literal('"'))
            except BadPattern as error:
                raise Unfollowed((*where, "pattern"), str(error)) from None
        if isinstance(form, str) and form in FORMATS and not low and high is None:
            return (*literal('"'), *FORMATS[form](builder), *literal('"'))
        if not low and high is None:
            return (self.generic("string"),)
        return string_of(builder, low, high)

    def _number(self, kind: str, schema: Mapping[str, Any], where: tuple[str, ...]) -> Alternative:
        bounds: dict[str, Decimal] = {}
        for keyword in _OF_NUMBERS:
            if keyword in schema:
                value = schema[keyword]
                if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                    raise BadSchema((*where, keyword), "it is no number")
                bounds[keyword] = Decimal(str(value))
        if not bounds:
            return (self.generic(kind),)
        unit = Decimal(1) if kind == "integer" else Decimal(1).scaleb(-numerals.FRACTION_MAX)
        low, high = bounds.get("minimum"), bounds.get("maximum")
        if (over := bounds.get("exclusiveMinimum")) is not None:
            over = (over if kind == "number" else over.to_integral_value("ROUND_FLOOR")) + unit
            low = over if low is None else max(low, over)
        if (under := bounds.get("exclusiveMaximum")) is not None:
            under = (under if kind == "number" else under.to_integral_value("ROUND_CEILING")) - unit
            high = under if high is None else min(high, under)
        if any(bound is not None and abs(bound) >= 10**numerals.DIGITS_MAX for bound in (low, high)):
            # Beyond what is ever said: such a bound does not bind, on the side where it is far.
            low = None if low is not None and low <= -(10**numerals.DIGITS_MAX) else low
            high = None if high is not None and high >= 10**numerals.DIGITS_MAX else high
        if any(bound is not None and abs(bound) >= 10**numerals.DIGITS_MAX for bound in (low, high)):
            raise Unfollowed(where, f"numbers of more than {numerals.DIGITS_MAX} digits are not supported")
        if low is not None and high is not None and low > high:
            raise BadSchema(where, "no number lies within its bounds")
        if kind == "integer":
            below = None if low is None else int(low.to_integral_value("ROUND_CEILING"))
            above = None if high is None else int(high.to_integral_value("ROUND_FLOOR"))
            if below is not None and above is not None and below > above:
                raise BadSchema(where, "no integer lies within its bounds")
            return numerals.integer_between(self._builder, below, above)
        return numerals.number_between(self._builder, low, high)

    @staticmethod
    def _bounds(low: Any, high: Any, where: tuple[str, ...]) -> tuple[int, int | None]:
        for bound in (low, high):
            if bound is not None and (isinstance(bound, bool) or not isinstance(bound, int) or bound < 0):
                raise BadSchema(where, "a bound is no natural number")
            if bound is not None and bound > REPEAT_MAX:
                raise Unfollowed(where, f"a bound is above {REPEAT_MAX}")
        return int(low), high
