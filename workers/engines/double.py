"""The engine double: known tokens at a known pace and almost no CPU, for tests and for measuring the gateway itself.

It speaks bytes: ids 0..255 are the bytes, 256.. the control tokens. What it says follows from the prompt (and, when
sampled, from the seed) alone, so that a continuation from any prefix is exact.
"""

import asyncio
import os
import re
import zlib
from collections.abc import AsyncGenerator
from typing import Self

from workers.engines.base import (
    EngineNotLoaded,
    EngineUnavailable,
    Facts,
    Finish,
    Generation,
    Piece,
    budget_tokens,
    engine_seed,
)
from workers.engines.slots import Slots
from workers.engines.vocabulary import TextAssembler

SPECIAL_TOKENS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
_SPECIAL = re.compile("(" + "|".join(map(re.escape, SPECIAL_TOKENS)) + ")")
_TABLE = tuple(bytes([n]) for n in range(256)) + (b"",) * len(SPECIAL_TOKENS)
# Characters of one to four bytes: whoever cuts text at token borders meets every case.
_SAYING = "the shark räkt 7 → 🦈 and swims; ".encode()


class DoubleEngine:
    """Says `tokens` ids, one every `interval_ms`, the first after one interval.

    Args:
        tokens: how many ids it says before it ends its turn, a prefix counted in.
        interval_ms: time between ids.
        slots: generations at once.
        context_tokens: context of one generation.
    """

    def __init__(
        self, *, tokens: int = 16, interval_ms: float = 20.0, slots: int = 512, context_tokens: int = 65_536
    ) -> None:
        self._tokens = tokens
        self._interval_s = interval_ms / 1000
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
            notes=("an engine double: it has no model",),
        )
        self._slots = Slots(slots, wait_s=600.0)
        self._gone: asyncio.Event | None = None

    @classmethod
    def from_environment(cls, *, slots: int | None = None, context_tokens: int | None = None) -> Self:
        """As SHRK_DOUBLE_TOKENS and SHRK_DOUBLE_INTERVAL_MS say. Raises EngineUnavailable for values that are none."""
        try:
            tokens = int(os.environ.get("SHRK_DOUBLE_TOKENS", "16"))
            interval_ms = float(os.environ.get("SHRK_DOUBLE_INTERVAL_MS", "20"))
        except ValueError as error:
            raise EngineUnavailable(f"SHRK_DOUBLE_TOKENS and SHRK_DOUBLE_INTERVAL_MS are numbers: {error}") from error
        if tokens < 1 or not 0 <= interval_ms <= 60_000:
            raise EngineUnavailable("SHRK_DOUBLE_TOKENS is at least 1, SHRK_DOUBLE_INTERVAL_MS lies in 0..60000")
        return cls(tokens=tokens, interval_ms=interval_ms, slots=slots or 512, context_tokens=context_tokens or 65_536)

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

    async def tokenize(self, text: str, *, special: bool = True) -> list[int]:
        """See Engine.tokenize."""
        self._require_loaded()
        ids: list[int] = []
        for part in _SPECIAL.split(text) if special else [text]:
            if special and part in SPECIAL_TOKENS:
                ids.append(256 + SPECIAL_TOKENS.index(part))
            else:
                ids.extend(part.encode("utf-8", errors="replace"))
        return ids

    async def generate(self, generation: Generation) -> AsyncGenerator[Piece, None]:
        """See Engine.generate."""
        gone = self._require_loaded()
        budget = budget_tokens(generation, self._facts)
        said = len(generation.prefix_ids)
        saying = self._saying(generation)
        end = min(said + budget, max(said, self._tokens))
        finish: Finish = "stop" if said + budget > end else "length"
        text = TextAssembler(_TABLE, generation.prefix_ids)
        await self._slots.take()
        try:
            loop = asyncio.get_running_loop()
            due = loop.time()
            for at in range(said, end):
                due += self._interval_s
                await asyncio.sleep(max(0.0, due - loop.time()))
                if gone.is_set():
                    raise EngineNotLoaded("the engine was unloaded in mid-generation")
                token_id = saying[at % len(saying)]
                piece_text = text.feed((token_id,))
                if at + 1 < end:
                    yield Piece((token_id,), piece_text)
                else:
                    yield Piece((token_id,), piece_text + text.flush(), finish)
            if end == said:
                yield Piece((), text.flush(), finish)
        finally:
            self._slots.give()

    def _saying(self, generation: Generation) -> bytes:
        """The saying, turned so that another prompt (or another seed) begins at another word."""
        turn = zlib.crc32(b"".join(token_id.to_bytes(4, "little") for token_id in generation.prompt_ids))
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
