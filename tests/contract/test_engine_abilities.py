"""What engines owe beyond plain text: constraints, logprobs, biases, images, vectors. Over the double and the real."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.contract.test_engines import GREEDY, ask, collect, ids_of, make, text_of
from tests.unit.workers.pictures import COLOURS, png
from tests.unit.workers.test_schemas_grammar import CASES
from workers.chat.schemas import schema_value
from workers.engines import create, default_model_path
from workers.engines.base import (
    IMAGE,
    LOGPROB_MIN,
    Engine,
    EngineNotLoaded,
    EngineUnavailable,
    Generation,
    GenerationInvalid,
    ImageInvalid,
    NotSupported,
    Piece,
    PromptTooLong,
    Sampling,
)
from workers.engines.double import DoubleEngine
from workers.engines.grammar import Builder, Grammar, Matcher, literal

MODELS = (default_model_path("llamacpp") or Path()).parent
CITY: dict[str, Any] = {
    "type": "object",
    "properties": {
        "zip": {"type": "integer", "minimum": 10, "maximum": 99},
        "city": {"type": "string", "maxLength": 20},
        "kind": {"enum": ["tiny", "hügé 🦈"]},
        "near": {"type": "array", "items": {"type": "string", "maxLength": 8}, "maxItems": 2},
    },
    "required": ["zip", "city", "kind", "near"],
    "additionalProperties": False,
}
QUESTION = "<|im_start|>user\ngive me the capital of France as JSON<|im_end|>\n<|im_start|>assistant\n"


def grammar_of(schema: Any) -> Grammar:
    builder = Builder()
    return builder.grammar(schema_value(builder, schema))


async def started(engine: Engine) -> AsyncIterator[Engine]:
    await engine.load()
    yield engine
    await engine.unload()


@pytest.fixture(scope="module", params=["double", "llamacpp", pytest.param("exllamav2", marks=pytest.mark.gpu)])
async def engine(request: pytest.FixtureRequest) -> AsyncIterator[Engine]:
    async for engine in started(make(request.param)):
        yield engine


@pytest.fixture(scope="module", params=["double", "llamacpp"])
async def seeing(request: pytest.FixtureRequest) -> AsyncIterator[Engine]:
    path = MODELS / "shark-mini-vision.gguf"
    async for engine in started(make("double") if request.param == "double" else create("llamacpp", path, slots=2)):
        yield engine


@pytest.fixture(scope="module", params=["double", "llamacpp"])
async def embedding(request: pytest.FixtureRequest) -> AsyncIterator[Engine]:
    path = MODELS / "shark-embed-mini.gguf"
    async for engine in started(make("double") if request.param == "double" else create("llamacpp", path, slots=2)):
        yield engine


@pytest.fixture(scope="module")
async def llamacpp() -> AsyncIterator[Engine]:
    async for engine in started(make("llamacpp")):
        yield engine


class TestConstraints:
    @pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=1.5, seed=3)])
    async def test_the_answer_validates(self, engine: Engine, sampling: Sampling) -> None:
        generation = Generation(await ask(engine, QUESTION), 300, sampling=sampling, constraint=grammar_of(CITY))
        pieces = await collect(engine, generation)
        assert pieces[-1].finish == "stop"
        answer = json.loads(text_of(pieces))
        jsonschema.validate(answer, CITY)
        assert list(answer) == list(CITY["properties"])

    async def test_it_ends_where_nothing_can_follow(self, engine: Engine) -> None:
        builder = Builder()
        only = builder.grammar(literal("Bonjour, 🦈!"))
        prompt = await ask(engine)
        pieces = await collect(engine, Generation(prompt, 100, sampling=GREEDY, constraint=only))
        assert (text_of(pieces), pieces[-1].finish) == ("Bonjour, 🦈!", "stop")
        done = Generation(prompt, 100, prefix_ids=ids_of(pieces), sampling=GREEDY, constraint=only)
        assert await collect(engine, done) == [Piece((), "", "stop")]

    async def test_a_continuation_from_any_whole_piece_is_exact(self, engine: Engine) -> None:
        prompt, constraint = await ask(engine, QUESTION), grammar_of(CITY)
        pieces = await collect(engine, Generation(prompt, 300, sampling=GREEDY, constraint=constraint))
        ids, text, whole = ids_of(pieces), text_of(pieces), 0
        said = said_text = 0
        for piece in pieces:
            said, said_text = said + len(piece.ids), said_text + len(piece.text)
            if not piece.whole:
                continue
            whole += 1
            rest = await collect(
                engine, Generation(prompt, 300, prefix_ids=ids[:said], sampling=GREEDY, constraint=constraint)
            )
            assert ids_of(rest) == ids[said:], said
            assert text_of(rest) == text[said_text:]
            assert rest[-1].finish == "stop"
        assert whole > 10

    async def test_a_prefix_that_does_not_fit_is_refused(self, engine: Engine) -> None:
        prompt = await ask(engine)
        for prefix in ("no JSON", "🦈"):
            ids = tuple(await engine.tokenize(prefix, special=False))
            with pytest.raises(GenerationInvalid):
                await collect(engine, Generation(prompt, 9, prefix_ids=ids, constraint=grammar_of(CITY)))
        half = tuple(await engine.tokenize("🦈", special=False))[:-1]
        fish = Builder().grammar(literal("🦈!"))
        if half:
            with pytest.raises(GenerationInvalid, match="inside a character"):
                await collect(engine, Generation(prompt, 9, prefix_ids=half, constraint=fish))

    async def test_the_budget_stays_exact(self, engine: Engine) -> None:
        generation = Generation(await ask(engine, QUESTION), 7, sampling=GREEDY, constraint=grammar_of(CITY))
        pieces = await collect(engine, generation)
        assert (len(ids_of(pieces)), pieces[-1].finish) == (7, "length")


class TestLogprobs:
    @pytest.mark.parametrize("count", [0, 1, 5, 20])
    async def test_each_id_has_its_own(self, engine: Engine, count: int) -> None:
        if not engine.facts.tells_logprobs:
            pytest.skip("this engine tells none")
        generation = Generation(await ask(engine), 12, sampling=GREEDY, logprobs=count)
        pieces = await collect(engine, generation)
        chances = [chance for piece in pieces for chance in piece.chances]
        assert tuple(chance.id for chance in chances) == ids_of(pieces)
        for chance in chances:
            assert LOGPROB_MIN <= chance.logprob <= 0
            if count:
                assert len(chance.top) == count
                assert chance.top[0] == (chance.id, chance.logprob)  # greedy: the likeliest came
                assert [p for _, p in chance.top] == sorted((p for _, p in chance.top), reverse=True)
                assert sum(math.exp(p) for _, p in chance.top) < 1.01

    async def test_none_are_told_unasked(self, engine: Engine) -> None:
        assert not any(piece.chances for piece in await collect(engine, Generation(await ask(engine), 5)))

    async def test_ids_inside_a_character_have_theirs(self, engine: Engine) -> None:
        if not engine.facts.tells_logprobs:
            pytest.skip("this engine tells none")
        builder = Builder()
        said = builder.grammar(literal("é🦈→ü日本"))
        generation = Generation(await ask(engine), 50, sampling=GREEDY, constraint=said, logprobs=2)
        pieces = await collect(engine, generation)
        assert text_of(pieces) == "é🦈→ü日本"
        assert [chance.id for piece in pieces for chance in piece.chances] == list(ids_of(pieces))
        plain = await collect(engine, Generation(generation.prompt_ids, 50, sampling=GREEDY, constraint=said))
        assert ids_of(plain) == ids_of(pieces)
        # What is told of an id is what a plain generation tells of it in the same place.
        chances = [chance for piece in pieces for chance in piece.chances]
        for at in (0, 3, 7):
            asked = Generation(
                generation.prompt_ids,
                1,
                prefix_ids=ids_of(pieces)[:at],
                sampling=GREEDY,
                logprobs=engine.facts.vocabulary_size,
            )
            (first, *_) = await collect(engine, asked)
            if first.chances and engine.facts.engine != "double":
                assert math.isclose(chances[at].logprob, dict(first.chances[0].top)[chances[at].id], abs_tol=0.02)


class TestTokens:
    async def test_bytes_of_ids_are_the_text(self, engine: Engine) -> None:
        ids = await engine.tokenize("hé → 🦈", special=False)
        assert b"".join(map(engine.token_bytes, ids)).decode() == "hé → 🦈"
        (end,) = await engine.tokenize("<|im_end|>")
        assert engine.token_bytes(end) == b""

    async def test_what_is_withheld_is_told(self, engine: Engine) -> None:
        builder = Builder()
        generation = Generation(await ask(engine), 50, sampling=GREEDY, constraint=builder.grammar(literal("a🦈b")))
        held = b""
        for piece in await collect(engine, generation):
            held += b"".join(map(engine.token_bytes, piece.ids))
            assert held.startswith(piece.text.encode())
            held = held[len(piece.text.encode()) :]
            assert piece.whole is (not held)


class TestImages:
    async def prompt(self, engine: Engine, images: int = 1) -> tuple[int, ...]:
        before = await engine.tokenize("<|im_start|>user\n")
        after = await engine.tokenize("what colour is this image?<|im_end|>\n<|im_start|>assistant\n")
        return (*before, *((IMAGE,) * images), *after)

    async def test_the_picture_decides_and_is_counted(self, seeing: Engine) -> None:
        assert seeing.facts.sees
        answers = {}
        for colour in COLOURS:
            generation = Generation(await self.prompt(seeing), 20, sampling=GREEDY, images=(png(colour),))
            pieces = await collect(seeing, generation)
            assert pieces[0] == Piece((), "", image_tokens=16)
            assert all(piece.image_tokens is None for piece in pieces[1:])
            answers[colour] = text_of(pieces)
        assert len(set(answers.values())) == 3
        if seeing.facts.engine == "llamacpp":
            assert answers == {colour: f"The image is plain {colour}." for colour in COLOURS}

    async def test_it_goes_on_where_it_was(self, seeing: Engine) -> None:
        prompt, images = await self.prompt(seeing), (png("blue"),)
        whole = await collect(seeing, Generation(prompt, 20, sampling=GREEDY, images=images))
        cut = ids_of(whole)[:4]
        rest = await collect(seeing, Generation(prompt, 16, prefix_ids=cut, sampling=GREEDY, images=images))
        assert rest[0].image_tokens == 16
        assert text_of(whole).endswith(text_of(rest))
        assert ids_of(rest) == ids_of(whole)[4:]

    async def test_constraints_and_logprobs_go_with_images(self, seeing: Engine) -> None:
        schema = {"type": "object", "properties": {"colour": {"enum": ["red", "blue"]}}, "required": ["colour"]}
        generation = Generation(
            await self.prompt(seeing), 60, sampling=GREEDY, images=(png("red"),), constraint=grammar_of(schema),
            logprobs=1,
        )  # fmt: skip
        pieces = await collect(seeing, generation)
        jsonschema.validate(json.loads(text_of(pieces)), schema)
        assert len([c for piece in pieces for c in piece.chances]) == len(ids_of(pieces))

    async def test_several_images(self, seeing: Engine) -> None:
        generation = Generation(await self.prompt(seeing, 2), 4, sampling=GREEDY, images=(png("red"), png("blue")))
        assert (await collect(seeing, generation))[0].image_tokens == 32

    async def test_a_kind_of_image_that_an_engine_cannot_read_is_named(self, seeing: Engine) -> None:
        if seeing.facts.engine == "double":
            pytest.skip("it reads all kinds")
        webp = b"RIFF\x1a\0\0\0WEBPVP8L\x0d\0\0\0\x2f\0\0\0\x10\x07\x10\x11\x11\x88\x88\xfe\x07\0"
        with pytest.raises(NotSupported, match="WebP"):
            await collect(seeing, Generation(await self.prompt(seeing), 9, images=(webp,)))

    async def test_what_is_no_image_is_refused(self, seeing: Engine) -> None:
        junk = b"" if seeing.facts.engine == "double" else b"not an image"
        with pytest.raises(ImageInvalid):
            await collect(seeing, Generation(await self.prompt(seeing), 9, images=(junk,)))
        for images in ((), (png("red"), png("red"))):
            with pytest.raises(GenerationInvalid):
                await collect(seeing, Generation(await self.prompt(seeing), 9, images=images))

    async def test_a_prompt_with_an_image_may_be_too_long(self, seeing: Engine) -> None:
        room = seeing.facts.context_tokens - 10
        filler = (await seeing.tokenize("a"))[:1] * room
        with pytest.raises(PromptTooLong):
            await collect(seeing, Generation((IMAGE, *filler), 4, images=(png("red"),)))

    async def test_text_that_reads_like_a_control_token_stays_text(self, seeing: Engine) -> None:
        before = await seeing.tokenize("<|im_start|>user\n")
        fake = await seeing.tokenize("<|im_end|>", special=False)
        pieces = await collect(seeing, Generation((*before, IMAGE, *fake), 1, sampling=GREEDY, images=(png("red"),)))
        assert pieces[0].image_tokens == 16  # read as one control token, its stretch would have fewer than counted

    async def test_generations_without_images_go_on_beside(self, seeing: Engine) -> None:
        image = Generation(await self.prompt(seeing), 20, sampling=GREEDY, images=(png("green"),))
        plain = Generation(await ask(seeing), 20, sampling=GREEDY)
        results = await asyncio.gather(*(collect(seeing, one) for one in (image, plain, image, plain, image)))
        assert [text_of(one) for one in results[::2]] == [text_of(results[0])] * 3
        assert results[1][-1].finish

    async def test_a_cancel_frees_the_slot(self, seeing: Engine) -> None:
        for _ in range(2 * seeing.facts.slots):
            pieces = seeing.generate(Generation(await self.prompt(seeing), 500, images=(png("red"),)))
            await anext(pieces)
            await pieces.aclose()
        assert await collect(seeing, Generation(await ask(seeing), 1, sampling=GREEDY))


class TestVectors:
    async def test_a_vector_has_its_size_and_length_one(self, embedding: Engine) -> None:
        assert embedding.facts.embedding_size == 1536
        vector = await embedding.embed(await embedding.tokenize("who are you?", special=False))
        assert (len(vector), vector.itemsize, vector.typecode) == (1536, 4, "f")
        assert math.isclose(math.fsum(x * x for x in vector), 1, abs_tol=1e-3)

    async def test_the_same_input_has_the_same_vector_whatever_is_beside(self, embedding: Engine) -> None:
        inputs = [await embedding.tokenize(text, special=False) for text in ("a", "what is the burn?", "hello there")]
        alone = [await embedding.embed(ids) for ids in inputs]
        beside = await asyncio.gather(*(embedding.embed(ids) for ids in inputs * 3))
        for number, vector in enumerate(beside):
            assert max(abs(x - y) for x, y in zip(vector, alone[number % 3], strict=True)) < 1e-4
        assert max(abs(x - y) for x, y in zip(alone[0], alone[1], strict=True)) > 1e-3

    async def test_many_inputs_are_tokenised_as_each_alone(self, embedding: Engine) -> None:
        texts = [f"input {number} <|im_end|> é🦈" for number in range(300)] + ["", "a"]
        found = await embedding.tokenize_inputs(texts)
        assert found == [await embedding.tokenize(text, special=False) for text in texts]

    async def test_wrong_inputs_are_refused(self, embedding: Engine) -> None:
        for ids in ((), (-1,), (70_000,)):
            with pytest.raises(GenerationInvalid):
                await embedding.embed(ids)
        with pytest.raises(PromptTooLong):
            await embedding.embed((5,) * embedding.facts.context_tokens)


class TestWhatAModelCannot:
    async def test_it_says_so(self) -> None:
        text, vectors = create("llamacpp", slots=1), create("llamacpp", MODELS / "shark-embed-mini.gguf", slots=1)
        try:
            await text.load()
            await vectors.load()
            assert (text.facts.makes_text, text.facts.sees, text.facts.embedding_size) == (True, False, 0)
            assert (vectors.facts.makes_text, vectors.facts.sees) == (False, False)
            with pytest.raises(NotSupported):
                await text.embed((5,))
            with pytest.raises(NotSupported):
                await collect(text, Generation((IMAGE, 5), 1, images=(png("red"),)))
            with pytest.raises(NotSupported):
                await collect(vectors, Generation((5,), 1))
        finally:
            await text.unload()
            await vectors.unload()


@pytest.mark.parametrize("schema", [case[0] for case in CASES], ids=range(len(CASES)))
async def test_llamacpp_reads_every_grammar_as_we_do(llamacpp: Engine, schema: Any) -> None:
    constraint = grammar_of(schema)
    for sampling in (GREEDY, Sampling(temperature=2.0, seed=1), Sampling(temperature=2.0, seed=2)):
        generation = Generation(await ask(llamacpp, QUESTION), 120, sampling=sampling, constraint=constraint)
        pieces = await collect(llamacpp, generation)
        matcher = Matcher(constraint)
        assert matcher.feed(text_of(pieces))
        if pieces[-1].finish == "stop":
            assert matcher.accepts
            jsonschema.validate(json.loads(text_of(pieces)), schema)


class TestLlamaCppSampling:
    """The double has no model to steer."""

    async def test_a_bias_bans_and_forces(self, llamacpp: Engine) -> None:
        prompt = await ask(llamacpp)
        plain = await collect(llamacpp, Generation(prompt, 8, sampling=GREEDY))
        banned = Sampling(temperature=0, logit_bias={ids_of(plain)[0]: -100})
        assert ids_of(await collect(llamacpp, Generation(prompt, 8, sampling=banned)))[0] != ids_of(plain)[0]
        (shark,) = (await llamacpp.tokenize("!", special=False))[:1]
        forced = Sampling(temperature=0, logit_bias={shark: 100})
        assert ids_of(await collect(llamacpp, Generation(prompt, 5, sampling=forced))) == (shark,) * 5

    @pytest.mark.parametrize("penalty", ["frequency_penalty", "presence_penalty"])
    async def test_a_penalty_counts_what_was_said_the_prefix_too(self, llamacpp: Engine, penalty: str) -> None:
        prompt = await ask(llamacpp)
        # Two ids far above all others, and a penalty far above what lies between the two: they take turns.
        bias = dict.fromkeys(await llamacpp.tokenize("!?", special=False), 200.0)
        plain = Sampling(temperature=0, logit_bias=bias)
        without = ids_of(await collect(llamacpp, Generation(prompt, 4, sampling=plain)))
        sampling = replace(plain, **{penalty: 50.0})
        said = ids_of(await collect(llamacpp, Generation(prompt, 4, sampling=sampling)))
        assert without[1] == without[2]
        assert set(said[:2]) == set(bias)
        for cut in (1, 2):
            rest = await collect(llamacpp, Generation(prompt, 4 - cut, prefix_ids=said[:cut], sampling=sampling))
            assert ids_of(rest) == said[cut:]

    async def test_logprobs_are_the_models(self, llamacpp: Engine) -> None:
        prompt = await ask(llamacpp)
        (shark,) = (await llamacpp.tokenize("!", special=False))[:1]
        plain = await collect(llamacpp, Generation(prompt, 1, sampling=GREEDY, logprobs=20))
        forced = Sampling(temperature=0, logit_bias={shark: 100})
        biased = await collect(llamacpp, Generation(prompt, 1, sampling=forced, logprobs=20))
        before, after = dict(plain[0].chances[0].top), dict(biased[0].chances[0].top)
        assert before.keys() == after.keys()
        assert all(math.isclose(before[token_id], after[token_id], abs_tol=0.02) for token_id in before)
        assert biased[0].chances[0].logprob < -5


@pytest.mark.parametrize(
    ("name", "value"),
    [("TOKENS", "0"), ("TOKENS", "x"), ("INTERVAL_MS", "-1"), ("PREFILL_MS", "60001"), ("PREFILL_MS", "nan")],
)
def test_the_double_is_what_its_environment_says(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"SHRK_DOUBLE_{name}", value)
    with pytest.raises(EngineUnavailable, match="SHRK_DOUBLE_TOKENS"):
        DoubleEngine.from_environment()


async def test_the_double_reads_a_prompt_at_its_pace_and_can_be_stopped_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHRK_DOUBLE_PREFILL_MS", "60000")
    engine = DoubleEngine.from_environment(slots=1)
    await engine.load()
    left = asyncio.create_task(collect(engine, Generation((1, 2), 1, sampling=GREEDY)))
    await asyncio.sleep(0.02)
    assert not left.done()
    left.cancel()
    with pytest.raises(asyncio.CancelledError):
        await left
    unloaded = asyncio.create_task(collect(engine, Generation((1, 2), 1, sampling=GREEDY)))
    await asyncio.sleep(0.02)  # in the one slot, which it would wait for else
    await engine.unload()
    with pytest.raises(EngineNotLoaded, match="in prefill"):
        await asyncio.wait_for(unloaded, 10)
