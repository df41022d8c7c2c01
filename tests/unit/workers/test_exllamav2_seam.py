"""The ExLlamaV2 engine without a GPU: a stand-in for its library's asynchronous generator, with that one's manners.

What is checked here is our side: threads, cancels, results and the error path. The library itself is checked by
`make gpu-check`.
"""

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from workers.engines import default_model_path, exllamav2
from workers.engines.base import (
    EngineCrashed,
    EngineNotLoaded,
    EngineUnavailable,
    Facts,
    Generation,
    GenerationInvalid,
    NotSupported,
    Piece,
    Sampling,
)
from workers.engines.exllamav2_model import LoadedModel, read_folder, sampler_settings
from workers.engines.grammar import Builder, literal
from workers.engines.token_filter import TokenFilter

END = 2
TABLE = (b"", b"a", b"", b"\xc3", b"\xa9", b"b")


class Tensor:
    """As much of a tensor of shape (1, n) as the engine reads."""

    def __init__(self, ids: list[int]) -> None:
        self._ids = ids

    def __getitem__(self, row: int) -> "Tensor":
        assert row == 0
        return self

    def tolist(self) -> list[int]:
        return self._ids


class Library:
    """Runs jobs step by step on the loop it was made on, as ExLlamaV2DynamicGeneratorAsync does."""

    def __init__(self, script: list[dict[str, Any] | Exception], pause_s: float) -> None:
        self.jobs: dict[object, Job] = {}
        self.script, self.pause_s, self.closed = script, pause_s, False
        self.iteration_task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self.pause_s)
            for key, job in tuple(self.jobs.items()):
                result = self.script[job.at]
                job.at += 1
                job.results.put_nowait(result)
                if isinstance(result, Exception):
                    return
                if result["eos"]:
                    del self.jobs[key]

    async def close(self) -> None:
        self.closed = True
        self.iteration_task.cancel()


class Job:
    """One job, as ExLlamaV2DynamicJobAsync."""

    def __init__(self, library: Library) -> None:
        self.job, self.library, self.at = object(), library, 0
        self.results: asyncio.Queue[Any] = asyncio.Queue()
        library.jobs[self.job] = self

    async def __aiter__(self) -> AsyncIterator[dict[str, Any]]:
        while True:
            result = await self.results.get()
            if isinstance(result, Exception):
                raise result
            yield result
            if result["eos"]:
                return

    async def cancel(self) -> None:
        assert self.job in self.library.jobs
        del self.library.jobs[self.job]


def stream(ids: list[int] | None = None, *, eos: bool = False, **more: Any) -> dict[str, Any]:
    result = {"stage": "streaming", "eos": eos, **more}
    return result | ({"token_ids": Tensor(ids)} if ids is not None else {})


HAPPY = [
    {"stage": "started", "eos": False},
    {"stage": "prefill", "eos": False, "curr_progress": 1, "max_progress": 1},
    stream([1]),
    stream(),  # a character that is not complete yet: held
    stream([3, 4]),
    stream(eos=True, eos_reason="stop_token", eos_triggering_token_id=END, held={"token_ids": Tensor([5, END])}),
]


async def loaded(
    monkeypatch: pytest.MonkeyPatch,
    script: list[Any],
    *,
    pause_s: float = 0.001,
    silence_s: float = 5.0,
    slots: int = 2,
    new_job: Any = lambda library, *_: Job(library),
) -> tuple[exllamav2.ExLlamaV2Engine, list[Library]]:
    made: list[Library] = []

    def load(_folder: Path, _slots: int, _context: int | None) -> LoadedModel:
        def new_generator() -> Library:
            made.append(Library(script, pause_s))
            return made[-1]

        facts = Facts("exllamav2", "fake", 64, len(TABLE), slots, slots > 1, 1, tells_logprobs=False)
        return LoadedModel(
            facts, TABLE, lambda _text, _special: [1], new_generator, new_job, lambda: None, end_ids=(END,)
        )

    monkeypatch.setattr(exllamav2, "why_unavailable", lambda: None)
    monkeypatch.setattr(exllamav2, "load_model", load)
    engine = exllamav2.ExLlamaV2Engine(Path("nowhere"), slots=slots, silence_s=silence_s)
    await engine.load()
    return engine, made


async def collect(engine: exllamav2.ExLlamaV2Engine, **more: Any) -> list[Piece]:
    async with asyncio.timeout(10):
        return [piece async for piece in engine.generate(Generation((1,), 9, **more))]


async def test_results_become_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, made = await loaded(monkeypatch, HAPPY)
    assert await collect(engine) == [Piece((1,), "a"), Piece((3, 4), "é"), Piece((5,), "b", "stop")]
    assert (await collect(engine, prefix_ids=(3,)))[0] == Piece((1,), "\ufffda")
    await engine.unload()
    assert made[0].closed


class FilteredJob(Job):
    """A job that draws the first id that its filter allows, as the library's sampler would with an even model."""

    def __init__(self, library: Library, follower: TokenFilter) -> None:
        super().__init__(library)
        self._follower = follower

    async def __aiter__(self) -> AsyncIterator[dict[str, Any]]:
        self._follower.restart()
        while True:
            await asyncio.sleep(0)
            token_id = self._follower.allowed()[0]
            self._follower.feed(token_id)
            if token_id == END:
                held = {"token_ids": Tensor([END])}
                yield stream(eos=True, eos_reason="stop_token", eos_triggering_token_id=END, held=held)
                del self.library.jobs[self.job]
                return
            yield stream([token_id])


async def test_a_constraint_becomes_a_filter(monkeypatch: pytest.MonkeyPatch) -> None:
    def new_job(library: Library, _generation: Any, _budget: int, _seed: int, follower: TokenFilter) -> Job:
        return FilteredJob(library, follower)

    engine, _ = await loaded(monkeypatch, HAPPY, new_job=new_job)
    constraint = Builder().grammar(literal("aéb"))
    pieces = await collect(engine, constraint=constraint)
    assert "".join(piece.text for piece in pieces) == "aéb"
    assert [(piece.ids, piece.whole) for piece in pieces] == [
        ((1,), True), ((3,), False), ((4,), True), ((5,), True), ((), True)
    ]  # fmt: skip
    assert pieces[-1].finish == "stop"
    rest = await collect(engine, constraint=constraint, prefix_ids=(1, 3, 4))
    assert "".join(piece.text for piece in rest) == "b"
    assert await collect(engine, constraint=constraint, prefix_ids=(1, 3, 4, 5)) == [Piece((), "", "stop")]
    for prefix in ((5,), (1, 3)):
        with pytest.raises(GenerationInvalid):
            await collect(engine, constraint=constraint, prefix_ids=prefix)
    await engine.unload()


async def test_what_it_cannot_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, _ = await loaded(monkeypatch, HAPPY)
    with pytest.raises(NotSupported):
        await collect(engine, logprobs=1)
    with pytest.raises(NotSupported):
        await engine.embed((1,))
    await engine.unload()


async def test_the_budget_ends_by_length(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, _ = await loaded(monkeypatch, [stream([1]), stream([3], eos=True, eos_reason="max_new_tokens")])
    assert await collect(engine) == [Piece((1,), "a"), Piece((3,), "\ufffd", "length")]
    await engine.unload()


async def test_many_at_once_and_more_than_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, _ = await loaded(monkeypatch, HAPPY)
    assert [len(pieces) for pieces in await asyncio.gather(*(collect(engine) for _ in range(9)))] == [3] * 9
    await engine.unload()


async def test_a_cancel_reaches_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, made = await loaded(monkeypatch, [stream([1])] * 10_000)
    running = [asyncio.create_task(collect(engine)) for _ in range(4)]
    await asyncio.sleep(0.05)
    assert len(made[0].jobs) == 2
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    for _ in range(200):
        if not made[0].jobs:
            break
        await asyncio.sleep(0.01)
    assert made[0].jobs == {}
    await engine.unload()


async def test_a_step_that_fails_fails_now_and_later(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, _ = await loaded(monkeypatch, [stream([1]), RuntimeError("CUDA error")])
    for _ in range(2):  # the library's loop has ended: a later job must not wait for ever
        with pytest.raises(EngineCrashed, match="CUDA error"):
            await collect(engine)
    await engine.unload()


async def test_silence_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, _ = await loaded(monkeypatch, HAPPY, pause_s=60, silence_s=0.05)
    with pytest.raises(EngineCrashed, match="silent"):
        await collect(engine)
    await engine.unload()


@pytest.mark.parametrize("pause_s", [0.0, 0.02])
async def test_unload_ends_what_runs_and_what_waits(monkeypatch: pytest.MonkeyPatch, pause_s: float) -> None:
    engine, _ = await loaded(monkeypatch, [stream([1])] * 10_000)
    running = [asyncio.create_task(collect(engine)) for _ in range(5)]
    await asyncio.sleep(pause_s)
    await engine.unload()
    results = await asyncio.gather(*running, return_exceptions=True)
    assert [type(result) for result in results] == [EngineNotLoaded] * 5


async def test_without_its_libraries_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(EngineUnavailable, match="pip install"):
        await exllamav2.ExLlamaV2Engine(Path("nowhere")).load()


def test_shark_minis_folder_is_understood() -> None:
    folder = default_model_path("exllamav2")
    assert folder is not None
    told = read_folder(folder)
    assert (len(told.table), told.end_ids, told.bos_text, told.eos_text) == (1024, (2,), "<|endoftext|>", "<|im_end|>")
    assert told.special_tokens == ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def test_a_folder_without_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineUnavailable, match="safetensors"):
        read_folder(tmp_path)


def test_the_librarys_defaults_do_not_shine_through() -> None:
    greedy = sampler_settings(Sampling(temperature=0))
    assert (greedy["top_k"], greedy["token_repetition_penalty"]) == (1, 1.0)
    warm = sampler_settings(Sampling(temperature=0.7, top_p=0.9, frequency_penalty=0.5))
    assert (warm["temperature"], warm["top_k"], warm["top_p"]) == (0.7, 0, 0.9)
    assert dataclasses.asdict(Sampling())["temperature"] == 1.0
