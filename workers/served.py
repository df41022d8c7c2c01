"""A model that this node serves: its engine, its chat template, its places; and what a job means to it."""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from schemas.heartbeats import Modality
from schemas.jobs import Image, Job
from workers.chat.calls import Form
from workers.chat.template import ChatTemplate, ChatTemplateError, Part, Prompt, prompt_ids
from workers.chat.tools import constraint_of, described, format_instruction, messages_for
from workers.engines.base import IMAGE, Engine, EngineError
from workers.engines.grammar import Grammar
from workers.slots import Slots

log = logging.getLogger(__name__)

LOAD_S_MAX = 600.0
UNLOAD_S_MAX = 15.0
#: Longer messages are rendered beside the event loop.
RENDER_CHARS_MAX = 65_536


class BadMessages(ValueError):
    """The job's messages cannot be read; the text names the kind of fault, never the content."""


class BadImage(ValueError):
    """An image cannot be read; the text says which."""


class Unsupported(ValueError):
    """This model cannot do what the job asks for; the text says what."""


@dataclass(frozen=True, slots=True)
class Work:
    """A job as an engine understands it.

    Attributes:
        prompt_ids: IMAGE stands where an image does.
        images: the files, in order.
        constraint: what may be said, None for anything.
        form: how tool calls are to be read, None where there are none to read.
        sure: the constraint lets nothing through that begins like a call and is none.
        controls: texts of control tokens that belong to calls, by id.
        echo: text that comes before the answer.
    """

    prompt_ids: tuple[int, ...]
    images: tuple[bytes, ...] = ()
    constraint: Grammar | None = None
    form: Form | None = None
    sure: bool = False
    controls: Mapping[int, str] = field(default_factory=dict)
    echo: str = ""

    @property
    def prompt_tokens(self) -> int:
        """Tokens of text."""
        return len(self.prompt_ids) - len(self.images)


@dataclass(slots=True)
class Served:
    """One engine, under the names that jobs ask for.

    Attributes:
        name: the first of its names, for the log.
        engine: loaded.
        template: the model's own chat template; None where it makes no text, or has none: then it serves no chats.
        slots: places for jobs; several choices of one job take several.
        form: how the model writes tool calls, None where it does not.
        controls: control tokens that belong to calls, once they are known.
        reloading: the engine broke and is being loaded again; no job can run.
        reloads: how often that happened.
    """

    name: str
    engine: Engine
    template: ChatTemplate | None
    slots: Slots
    context_tokens: int
    form: Form | None = None
    controls: Mapping[int, str] | None = None
    reloading: bool = False
    reloads: int = 0

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """What it takes and makes, for the heartbeat."""
        facts = self.engine.facts
        found: list[Modality] = ["text"] if facts.makes_text else []
        if facts.makes_text and facts.sees:
            found.append("image")
        if facts.embedding_size:
            found.append("embedding")
        return tuple(found)

    async def prepare(self, job: Job) -> Work:
        """What a chat or a completion asks of the engine.

        Raises: BadMessages, BadImage, Unsupported, BadSchema, ChatTemplateError, EngineError.
        """
        facts = self.engine.facts
        if not facts.makes_text:
            raise Unsupported("this model makes no text")
        if job.logprobs is not None and not facts.tells_logprobs:
            raise Unsupported("logprobs are not supported for this model")
        if job.task == "completion":
            return await self._completion(job)
        images = _images_of(job)
        if images and not facts.sees:
            raise Unsupported("this model takes no images")
        form = self.form if job.tools and job.tool_choice != "none" else None
        if form is None and job.tools and job.tool_choice != "none":
            raise Unsupported("this model takes no tools")
        constraint = None
        if form is not None or job.response_format is not None:
            # In a thread: a large schema costs a good part of a second, and others are streaming.
            constraint = await asyncio.to_thread(constraint_of, job, form)
        prompt = await self._prompt(job, form, len(images))
        controls = await self._controls() if form is not None else {}
        return Work(prompt, images, constraint, form, constraint is not None, controls)

    async def _controls(self) -> Mapping[int, str]:
        """The control tokens that belong to calls."""
        if self.controls is None and self.form is not None:
            found: dict[int, str] = {}
            for text in self.form.controls:
                ids = await self.engine.tokenize(text)
                if len(ids) == 1 and not self.engine.token_bytes(ids[0]):
                    found[ids[0]] = text
            self.controls = found
        return self.controls or {}

    async def embedding_inputs(self, job: Job) -> Sequence[Sequence[int]]:
        """The ids of every input. Raises Unsupported, BadMessages, EngineError."""
        size = self.engine.facts.embedding_size
        if not size:
            raise Unsupported("this model makes no vectors")
        if job.dimensions is not None and job.dimensions > size:
            raise Unsupported(f"this model's vectors have {size} numbers, so no more can be asked for")
        texts = [prompt for prompt in job.prompts if isinstance(prompt, str)]
        tokenized = iter(await self.engine.tokenize_inputs(texts))
        inputs = [next(tokenized) if isinstance(prompt, str) else prompt for prompt in job.prompts]
        for number, ids in enumerate(inputs):
            if not ids:
                raise BadMessages(f"input {number} is empty")
        return inputs

    async def reload(self) -> None:
        """Unloads and loads the engine. What runs on it ends in EngineNotLoaded. Raises EngineError, TimeoutError."""
        self.reloading = True
        self.reloads += 1
        try:
            async with asyncio.timeout(UNLOAD_S_MAX):
                await self.engine.unload()
        except (EngineError, TimeoutError) as error:
            log.warning("model %s: the broken engine did not unload (%s)", self.name, type(error).__name__)
        async with asyncio.timeout(LOAD_S_MAX):
            await self.engine.load()
        self.reloading = False

    async def _completion(self, job: Job) -> Work:
        if job.echo and job.logprobs is not None:
            raise Unsupported("echo together with logprobs is not supported: the prompt's own are not known")
        (prompt,) = job.prompts
        if isinstance(prompt, str):
            # Whoever completes a text has written all of it: control tokens in it are meant.
            ids = tuple(await self.engine.tokenize(prompt, begin=True))
            return Work(ids, echo=prompt if job.echo else "")
        text = b"".join(map(self._bytes, prompt)).decode(errors="replace") if job.echo else ""
        return Work(prompt, echo=text)

    def _bytes(self, token_id: int) -> bytes:
        return self.engine.token_bytes(token_id) if token_id < self.engine.facts.vocabulary_size else b""

    async def _prompt(self, job: Job, form: Form | None, images: int) -> tuple[int, ...]:
        if self.template is None:
            raise Unsupported("this model has no chat template: it completes prompts and takes no messages")
        marks = _ImageMarks()
        messages = [marks.plain(message) for message in messages_for(form, job.messages)]
        if instruction := format_instruction(job.response_format):
            messages = _with_instruction(messages, instruction)
        tools = described(job.tools) if form is not None else None
        if sum(len(message.get("content") or "") for message in messages) > RENDER_CHARS_MAX:
            # In a thread, as a constraint: a mebibyte of control tokens costs half a second.
            prompt = await asyncio.to_thread(self.template.render, messages, tools=tools)
        else:
            prompt = self.template.render(messages, tools=tools)
        ids: list[int] = []
        for stretch in marks.split(prompt):
            ids += [IMAGE] if stretch is None else await prompt_ids(self.engine, stretch)
        if ids.count(IMAGE) != images:
            raise ChatTemplateError("the chat template lost an image, or doubled one")
        return tuple(ids)


def _images_of(job: Job) -> tuple[bytes, ...]:
    """The images in the order in which the messages show them; one shown twice is there twice."""
    shown: list[bytes] = []
    for message in job.messages:
        for part in message["content"] if isinstance(message.get("content"), list) else ():
            if isinstance(part, Mapping) and part.get("type") == "image":
                index = part.get("index")
                if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < len(job.images):
                    raise BadMessages("a message shows an image that there is not")
                shown.append(_decoded(job.images[index], index))
    return tuple(shown)


def _decoded(image: Image, index: int) -> bytes:
    try:
        data = base64.b64decode(image.data, validate=True)
    except binascii.Error:
        raise BadImage(f"image {index} is no base64") from None
    if not data:
        raise BadImage(f"image {index} is empty")
    return data


def _with_instruction(messages: Sequence[dict[str, Any]], instruction: str) -> list[dict[str, Any]]:
    """The messages with an instruction at the end of the first system message, or with such a message."""
    if messages and messages[0]["role"] == "system":
        first = {**messages[0], "content": f"{messages[0]['content']}\n\n{instruction}"}
        return [first, *messages[1:]]
    return [{"role": "system", "content": instruction}, *messages]


class _ImageMarks:
    """Puts marks that nobody can guess where messages show images, and finds them in the rendered prompt."""

    def __init__(self) -> None:
        self._mark = f"\ue002{secrets.token_hex(8)}\ue003"

    def plain(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """The message with its content as one string, as templates expect it. Raises BadMessages.

        A single image goes before the text, wherever it was: so models with eyes are trained.
        """
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str):
            raise BadMessages("a message has no role")
        if isinstance(content, str):
            return dict(message)
        if content is None:
            return {**message, "content": ""}
        if not isinstance(content, list):
            raise BadMessages("a message's content is neither text nor a list of parts")
        texts: list[str] = []
        for part in content:
            kind = part.get("type") if isinstance(part, Mapping) else None
            text = self._mark if kind == "image" else part.get("text") if kind == "text" else None
            if not isinstance(text, str):
                raise BadMessages("a message has a part that is neither text nor an image")
            texts.append(text)
        if texts.count(self._mark) == 1:
            texts.remove(self._mark)
            texts.insert(0, self._mark)
        return {**message, "content": "".join(texts)}

    def split(self, prompt: Prompt) -> Iterator[Prompt | None]:
        """Stretches of the prompt; None where an image is."""
        stretch: list[Part] = []
        for part in prompt.parts:
            first, *rest = part.text.split(self._mark)
            stretch.append(replace(part, text=first))
            for text in rest:
                yield Prompt(tuple(one for one in stretch if one.text))
                yield None
                stretch = [replace(part, text=text)]
        yield Prompt(tuple(one for one in stretch if one.text))
