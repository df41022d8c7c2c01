"""One generation in llama.cpp: its calls, one after the other, and the answers put together."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from workers.engines.base import LOGPROB_MIN, Chance, EngineCrashed, Facts, Generation
from workers.engines.gguf import GgufHead
from workers.engines.llamacpp_body import body, image_prompt, text_of
from workers.engines.llamacpp_calls import Call, ChunkReader, Server, Step, Vocabulary, read_chances, settle
from workers.engines.llamacpp_socket import ask
from workers.engines.slots import Slots

# Alternatives looked through for an id that the library tells nothing of; what is not among them is very unlikely.
_PROBED = 1000


@dataclass(frozen=True, slots=True)
class Loaded:
    server: Any
    answering: Server  # to prompts
    head: GgufHead
    vocabulary: Vocabulary
    facts: Facts
    folder: Path
    executor: ThreadPoolExecutor
    slots: Slots
    calls: set[Call]
    media_marker: str

    @property
    def socket_path(self) -> Path:
        return self.folder / "llama.sock"


class Attempt:
    """The calls of one generation, one after the other, in the slot it holds."""

    def __init__(self, loaded: Loaded, silence_s: float) -> None:
        self._loaded = loaded
        self._silence_s = silence_s
        self._call: Call | None = None
        self.text_tokens = 0

    async def steps(self, generation: Generation, rest: str | None) -> AsyncGenerator[Step, None]:
        """Steps that bring ids or the end. When it ends without `finish`, go on behind the ids it brought."""
        reader = ChunkReader(self._loaded.vocabulary, chances=generation.logprobs is not None)
        request = body(generation, generation.max_tokens, rest, stream=True)
        if generation.images:
            request["prompt"], texts = image_prompt(generation, self._loaded.head, self._loaded.media_marker)
            self.text_tokens = await self._count(texts)
        call = self._begin(request)
        while True:
            step = reader.read(await call.next(self._silence_s))
            if step.ids or step.finish is not None or step.prompt_tokens is not None:
                yield step
            if step.finish is not None:
                return
            if step.lost:
                break
        # Rare: ids inside a character that its text does not determine. The same call again, not streamed, has them.
        if not await settle((call,), self._silence_s):
            raise EngineCrashed(f"llama.cpp did not stop within {self._silence_s:g} s")
        known = reader.sampled_ids
        replay = request | {"n_predict": reader.sampled, "stream": False, "return_progress": False}
        step = reader.recovered(await self._begin(replay).next(self._silence_s))
        if generation.logprobs is not None:
            step = replace(step, chances=await self._chances(request, (*known, *step.ids), len(known)))
        yield step

    async def _chances(self, request: dict[str, Any], ids: Sequence[int], since: int) -> tuple[Chance, ...]:
        """How likely each id from `since` on was, asked for one by one: inside a character the library tells none.

        A letter is forced in the id's place, after which the library speaks; what it tells is of before the force.
        """
        chances = []
        letter = self._loaded.vocabulary.a_letter
        for at in range(since, len(ids)):
            asked = request | {
                "n_predict": 1,
                "stream": False,
                "return_progress": False,
                "temperature": 0,
                "logit_bias": [[letter, 1e9]],
                "n_probs": _PROBED,
            }
            asked.pop("grammar", None)
            asked["prompt"] = _behind(asked["prompt"], ids[:at], self._loaded.head)
            answer = await self._begin(asked).next(self._silence_s)
            (told,) = read_chances(answer["__verbose"])
            chances.append(Chance(ids[at], dict(told.top).get(ids[at], LOGPROB_MIN), told.top[: request["n_probs"]]))
        return tuple(chances)

    def close(self) -> None:
        """Stop, and hand the slot back when the library has let go of it."""
        slots = self._loaded.slots
        if self._call is None or self._call.ended.done():
            slots.give()
            return
        self._call.stop()
        self._call.ended.add_done_callback(lambda _: slots.give())

    async def _count(self, texts: list[str]) -> int:
        """Tokens of the stretches of text around images, each tokenised for itself, as llama.cpp does it."""
        count = int(self._loaded.head.adds_bos)
        for text in filter(None, texts):
            request = {"content": text, "add_special": False, "parse_special": True}
            answer = await asyncio.to_thread(ask, self._loaded.socket_path, "/tokenize", request, self._silence_s)
            count += len(answer["tokens"])
        return count

    def _begin(self, request: dict[str, Any]) -> Call:
        calls = self._loaded.calls
        call = self._call = Call(self._loaded.answering, request, self._loaded.executor)
        calls.add(call)
        call.ended.add_done_callback(lambda _: calls.discard(call))
        return call


def _behind(prompt: Any, ids: Sequence[int], head: GgufHead) -> Any:
    """A prompt and ids behind it."""
    if isinstance(prompt, list):
        return [*prompt, *ids]
    return prompt | {"prompt_string": prompt["prompt_string"] + text_of(ids, head)}
