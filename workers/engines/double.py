"""The engine double: known tokens at a known pace and almost no CPU, for tests and for measuring the gateway itself.

It speaks bytes: ids 0..255 are the bytes, 256.. the control tokens. What it says follows from the prompt (and, when
sampled, from the seed) alone, so that a continuation from any prefix is exact. Under a constraint it says its words
where they fit and else the shortest that does. An image is 16 tokens and changes what it says.

With a script (`double_script.py`) it says, to the prompts that the script names, what a model that knows would say.
"""

import asyncio
import contextlib
import hashlib
import math
import os
import re
import zlib
from array import array
from collections.abc import AsyncGenerator, Iterator, Sequence
from pathlib import Path
from typing import Self

from workers.engines.base import (
    IMAGE,
    Chance,
    EngineNotLoaded,
    EngineUnavailable,
    Facts,
    Finish,
    Generation,
    GenerationInvalid,
    ImageInvalid,
    Piece,
    PromptTooLong,
    budget_tokens,
    check_prompt,
    constraint_after,
    engine_seed,
)
from workers.engines.double_script import Rule, read_script, scripted
from workers.engines.grammar import Grammar, Matcher
from workers.engines.slots import Slots
from workers.engines.vocabulary import TextAssembler

SPECIAL_TOKENS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
_SPECIAL = re.compile("(" + "|".join(map(re.escape, SPECIAL_TOKENS)) + ")")
_TABLE = tuple(bytes([n]) for n in range(256)) + (b"",) * len(SPECIAL_TOKENS)
IMAGE_TOKENS = 16
EMBEDDING_SIZE = 1536
_LOGPROB = -0.125
# Characters of one to four bytes: whoever cuts text at token borders meets every case.
_SAYING = "the shark räkt 7 → 🦈 and swims; ".encode()


class DoubleEngine:
    """Says `tokens` ids, one every `interval_ms`, the first after the prefill and one interval.

    Args:
        tokens: how many ids it says before it ends its turn, a prefix counted in.
        interval_ms: time between ids.
        prefill_ms: time for each id of the prompt, before the first of its own.
        slots: generations at once.
        context_tokens: context of one generation.
        script: what it says to the prompts that these rules name, whole whatever `tokens` is.
    """

    def __init__(
        self,
        *,
        tokens: int = 16,
        interval_ms: float = 20.0,
        prefill_ms: float = 0.0,
        slots: int = 512,
        context_tokens: int = 65_536,
        script: Sequence[Rule] = (),
    ) -> None:
        self._tokens = tokens
        self._script = script
        self._interval_s = interval_ms / 1000
        self._prefill_s = prefill_ms / 1000
        self._facts = Facts(
            engine="double",
            model="double",
            context_tokens=context_tokens,
            vocabulary_size=len(_TABLE),
            slots=slots,
            batches=True,
            weights_bytes=0,
            special_tokens=SPECIAL_TOKENS,
            eos_text="<|im_end|>",
            sees=True,
            embedding_size=EMBEDDING_SIZE,
            notes=("an engine double: it has no model" + (f", but a script of {len(script)}" if script else ""),),
        )
        self._slots = Slots(slots, wait_s=600.0)
        self._gone: asyncio.Event | None = None

    @classmethod
    def from_environment(cls, *, slots: int | None = None, context_tokens: int | None = None) -> Self:
        """As SHRK_DOUBLE_TOKENS, SHRK_DOUBLE_INTERVAL_MS, SHRK_DOUBLE_PREFILL_MS and SHRK_DOUBLE_SCRIPT (a file) say.

        Raises EngineUnavailable for values that are none.
        """
        try:
            tokens = int(os.environ.get("SHRK_DOUBLE_TOKENS", "16"))
            interval_ms = float(os.environ.get("SHRK_DOUBLE_INTERVAL_MS", "20"))
            prefill_ms = float(os.environ.get("SHRK_DOUBLE_PREFILL_MS", "0"))
        except ValueError as error:
            raise EngineUnavailable(f"SHRK_DOUBLE_TOKENS, _INTERVAL_MS and _PREFILL_MS are numbers: {error}") from error
        if tokens < 1 or not 0 <= interval_ms <= 60_000 or not 0 <= prefill_ms <= 60_000:
            raise EngineUnavailable(
                "SHRK_DOUBLE_TOKENS is at least 1, SHRK_DOUBLE_INTERVAL_MS and SHRK_DOUBLE_PREFILL_MS lie in 0..60000"
            )
        path = os.environ.get("SHRK_DOUBLE_SCRIPT", "")
        return cls(
            tokens=tokens,
            interval_ms=interval_ms,
            prefill_ms=prefill_ms,
            slots=slots or 512,
            context_tokens=context_tokens or 65_536,
            script=read_script(Path(path)) if path else (),
        )

    @property
    def facts(self) -> Facts:
        """See Engine.facts."""
        self._require_loaded()
        return self._facts

    async def load(self) -> None:
        """See Engine.load."""
        self._gone = self._gone or asyncio.Event()

    async def unload(self) -> None:
        """See Engine.unload."""
        if self._gone is not None:
            self._gone.set()
            self._gone = None

    async def tokenize(self, text: str, *, special: bool = True, begin: bool = False) -> list[int]:
        """See Engine.tokenize."""
        self._require_loaded()
        ids: list[int] = []
        for part in _SPECIAL.split(text) if special else [text]:
            if special and part in SPECIAL_TOKENS:
                ids.append(256 + SPECIAL_TOKENS.index(part))
            else:
                ids.extend(part.encode("utf-8", errors="replace"))
        return ids

    async def tokenize_inputs(
        self, texts: Sequence[str], *, special: bool = False, begin: bool = True
    ) -> list[list[int]]:
        """See Engine.tokenize_inputs."""
        return [await self.tokenize(text, special=special) for text in texts]

    def token_bytes(self, token_id: int) -> bytes:
        """See Engine.token_bytes."""
        self._require_loaded()
        return _TABLE[token_id]

    async def embed(self, ids: Sequence[int]) -> "array[float]":
        """See Engine.embed."""
        self._require_loaded()
        check_prompt(ids, self._facts)
        await self._slots.take()
        try:
            await asyncio.sleep(0)
            digest = hashlib.shake_256(",".join(map(str, ids)).encode()).digest(EMBEDDING_SIZE)
        finally:
            self._slots.give()
        numbers = [byte - 127.5 for byte in digest]
        length = math.sqrt(sum(number * number for number in numbers))
        return array("f", (number / length for number in numbers))

    async def generate(self, generation: Generation) -> AsyncGenerator[Piece, None]:
        """See Engine.generate."""
        gone = self._require_loaded()
        budget = budget_tokens(generation, self._facts)
        words = self._words(generation, budget)
        text = TextAssembler(_TABLE, generation.prefix_ids)
        await self._slots.take()
        try:
            if generation.images:
                yield Piece((), "", image_tokens=self._look(generation))
            await self._prefill(len(generation.prompt_ids) + len(generation.prefix_ids), gone)
            loop = asyncio.get_running_loop()
            due = loop.time()
            held = next(words, None)
            if held is None:
                finish: Finish = "stop" if budget else "length"
                yield Piece((), text.flush(), finish)
                return
            for count in range(1, budget + 1):
                due += self._interval_s
                await asyncio.sleep(max(0.0, due - loop.time()))
                if gone.is_set():
                    raise EngineNotLoaded("the engine was unloaded in mid-generation")
                token_id, held = held, next(words, None) if count < budget else None
                piece_text, chances = text.feed((token_id,)), _chances(token_id, generation.logprobs)
                if held is not None:
                    yield Piece((token_id,), piece_text, None, chances, text.whole)
                    continue
                finish = "stop" if count < budget else "length"
                yield Piece((token_id,), piece_text + text.flush(), finish, chances)
                return
        finally:
            self._slots.give()

    async def _prefill(self, tokens: int, gone: asyncio.Event) -> None:
        """Raises EngineNotLoaded where the engine is unloaded meanwhile."""
        if not self._prefill_s:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._prefill_s * tokens):
                await gone.wait()
            raise EngineNotLoaded("the engine was unloaded in prefill")

    def _words(self, generation: Generation, budget: int) -> Iterator[int]:
        """The ids that follow the prefix, until it has said enough."""
        said, saying = len(generation.prefix_ids), self._saying(generation)
        if generation.constraint is None:
            if (script := self._scripted(generation)) is not None:
                return iter(script[said : said + budget])
            return iter([saying[at % len(saying)] for at in range(said, min(said + budget, max(said, self._tokens)))])
        assembler = TextAssembler(_TABLE)
        before = assembler.feed(generation.prefix_ids)
        if not assembler.whole:
            raise GenerationInvalid("a constrained generation cannot go on from inside a character")
        matcher = constraint_after(generation.constraint, before)
        if (script := self._scripted(generation)) is not None:
            return iter(script[said : said + budget])
        return self._fitting(matcher, saying.decode(), len(before), said)

    def _scripted(self, generation: Generation) -> bytes | None:
        """The turn that the script has for this prompt.

        None where it has none, the prefix began otherwise, or the constraint forbids it. The constraint is asked about
        the whole turn, not about what is left of it: so each attempt comes to the same answer.
        """
        said = scripted(self._script, _text_of(generation.prompt_ids)) if self._script else None
        if said is None or generation.prefix_ids != tuple(said[: len(generation.prefix_ids)]):
            return None
        return said if generation.constraint is None or _fits(generation.constraint, said.decode()) else None

    def _fitting(self, matcher: Matcher, saying: str, chars: int, said: int) -> Iterator[int]:
        while not matcher.done:
            char = saying[chars % len(saying)]
            if said >= self._tokens or not matcher.feed(char):
                if matcher.accepts:
                    return
                char = chr(matcher.choices()[0][0].ranges[0][0])
                matcher.feed(char)
            yield from char.encode()
            chars += 1
            said += len(char.encode())

    def _look(self, generation: Generation) -> int:
        tokens = IMAGE_TOKENS * len(generation.images)
        if not all(generation.images):
            raise ImageInvalid("an image is empty")
        used = len(generation.prompt_ids) - len(generation.images) + tokens
        if used >= self._facts.context_tokens:
            raise PromptTooLong(used, self._facts.context_tokens - 1)
        return tokens

    def _saying(self, generation: Generation) -> bytes:
        """The saying, turned so that another prompt (or another seed) begins at another word."""
        seen = b"".join(token_id.to_bytes(4, "little") for token_id in generation.prompt_ids if token_id != IMAGE)
        turn = zlib.crc32(seen + b"".join(generation.images))
        if generation.sampling.temperature > 0:
            seed = generation.sampling.seed
            turn += engine_seed(generation) if seed is None else seed
        words = _SAYING.split(b" ")[:-1]
        at = turn % len(words)
        return b" ".join([*words[at:], *words[:at]]) + b" "

    def _require_loaded(self) -> asyncio.Event:
        if self._gone is None:
            raise EngineNotLoaded("the engine is not loaded: call load() first")
        return self._gone


def _text_of(prompt_ids: Sequence[int]) -> str:
    """The prompt as the template made it, without its images."""
    parts = (_TABLE[one] if one < 256 else SPECIAL_TOKENS[one - 256].encode() for one in prompt_ids if one != IMAGE)
    return b"".join(parts).decode(errors="replace")


def _fits(constraint: Grammar, text: str) -> bool:
    matcher = Matcher(constraint)
    return matcher.feed(text) and matcher.accepts


def _chances(token_id: int, count: int | None) -> tuple[Chance, ...]:
    """Itself first, then the ids behind it, ever less likely."""
    if count is None:
        return ()
    top = tuple(((token_id + n) % len(_TABLE), _LOGPROB if n == 0 else -2.5 - n) for n in range(count))
    return (Chance(token_id, _LOGPROB, top),)
