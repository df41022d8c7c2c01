"""Chat messages to token ids through the model's own template. Read this file first.

What a user wrote must never become a control token: "<|im_end|>" in a message is ten characters, not the end of the
turn. So, before rendering, each such text in the messages is replaced by a mark that nobody can guess; the rendered
text is cut at the marks, and what they stand for is tokenised with control tokens switched off. Messages without such
texts, that is all ordinary ones, are tokenised in one piece, so that their ids are those of plain tokenising.
"""

import datetime
import itertools
import json
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Template, TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from workers.engines.base import Engine

# Far above any context in use, far below what hurts: a template that loops must not fill the memory.
DEFAULT_LIMIT_CHARS = 4_000_000
#: More parts than these are tokenised together: a message may hold a hundred thousand texts of control tokens.
PARTS_ALONE = 16


class ChatTemplateError(Exception):
    """The template is missing or broken, or cannot render these messages; the message says which."""


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of the prompt.

    Attributes:
        text: the text.
        special: whether texts of control tokens in it are control tokens.
    """

    text: str
    special: bool


@dataclass(frozen=True, slots=True)
class Prompt:
    """A rendered prompt, in parts."""

    parts: tuple[Part, ...]

    @property
    def text(self) -> str:
        """The whole prompt as one reads it."""
        return "".join(part.text for part in self.parts)


async def prompt_ids(engine: Engine, prompt: Prompt) -> tuple[int, ...]:
    """The ids of a prompt. Raises what Engine.tokenize raises."""
    if len(prompt.parts) <= PARTS_ALONE:
        few = [await engine.tokenize(part.text, special=part.special) for part in prompt.parts]
        return tuple(itertools.chain.from_iterable(few))
    found = {
        special: iter(
            await engine.tokenize_inputs(
                [part.text for part in prompt.parts if part.special is special], special=special, begin=False
            )
        )
        for special in (True, False)
    }
    return tuple(itertools.chain.from_iterable(next(found[part.special]) for part in prompt.parts))


class ChatTemplate:
    """A model's chat template, in a sandbox.

    Args:
        source: the Jinja template.
        special_tokens: texts of the model's control tokens (Facts.special_tokens).
        bos_text, eos_text: what the template sees as bos_token and eos_token.
        limit_chars: longest prompt it may render.

    Attributes:
        source: the Jinja template.

    Raises: ChatTemplateError for a template that does not parse.
    """

    def __init__(
        self,
        source: str,
        *,
        special_tokens: Iterable[str],
        bos_text: str = "",
        eos_text: str = "",
        limit_chars: int = DEFAULT_LIMIT_CHARS,
    ) -> None:
        self._controls = _Controls(special_tokens)
        self._names = {"bos_token": bos_text, "eos_token": eos_text}
        self._limit_chars = limit_chars
        self.source = source
        try:
            self._template = _environment().from_string(source)
        except TemplateError as error:
            raise ChatTemplateError(f"the chat template does not parse: {error}") from error

    @classmethod
    def of_model(
        cls, model_path: Path, *, special_tokens: Iterable[str], bos_text: str, eos_text: str
    ) -> "ChatTemplate":
        """The template that lies beside a model's weights.

        Args:
            model_path: a weights file or a folder; its folder, or the one above it, holds `chat_template.jinja` or a
                `tokenizer_config.json` with a template.
            special_tokens, bos_text, eos_text: as Facts has them.

        Raises: ChatTemplateError where there is none.
        """
        source = _find_source(model_path)
        return cls(source, special_tokens=special_tokens, bos_text=bos_text, eos_text=eos_text)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
    ) -> Prompt:
        """The prompt of a conversation.

        Args:
            messages: as in the OpenAI API, each content a string.
            tools: as in the OpenAI API.
            add_generation_prompt: end with the beginning of the assistant's turn.

        Raises: ChatTemplateError where the template refuses, breaks or renders too much.
        """
        marks = _Marks(self._controls)
        names = {
            **self._names,
            "messages": marks.replace(list(messages)),
            "tools": marks.replace(list(tools)) if tools else None,
            "add_generation_prompt": add_generation_prompt,
        }
        return Prompt(marks.cut(_render(self._template, names, self._limit_chars)))


class _Controls:
    """Finds the texts of control tokens, whole or halved by an edge, in time that grows with the text alone."""

    def __init__(self, special_tokens: Iterable[str]) -> None:
        tokens = sorted({token for token in special_tokens if token}, key=len, reverse=True)
        self._whole = re.compile("|".join(map(re.escape, tokens))) if tokens else None  # the longest goes first
        # Half a token or more, as it stands at the beginning or the end of a text.
        halves = [(token, size) for token in tokens for size in range((len(token) + 1) // 2, len(token))]
        self._ends = frozenset(token[:size] for token, size in halves)
        self._beginnings = frozenset(token[-size:] for token, size in halves)
        self._sizes = sorted({size for _, size in halves}, reverse=True)

    def whole(self, text: str) -> Iterator[tuple[int, int]]:
        """Where each begins and ends."""
        return (found.span() for found in self._whole.finditer(text)) if self._whole else iter(())

    def half_at_beginning(self, text: str) -> int:
        """How many characters at the beginning are half a control token or more."""
        return next((size for size in self._sizes if size <= len(text) and text[:size] in self._beginnings), 0)

    def half_at_end(self, text: str) -> int:
        """The same at the end."""
        return next((size for size in self._sizes if size <= len(text) and text[-size:] in self._ends), 0)


class _Marks:
    """Puts marks where user text reads like control tokens, and finds them again."""

    def __init__(self, controls: _Controls) -> None:
        self._controls = controls
        # Private-use characters: no template trims or splits at them. The nonce keeps users from writing a mark.
        self._nonce = f"\ue000{secrets.token_hex(8)}"
        self._marked: list[str] = []
        # Whether the messages bring private-use characters of their own; else one left over tells of a torn mark.
        self._signs_of_their_own = False

    def replace(self, value: Any) -> Any:
        """The value with every string in it marked, keys included; a copy."""
        if isinstance(value, str):
            return self._replace_text(value)
        if isinstance(value, Mapping):
            return {self.replace(key): self.replace(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.replace(item) for item in value]
        return value

    def cut(self, rendered: str) -> tuple[Part, ...]:
        """The rendered text in parts. Raises ChatTemplateError where the template tore a mark."""
        first, *rest = rendered.split(self._nonce)
        parts = [Part(first, special=True)]
        for piece in rest:
            number, end, after = piece.partition("\ue001")
            if not end or not number.isdecimal() or int(number) >= len(self._marked):
                raise ChatTemplateError("the chat template changed a message that contains a control token's text")
            parts.append(Part(self._marked[int(number)], special=False))
            parts.append(Part(after, special=True))
        rest_text = "".join(part.text for part in parts)
        if not self._signs_of_their_own and ("\ue000" in rest_text or "\ue001" in rest_text):
            raise ChatTemplateError("the chat template changed a message that contains a control token's text")
        return tuple(part for part in parts if part.text)

    def _replace_text(self, text: str) -> str:
        self._signs_of_their_own |= "\ue000" in text or "\ue001" in text
        # A template may put two fields side by side; a token split over them has half of it or more in one of the two.
        head, tail = self._controls.half_at_beginning(text), 0
        if head < len(text):
            tail = self._controls.half_at_end(text[head:])
        pieces = [self._mark(text[:head])] if head else []
        body = text[head : len(text) - tail]
        at = 0
        for found, end in self._controls.whole(body):
            pieces += [body[at:found], self._mark(body[found:end])]
            at = end
        pieces.append(body[at:])
        if tail:
            pieces.append(self._mark(text[len(text) - tail :]))
        return "".join(pieces)

    def _mark(self, text: str) -> str:
        self._marked.append(text)
        return f"{self._nonce}{len(self._marked) - 1}\ue001"


def _find_source(model_path: Path) -> str:
    folder = model_path if model_path.is_dir() else model_path.parent
    for place in (folder, folder.parent):
        try:
            if (plain := place / "chat_template.jinja").is_file():
                return plain.read_text(encoding="utf-8")
            if (config := place / "tokenizer_config.json").is_file():
                template = json.loads(config.read_text(encoding="utf-8")).get("chat_template")
                if isinstance(template, list):  # several, by name
                    template = next((one["template"] for one in template if one.get("name") == "default"), None)
                if isinstance(template, str):
                    return template
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise ChatTemplateError(f"the chat template in {place} cannot be read: {error}") from error
    raise ChatTemplateError(
        f"{folder} has no chat template: neither chat_template.jinja nor one in tokenizer_config.json"
    )


def _environment() -> ImmutableSandboxedEnvironment:
    """As Hugging Face renders chat templates: models are trained on text that this very setting wrote."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def _render(template: Template, names: dict[str, Any], limit_chars: int) -> str:
    chunks: list[str] = []
    size_chars = 0
    try:
        for chunk in template.generate(names):
            chunks.append(chunk)
            size_chars += len(chunk)
            if size_chars > limit_chars:
                raise ChatTemplateError(f"the chat template rendered more than {limit_chars} characters")
    except ChatTemplateError:
        raise
    except Exception as error:  # a template is a program: it may break in any way there is
        raise ChatTemplateError(f"the chat template cannot render these messages: {error}") from error
    return "".join(chunks)
