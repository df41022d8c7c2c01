"""What a node asks of an engine, in tokens and nothing else. Read this file first.

Errors, all of them (a caller that catches `EngineError` has caught everything an engine means to say):

    EngineError                 something an engine could not do
    |-- GenerationInvalid       the request itself is wrong: no prompt, an id outside the vocabulary, a negative budget
    |   |-- PromptTooLong       the prompt leaves no room for one new token; the node answers `rejected`
    |   |-- LibraryRefused      in words of the library
    |   |-- ImageInvalid        an image cannot be read
    |   `-- NotSupported        this model has no eyes, or makes no text, or no vectors
    |-- EngineNotLoaded         generate, tokenize before load() or after unload()
    |-- EngineBusy              no slot came free in the bounded time a generation waits for one
    |-- EngineUnavailable       it cannot run here: library, GPU or model missing; the message says what to do
    `-- EngineCrashed           it ran and broke, or fell silent; the ids streamed so far stay valid
"""

from __future__ import annotations

import secrets
from array import array
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from workers.engines.grammar import Grammar, Matcher

Finish = Literal["stop", "length"]

#: Stands for an image among the ids of a prompt.
IMAGE = -1
#: What a logprob is said to be where a token cannot come: JSON has no infinity.
LOGPROB_MIN = -9999.0

# Engines take 32-bit seeds; the last value means "pick one" to llama.cpp, so the fold stays below it.
SEED_SPAN = 0xFFFF_FFFF


class EngineError(Exception):
    """Something an engine could not do."""


class GenerationInvalid(EngineError):
    """The request is wrong in itself; no engine and no retry can serve it. Its text may be told to the client."""


class LibraryRefused(GenerationInvalid):
    """The engine's library refused the request. The text is the library's, and may quote the prompt."""


class PromptTooLong(GenerationInvalid):
    """The prompt leaves no room for one new token.

    Args:
        prompt_tokens: length of the prompt.
        limit_tokens: the longest prompt that this model can take.
    """

    def __init__(self, prompt_tokens: int, limit_tokens: int) -> None:
        super().__init__(
            f"This model's maximum context length is {limit_tokens + 1} tokens; the prompt has {prompt_tokens},"
            " and one is needed for the answer."
        )
        self.prompt_tokens = prompt_tokens
        self.limit_tokens = limit_tokens


class ImageInvalid(GenerationInvalid):
    """An image cannot be read."""


class NotSupported(GenerationInvalid):
    """The model cannot do this at all; `Facts` says what it can."""


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
        makes_text: whether it generates; a model for embeddings does not.
        sees: whether prompts may hold images.
        embedding_size: numbers of a vector, 0 where it makes none.
        tells_logprobs: whether generations may ask for them.
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
    makes_text: bool = True
    sees: bool = False
    embedding_size: int = 0
    tells_logprobs: bool = True
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
        prompt_ids: the prompt, template and all; at least one id. IMAGE stands where an image does.
        prefix_ids: ids that an earlier attempt already generated; the engine goes on after them and does not repeat
            them. Greedy, the continuation is the one the first attempt would have brought; sampled, it is drawn anew.
        max_tokens: how many new ids may come, the prefix not counted. The context may end it sooner ("length").
        sampling: how ids are drawn.
        constraint: what may be said, prefix included; it ends ("stop") where nothing more may follow.
        logprobs: how many alternatives to tell with each id, None for no logprobs at all.
        images: files, one for each IMAGE of the prompt, in order.
    """

    prompt_ids: tuple[int, ...]
    max_tokens: int
    prefix_ids: tuple[int, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)
    constraint: Grammar | None = None
    logprobs: int | None = None
    images: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Chance:
    """How likely an id was, as the model has it: before temperature, penalties, biases and constraint.

    Attributes:
        id: the id.
        logprob: natural logarithm of its probability, LOGPROB_MIN at the least.
        top: the likeliest ids in its place with theirs, most likely first.
    """

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """What came since the last piece.

    Attributes:
        ids: new ids in order; never the end-of-turn id.
        text: their text. Bytes of a character that is not complete yet are withheld and come with a later piece; what
            never became UTF-8 reads as U+FFFD. Ids and text of one piece need not cover the same bytes, all pieces do.
        finish: None until the last piece; then "stop" (the model ended its turn, or the constraint the text) or
            "length" (budget or context).
        chances: one for each id, where logprobs were asked for.
        whole: no byte of these ids, or of any before, is withheld: a later attempt may go on from here.
        image_tokens: on the first piece of a generation with images, which has no ids: what they take of the context.
    """

    ids: tuple[int, ...]
    text: str
    finish: Finish | None = None
    chances: tuple[Chance, ...] = ()
    whole: bool = True
    image_tokens: int | None = None


class Engine(Protocol):
    """A model behind token ids. One event loop owns an engine from load() to unload()."""

    @property
    def facts(self) -> Facts:
        """Raises EngineNotLoaded before load() and after unload()."""
        ...

    async def load(self) -> None:
        """Get ready to work. A second call changes nothing. Raises EngineUnavailable."""
        ...

    async def unload(self) -> None:
        """Stop what runs (it ends in EngineNotLoaded) and free the memory. May be called at any time, twice too."""
        ...

    async def tokenize(self, text: str, *, special: bool = True, begin: bool = False) -> list[int]:
        """The ids of a text, nothing added at its end.

        Args:
            text: any text.
            special: read the texts of control tokens as these tokens. False for what users wrote.
            begin: put before it what the model wants before every text. Templates write that themselves.
        """
        ...

    async def tokenize_inputs(
        self, texts: Sequence[str], *, special: bool = False, begin: bool = True
    ) -> list[list[int]]:
        """The ids of many texts, each as `tokenize` has it by itself; `begin` is none to an empty text.

        As they are by default texts are to be embedded: no control tokens are read, the model's first one is added.
        """
        ...

    def generate(self, generation: Generation) -> AsyncGenerator[Piece, None]:
        """Pieces as the engine produces them; the last one carries `finish`.

        Closing the iterator (aclose, or cancelling the task that reads it) stops the work and frees the slot, before
        the first token too. A reader that is slow holds up nobody else.

        Raises (from the first step on): PromptTooLong, ImageInvalid, NotSupported, GenerationInvalid,
        EngineNotLoaded, EngineBusy, EngineCrashed.
        """
        ...

    async def embed(self, ids: Sequence[int]) -> array[float]:
        """The vector of one input: `Facts.embedding_size` numbers of four bytes ("f"), of length 1.

        Raises: PromptTooLong, NotSupported, GenerationInvalid, EngineNotLoaded, EngineBusy, EngineCrashed.
        """
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of an id; of a control token none. Raises EngineNotLoaded."""
        ...


def budget_tokens(generation: Generation, facts: Facts) -> int:
    """Check a generation against a model; how many new ids it may bring, the context's end considered.

    What images take of the context only the engine knows.

    Raises: PromptTooLong, NotSupported, GenerationInvalid.
    """
    if not facts.makes_text:
        raise NotSupported("this model makes no text")
    if generation.images and not facts.sees:
        raise NotSupported("this model takes no images")
    if generation.logprobs is not None and not facts.tells_logprobs:
        raise NotSupported("this engine tells no logprobs")
    if generation.prompt_ids.count(IMAGE) != len(generation.images):
        raise GenerationInvalid("the prompt has places for more images, or for fewer")
    if generation.max_tokens < 0:
        raise GenerationInvalid(f"max_tokens is {generation.max_tokens}, it cannot be negative")
    prompt_ids = tuple(token_id for token_id in generation.prompt_ids if token_id != IMAGE)
    for ids in (generation.prefix_ids, tuple(generation.sampling.logit_bias)):
        check_ids(ids, facts)
    check_prompt(prompt_ids, facts)
    room = facts.context_tokens - len(prompt_ids) - len(generation.prefix_ids)
    # A prefix that fills the context is an earlier attempt that was about to end by length: no error, nothing to add.
    return max(0, min(generation.max_tokens, room))


def check_prompt(ids: Sequence[int], facts: Facts) -> None:
    """Raises PromptTooLong, GenerationInvalid."""
    if not ids:
        raise GenerationInvalid("the prompt has no tokens")
    check_ids(ids, facts)
    if len(ids) >= facts.context_tokens:
        raise PromptTooLong(len(ids), facts.context_tokens - 1)


def check_ids(ids: Sequence[int], facts: Facts) -> None:
    """Raises GenerationInvalid."""
    if ids and not 0 <= min(ids) <= max(ids) < facts.vocabulary_size:
        raise GenerationInvalid(f"a token id lies outside 0..{facts.vocabulary_size - 1}")


def constraint_after(constraint: Grammar, text: str) -> Matcher:
    """A constraint brought to the point where a text ends: that of the prefix.

    Raises: GenerationInvalid where the text is none of the constraint's, or ends inside a character.
    """
    matcher = Matcher(constraint)
    if not matcher.feed(text):
        raise GenerationInvalid("the prefix does not fit the constraint")
    return matcher


def engine_seed(generation: Generation) -> int:
    """A 32-bit seed for this attempt; drawn at random where the client gave none.

    A continuation must not draw the numbers of its first attempt again: its first token would repeat the luck of
    token 0. So the length of the prefix moves the seed.
    """
    seed = generation.sampling.seed
    if seed is None:
        return secrets.randbelow(SEED_SPAN)
    return (seed + 0x9E37_79B1 * len(generation.prefix_ids)) % SEED_SPAN
