"""What the engine double says by a script: where it matches, under a constraint, and from every cut."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from workers.bootstrap import load
from workers.chat.schemas import schema_value
from workers.config import BadConfig, NodeConfig
from workers.engines.base import EngineUnavailable, Generation, Piece, Sampling
from workers.engines.double import DoubleEngine
from workers.engines.double_script import RULES_MAX, read_script
from workers.engines.grammar import Builder, Grammar

CALL = '<tool_call>\n{"name": "f", "arguments": {"räkor": "🦈"}}\n</tool_call>'
SCRIPT = [
    {"when": r"one<\|im_end\|>\n<\|im_start\|>assistant\n\Z", "say": CALL},
    {"when": "two", "say": '{"n": 2}'},
    {"when": "one", "say": "never, unless the turn is not at its end"},
    {"when": "nothing", "say": ""},
]
GREEDY = Sampling(temperature=0)


def asked(text: str) -> str:
    return f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


def engine_of(path: Path, script: Any, **options: Any) -> DoubleEngine:
    file = path / "script.json"
    file.write_text(json.dumps(script))
    return DoubleEngine(interval_ms=0, script=read_script(file), **options)


@pytest.fixture
async def engine(tmp_path: Path) -> DoubleEngine:
    engine = engine_of(tmp_path, SCRIPT)
    await engine.load()
    return engine


@pytest.fixture
async def plain() -> DoubleEngine:
    engine = DoubleEngine(interval_ms=0)
    await engine.load()
    return engine


async def said(engine: DoubleEngine, text: str, max_tokens: int = 500, **options: Any) -> list[Piece]:
    prompt = tuple(await engine.tokenize(asked(text)))
    generation = Generation(prompt, max_tokens, **{"sampling": GREEDY, **options})
    return [piece async for piece in engine.generate(generation)]


def text_of(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def ids_of(pieces: list[Piece]) -> tuple[int, ...]:
    return tuple(one for piece in pieces for one in piece.ids)


def integer_n(minimum: int) -> Grammar:
    builder = Builder()
    n = {"type": "integer", "minimum": minimum, "maximum": 9}
    schema = {"type": "object", "properties": {"n": n}, "required": ["n"], "additionalProperties": False}
    return builder.grammar(schema_value(builder, schema))


async def test_the_first_rule_that_matches_decides_the_whole_turn(engine: DoubleEngine, plain: DoubleEngine) -> None:
    for sampling in (GREEDY, Sampling(temperature=1, seed=3)):
        pieces = await said(engine, "one", sampling=sampling)
        assert (text_of(pieces), pieces[-1].finish) == (CALL, "stop")
    assert text_of(await said(engine, "one, and more")) == SCRIPT[2]["say"]
    assert text_of(await said(engine, "one and two")) == SCRIPT[1]["say"]
    assert await said(engine, "nothing") == [Piece((), "", "stop")]
    assert await said(engine, "other") == await said(plain, "other")


async def test_budget_and_logprobs_are_those_of_any_text(engine: DoubleEngine) -> None:
    pieces = await said(engine, "one", 20, logprobs=2)
    assert (len(ids_of(pieces)), pieces[-1].finish) == (20, "length")
    assert [chance.id for piece in pieces for chance in piece.chances] == list(CALL.encode()[:20])
    assert await said(engine, "one", 0) == [Piece((), "", "length")]


async def test_a_constraint_wins_over_the_script(engine: DoubleEngine, plain: DoubleEngine) -> None:
    allowed = await said(engine, "two", constraint=integer_n(0))
    assert (text_of(allowed), allowed[-1].finish) == ('{"n": 2}', "stop")
    for text in ("two", "one"):
        forbidden = await said(engine, text, constraint=integer_n(7))
        assert forbidden == await said(plain, text, constraint=integer_n(7))
        assert json.loads(text_of(forbidden))["n"] >= 7
    builder = Builder()
    # A turn that is only the beginning of what has to be said does not come alone either.
    longer = builder.grammar((*schema_value(builder, {"const": {"n": 2}}), *schema_value(builder, {"const": 5})))
    assert text_of(await said(engine, "two", constraint=longer)) == '{"n": 2}5'


@pytest.mark.parametrize(("text", "constraint"), [("one", None), ("two", integer_n(0)), ("two", integer_n(7))])
async def test_a_continuation_is_exact_at_each_cut(engine: DoubleEngine, text: str, constraint: Any) -> None:
    ids = ids_of(await said(engine, text, constraint=constraint))
    for cut in range(len(ids) + 1):
        rest = await said(engine, text, prefix_ids=ids[:cut], constraint=constraint)
        assert (ids_of(rest), rest[-1].finish) == (ids[cut:], "stop"), cut


async def test_what_began_otherwise_goes_on_as_without_a_script(engine: DoubleEngine, plain: DoubleEngine) -> None:
    prefix = tuple(b"the ")
    assert await said(engine, "one", prefix_ids=prefix) == await said(plain, "one", prefix_ids=prefix)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("{", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("\udcff", "is no JSON"),
        ("{}", "list of 1 to"),
        ("[]", "list of 1 to"),
        (json.dumps([{"when": "a", "say": "b"}] * (RULES_MAX + 1)), "list of 1 to"),
        ('[{"when": "a", "say": "b"}, {"when": "a"}]', "rule 2: a rule is"),
        ('[{"when": "a", "say": "b", "then": 1}]', "rule 1: a rule is"),
        ('[["when", "say"]]', "rule 1: a rule is"),
        ('[{"when": 1, "say": "b"}]', "rule 1: when and say"),
        ('[{"when": "(", "say": "b"}]', "rule 1: missing"),
        (f'[{{"when": "a{{{2**40}}}", "say": "b"}}]', "rule 1: "),
        ('[{"when": "a", "say": "\\ud800"}]', "rule 1: .*surrogates"),
        (" " * (1 << 20) + "[]", "more than"),
    ],
)
def test_a_bad_script_is_one_line(tmp_path: Path, content: str, why: str) -> None:
    file = tmp_path / "script.json"
    file.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(EngineUnavailable, match=why) as caught:
        read_script(file)
    assert "\n" not in str(caught.value)
    assert str(file) in str(caught.value)


async def test_a_node_with_a_bad_script_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHRK_DOUBLE_SCRIPT", str(tmp_path / "none.json"))
    names = {"SHRK_KAFKA": "k:1", "SHRK_NODE_ID": "n", "SHRK_PROVIDER_ID": "p", "SHRK_ENGINE": "double"}
    with pytest.raises(BadConfig, match=r"model a on engine double: SHRK_DOUBLE_SCRIPT .*none.json cannot be read: No"):
        await load(NodeConfig.from_environment({**names, "SHRK_MODELS": "a"}))
