"""OpenAI's embeddings: a vector for each input, paid by the tokens of the inputs. Without `encoding_format`: floats."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import orjson
from pydantic import Field

from ingress.chat import Asked, Chat, Done, Piece, Whole
from ingress.dialects import forms
from ingress.dialects.forms import FIRST, INTEGRAL, INTEGRALS
from ingress.dialects.openai import ModelName, Routed
from ingress.dialects.openai_completions import prompts_of
from schemas.errors import ApiError
from schemas.jobs import DIMENSIONS_MAX, PROMPTS_MAX, TokenId

INPUT_IDS_MAX = 131_072

Text = Annotated[str, Field(min_length=1)]
Ids = Annotated[list[TokenId], Field(min_length=1, max_length=INPUT_IDS_MAX), FIRST, INTEGRALS]
Many = Annotated[list[Text | Ids], Field(min_length=1, max_length=PROMPTS_MAX), FIRST]


class EmbeddingRequest(Routed):
    """What samples a text (temperature, max_tokens, ...) is unknown here, and so named like all that has no effect."""

    IDLE: ClassVar[Mapping[str, tuple[Any, ...]]] = {"user": ()}

    model: ModelName
    input: Text | Ids | Many
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1, le=DIMENSIONS_MAX), INTEGRAL] | None = None
    user: Annotated[str, Field(max_length=512)] | None = None


def parse(body: bytes, headers: Mapping[str, str]) -> Asked:
    """Raises ApiError: invalid_json, invalid_request, unsupported_parameter."""
    form = forms.read_form(EmbeddingRequest, body)
    inputs = prompts_of(form.input)
    chat = Chat(model=form.model, task="embedding", prompts=inputs, dimensions=form.dimensions, routing=form.routing())
    in_base64 = form.encoding_format == "base64"
    return Asked(
        chat,
        False,
        lambda request_id, created_s: Answer(form.model, in_base64=in_base64),
        forms.ignored_names(form.idle(), headers),
    )


class Answer:
    """Writes the list of vectors. There is no stream of them."""

    def __init__(self, model: str, *, in_base64: bool) -> None:
        self._model = model
        self._in_base64 = in_base64

    def begin(self) -> bytes:
        return b""

    def delta(self, piece: Piece) -> bytes:
        return b""

    def end(self, done: Done) -> bytes:
        return b""

    def whole(self, choices: list[Whole], done: Done) -> bytes:
        data = [
            {"object": "embedding", "index": index, "embedding": self._vector(choice.vector)}
            for index, choice in enumerate(choices)
        ]
        counts = {"prompt_tokens": done.prompt_tokens, "total_tokens": done.prompt_tokens}
        return orjson.dumps({"object": "list", "data": data, "model": self._model, "usage": counts})

    def error(self, error: ApiError) -> bytes:
        return orjson.dumps(error.body())

    def _vector(self, packed: str) -> Any:
        """`packed` is base64 of little-endian float32, which is OpenAI's base64 too."""
        if self._in_base64:
            return packed
        raw = base64.b64decode(packed)
        return memoryview(raw).cast("f").tolist()
