"""llama.cpp in this process, through the wheel `xllamacpp`.

What to know before changing anything here (xllamacpp 2026.10, each found by trying):

- Its constructor holds the interpreter's lock: nothing else in the process runs while a model loads. Load first, join
  Kafka after.
- It installs its own SIGINT and SIGTERM handlers, whose second signal calls exit(1). load() puts Python's back.
- It always opens an HTTP server. Ours listens on a socket file in a folder of mode 0700, so nobody else can reach it;
  tokenising goes through it, since the in-process object offers none.
- Its destructor waits for its loop to end, but a loop that has not begun yet misses the order to: destroyed right after
  it was made, it hangs for ever with the interpreter's lock held. load() returns only once the loop has answered.
- By default it keeps up to 8 GiB of old prompts in memory; here none.
- Floats depend a little on what shares a batch and on what the cache already held. Greedy output is exact as long as
  no two tokens are within rounding of each other; sampled output repeats for a seed under the same load only.
"""

import asyncio
import contextlib
import http.client
import logging
import os
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from workers.engines.base import (
    EngineCrashed,
    EngineNotLoaded,
    EngineUnavailable,
    Facts,
    Generation,
    Piece,
    Sampling,
    budget_tokens,
    engine_seed,
)
from workers.engines.gguf import GgufHead, read_gguf
from workers.engines.llamacpp_calls import Call, ChunkReader, Server, Step, Vocabulary, settle
from workers.engines.slots import Slots
from workers.engines.vocabulary import TextAssembler

logger = logging.getLogger(__name__)

# Below this, one thread is faster than two (measured with shark-mini: 2,870 against 2,650 tokens/s, at half the CPU).
_SMALL_WEIGHTS_BYTES = 64 << 20
_SOCKET_PATH_LIMIT_BYTES = 107


@dataclass(frozen=True, slots=True)
class _Loaded:
    server: Server
    head: GgufHead
    vocabulary: Vocabulary
    facts: Facts
    folder: Path
    executor: ThreadPoolExecutor
    slots: Slots
    calls: set[Call]

    @property
    def socket_path(self) -> Path:
        return self.folder / "llama.sock"


class LlamaCppEngine:
    """A GGUF model in llama.cpp; its slots share each forward pass.

    A cancelled generation stops at the next token or, in prefill, after the current batch of `batch_tokens`.

    Args:
        model_path: the GGUF file.
        slots: generations at once.
        context_tokens: context of one generation; the model's own without one.
        threads: compute threads; without a number one for tiny models, else one per core.
        gpu_layers: layers on a GPU, where the wheel was built for one; the library's default without one.
        batch_tokens: prompt tokens per forward pass.
        slot_wait_s: how long a generation waits for a slot.
        silence_s: silence in mid-generation after which the engine counts as crashed; prefill of one batch and a
            token must fit.
    """

    def __init__(
        self,
        model_path: Path,
        *,
        slots: int = 4,
        context_tokens: int | None = None,
        threads: int | None = None,
        gpu_layers: int | None = None,
        batch_tokens: int = 512,
        slot_wait_s: float = 600.0,
        silence_s: float = 120.0,
    ) -> None:
        self._model_path = model_path
        self._slots = slots
        self._context_tokens = context_tokens
        self._threads = threads
        self._gpu_layers = gpu_layers
        self._batch_tokens = batch_tokens
        self._slot_wait_s = slot_wait_s
        self._silence_s = silence_s
        self._loaded: _Loaded | None = None
        self._loading = asyncio.Lock()

    @property
    def facts(self) -> Facts:
        """See Engine.facts."""
        return self._require_loaded().facts

    async def load(self) -> None:
        """See Engine.load. The whole process stands still meanwhile (see the module)."""
        async with self._loading:
            if self._loaded is not None:
                return
            head = await asyncio.to_thread(read_gguf, self._model_path)
            context_tokens = min(self._context_tokens or head.context_tokens, head.context_tokens)
            folder = Path(tempfile.mkdtemp(prefix="shrk-llama-"))
            executor = ThreadPoolExecutor(max_workers=self._slots, thread_name_prefix="llamacpp")
            try:
                before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
                try:
                    server = await asyncio.to_thread(self._start, head, context_tokens, folder)
                finally:
                    _restore_signals(before)
                first = Generation((0,), 1, sampling=Sampling(temperature=0))
                await Call(server, _body(first, 1, stream=False), executor).next(self._silence_s)
            except EngineCrashed as error:
                self._drop(folder, executor)
                raise EngineUnavailable(f"llama.cpp loaded {head.name} but does not generate: {error}") from error
            except BaseException:
                self._drop(folder, executor)
                raise
            self._loaded = _Loaded(
                server=server,
                head=head,
                vocabulary=Vocabulary(head.table),
                facts=self._facts(head, context_tokens),
                folder=folder,
                executor=executor,
                slots=Slots(self._slots, self._slot_wait_s),
                calls=set(),
            )

    async def unload(self) -> None:
        """See Engine.unload. Raises EngineCrashed when a call does not stop in time; its memory then stays taken."""
        loaded, self._loaded = self._loaded, None
        if loaded is None:
            return
        stopped = await settle(tuple(loaded.calls), self._silence_s)
        self._drop(loaded.folder, loaded.executor)
        if not stopped:
            raise EngineCrashed(f"llama.cpp did not stop within {self._silence_s:g} s")

    async def tokenize(self, text: str, *, special: bool = True) -> list[int]:
        """See Engine.tokenize."""
        loaded = self._require_loaded()
        request = {"content": text, "add_special": False, "parse_special": special}
        answer = await asyncio.to_thread(_post, loaded.socket_path, "/tokenize", request, self._silence_s)
        ids: list[int] = answer["tokens"]
        return ids

    async def generate(self, generation: Generation) -> AsyncGenerator[Piece, None]:
        """See Engine.generate."""
        loaded = self._require_loaded()
        budget = budget_tokens(generation, loaded.facts)
        if budget == 0:  # llama.cpp would bring one token all the same
            yield Piece((), "", "length")
            return
        # The seed is drawn once: a replay must meet the same luck.
        drawn = engine_seed(generation) if generation.sampling.seed is None else generation.sampling.seed
        generation = replace(generation, sampling=replace(generation.sampling, seed=drawn), max_tokens=budget)
        text = TextAssembler(loaded.head.table, generation.prefix_ids)
        await loaded.slots.take()
        attempt = _Attempt(loaded, self._silence_s)
        try:
            if self._loaded is not loaded:
                raise EngineNotLoaded("the engine was unloaded while this generation waited for a slot")
            while True:
                brought: list[int] = []
                async with contextlib.aclosing(attempt.steps(generation)) as steps:
                    async for step in steps:
                        brought.extend(step.ids)
                        if step.finish is not None:
                            yield Piece(step.ids, text.feed(step.ids) + text.flush(), step.finish)
                            return
                        yield Piece(step.ids, text.feed(step.ids))
                left = generation.max_tokens - len(brought)
                generation = replace(generation, prefix_ids=(*generation.prefix_ids, *brought), max_tokens=left)
                if left == 0:
                    yield Piece((), text.flush(), "length")
                    return
        except EngineCrashed as error:
            if self._loaded is not loaded:
                raise EngineNotLoaded("the engine was unloaded in mid-generation") from error
            raise
        finally:
            attempt.close()

    @staticmethod
    def _drop(folder: Path, executor: ThreadPoolExecutor) -> None:
        executor.shutdown(wait=False)
        shutil.rmtree(folder, ignore_errors=True)

    def _require_loaded(self) -> _Loaded:
        if self._loaded is None:
            raise EngineNotLoaded("the engine is not loaded: call load() first")
        return self._loaded

    def _start(self, head: GgufHead, context_tokens: int, folder: Path) -> Server:
        try:
            import xllamacpp
        except ImportError as error:
            raise EngineUnavailable(f"xllamacpp does not import here ({error}): pip install xllamacpp") from error
        socket_path = str(folder / "llama.sock")
        if len(os.fsencode(socket_path)) > _SOCKET_PATH_LIMIT_BYTES:
            raise EngineUnavailable(f"{folder.parent} is too long a path for a socket: set TMPDIR to a shorter one")
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        threads = self._threads or (1 if head.weights_bytes < _SMALL_WEIGHTS_BYTES else cores)
        params = xllamacpp.CommonParams()
        params.model.path = str(self._model_path)
        params.n_parallel = self._slots
        params.n_ctx = self._slots * context_tokens
        params.kv_unified = False  # each slot has its own context; none can take another's room
        params.fit_params = False  # else it shrinks the context to what it thinks the machine can hold
        params.n_batch = self._batch_tokens
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        params.cache_ram_mib = 0
        params.cache_idle_slots = False
        params.warmup = False
        params.verbosity = -1
        params.hostnames = [socket_path]
        params.n_threads_http = 2
        params.ui = params.endpoint_slots = params.endpoint_props = params.endpoint_metrics = False
        if self._gpu_layers is not None:
            params.n_gpu_layers = self._gpu_layers
        try:
            server: Server = xllamacpp.Server(params)
        except RuntimeError as error:
            raise EngineUnavailable(
                f"llama.cpp could not load {self._model_path.name} with {self._slots} slots of {context_tokens} "
                f"tokens ({error}): check the file, or take fewer slots or a shorter context"
            ) from error
        return server

    def _facts(self, head: GgufHead, context_tokens: int) -> Facts:
        return Facts(
            engine="llamacpp",
            model=head.name,
            context_tokens=context_tokens,
            vocabulary_size=len(head.table),
            slots=self._slots,
            batches=True,
            weights_bytes=head.weights_bytes,
            special_tokens=head.special_tokens,
            bos_text=head.bos_text,
            eos_text=head.eos_text,
            notes=(f"a cancel in prefill waits for the current batch of {self._batch_tokens} prompt tokens",),
        )


class _Attempt:
    """The calls of one generation, one after the other, in the slot it holds."""

    def __init__(self, loaded: _Loaded, silence_s: float) -> None:
        self._loaded = loaded
        self._silence_s = silence_s
        self._call: Call | None = None

    async def steps(self, generation: Generation) -> AsyncGenerator[Step, None]:
        """Steps that bring ids or the end. When it ends without `finish`, go on behind the ids it brought."""
        reader = ChunkReader(self._loaded.vocabulary)
        call = self._begin(_body(generation, generation.max_tokens, stream=True))
        while True:
            step = reader.read(await call.next(self._silence_s))
            if step.ids or step.finish is not None:
                yield step
            if step.finish is not None:
                return
            if step.lost:
                break
        # Rare: ids inside a character that its text does not determine. The same call again, not streamed, has them.
        if not await settle((call,), self._silence_s):
            raise EngineCrashed(f"llama.cpp did not stop within {self._silence_s:g} s")
        call = self._begin(_body(generation, reader.sampled, stream=False))
        yield reader.recovered(await call.next(self._silence_s))

    def close(self) -> None:
        """Stop, and hand the slot back when the library has let go of it."""
        slots = self._loaded.slots
        if self._call is None or self._call.ended.done():
            slots.give()
            return
        self._call.stop()
        self._call.ended.add_done_callback(lambda _: slots.give())

    def _begin(self, body: dict[str, Any]) -> Call:
        calls = self._loaded.calls
        call = self._call = Call(self._loaded.server, body, self._loaded.executor)
        calls.add(call)
        call.ended.add_done_callback(lambda _: calls.discard(call))
        return call


def _body(generation: Generation, new_tokens: int, *, stream: bool) -> dict[str, Any]:
    sampling = generation.sampling
    return {
        "prompt": [*generation.prompt_ids, *generation.prefix_ids],
        "n_predict": new_tokens,
        "stream": stream,
        "verbose": True,  # the only way to ids through the in-process object
        "return_tokens": True,
        "return_progress": stream,  # gives the callback a word in prefill, so that a cancel is heard there
        "cache_prompt": True,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": 0.0,
        "repeat_penalty": 1.0,
        "repeat_last_n": len(generation.prompt_ids) + len(generation.prefix_ids) + new_tokens,
        "frequency_penalty": sampling.frequency_penalty,
        "presence_penalty": sampling.presence_penalty,
        "logit_bias": [[token_id, bias] for token_id, bias in sampling.logit_bias.items()],
        "seed": engine_seed(generation),
    }


def _restore_signals(handlers: dict[signal.Signals, Any]) -> None:
    if threading.current_thread() is not threading.main_thread():
        logger.warning("llama.cpp took SIGINT and SIGTERM: only the main thread can take them back; load there")
        return
    for number, handler in handlers.items():
        if handler is not None:
            signal.signal(number, handler)
            signal.siginterrupt(number, False)


class _SocketConnection(http.client.HTTPConnection):
    """HTTP over a socket file."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def _post(socket_path: Path, path: str, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
    connection = _SocketConnection(socket_path, timeout_s)
    try:
        connection.request("POST", path, orjson.dumps(request), {"content-type": "application/json"})
        response = connection.getresponse()
        data = response.read()
        if response.status != 200:
            raise EngineCrashed(f"llama.cpp answered {response.status} to {path}")
        answer: dict[str, Any] = orjson.loads(data)
        return answer
    except (OSError, http.client.HTTPException, orjson.JSONDecodeError) as error:
        raise EngineCrashed(f"llama.cpp did not answer {path}: {error}") from error
    finally:
        connection.close()
