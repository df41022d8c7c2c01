"""JSON schemas as grammars: whatever a grammar says validates, and what a schema plainly wants can be said."""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.workers.grammar_kit import say, takes
from workers.chat.patterns import pattern
from workers.chat.schema_values import BadSchema
from workers.chat.schemas import any_object, schema_value
from workers.engines.grammar import Builder, Grammar, GrammarTooLarge, Matcher


def grammar_of(schema: Any) -> Grammar:
    builder = Builder()
    return builder.grammar(schema_value(builder, schema))


PERSON = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Person",
    "type": "object",
    "properties": {
        "name": {"type": "string", "title": "Name", "minLength": 1},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 3}, "maxItems": 2},
        "home": {"anyOf": [{"$ref": "#/$defs/Place"}, {"type": "null"}], "default": None},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
    "$defs": {
        "Place": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "at": {"$ref": "#/$defs/Place"}},
            "required": ["city"],
            "additionalProperties": False,
        }
    },
}
#: Schema, values that it must be able to say, texts that it must not.
CASES: list[tuple[Any, list[Any], list[str]]] = [
    (PERSON, [{"name": "a", "age": 130, "home": {"city": "x", "at": {"city": "y"}}}, {"name": "é", "age": 0}],
     ['{"age": 1, "name": "a"}', '{"name": "", "age": 1}', '{"name": "a", "age": 131}', '{"name": "a"}', "{}"]),
    ({"type": "object"}, [{}, {"a": [1, -2.5e10, {"b": None}]}, {"a": {"a": {}}}], ["[]", "", '{"a"}', "{} "]),
    (True, [1, "x", [], {}, None, False, -0.5], ["", "tru", "01", "+1", ".5"]),
    ({}, [0, "", [[]]], ["nul"]),
    ({"type": ["string", "null"]}, ["a", None, "\n\"\\"], ["1", '"\\ud800"', '"\n"']),
    ({"enum": ["red", 3, None, {"a": [1]}]}, ["red", 3, None, {"a": [1]}], ['"blue"', "4"]),
    ({"const": "x\"y"}, ['x"y'], ['"x"']),
    ({"type": "string", "enum": ["a", 1]}, ["a"], ["1"]),
    ({"type": "integer"}, [0, -7, 123456], ["1.0", "00", "1e3"]),
    ({"type": "integer", "minimum": -12, "exclusiveMaximum": 105}, [-12, -1, 0, 99, 104], ["-13", "105", "007"]),
    ({"type": "integer", "minimum": 7}, [7, 10, 99999], ["6", "-7"]),
    ({"type": "integer", "maximum": -3}, [-3, -10], ["-2", "0", "3"]),
    ({"type": "number", "minimum": 0, "maximum": 1}, [0, 1, 0.5, 0.25], ["-0.1", "1.1", "2"]),
    ({"type": "number", "exclusiveMinimum": 0.5, "maximum": 2.25}, [1, 2, 0.75, 2.25], ["0.5", "2.26", "0"]),
    ({"type": "number", "minimum": 0.6, "maximum": 0.9}, [0.6, 0.75, 0.9], ["0.5", "1", "0.91"]),
    ({"type": "object", "properties": {"a": {"$ref": "#"}}}, [{}, {"a": {}}], ['{"a": 1}']),
    ({"type": "number", "minimum": -1.5}, [-1.5, 0, 3, 12.75], ["-1.6", "-2"]),
    ({"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 3}, [[1, 2], [1, 2, 3]],
     ["[]", "[1]", "[1, 2, 3, 4]", "[1,]"]),
    ({"type": "array", "items": {"type": "null"}}, [[], [None], [None] * 5], ["[null, ]"]),
    ({"type": "array", "maxItems": 0}, [[]], ["[1]"]),
    ({"type": "array", "prefixItems": [{"type": "string"}, {"type": "integer"}], "items": False},
     [[], ["a"], ["a", 1]], ["[1]", '["a", 1, 2]']),
    ({"type": "array", "prefixItems": [{"type": "string"}], "items": {"type": "integer"}, "minItems": 2},
     [["a", 1], ["a", 1, 2]], ["[]", '["a"]']),
    ({"type": "string", "minLength": 2, "maxLength": 3}, ["ab", "äöü"], ['"a"', '"abcd"']),
    ({"type": "string", "pattern": "^[A-Z]{2}-\\d{3,4}$"}, ["AB-123", "ZZ-0000"], ['"AB-12"', '"xAB-123"']),
    ({"type": "string", "pattern": "b+"}, ["abc", "b"], ['"ac"']),
    ({"type": "string", "pattern": "^(?:a|b[^\"c])*(\\.\\w+)?$"}, ["", "abx", "a.z"], ['"bc"']),
    ({"type": "string", "format": "date-time"}, ["2026-11-21T10:00:00Z"], ['"2026-13-01T00:00:00Z"']),
    ({"type": "string", "format": "uuid"}, ["0" * 8 + "-0000-0000-0000-" + "0" * 12], ['"x"']),
    ({"type": "string", "format": "no-such-format"}, ["anything"], []),
    ({"type": "object", "properties": {"b": {"type": "null"}, "a": {"type": "null"}}},
     [{}, {"b": None}, {"a": None}, {"b": None, "a": None}], ['{"a": null, "b": null}', '{"c": 1}']),
    ({"type": "object", "properties": {"a": {"type": "null"}}, "additionalProperties": {"type": "integer"}},
     [{}, {"a": None}, {"x": 1}, {"a": None, "ab": 1, "": 2}], ['{"x": 1, "a": null}', '{"a": 1}', '{"x": null}']),
    ({"type": "object", "required": ["x"]}, [{"x": 1}], ["{}"]),
    ({"anyOf": [{"type": "string"}, {"type": "integer"}]}, ["a", 1], ["null"]),
    ({"type": "object", "anyOf": [{"properties": {"a": {"const": 1}}, "required": ["a"]}]}, [{"a": 1}], ["{}"]),
    ({"oneOf": [{"type": "string"}, {"type": "null"}]}, ["a", None], ["1"]),
    ({"oneOf": [{"type": "object", "properties": {"k": {"const": kind}, "v": {"type": kind}}, "required": ["k", "v"]}
                for kind in ("string", "integer")]},
     [{"k": "string", "v": "a"}, {"k": "integer", "v": 1}], ['{"k": "string", "v": 1}']),
    ({"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"type": "integer"}}, "default": 1}, [1], ['"a"']),
    ({"allOf": [{"type": "object", "properties": {"a": {"type": "null"}}, "required": ["a"]},
                {"properties": {"b": {"type": "null"}}, "required": ["b"]}]}, [{"a": None, "b": None}], ["{}"]),
    ({"type": "object", "properties": {"next": {"$ref": "#"}}}, [{}, {"next": {"next": {}}}], ['{"next": 1}']),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "good", "bad"), CASES, ids=range(len(CASES)))
def test_what_a_schema_says(schema: Any, good: list[Any], bad: list[str]) -> None:
    grammar = grammar_of(schema)
    for value in good:
        jsonschema.validate(value, schema)
        assert takes(grammar, json.dumps(value, ensure_ascii=False)), value
        assert takes(grammar, json.dumps(value, ensure_ascii=False, separators=(",", ":"))) or "enum" in str(schema)
    for text in bad:
        assert not takes(grammar, text), text


@pytest.mark.parametrize("schema", [case[0] for case in CASES], ids=range(len(CASES)))
def test_whatever_is_said_validates(schema: Any) -> None:
    grammar = grammar_of(schema)
    for seed in range(60):
        jsonschema.validate(json.loads(say(grammar, seed)), schema)


LEAVES = st.sampled_from([
    {"type": "string"}, {"type": "integer"}, {"type": "null"}, {"type": "boolean"}, {"enum": ["a", 2, None]},
    {"type": "number", "minimum": -2.5}, {"type": "string", "maxLength": 2}, {"type": "object"}, {"type": "array"},
])  # fmt: skip


def _grow(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    names = st.sampled_from(["a", "b", "ab", 'q"', "é", ""])
    objects = st.builds(
        lambda properties, required, extra: (
            {
                "type": "object",
                "properties": properties,
                "required": [name for name in properties if name in required],
            }
            | ({} if extra is None else {"additionalProperties": extra})
        ),
        st.dictionaries(names, inner, max_size=4),
        st.sets(names),
        st.none() | st.booleans() | inner,
    )
    arrays = st.builds(
        lambda items, low, more: {"type": "array", "items": items, "minItems": low, "maxItems": low + more},
        inner, st.integers(0, 2), st.integers(0, 2),
    )  # fmt: skip
    return objects | arrays | st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"anyOf": parts})


@settings(max_examples=150, deadline=None)
@given(schema=st.recursive(LEAVES, _grow, max_leaves=8), seed=st.integers(0, 1000))
def test_whatever_any_grammar_says_validates(schema: Any, seed: int) -> None:
    jsonschema.validate(json.loads(say(grammar_of(schema), seed)), schema)


@settings(max_examples=60, deadline=None)
@given(case=st.sampled_from(CASES), seed=st.integers(0, 1000), data=st.data())
def test_the_rest_after_any_beginning_is_what_was_left(case: Any, seed: int, data: st.DataObject) -> None:
    grammar = grammar_of(case[0])
    text = say(grammar, seed)
    cut = data.draw(st.integers(0, len(text)))
    matcher = Matcher(grammar)
    assert matcher.feed(text[:cut])
    rest = matcher.rest()
    assert takes(rest, text[cut:])
    other = say(rest, seed + 1)
    assert takes(grammar, text[:cut] + other)


BAD: list[tuple[Any, str]] = [
    ({"not": {"type": "string"}}, "schema/not: "),
    ({"type": "object", "properties": {"a": {"if": {}}}}, "schema/properties/a/if: "),
    ({"type": "array", "uniqueItems": True}, "uniqueItems"),
    ({"type": "integer", "multipleOf": 3}, "multipleOf"),
    ({"type": "object", "patternProperties": {}}, "patternProperties"),
    ({"type": "thing"}, "schema/type"),
    ({"type": []}, "schema/type"),
    ({"$ref": "https://example.com/s"}, "only references within"),
    ({"$ref": "#/nowhere"}, "points to nothing"),
    ({"enum": []}, "enum"),
    ({"anyOf": []}, "anyOf"),
    ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
    ({"allOf": [{"type": "integer"}, {"type": "string"}]}, "allOf"),
    ({"type": "integer", "minimum": 3, "maximum": 2}, "bounds"),
    ({"type": "integer", "minimum": "3"}, "no number"),
    ({"type": "string", "minLength": -1}, "natural"),
    ({"type": "string", "maxLength": 2001}, "above 2000"),
    ({"type": "string", "pattern": "(?=x)"}, "pattern"),
    ({"type": "string", "pattern": "["}, "ends too soon"),
    ({"type": "string", "pattern": "a)"}, "parenthesis"),
    ({"type": "string", "pattern": "^a|b$"}, "choice"),
    ({"type": "object", "required": ["a"], "additionalProperties": False}, "not allowed"),
    ({"type": "object", "properties": []}, "properties"),
    (False, "allows nothing"),
    ({"description": "x" * 200_000}, "larger than"),
    (7, "neither"),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "says"), BAD, ids=range(len(BAD)))
def test_what_is_not_supported_is_said_clearly(schema: Any, says: str) -> None:
    with pytest.raises(BadSchema) as caught:
        grammar_of(schema)
    assert says in str(caught.value)


LOOSE: list[tuple[Any, str, str]] = [
    # schema, a text that it takes where it is not strict, one that it does not
    ({"type": "array", "items": {"type": "integer"}, "uniqueItems": True}, "[1, 1]", '["a"]'),
    ({"type": "integer", "multipleOf": 5}, "7", "7.5"),
    ({"type": "object", "patternProperties": {"^a": {}}, "additionalProperties": False}, '{"b": 1}', "[]"),
    ({"properties": {"a": {"type": "string", "pattern": "^(?=a)b$"}}, "required": ["a"]}, '{"a": "x"}', '{"a": 1}'),
    ({"properties": {"a": {"$ref": "https://example.com/x"}}, "required": ["a"]}, '{"a": [1]}', "{}"),
    ({"properties": {"a": {"$ref": "#x"}, "b": {"$ref": "#x"}}}, '{"a": 1, "b": 2}', '{"b": 2, "a": 1}'),
    ({"oneOf": [{"type": "integer"}, {"type": "integer", "minimum": 3}]}, "7", "x"),
    (
        {"type": "object", "properties": {"a": {"type": "null"}}, "maxProperties": 1, "not": {}},
        '{"a": null}',
        '{"b": 1}',
    ),
]


@pytest.mark.parametrize(("schema", "takes_it", "does_not"), LOOSE)
def test_what_is_not_strict_is_followed_as_far_as_it_goes(schema: Any, takes_it: str, does_not: str) -> None:
    builder = Builder()
    grammar = builder.grammar(schema_value(builder, schema, strict=False))
    assert takes(grammar, takes_it)
    assert not takes(grammar, does_not)
    with pytest.raises(BadSchema):
        grammar_of(schema)


def test_what_is_wrong_is_an_error_where_it_is_not_strict_too() -> None:
    for schema in ({"type": "strng"}, {"$ref": "#/$defs/none"}, {"enum": []}, {"minimum": 5, "maximum": 2}):
        with pytest.raises(BadSchema):
            schema_value(Builder(), schema, strict=False)


def test_a_reference_is_percent_encoded_and_names_no_anchor() -> None:
    schema = {"$defs": {"a b": {"type": "null"}, "c/d": {"type": "boolean"}}}
    assert takes(grammar_of({**schema, "$ref": "#/$defs/a%20b"}), "null")
    assert takes(grammar_of({**schema, "$ref": "#/$defs/c~1d"}), "true")
    with pytest.raises(BadSchema, match="within the schema"):
        grammar_of({"$defs": {"x": {"$anchor": "foo", "type": "null"}}, "properties": {"a": {"$ref": "#foo"}}})


def test_too_deep_is_an_error_and_no_crash() -> None:
    schema: Any = {"type": "string"}
    for _ in range(90):
        schema = {"type": "array", "items": schema}
    with pytest.raises(BadSchema, match="deeper"):
        grammar_of(schema)
    for _ in range(800):
        schema = {"items": schema}
    with pytest.raises(BadSchema, match="objects and lists"):
        grammar_of(schema)
    for _ in range(100_000):
        schema = {"items": schema}
    with pytest.raises(BadSchema, match="too deep"):
        grammar_of(schema)


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
        {"type": "array", "items": {"type": "array", "minItems": 2000, "items": {"maxLength": 2000, "type": "string"}}},
    ],
)
def test_what_refers_to_itself_or_explodes_is_an_error(schema: Any) -> None:
    if "items" in schema:
        grammar_of(schema)  # large, and within the limit
        schema = {"anyOf": [{"type": "array", "minItems": n, "items": {"const": n}} for n in range(1900, 2000)]}
    with pytest.raises((BadSchema, GrammarTooLarge)):
        grammar_of(schema)


EXPRESSIONS = [
    "^(a?){5}a{3}$", "^(a*)*$", "^(a|aa|aaa){4}$", "^(a?b?){3}$", "^((a|b)*c?){2,3}$", "a.b", "^[^a]{2,4}$", "b",
    "^(a+b?)+$", "^(ab|a)(c|bc)$", "^a{0}b{0,1}c{1,}$", "^(?:a|)(b|)$",
    "^\\w+\\s\\d{2,4}$", '^"a\\\\"+$', "^(a{2}){1,2}$",
    "^a.{3}$", "a.{15}b",
]  # fmt: skip


@pytest.mark.parametrize("source", EXPRESSIONS)
def test_expressions_match_what_they_match_elsewhere(source: str) -> None:
    """Against Python's own, on every short text of a few letters, and on longer ones."""
    grammar = grammar_of({"type": "string", "pattern": source})
    texts = ["".join(text) for size in range(5) for text in itertools.product('ab c"\\', repeat=size)]
    texts += ["a" * 8, "a" * 12, "abc" * 4, "a1_ 2345", "é 12", "a" + "b" * 16, "cc" + "a" * 16 + "b" + "c"]
    expression = re.compile(source.removesuffix("$") + (r"\Z" if source.endswith("$") else ""), re.ASCII)
    matched = 0
    for text in texts:
        found = expression.search(text) is not None
        matched += found
        assert takes(grammar, json.dumps(text, ensure_ascii=False)) is found, text
    assert 0 < matched < len(texts)


@pytest.mark.parametrize("source", ["^(a?){500}a{300}$", "^((a?b?){5}){5}a{30}$", "^(a|aa|aaa){90}$", "^(.?){400}$"])
def test_an_expression_is_read_in_one_way(source: str) -> None:
    """llama.cpp stood still for minutes over the first, and with it everybody on the node."""
    builder = Builder()
    matcher = Matcher(builder.grammar(pattern(builder, source)))
    for _ in range(50):
        assert len(matcher.state) <= 10  # a character may be written in several ways
        assert matcher.feed("a")


@pytest.mark.parametrize(
    "source", ["a.{20}b{100}", "^(a{1000}){1000}$", "^(a|b)*a(a|b){99}$", "^((a?b?){30}){30}a{200}$"]
)
def test_an_expression_of_too_many_ways_is_an_error(source: str) -> None:
    with pytest.raises(BadSchema):
        grammar_of({"type": "string", "pattern": source})


def lists_in_lists(depth: int, kinds: int = 2) -> dict[str, Any]:
    """Lists of lists, each in several ways that nothing tells apart."""
    inner = {f"n{at}": {"$ref": f"#/$defs/n{at + 1}"} for at in range(depth)}
    ways = {
        name: {
            "anyOf": [{"type": "array", "items": item, "minItems": 1, "maxItems": most + 1} for most in range(kinds)]
        }
        for name, item in inner.items()
    }
    return {"$ref": "#/$defs/n0", "$defs": {**ways, f"n{depth}": {"type": "boolean"}}}


def expression_tree(*names: str, kinds: int = 3) -> dict[str, Any]:
    def way(kind: int) -> dict[str, Any]:
        parts: dict[str, Any] = {name: {"const": kind} if name == "kind" else {"$ref": "#"} for name in names}
        return {"type": "object", "properties": parts, "required": list(names), "additionalProperties": False}

    return {"anyOf": [*map(way, range(kinds)), {"type": "integer"}]}


PERHAPS: dict[str, Any] = {"anyOf": [{"type": "object", "additionalProperties": {"$ref": "#"}}, {"type": "null"}]}
MANY_WAYS = [
    (lists_in_lists(6), True),
    (lists_in_lists(20), False),
    (lists_in_lists(3, 40), False),
    (expression_tree("kind", "left", "right"), True),
    (expression_tree("left", "kind"), False),
    (expression_tree("kind", "v", kinds=300), True),
    (PERHAPS, True),
    (
        {"anyOf": [*PERHAPS["anyOf"], {"type": "object", "additionalProperties": {"$ref": "#"}, "minProperties": 0}]},
        False,
    ),
    ({"anyOf": [{}, {"type": "array", "items": {"$ref": "#"}}]}, True),
]


@pytest.mark.parametrize(("schema", "followed"), MANY_WAYS, ids=range(len(MANY_WAYS)))
def test_what_can_be_read_in_too_many_ways_is_an_error(schema: dict[str, Any], followed: bool) -> None:
    """Each level doubles what an engine has to follow: at 17 levels llama.cpp takes minutes for a token."""
    if followed:
        assert takes(grammar_of(schema), say(grammar_of(schema), 1))
        return
    with pytest.raises(BadSchema, match="too many ways"):
        grammar_of(schema)
    builder = Builder()
    assert takes(builder.grammar(schema_value(builder, schema, strict=False)), '[{"a": 1}]')


def test_errors_do_not_repeat_values() -> None:
    for schema in ({"enum": [], "default": "SECRET"}, {"pattern": "SECRET(", "type": "string"}, {"type": "SECRET"}):
        with pytest.raises(BadSchema) as caught:
            grammar_of(schema)
        assert "SECRET" not in str(caught.value)


def test_any_object_is_any() -> None:
    builder = Builder()
    grammar = builder.grammar(any_object(builder))
    assert takes(grammar, '{"a": [{}, 1, "\\u00e9"]}')
    assert not takes(grammar, "[]")


@pytest.mark.parametrize("schema", [case[0] for case in CASES], ids=range(len(CASES)))
def test_every_rule_can_be_said(schema: Any) -> None:
    for line in grammar_of(schema).gbnf().splitlines():
        name, _, alternatives = line.partition(" ::= ")
        assert name
        assert all(one.strip() for one in alternatives.split(" | "))


def test_a_list_of_itself_ends_nowhere() -> None:
    endless = {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}
    with pytest.raises(GrammarTooLarge, match="nothing can be said"):
        grammar_of(endless)


def test_gbnf_has_one_root_and_escapes() -> None:
    text = grammar_of(PERSON).gbnf()
    assert text.count("root ::=") == 1
    assert '"\\x7B\\x22name\\x22\\x3A"' in text.replace(" ", "") or "\\x22name\\x22" in text
    assert all(line.isascii() for line in text.splitlines())
