"""Calls into llama.cpp's in-process server: each on a thread of its own, its answers on the event loop.

Two traps of the library live here and nowhere else:

- A call blocks its thread until the last token. It can only be stopped from its callback, so at the next token or,
  in prefill, at the next batch of the prompt.
- The stream leaves out the ids of tokens that end inside a UTF-8 character (`/completion` over HTTP does too): only the
  token that completes the character is reported, with the whole text. `ChunkReader` finds the ids left out.
"""

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from workers.engines.base import (
    LOGPROB_MIN,
    Chance,
    EngineCrashed,
    EngineError,
    Finish,
    ImageInvalid,
    LibraryRefused,
    PromptTooLong,
)
from workers.engines.vocabulary import spellings


class Server(Protocol):
    """What this module uses of xllamacpp.Server."""

    def handle_completions(self, prompt: bytes, callback: Any) -> None:
        """Blocks until the generation ends or the callback returns True."""
        ...


class Call:
    """One call, running on a thread from the moment it is made.

    Args:
        server: the library's server.
        body: the request of llama.cpp's /completion.
        executor: has a thread to spare.

    Raises: EngineCrashed where the executor takes no more work.
    """

    def __init__(self, server: Server, body: dict[str, Any], executor: Executor) -> None:
        self._server = server
        self._body = orjson.dumps(body)
        self._loop = asyncio.get_running_loop()
        # Unbounded on purpose: a slow reader must not hold up the library. It fills no further than the token budget.
        self._chunks: asyncio.Queue[bytes | BaseException | None] = asyncio.Queue()
        self._stopping = threading.Event()
        try:
            self.ended: asyncio.Future[None] = self._loop.run_in_executor(executor, self._work)
        except RuntimeError as error:  # the executor is shut down: whoever waited for a slot comes too late
            raise EngineCrashed("llama.cpp is being unloaded") from error

    async def next(self, timeout_s: float) -> dict[str, Any]:
        """The next answer.

        Raises: EngineCrashed when none comes in time or the call ended without a last one; ImageInvalid, PromptTooLong
        or another GenerationInvalid when the library refused the request.
        """
        try:
            async with asyncio.timeout(timeout_s):
                chunk = await self._chunks.get()
        except TimeoutError as error:
            raise EngineCrashed(f"llama.cpp was silent for {timeout_s:g} s") from error
        if chunk is None:
            raise EngineCrashed("llama.cpp ended a generation without saying how")
        if isinstance(chunk, BaseException):
            raise EngineCrashed(f"llama.cpp failed: {chunk}") from chunk
        answer: dict[str, Any] = orjson.loads(chunk)
        refusal = answer.get("error", answer if "message" in answer and "choices" not in answer else None)
        if refusal is None:
            return answer
        raise _error_of(refusal)

    def stop(self) -> None:
        """Stop at the next token or prompt batch; `ended` says when the slot is free. Returns at once."""
        self._stopping.set()

    def _work(self) -> None:
        try:
            if not self._stopping.is_set():
                self._server.handle_completions(self._body, self._on_chunk)
        except Exception as error:  # noqa: BLE001 - crosses the thread's border; `next` raises it
            self._put(error)
        finally:
            self._put(None)

    def _on_chunk(self, chunk: bytes) -> bool:
        if not self._stopping.is_set():
            self._put(chunk)
        return self._stopping.is_set()

    def _put(self, item: bytes | BaseException | None) -> None:
        try:
            self._loop.call_soon_threadsafe(self._chunks.put_nowait, item)
        except RuntimeError:  # the loop is closed: nobody reads any more, so the work is over too
            self._stopping.set()


def _error_of(refusal: dict[str, Any]) -> EngineError:
    message = str(refusal.get("message", "it did not say why"))
    if "n_prompt_tokens" in refusal and "n_ctx" in refusal:
        return PromptTooLong(refusal["n_prompt_tokens"], refusal["n_ctx"] - 1)
    if "image" in message:
        return ImageInvalid(f"llama.cpp refused: {message}")
    kind: type[EngineError] = LibraryRefused if refusal.get("code") == 400 else EngineCrashed
    return kind(f"llama.cpp refused: {message}")


async def settle(calls: Sequence[Call], timeout_s: float) -> bool:
    """Stop calls and wait for their threads; False where one was still running after `timeout_s`."""
    for call in calls:
        call.stop()
    if not calls:
        return True
    _done, running = await asyncio.wait([call.ended for call in calls], timeout=timeout_s)
    return not running


class Vocabulary:
    """Bytes by id, and ids by bytes."""

    def __init__(self, table: Sequence[bytes]) -> None:
        self.table = table
        self._by_bytes: dict[bytes, list[int]] = {}
        for token_id, data in enumerate(table):
            if data:
                self._by_bytes.setdefault(data, []).append(token_id)

    @property
    def a_letter(self) -> int:
        """An id that is one ASCII character."""
        return next(token_id for token_id, data in enumerate(self.table) if len(data) == 1 and data.isalnum())

    def only_spelling(self, data: bytes, count: int) -> list[int] | None:
        """The one way to write bytes with `count` ids; None when there is none or more than one."""
        found = spellings(data, count, self.table, self._by_bytes)
        return found[0] if len(found) == 1 else None


@dataclass(frozen=True, slots=True)
class Step:
    """What one answer brought.

    Attributes:
        ids: new ids.
        finish: how the generation ended, on the last answer.
        lost: ids are missing that the answer does not determine: replay the call and ask `recovered`.
        chances: one for each id, where the call asked for them.
        prompt_tokens: said in prefill: all of the prompt, images and prefix included.
    """

    ids: tuple[int, ...] = ()
    finish: Finish | None = None
    lost: bool = False
    chances: tuple[Chance, ...] = ()
    prompt_tokens: int | None = None


class ChunkReader:
    """Reads the answers of one streamed call into ids, the left-out ones included. Pure.

    Args:
        vocabulary: the model's.
        chances: whether the call asked for them. Ids left out have none, so they are always `lost` then.
    """

    def __init__(self, vocabulary: Vocabulary, *, chances: bool = False) -> None:
        self._vocabulary = vocabulary
        self._with_chances = chances
        self._known: list[int] = []
        self._may_end: tuple[tuple[int, ...], tuple[Chance, ...]] = ((), ())
        self.sampled = 0
        self._finish: Finish | None = None

    @property
    def sampled_ids(self) -> tuple[int, ...]:
        """The ids that were read, the held control token left out."""
        return tuple(self._known)

    def read(self, answer: dict[str, Any]) -> Step:
        """The ids of one answer. After `lost`, read no further."""
        verbose = answer["__verbose"]
        if "prompt_progress" in verbose:  # prefill goes on; its "tokens" is a placeholder, not an id
            return Step(prompt_tokens=verbose["prompt_progress"]["total"])
        before, self.sampled = self.sampled, verbose["tokens_predicted"]
        if verbose.get("stop"):
            return self._end(before, verbose["stop_type"])
        released, chances = self._may_end
        self._may_end = ((), ())
        (token_id,) = verbose["tokens"]
        own = read_chances(verbose) if self._with_chances else ()
        if self.sampled - before > 1:
            self._known.extend(released)
            return self._fill(released, chances, self.sampled - before - 1, token_id, verbose["content"])
        if not verbose["content"]:  # a control token: if it ends the turn, the next answer says so
            self._may_end = ((token_id,), own)
            self._known.extend(released)
            return Step(released, chances=chances)
        self._known.extend((*released, token_id))
        return Step((*released, token_id), chances=(*chances, *own))

    def recovered(self, answer: dict[str, Any]) -> Step:
        """The ids that `read` lost, from a replay of the same call with `sampled` tokens and without a stream.

        Raises: EngineCrashed when the replay went another way.
        """
        ids = list(answer["__verbose"]["tokens"])
        if len(ids) != self.sampled or ids[: len(self._known)] != self._known:
            raise EngineCrashed("a replay did not bring the same tokens: those inside a character cannot be recovered")
        fresh = ids[len(self._known) :]
        if self._finish == "stop":
            fresh = fresh[:-1]
        self._known.extend(fresh)
        return Step(tuple(fresh), self._finish)

    def _fill(
        self, released: tuple[int, ...], chances: tuple[Chance, ...], missing: int, token_id: int, content: str
    ) -> Step:
        data, tail = content.encode(), self._vocabulary.table[token_id]
        if data.endswith(tail) and "\ufffd" not in content and not self._with_chances:
            between = self._vocabulary.only_spelling(data[: len(data) - len(tail)], missing)
            if between is not None:
                self._known.extend((*between, token_id))
                return Step((*released, *between, token_id))
        return Step(released, lost=True, chances=chances)

    def _end(self, before: int, stop_type: str) -> Step:
        self._finish = "stop" if stop_type == "eos" else "length"
        released, chances = self._may_end
        if self.sampled > before:  # it ended inside a character
            self._known.extend(released)
            return Step(released, lost=True, chances=chances)
        # The held control token ended the turn, or (by length) was a token like any other.
        if self._finish == "stop":
            released, chances = (), ()
        self._known.extend(released)
        return Step(released, self._finish, chances=chances)


def read_chances(verbose: dict[str, Any]) -> tuple[Chance, ...]:
    """The chances that an answer tells, one for each id that it tells of."""
    return tuple(
        Chance(
            one["id"],
            _logprob(one["logprob"]),
            tuple((top["id"], _logprob(top["logprob"])) for top in one["top_logprobs"]),
        )
        for one in verbose.get("completion_probabilities", ())
    )


def _logprob(value: float | None) -> float:
    return LOGPROB_MIN if value is None else min(0.0, max(LOGPROB_MIN, value))
