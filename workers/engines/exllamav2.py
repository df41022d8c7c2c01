"""ExLlamaV2 on a CUDA GPU: FP16 and EXL2 folders, the dynamic generator, one asynchronous job per generation.

Written from the source of exllamav2 0.3.2. What to know before changing anything here:

- Its asynchronous generator computes on the event loop it runs on. So it gets a loop and a thread of its own; the
  node's loop sees ids only.
- An error inside a step ends its loop for good and reaches only the jobs that run at that moment: later jobs would
  wait for ever. `_Generator.fault` and the bound on silence answer that.
- Paged attention (many generations in one forward pass) needs flash-attn >= 2.5.7 and an Ampere GPU or newer. Without
  them the generator runs one job at a time.
- Its sampler's defaults change the output (temperature 0.8, repetition penalty 1.025, top_k 50): set them all.
- Its tokenizer reads control tokens out of any text. Ours is made from tokenizer.json, once with and once without.
- A filter (a constraint) gives a set of ids per step; its end is an end-of-turn id that is allowed alone.
- Ids of an incomplete character and the end-of-turn id arrive as `held` in the last result.
"""

import asyncio
import contextlib
import importlib.util
import threading
from array import array
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workers.engines.base import (
    EngineCrashed,
    EngineNotLoaded,
    EngineUnavailable,
    Facts,
    Finish,
    Generation,
    GenerationInvalid,
    NotSupported,
    Piece,
    budget_tokens,
    constraint_after,
    engine_seed,
)
from workers.engines.exllamav2_model import LoadedModel, load_model
from workers.engines.slots import Slots
from workers.engines.token_filter import TokenFilter
from workers.engines.vocabulary import TextAssembler

_LOAD_LIMIT_S = 1800.0  # the first import compiles the CUDA extension


def why_unavailable() -> str | None:
    """Why this engine cannot run here and what to do about it, in a line; None where it can. Loads no model."""
    for name in ("torch", "tokenizers", "exllamav2"):
        if importlib.util.find_spec(name) is None:
            return f"{name} is not installed: pip install 'shiver[gpu]' on a machine with a CUDA GPU"
    import torch

    if not torch.cuda.is_available():
        return "torch sees no CUDA GPU: exllamav2 needs one (check nvidia-smi and torch's CUDA build)"
    return None


@dataclass(frozen=True, slots=True)
class _Result:
    """What one result of the generator means to us."""

    ids: tuple[int, ...]
    finish: Finish | None


def read_result(result: dict[str, Any]) -> _Result | None:
    """The ids of a result of the dynamic generator; None for one that tells of prefill or of held text only."""
    if result.get("stage") != "streaming":
        return None
    ids: list[int] = []
    if (fresh := result.get("token_ids")) is not None:
        ids.extend(fresh[0].tolist())
    if not result["eos"]:
        return _Result(tuple(ids), None) if ids else None
    if (held := result.get("held", {}).get("token_ids")) is not None:
        ids.extend(held[0].tolist())
    stopped = result.get("eos_reason") == "stop_token"
    if stopped and ids and ids[-1] == result.get("eos_triggering_token_id"):
        ids.pop()
    return _Result(tuple(ids), "stop" if stopped else "length")


class _Stream:
    """Results of one job on their way from the generator's loop to the node's."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._items: asyncio.Queue[_Result | BaseException] = asyncio.Queue()

    def put(self, item: _Result | BaseException) -> None:
        """From the generator's thread."""
        with contextlib.suppress(RuntimeError):  # the node's loop is closed: nobody reads any more
            self._loop.call_soon_threadsafe(self._items.put_nowait, item)

    async def next(self, timeout_s: float) -> _Result:
        """The next result. Raises EngineCrashed when none comes in time, and what the job raised."""
        try:
            async with asyncio.timeout(timeout_s):
                item = await self._items.get()
        except TimeoutError as error:
            raise EngineCrashed(f"exllamav2 was silent for {timeout_s:g} s") from error
        if isinstance(item, BaseException):
            raise EngineCrashed(f"exllamav2 failed: {item}") from item
        return item


class _Generator:
    """The asynchronous generator on its own thread and loop."""

    def __init__(self, model: LoadedModel) -> None:
        self.model = model
        self.fault: str | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="exllamav2", daemon=True)
        self._thread.start()
        self._generator: Any = None
        self._closing = False
        self._jobs: set[asyncio.Task[None]] = set()

    async def start(self, timeout_s: float) -> None:
        """Make the generator on its loop. Raises whatever exllamav2 raises."""

        async def make() -> None:
            self._generator = self.model.new_generator()

        await asyncio.wait_for(asyncio.wrap_future(self._submit(make())), timeout_s)

    def run(
        self, generation: Generation, budget: int, stream: _Stream, follower: TokenFilter | None = None
    ) -> Callable[[], None]:
        """Start a job; its results go to the stream. Returns what stops it, callable at any time, more than once.

        Raises: EngineCrashed once close() has begun.
        """
        if self._closing:
            raise EngineCrashed("exllamav2 is being unloaded")
        stopped = threading.Event()
        handle: list[asyncio.Task[None]] = []

        def ended(task: asyncio.Task[None]) -> None:
            self._jobs.discard(task)
            if task.cancelled():  # told from here: a task cancelled before its first step never runs a line of its own
                stream.put(EngineCrashed("the generation was stopped"))

        async def begin() -> None:
            if stopped.is_set():
                return
            task = asyncio.get_running_loop().create_task(self._drive(generation, budget, stream, follower))
            handle.append(task)
            self._jobs.add(task)
            task.add_done_callback(ended)

        def stop() -> None:
            stopped.set()
            with contextlib.suppress(RuntimeError):  # its loop is closed: the job is gone already
                self._loop.call_soon_threadsafe(lambda: [task.cancel() for task in handle])

        self._submit(begin())
        return stop

    async def close(self, timeout_s: float) -> bool:
        """Stop every job, the generator and the thread; False where that took too long."""
        self._closing = True

        async def end() -> None:
            for task in tuple(self._jobs):
                task.cancel()
            await asyncio.gather(*self._jobs, return_exceptions=True)
            if self._generator is not None:
                await self._generator.close()

        try:
            await asyncio.wait_for(asyncio.wrap_future(self._submit(end())), timeout_s)
        except TimeoutError:
            return False
        self._loop.call_soon_threadsafe(self._loop.stop)
        await asyncio.to_thread(self._thread.join, timeout_s)
        if self._thread.is_alive():
            return False
        self._loop.close()
        return True

    def _submit(self, work: Any) -> "Future[Any]":
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _drive(self, generation: Generation, budget: int, stream: _Stream, follower: TokenFilter | None) -> None:
        job: Any = None
        ended = False
        try:
            if self._generator.iteration_task.done():
                raise EngineCrashed(self.fault or "the generator's loop has ended")
            job = self.model.new_job(self._generator, generation, budget, engine_seed(generation), follower)
            async for result in job:
                if (read := read_result(result)) is not None:
                    stream.put(read)
                ended = bool(result["eos"])
        except Exception as error:  # noqa: BLE001 - crosses the thread's border; the reader raises it
            self.fault = f"{type(error).__name__}: {error}"
            stream.put(error)
        finally:
            # cancel() asserts that the job still runs; a generator whose loop broke has nothing left to cancel.
            broken = self._generator.iteration_task.done()
            if job is not None and not ended and not broken and job.job in self._generator.jobs:
                await job.cancel()


class ExLlamaV2Engine:
    """A model folder (FP16 or EXL2) on the GPUs that torch sees.

    Args:
        model_path: folder with config.json, tokenizer.json and *.safetensors.
        slots: generations at once, where paged attention is to be had; else one.
        context_tokens: context of one generation; the model's own without one.
        slot_wait_s: how long a generation waits for a slot.
        silence_s: silence in mid-generation after which the engine counts as crashed.
    """

    def __init__(
        self,
        model_path: Path,
        *,
        slots: int = 16,
        context_tokens: int | None = None,
        slot_wait_s: float = 600.0,
        silence_s: float = 120.0,
    ) -> None:
        self._model_path = model_path
        self._wanted_slots = slots
        self._context_tokens = context_tokens
        self._slot_wait_s = slot_wait_s
        self._silence_s = silence_s
        self._loading = asyncio.Lock()
        self._generator: _Generator | None = None
        self._slots = Slots(1, slot_wait_s)

    @property
    def facts(self) -> Facts:
        """See Engine.facts."""
        return self._require_loaded().model.facts

    async def load(self) -> None:
        """See Engine.load. The first load on a machine compiles the CUDA extension: minutes."""
        async with self._loading:
            if self._generator is not None:
                return
            if why := await asyncio.to_thread(why_unavailable):
                raise EngineUnavailable(why)
            model = await asyncio.to_thread(load_model, self._model_path, self._wanted_slots, self._context_tokens)
            generator = _Generator(model)
            try:
                await generator.start(_LOAD_LIMIT_S)
            except Exception as error:
                await generator.close(self._silence_s)
                await asyncio.to_thread(model.unload)
                raise EngineUnavailable(f"exllamav2's generator does not start: {error}") from error
            self._slots = Slots(model.facts.slots, self._slot_wait_s)
            self._generator = generator

    async def unload(self) -> None:
        """See Engine.unload. Raises EngineCrashed when the generator does not stop; its memory then stays taken."""
        generator, self._generator = self._generator, None
        if generator is None:
            return
        if not await generator.close(self._silence_s):
            raise EngineCrashed(f"exllamav2 did not stop within {self._silence_s:g} s")
        await asyncio.to_thread(generator.model.unload)

    async def tokenize(self, text: str, *, special: bool = True, begin: bool = False) -> list[int]:
        """See Engine.tokenize."""
        model = self._require_loaded().model
        return [*(model.bos_ids if begin else ()), *model.tokenize(text, special)]

    async def tokenize_inputs(
        self, texts: Sequence[str], *, special: bool = False, begin: bool = True
    ) -> list[list[int]]:
        """See Engine.tokenize_inputs."""
        model = self._require_loaded().model
        first = model.bos_ids if begin else ()
        # In a thread: there may be a hundred thousand of them, and others are streaming.
        return await asyncio.to_thread(
            lambda: [[*(first if text else ()), *model.tokenize(text, special)] for text in texts]
        )

    def token_bytes(self, token_id: int) -> bytes:
        """See Engine.token_bytes."""
        return self._require_loaded().model.table[token_id]

    async def embed(self, ids: Sequence[int]) -> "array[float]":
        """See Engine.embed."""
        self._require_loaded()
        raise NotSupported("this engine makes no vectors")

    async def generate(self, generation: Generation) -> AsyncGenerator[Piece, None]:
        """See Engine.generate."""
        generator = self._require_loaded()
        budget = budget_tokens(generation, generator.model.facts)
        if budget == 0:
            yield Piece((), "", "length")
            return
        text = TextAssembler(generator.model.table, generation.prefix_ids)
        follower = await asyncio.to_thread(_follower, generation, generator.model)
        if follower is not None and follower.done:
            yield Piece((), text.flush(), "stop")
            return
        slots = self._slots
        await slots.take()
        stop: Callable[[], None] | None = None
        try:
            stream = _Stream()
            stop = generator.run(generation, budget, stream, follower)
            while True:
                result = await stream.next(self._silence_s)
                if result.finish is not None:
                    yield Piece(result.ids, text.feed(result.ids) + text.flush(), result.finish)
                    return
                yield Piece(result.ids, text.feed(result.ids), whole=text.whole)
        except EngineCrashed as error:
            if self._generator is not generator:
                raise EngineNotLoaded("the engine was unloaded in mid-generation") from error
            raise
        finally:
            # The next job may be enqueued before this one is cancelled: the generator then starts it one step later.
            if stop is not None:
                stop()
            slots.give()

    def _require_loaded(self) -> _Generator:
        if self._generator is None:
            raise EngineNotLoaded("the engine is not loaded: call load() first")
        return self._generator


def _follower(generation: Generation, model: LoadedModel) -> TokenFilter | None:
    """Raises GenerationInvalid where the prefix does not fit the constraint."""
    if generation.constraint is None:
        return None
    assembler = TextAssembler(model.table)
    before = assembler.feed(generation.prefix_ids)
    if not assembler.whole:
        raise GenerationInvalid("a constrained generation cannot go on from inside a character")
    return TokenFilter(model.tree(), constraint_after(generation.constraint, before), model.end_ids)
