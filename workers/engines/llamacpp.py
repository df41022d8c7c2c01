"""llama.cpp in this process, through the wheel `xllamacpp`.

What to know before changing anything here (xllamacpp 2026.10, each found by trying):

- Its constructor holds the interpreter's lock: nothing else in the process runs while a model loads. Load first, join
  Kafka after.
- It installs its own SIGINT and SIGTERM handlers, whose second signal calls exit(1). load() puts Python's back.
- It always opens an HTTP server. Ours listens on a socket file in a folder of mode 0700, so nobody else can reach it;
  tokenising goes through it, since the in-process object offers none.
- Its destructor waits for its loop to end, but a loop that has not begun yet misses the order to: destroyed right after
  it was made, it hangs for ever with the interpreter's lock held. load() returns only once the loop has answered.
- It makes wrong vectors where two inputs share a batch (cosine 0.90 to 0.97 to the true ones with separate contexts),
  and aborts the process with three unified ones: a model for embeddings gets one slot, whatever was asked for.
- On a model with eyes its in-process object takes no prompts of ids: all of them go through the socket.
- By default it keeps up to 8 GiB of old prompts in memory; here none.
- Floats depend a little on what shares a batch and on what the cache already held. Greedy output is exact as long as
  no two tokens are within rounding of each other; sampled output repeats for a seed under the same load only.
"""

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import tempfile
import threading
from array import array
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson

from workers.engines.base import (
    EngineCrashed,
    EngineNotLoaded,
    EngineUnavailable,
    Facts,
    Generation,
    NotSupported,
    Piece,
    Sampling,
    budget_tokens,
    check_prompt,
    engine_seed,
)
from workers.engines.gguf import GgufHead, read_gguf
from workers.engines.llamacpp_attempt import Attempt, Loaded
from workers.engines.llamacpp_body import body, constraint_rest
from workers.engines.llamacpp_calls import Call, Server, Vocabulary, settle
from workers.engines.llamacpp_socket import SocketServer, ask
from workers.engines.slots import Slots
from workers.engines.vocabulary import TextAssembler

logger = logging.getLogger(__name__)

# Below this, one thread is faster than two (measured with shark-mini: 2,870 against 2,650 tokens/s, at half the CPU).
_SMALL_WEIGHTS_BYTES = 64 << 20
_SOCKET_PATH_LIMIT_BYTES = 107
_INPUTS_PER_CALL = 256


class LlamaCppEngine:
    """A GGUF model in llama.cpp; its slots share each forward pass.

    A model that pools (says its file) makes vectors and no text. One with a file `mmproj-<its file name>` beside it
    takes images; their prompts go through as text, so a continuation of such a generation is close, not token-exact.

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
        self._loaded: Loaded | None = None
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
            slots = 1 if head.pools else self._slots
            folder = Path(tempfile.mkdtemp(prefix="shrk-llama-"))
            executor = ThreadPoolExecutor(max_workers=slots, thread_name_prefix="llamacpp")
            try:
                before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
                try:
                    server = await asyncio.to_thread(self._start, head, slots, context_tokens, folder)
                finally:
                    _restore_signals(before)
                if head.pools:
                    answer = await self._blocking(executor, _embed, server, [0])
                    vector_size = len(answer)
                else:
                    first = Generation((0,), 1, sampling=Sampling(temperature=0))
                    answering = self._answering(server, folder)
                    await Call(answering, body(first, 1, None, stream=False), executor).next(self._silence_s)
                    vector_size = 0
                props = await asyncio.to_thread(ask, folder / "llama.sock", "/props", None, self._silence_s)
            except EngineCrashed as error:
                self._drop(folder, executor)
                raise EngineUnavailable(f"llama.cpp loaded {head.name} but does not work: {error}") from error
            except BaseException:
                self._drop(folder, executor)
                raise
            self._loaded = Loaded(
                server=server,
                answering=self._answering(server, folder),
                head=head,
                vocabulary=Vocabulary(head.table),
                facts=self._facts(head, slots, context_tokens, vector_size),
                folder=folder,
                executor=executor,
                slots=Slots(slots, self._slot_wait_s),
                calls=set(),
                media_marker=props.get("media_marker") or "",
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

    async def tokenize(self, text: str, *, special: bool = True, begin: bool = False) -> list[int]:
        """See Engine.tokenize."""
        loaded = self._require_loaded()
        request = {"content": text, "add_special": begin, "parse_special": special}
        answer = await asyncio.to_thread(ask, loaded.socket_path, "/tokenize", request, self._silence_s)
        ids: list[int] = answer["tokens"]
        return ids

    async def tokenize_inputs(
        self, texts: Sequence[str], *, special: bool = False, begin: bool = True
    ) -> list[list[int]]:
        """See Engine.tokenize_inputs. One call for many: two thousand take two seconds one by one."""
        head = self._require_loaded().head
        # Between them goes the id of a control token that none of the texts is read as.
        read = "\0".join(texts) if special else ""
        border = next((token_id for token_id, text in sorted(head.controls.items()) if text not in read), None)
        if border is None:
            return [await self.tokenize(text, special=special, begin=begin and bool(text)) for text in texts]
        return await self._tokenize_between(border, texts, special=special, begin=begin)

    async def _tokenize_between(
        self, border: int, texts: Sequence[str], *, special: bool, begin: bool
    ) -> list[list[int]]:
        loaded = self._require_loaded()
        adds = begin and loaded.head.adds_bos
        first = [at for at, text in loaded.head.controls.items() if adds and text == loaded.head.bos_text]
        found: list[list[int]] = []
        for start in range(0, len(texts), _INPUTS_PER_CALL):
            some = texts[start : start + _INPUTS_PER_CALL]
            mixed = [item for text in some for item in (text, border)]
            request = {"content": mixed, "add_special": False, "parse_special": special}
            answer = await asyncio.to_thread(ask, loaded.socket_path, "/tokenize", request, self._silence_s)
            ids: list[int] = []
            for token_id in answer["tokens"]:
                if token_id == border:
                    found.append([*first, *ids] if ids else [])
                    ids = []
                else:
                    ids.append(token_id)
        if len(found) != len(texts):
            raise EngineCrashed("llama.cpp tokenised fewer inputs than it was given, or more")
        return found

    def token_bytes(self, token_id: int) -> bytes:
        """See Engine.token_bytes."""
        return self._require_loaded().head.table[token_id]

    async def embed(self, ids: Sequence[int]) -> "array[float]":
        """See Engine.embed."""
        loaded = self._require_loaded()
        if not loaded.facts.embedding_size:
            raise NotSupported("this model makes no vectors")
        check_prompt(ids, loaded.facts)
        await loaded.slots.take()
        try:
            vector = await self._blocking(loaded.executor, _embed, loaded.server, list(ids))
        except (EngineCrashed, RuntimeError) as error:
            if self._loaded is not loaded:
                raise EngineNotLoaded("the engine was unloaded in mid-embedding") from error
            raise EngineCrashed(f"llama.cpp made no vector: {error}") from error
        finally:
            loaded.slots.give()
        return vector

    async def generate(self, generation: Generation) -> AsyncGenerator[Piece, None]:
        """See Engine.generate."""
        loaded = self._require_loaded()
        if any(image[:4] == b"RIFF" and image[8:12] == b"WEBP" for image in generation.images):
            raise NotSupported("this model reads no WebP: send PNG, JPEG or GIF")
        budget = budget_tokens(generation, loaded.facts)
        if budget == 0:  # llama.cpp would bring one token all the same
            yield Piece((), "", "length")
            return
        # The seed is drawn once: a replay must meet the same luck.
        drawn = engine_seed(generation) if generation.sampling.seed is None else generation.sampling.seed
        generation = replace(generation, sampling=replace(generation.sampling, seed=drawn), max_tokens=budget)
        text = TextAssembler(loaded.head.table, generation.prefix_ids)
        await loaded.slots.take()
        attempt = Attempt(loaded, self._silence_s)
        told_images = not generation.images
        try:
            if self._loaded is not loaded:
                raise EngineNotLoaded("the engine was unloaded while this generation waited for a slot")
            while True:
                rest = None
                if generation.constraint is not None:  # in a thread: a large grammar takes its time
                    rest = await asyncio.to_thread(constraint_rest, generation, loaded.head.table)
                if rest == "":
                    yield Piece((), text.flush(), "stop")
                    return
                brought: list[int] = []
                async with contextlib.aclosing(attempt.steps(generation, rest)) as steps:
                    async for step in steps:
                        if step.prompt_tokens is not None:
                            if not told_images:
                                told_images = True
                                yield Piece((), "", image_tokens=step.prompt_tokens - attempt.text_tokens)
                            continue
                        brought.extend(step.ids)
                        new = text.feed(step.ids)
                        if step.finish is not None:
                            yield Piece(step.ids, new + text.flush(), step.finish, step.chances)
                            return
                        yield Piece(step.ids, new, None, step.chances, text.whole)
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

    async def _blocking(self, executor: ThreadPoolExecutor, work: Callable[..., Any], *args: Any) -> Any:
        """The result of work that blocks. Raises EngineCrashed when it takes too long; it then goes on by itself."""
        try:
            running = asyncio.get_running_loop().run_in_executor(executor, work, *args)
        except RuntimeError as error:
            raise EngineCrashed("llama.cpp is being unloaded") from error
        try:
            return await asyncio.wait_for(asyncio.shield(running), self._silence_s)
        except TimeoutError as error:
            raise EngineCrashed(f"llama.cpp was silent for {self._silence_s:g} s") from error

    @staticmethod
    def _drop(folder: Path, executor: ThreadPoolExecutor) -> None:
        executor.shutdown(wait=False)
        shutil.rmtree(folder, ignore_errors=True)

    def _require_loaded(self) -> Loaded:
        if self._loaded is None:
            raise EngineNotLoaded("the engine is not loaded: call load() first")
        return self._loaded

    def _start(self, head: GgufHead, slots: int, context_tokens: int, folder: Path) -> Server:
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
        params.n_parallel = slots
        params.n_ctx = slots * context_tokens
        params.kv_unified = False  # each slot has its own context; none can take another's room
        params.fit_params = False  # else it shrinks the context to what it thinks the machine can hold
        params.n_batch = self._batch_tokens
        if head.pools:  # an input has to fit in one batch
            params.embedding = True
            params.n_batch = params.n_ubatch = max(self._batch_tokens, context_tokens)
        if (eyes := self._eyes()) is not None:
            params.mmproj.path = str(eyes)
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        params.cache_ram_mib = 0
        params.cache_idle_slots = False
        params.warmup = False
        params.verbosity = -1
        params.hostnames = [socket_path]
        params.n_threads_http = 2 + (slots if eyes is not None else 0)
        params.ui = params.endpoint_slots = params.endpoint_props = params.endpoint_metrics = False
        if self._gpu_layers is not None:
            params.n_gpu_layers = self._gpu_layers
        try:
            server: Server = xllamacpp.Server(params)
        except RuntimeError as error:
            raise EngineUnavailable(
                f"llama.cpp could not load {self._model_path.name} with {slots} slots of {context_tokens} "
                f"tokens ({error}): check the file, or take fewer slots or a shorter context"
            ) from error
        return server

    def _answering(self, server: Server, folder: Path) -> Server:
        return server if self._eyes() is None else SocketServer(folder / "llama.sock", self._silence_s)

    def _eyes(self) -> Path | None:
        path = self._model_path.with_name(f"mmproj-{self._model_path.name}")
        return path if path.is_file() else None

    def _facts(self, head: GgufHead, slots: int, context_tokens: int, vector_size: int) -> Facts:
        return Facts(
            engine="llamacpp",
            model=head.name,
            context_tokens=context_tokens,
            vocabulary_size=len(head.table),
            slots=slots,
            batches=slots > 1,
            weights_bytes=head.weights_bytes,
            special_tokens=head.special_tokens,
            bos_text=head.bos_text,
            eos_text=head.eos_text,
            makes_text=not head.pools,
            sees=self._eyes() is not None,
            embedding_size=vector_size,
            notes=(f"a cancel in prefill waits for the current batch of {self._batch_tokens} prompt tokens",),
        )


def _embed(server: Any, ids: list[int]) -> "array[float]":
    """Blocks."""
    answer = orjson.loads(server.handle_embeddings(orjson.dumps({"input": [ids]})))
    if "data" not in answer:
        raise EngineCrashed("llama.cpp refused to make a vector")
    return array("f", answer["data"][0]["embedding"])


def _restore_signals(handlers: dict[signal.Signals, Any]) -> None:
    if threading.current_thread() is not threading.main_thread():
        logger.warning("llama.cpp took SIGINT and SIGTERM: only the main thread can take them back; load there")
        return
    for number, handler in handlers.items():
        if handler is not None:
            signal.signal(number, handler)
            signal.siginterrupt(number, False)
