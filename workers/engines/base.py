"""What a node asks of an engine, in tokens and nothing else. Read this file first.

Errors, all of them (a caller that catches `EngineError` has caught everything an engine means to say):

    EngineError                 something an engine could not do
    |-- GenerationInvalid       the request itself is wrong: no prompt, an id outside the vocabulary, a negative budget
    |   `-- PromptTooLong       the prompt leaves no room for one new token; the node answers `rejected`
    |-- EngineNotLoaded         generate, tokenize before load() or after unload()
    |-- EngineBusy              no slot came free in the bounded time a generation waits for one
    |-- EngineUnavailable       it cannot run here: library, GPU or model missing; the message says what to do
    `-- EngineCrashed           it ran and broke, or fell silent; the ids streamed so far stay valid
"""

import secrets
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

Finish = Literal["stop", "length"]

# Engines take 32-bit seeds; the last value means "pick one" to llama.cpp, so the fold stays below it.
SEED_SPAN = 0xFFFF_FFFF


class EngineError(Exception):
    """Something an engine could not do."""


class GenerationInvalid(EngineError):
    """The request is wrong in itself; no engine and no retry can serve it."""


class PromptTooLong(GenerationInvalid):
    """The prompt leaves no room for one new token.

    Args:
        prompt_tokens: length of the prompt.
        limit_tokens: the longest prompt that this model can take.
    """

    def __init__(self, prompt_tokens: int, limit_tokens: int) -> None:
        super().__init__(f"the prompt has {prompt_tokens} tokens, this model takes at most {limit_tokens}")
        self.prompt_tokens = prompt_tokens
        self.limit_tokens = limit_tokens


class EngineNotLoaded(EngineError):
    """The engine was asked to work before load() or after unload()."""


class EngineBusy(EngineError):
    """Every slot stayed taken for longer than a generation may wait."""


class EngineUnavailable(EngineError):
    """The engine cannot run here; the message names what is missing and what to do."""


class EngineCrashed(EngineError):
    """The engine broke or fell silent in mid-work."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is true of a loaded engine; it does not change until unload().

    Attributes:
        engine: the engine's registry name ("llamacpp", "exllamav2", "double").
        model: short name of the model.
        context_tokens: prompt, prefix and new ids of one generation together.
        vocabulary_size: ids are 0 .. vocabulary_size - 1.
        slots: how many generations run at once; more wait their turn.
        batches: whether these slots share each forward pass.
        weights_bytes: size of the weights on disk (0 where there are none).
        special_tokens: texts that `tokenize(special=True)` reads as control tokens.
        bos_text: text of the model's first token, "" without one; chat templates ask for it.
        eos_text: text of the end-of-turn token, "" without one.
        notes: what an operator should know, such as what is lost without flash-attn.
    """

    engine: str
    model: str
    context_tokens: int
    vocabulary_size: int
    slots: int
    batches: bool
    weights_bytes: int
    special_tokens: tuple[str, ...] = ()
    bos_text: str = ""
    eos_text: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next id is drawn.

    Attributes:
        temperature: 0 is exact greedy; the seed then changes nothing.
        top_p: nucleus, 1 is off.
        top_k: 0 is off.
        seed: any int; None draws one.
        frequency_penalty, presence_penalty: as in the OpenAI API, over everything before the next id.
        logit_bias: added to the logits of these ids; -100 bans an id in practice.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Generation:
    """One generation.

    Attributes:
        prompt_ids: the prompt, template and all; at least one id.
        prefix_ids: ids that an earlier attempt already generated; the engine goes on after them and does not repeat
            them. Greedy, the continuation is the one the first attempt would have brought; sampled, it is drawn anew.
        max_tokens: how many new ids may come, the prefix not counted. The context may end it sooner ("length").
        sampling: how ids are drawn.
    """

    prompt_ids: tuple[int, ...]
    max_tokens: int
    prefix_ids: tuple[int, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)


@dataclass(frozen=True, slots=True)
class Piece:
    """What came since the last piece.

    Attributes:
        ids: new ids in order; never the end-of-turn id.
        text: their text. Bytes of a character that is not complete yet are withheld and come with a later piece; what
            never became UTF-8 reads as U+FFFD. Ids and text of one piece need not cover the same bytes, all pieces do.
        finish: None until the last piece; then "stop" (the model ended its turn) or "length" (budget or context).
    """

    ids: tuple[int, ...]
    text: str
    finish: Finish | None = None


class Engine(Protocol):
    """A model behind token ids. One event loop owns an engine from load() to unload()."""

    @property
    def facts(self) -> Facts:
        """Raises EngineNotLoaded before load() and after unload()."""
        ...

    async def load(self) -> None:
        """Get ready to generate. A second call changes nothing. Raises EngineUnavailable."""
        ...

    async def unload(self) -> None:
        """Stop what runs (it ends in EngineNotLoaded) and free the memory. May be called at any time, twice too."""
        ...

    async def tokenize(self, text: str, *, special: bool = True) -> list[int]:
        """The ids of a text, nothing added at either end.

        Args:
            text: any text.
            special: read the texts of control tokens as these tokens. False for what users wrote.
        """
        ...

    def generate(self, generation: Generation) -> AsyncGenerator[Piece, None]:
        """Pieces as the engine produces them; the last one carries `finish`.

        Closing the iterator (aclose, or cancelling the task that reads it) stops the work and frees the slot, before
        the first token too. A reader that is slow holds up nobody else.

        Raises (from the first step on): PromptTooLong, GenerationInvalid, EngineNotLoaded, EngineBusy, EngineCrashed.
        """
        ...


def budget_tokens(generation: Generation, facts: Facts) -> int:
    """Check a generation against a model; how many new ids it may bring, the context's end considered.

    Raises: PromptTooLong, GenerationInvalid.
    """
    if not generation.prompt_ids:
        raise GenerationInvalid("the prompt has no tokens")
    if generation.max_tokens < 0:
        raise GenerationInvalid(f"max_tokens is {generation.max_tokens}, it cannot be negative")
    highest = facts.vocabulary_size - 1
    for ids in (generation.prompt_ids, generation.prefix_ids, tuple(generation.sampling.logit_bias)):
        if ids and not 0 <= min(ids) <= max(ids) <= highest:
            raise GenerationInvalid(f"a token id lies outside 0..{highest}")
    if len(generation.prompt_ids) >= facts.context_tokens:
        raise PromptTooLong(len(generation.prompt_ids), facts.context_tokens - 1)
    room = facts.context_tokens - len(generation.prompt_ids) - len(generation.prefix_ids)
    # A prefix that fills the context is an earlier attempt that was about to end by length: no error, nothing to add.
    return max(0, min(generation.max_tokens, room))


def engine_seed(generation: Generation) -> int:
    """A 32-bit seed for this attempt; drawn at random where the client gave none.

    A continuation must not draw the numbers of its first attempt again: its first token would repeat the luck of
    token 0. So the length of the prefix moves the seed.
    """
    seed = generation.sampling.seed
    if seed is None:
        return secrets.randbelow(SEED_SPAN)
    return (seed + 0x9E37_79B1 * len(generation.prefix_ids)) % SEED_SPAN
