"""The core that every dialect is an adapter over: what is asked (`Chat`), what comes back (`Piece`), how it is written.

A dialect is a module with `parse(body, headers) -> Asked` and a class that keeps the `Answer` protocol; its errors are
written by its surface (`ingress.surfaces`). `ingress.serve` takes any dialect through one request's life, and
`ingress.answer` drives the writer. No dialect knows of nodes, lanes or money.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

from schemas.errors import ApiError
from schemas.jobs import Image, NamedTool, Prompt, ResponseFormat, Sampling, Tool
from schemas.replies import TokenLogprob, ToolDelta

Task = Literal["chat", "completion", "embedding"]


@dataclass(frozen=True, slots=True)
class Routing:
    """What the caller says about who may serve it, and in which order; every field's default is "no opinion"."""

    tier: Literal["cheapest", "balanced", "fastest"] | None = None
    privacy_mode: bool = False  # never an upstream of somebody else's
    trusted_only: bool = False
    max_latency_ms: int | None = None
    fallback_models: tuple[str, ...] = ()  # tried in order after the model itself
    allow_hosters: tuple[str, ...] = ()  # provider ids; empty allows all
    deny_hosters: tuple[str, ...] = ()


ANYWHERE = Routing()


@dataclass(frozen=True, slots=True)
class Chat:
    """A request as every dialect says it: messages, or the prompts of completions, or the inputs of an embedding.

    Its values are within the limits of `schemas.jobs.Job`: the dialect has seen to that. `max_tokens` None is the
    default; it is clamped to the context that is left. A message holds an image as the part {"type": "image",
    "index": i}: entry i of `image_urls` until it is fetched, and of `images` after. There are n choices for each
    prompt, in the prompts' order. `image_bound_tokens` is the most that the images can come to.
    """

    model: str
    messages: list[dict[str, Any]] = field(default_factory=list)
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    max_tokens: int | None = None
    task: Task = "chat"
    n: int = 1
    prompts: tuple[Prompt, ...] = ()
    echo: bool = False
    tools: tuple[Tool, ...] = ()
    tool_choice: Literal["auto", "none", "required"] | NamedTool = "auto"
    parallel_tool_calls: bool = True
    response_format: ResponseFormat | None = None
    logprobs: int | None = None  # alternatives told with each token; 0 is the token's own alone, None is nothing
    dimensions: int | None = None
    image_urls: tuple[str, ...] = ()
    images: tuple[Image, ...] = ()
    image_bound_tokens: int = 0
    routing: Routing = ANYWHERE

    @property
    def choices(self) -> int:
        """How many answers, or vectors, there will be."""
        return self.n * max(1, len(self.prompts))


class Piece(NamedTuple):
    """Some of the answer. `finish` ends its choice and comes without tokens; after the piece that is `over` is none.

    `vector` is that of input `choice`, in base64 of little-endian float32, where the task is an embedding.
    """

    text: str
    tokens: int
    finish: str | None = None
    choice: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    tool_calls: tuple[ToolDelta, ...] = ()
    over: bool = False
    vector: str = ""


class Done(NamedTuple):
    """How the whole request ended: a finish for each choice, what was counted, and its cost ("0.0123 SHIVER").

    `prompt_tokens` are those of text; `image_tokens` come on top of them.
    """

    finishes: list[str]
    prompt_tokens: int
    completion_tokens: int
    cost: str
    image_tokens: int = 0


class Whole(NamedTuple):
    """One choice of an answer that is not streamed, from its pieces."""

    text: str
    logprobs: list[TokenLogprob]
    tool_calls: list[ToolDelta]  # in pieces still: `join_calls` puts them together
    vector: str = ""


class ToolCall(NamedTuple):
    """A whole tool call; `arguments` is JSON text."""

    id: str
    name: str
    arguments: str


def join_calls(deltas: list[ToolDelta]) -> list[ToolCall]:
    """The tool calls that these pieces are of, by index."""
    calls: dict[int, list[str]] = {}
    for delta in deltas:
        call = calls.setdefault(delta.index, ["", "", ""])
        call[0] = delta.id or call[0]
        call[1] = delta.name or call[1]
        call[2] += delta.arguments
    return [ToolCall(*calls[index]) for index in sorted(calls)]


class Answer(Protocol):
    """Writes one answer in a dialect's bytes. `begin`, `delta`..., `end` are a stream; `whole` is the answer at once;
    `error` ends a stream that broke, and never looks like the end of a whole one. A writer serves one request."""

    def begin(self) -> bytes: ...

    def delta(self, piece: Piece) -> bytes:
        """Empty where the piece shows nothing to the client."""
        ...

    def end(self, done: Done) -> bytes: ...

    def whole(self, choices: list[Whole], done: Done) -> bytes: ...

    def error(self, error: ApiError) -> bytes: ...


class Asked(NamedTuple):
    """A parsed request: what the core does, and how its answer is to be written.

    `writer(request id, time in Unix seconds)` makes the Answer. `ignored` names the parameters that were taken and have
    no effect here; the client reads them in x-shiver-ignored.
    """

    chat: Chat
    stream: bool
    writer: Callable[[str, int], Answer]
    ignored: tuple[str, ...] = ()


class Dialect(Protocol):
    """A dialect module, as `ingress.serve` sees it. `headers` has lower-case names."""

    def parse(self, body: bytes, headers: Mapping[str, str]) -> Asked:
        """Raises ApiError, whose text never repeats a prompt."""
        ...
