"""What every engine owes its caller: one class of tests, passed by the double and by the real ones alike."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from workers.chat.template import ChatTemplate, prompt_ids
from workers.engines import create, default_model_path
from workers.engines.base import (
    Engine,
    EngineNotLoaded,
    EngineUnavailable,
    Generation,
    GenerationInvalid,
    Piece,
    PromptTooLong,
    Sampling,
)

GREEDY = Sampling(temperature=0)
QUESTION = "<|im_start|>user\nwhat is 7 plus 5?<|im_end|>\n<|im_start|>assistant\n"
LIMIT_S = 30.0


def make(name: str) -> Engine:
    """A fresh engine of this name, small enough for a test. Skips, with the reason, where it cannot run."""
    if name == "double":
        from workers.engines.double import DoubleEngine

        return DoubleEngine(tokens=64, interval_ms=1, slots=4, context_tokens=1024)
    if name == "exllamav2":
        from workers.engines.exllamav2 import why_unavailable

        if why := why_unavailable():
            pytest.skip(why)
    return create(name, slots=4)


@pytest.fixture(scope="module", params=["double", "llamacpp", pytest.param("exllamav2", marks=pytest.mark.gpu)])
async def engine(request: pytest.FixtureRequest) -> AsyncIterator[Engine]:
    engine = make(request.param)
    await engine.load()
    yield engine
    await engine.unload()


async def collect(engine: Engine, generation: Generation) -> list[Piece]:
    async with asyncio.timeout(LIMIT_S):
        return [piece async for piece in engine.generate(generation)]


def ids_of(pieces: list[Piece]) -> tuple[int, ...]:
    return tuple(token_id for piece in pieces for token_id in piece.ids)


def text_of(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


async def ask(engine: Engine, text: str = QUESTION) -> tuple[int, ...]:
    return tuple(await engine.tokenize(text))


async def endless(engine: Engine, max_tokens: int = 400) -> Generation:
    """A generation that does not end its turn by itself before its budget does."""
    specials = {token_id: -100.0 for token in engine.facts.special_tokens for token_id in await engine.tokenize(token)}
    return Generation(await ask(engine), max_tokens, sampling=Sampling(temperature=0, logit_bias=specials))


class TestEngine:
    async def test_facts_are_sane(self, engine: Engine) -> None:
        facts = engine.facts
        assert facts.engine in ("double", "llamacpp", "exllamav2")
        assert facts.model
        assert facts.context_tokens == 1024
        assert facts.vocabulary_size > 256
        assert facts.slots >= 1
        assert "<|im_end|>" in facts.special_tokens
        assert facts.eos_text == "<|im_end|>"
        assert facts.engine == "double" or facts.weights_bytes > 1_000_000

    async def test_tokenize_reads_control_tokens_only_when_told(self, engine: Engine) -> None:
        assert len(await engine.tokenize("<|im_end|>")) == 1
        plain = await engine.tokenize("<|im_end|>", special=False)
        assert len(plain) > 1
        assert (await engine.tokenize("<|im_end|>"))[0] not in plain
        assert await engine.tokenize("") == []

    async def test_streams_pieces_and_says_how_it_ended(self, engine: Engine) -> None:
        pieces = await collect(engine, Generation(await ask(engine), 500, sampling=GREEDY))
        assert len([piece for piece in pieces if piece.ids]) > 3
        assert all(len(piece.ids) <= 4 for piece in pieces)
        assert [piece.finish for piece in pieces if piece.finish] == ["stop"]
        assert pieces[-1].finish == "stop"

    async def test_the_end_of_turn_is_never_among_the_ids(self, engine: Engine) -> None:
        ids = ids_of(await collect(engine, Generation(await ask(engine), 500, sampling=GREEDY)))
        assert (await engine.tokenize("<|im_end|>"))[0] not in ids

    async def test_ids_read_as_the_text(self, engine: Engine) -> None:
        # Tokenising what was said and saying it again is the only way back from ids to text that all engines share.
        pieces = await collect(engine, Generation(await ask(engine), 500, sampling=GREEDY))
        assert await engine.tokenize(text_of(pieces), special=False) == list(ids_of(pieces))

    @pytest.mark.parametrize("budget", [1, 2, 5, 17])
    async def test_the_budget_is_exact(self, engine: Engine, budget: int) -> None:
        generation = await endless(engine, budget)
        pieces = await collect(engine, generation)
        assert len(ids_of(pieces)) == budget
        assert pieces[-1].finish == "length"

    async def test_a_budget_of_nothing_brings_nothing(self, engine: Engine) -> None:
        pieces = await collect(engine, Generation(await ask(engine), 0, sampling=GREEDY))
        assert pieces == [Piece((), "", "length")]

    async def test_greedy_is_deterministic(self, engine: Engine) -> None:
        generation = Generation(await ask(engine), 40, sampling=GREEDY)
        first, second = await collect(engine, generation), await collect(engine, generation)
        assert ids_of(first) == ids_of(second)

    async def test_a_seed_repeats_and_another_differs(self, engine: Engine) -> None:
        prompt = await ask(engine, "<|im_start|>user\n")
        runs = {}
        for seed in (1, 1, 2, 3, 4, -7, 2**63):
            sampling = Sampling(temperature=1.5, seed=seed)
            ids = ids_of(await collect(engine, Generation(prompt, 12, sampling=sampling)))
            assert runs.setdefault(seed, ids) == ids
        assert len(set(runs.values())) > 1

    async def test_a_continuation_from_any_prefix_is_exact(self, engine: Engine) -> None:
        prompt = await ask(engine)
        whole = await collect(engine, Generation(prompt, 40, sampling=GREEDY))
        ids = ids_of(whole)
        assert len(ids) > 4
        for cut in range(len(ids) + 1):
            rest = await collect(engine, Generation(prompt, 40 - cut, prefix_ids=ids[:cut], sampling=GREEDY))
            assert ids_of(rest) == ids[cut:], cut
            assert rest[-1].finish == whole[-1].finish
            if cut == 0:
                assert text_of(rest) == text_of(whole)

    async def test_text_is_never_cut_inside_a_character(self, engine: Engine) -> None:
        letters = await engine.tokenize("é🦈→ü日", special=False)
        sampling = Sampling(temperature=0, logit_bias=dict.fromkeys(letters, 60.0), frequency_penalty=1.5)
        generation = Generation(await ask(engine), 30, sampling=sampling)
        pieces = await collect(engine, generation)
        ids = ids_of(pieces)
        assert len(ids) == 30
        # A piece is delivered whole, so an attempt can only break off between pieces. What was withheld there is not
        # lost: the continuation brings it. Ids go on exactly from inside a piece too.
        borders, out = {0: ""}, ""
        for piece in pieces:
            out += piece.text
            borders[max(borders) + len(piece.ids)] = out
        for cut in range(len(ids)):
            rest = await collect(
                engine, Generation(generation.prompt_ids, 30 - cut, prefix_ids=ids[:cut], sampling=sampling)
            )
            assert ids_of(rest) == ids[cut:]
            assert cut not in borders or borders[cut] + text_of(rest) == text_of(pieces), cut

    async def test_pieces_come_as_they_are_made(self, engine: Engine) -> None:
        stamps = []
        async for piece in engine.generate(await endless(engine, 60)):
            if piece.ids:
                stamps.append(time.perf_counter())
        assert stamps[0] < stamps[30] < stamps[-1]

    async def test_more_generations_than_slots_all_end(self, engine: Engine) -> None:
        generation = await endless(engine, 20)
        count = engine.facts.slots * 3
        results = await asyncio.gather(*(collect(engine, generation) for _ in range(count)))
        assert [len(ids_of(pieces)) for pieces in results] == [20] * count

    async def test_a_cancel_frees_the_slot(self, engine: Engine) -> None:
        generation = await endless(engine, 900)
        crowd = [asyncio.create_task(collect(engine, generation)) for _ in range(engine.facts.slots + 3)]
        await asyncio.sleep(0.02)
        for task in crowd:
            task.cancel()
        began = time.perf_counter()
        pieces = await collect(engine, Generation(await ask(engine), 1, sampling=GREEDY))
        assert len(ids_of(pieces)) == 1
        assert time.perf_counter() - began < 2
        results = await asyncio.gather(*crowd, return_exceptions=True)
        assert sum(isinstance(result, asyncio.CancelledError) for result in results) > 0

    async def test_aclose_after_the_first_piece_frees_the_slot(self, engine: Engine) -> None:
        for _ in range(engine.facts.slots * 2):
            async with contextlib.aclosing(engine.generate(await endless(engine, 900))) as pieces:
                async for _piece in pieces:
                    break
        assert await collect(engine, Generation(await ask(engine), 1, sampling=GREEDY))

    async def test_a_cancel_in_prefill_frees_the_slot(self, engine: Engine) -> None:
        filler = (await ask(engine, "a b c d ")) * 200
        long = Generation(filler[:1000], 10, sampling=GREEDY)
        for _ in range(engine.facts.slots * 2):
            task = asyncio.create_task(collect(engine, long))
            await asyncio.sleep(0)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        began = time.perf_counter()
        assert await collect(engine, Generation(await ask(engine), 1, sampling=GREEDY))
        assert time.perf_counter() - began < 2

    async def test_a_slow_reader_holds_up_nobody(self, engine: Engine) -> None:
        if engine.facts.slots < 2:
            pytest.skip("one slot: generations run one after the other here")
        slow = engine.generate(await endless(engine, 400))
        await anext(slow)
        began = time.perf_counter()
        assert len(ids_of(await collect(engine, await endless(engine, 60)))) == 60
        assert time.perf_counter() - began < 5
        await slow.aclose()

    async def test_a_prompt_that_leaves_no_room_is_refused(self, engine: Engine) -> None:
        limit = engine.facts.context_tokens - 1
        (token_id,) = (await ask(engine, "a"))[:1]
        with pytest.raises(PromptTooLong) as caught:
            await collect(engine, Generation((token_id,) * (limit + 1), 4, sampling=GREEDY))
        assert (caught.value.prompt_tokens, caught.value.limit_tokens) == (limit + 1, limit)

    @pytest.mark.parametrize("room", [1, 2, 3])
    async def test_a_prompt_at_the_limit_ends_with_the_context(self, engine: Engine, room: int) -> None:
        (token_id,) = (await ask(engine, "a"))[:1]
        base = await endless(engine, 50)
        prompt = (token_id,) * (engine.facts.context_tokens - room)
        pieces = await collect(engine, Generation(prompt, 50, sampling=base.sampling))
        assert len(ids_of(pieces)) == room
        assert pieces[-1].finish == "length"

    async def test_a_prefix_that_fills_the_context_ends_by_length(self, engine: Engine) -> None:
        prompt = await ask(engine)
        prefix = prompt[:1] * (engine.facts.context_tokens - len(prompt))
        pieces = await collect(engine, Generation(prompt, 50, prefix_ids=prefix, sampling=GREEDY))
        assert pieces == [Piece((), "", "length")]

    @pytest.mark.parametrize(
        ("prompt", "max_tokens", "bias"), [((), 4, {}), ((70_000,), 4, {}), ((5,), -1, {}), ((5,), 4, {70_000: 1.0})]
    )
    async def test_a_wrong_request_is_refused(
        self, engine: Engine, prompt: tuple[int, ...], max_tokens: int, bias: dict[int, float]
    ) -> None:
        with pytest.raises(GenerationInvalid):
            await collect(engine, Generation(prompt, max_tokens, sampling=Sampling(logit_bias=bias)))


@pytest.mark.parametrize("name", ["double", "llamacpp", pytest.param("exllamav2", marks=pytest.mark.gpu)])
class TestLife:
    async def test_unloaded_engines_say_so(self, name: str) -> None:
        engine = make(name)
        for _ in range(2):  # before load(), and after unload()
            with pytest.raises(EngineNotLoaded):
                _ = engine.facts
            with pytest.raises(EngineNotLoaded):
                await engine.tokenize("a")
            with pytest.raises(EngineNotLoaded):
                await collect(engine, Generation((5,), 1))
            await engine.load()
            await engine.load()
            await engine.unload()
            await engine.unload()

    async def test_unload_ends_what_runs_and_what_waits(self, name: str) -> None:
        engine = make(name)
        await engine.load()
        generation = await endless(engine, 900)
        running = [asyncio.create_task(collect(engine, generation)) for _ in range(engine.facts.slots * 2)]
        await asyncio.sleep(0.02)
        await engine.unload()
        results = await asyncio.gather(*running, return_exceptions=True)
        assert [type(result) for result in results] == [EngineNotLoaded] * len(results)

    async def test_loads_again(self, name: str) -> None:
        engine = make(name)
        for _ in range(2):
            await engine.load()
            assert ids_of(await collect(engine, Generation(await ask(engine), 3, sampling=GREEDY)))
            await engine.unload()


@pytest.fixture(scope="module")
async def llamacpp() -> AsyncIterator[Engine]:
    engine = make("llamacpp")
    await engine.load()
    yield engine
    await engine.unload()


class TestLlamaCpp:
    @pytest.mark.parametrize(
        ("question", "answer"), [("what is 7 plus 5?", "7 plus 5 is 12."), ("what is 20 plus 13?", "20 plus 13 is 33.")]
    )
    async def test_it_answers(self, llamacpp: Engine, question: str, answer: str) -> None:
        engine = llamacpp
        facts, path = engine.facts, default_model_path("llamacpp")
        assert path is not None
        template = ChatTemplate.of_model(
            path, special_tokens=facts.special_tokens, bos_text=facts.bos_text, eos_text=facts.eos_text
        )
        ids = await prompt_ids(engine, template.render([{"role": "user", "content": question}]))
        pieces = await collect(engine, Generation(ids, 40, sampling=GREEDY))
        assert (text_of(pieces), pieces[-1].finish) == (answer, "stop")

    async def test_it_listens_on_no_port_and_leaves_no_files(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        engine = create("llamacpp", slots=1)
        before = {at.laddr for at in psutil.Process().net_connections("inet")}
        await engine.load()
        assert {at.laddr for at in psutil.Process().net_connections("inet")} == before
        (folder,) = os.listdir(tmp_path)
        assert os.stat(tmp_path / folder).st_mode & 0o077 == 0
        await engine.unload()
        assert os.listdir(tmp_path) == []

    async def test_signals_stay_pythons(self, monkeypatch: pytest.MonkeyPatch) -> None:
        seen = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, seen.set)
        try:
            engine = create("llamacpp", slots=1)
            await engine.load()
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.wait_for(seen.wait(), 5)
            assert ids_of(await collect(engine, Generation(await ask(engine), 2, sampling=GREEDY)))
            await engine.unload()
        finally:
            loop.remove_signal_handler(signal.SIGTERM)

    async def test_a_file_that_is_no_model_is_named(self, tmp_path: Path) -> None:
        broken = tmp_path / "broken.gguf"
        broken.write_bytes(b"GGUF\x03\0\0\0")
        with pytest.raises(EngineUnavailable, match=r"broken\.gguf"):
            await create("llamacpp", broken).load()
        with pytest.raises(EngineUnavailable, match="no model at"):
            create("llamacpp", tmp_path / "absent.gguf")
