"""A model that this node serves: its engine, its chat template, its places."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workers.chat.template import ChatTemplate, prompt_ids
from workers.engines.base import Engine, EngineError
from workers.slots import Slots

log = logging.getLogger(__name__)

LOAD_S_MAX = 600.0
UNLOAD_S_MAX = 15.0


class BadMessages(ValueError):
    """The job's messages cannot be read; the text names the kind of fault, never the content."""


@dataclass(slots=True)
class Served:
    """One model under the name that jobs ask for.

    Attributes:
        name: the name in jobs and heartbeats.
        engine: loaded.
        template: the model's own chat template.
        slots: places; `slots.total` is what the engine has.
        reloading: the engine broke and is being loaded again; no job can run.
        reloads: how often that happened.
    """

    name: str
    engine: Engine
    template: ChatTemplate
    slots: Slots
    context_tokens: int
    reloading: bool = False
    reloads: int = 0

    async def prompt(self, messages: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
        """The ids of a conversation. Raises BadMessages, ChatTemplateError, EngineError."""
        return await prompt_ids(self.engine, self.template.render([_plain(message) for message in messages]))

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


def _plain(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """The message with its content as one string, as templates expect it."""
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str):
        raise BadMessages("a message has no role")
    if isinstance(content, str):
        return message
    if content is None:
        return {**message, "content": ""}
    if not isinstance(content, list):
        raise BadMessages("a message's content is neither text nor a list of parts")
    texts = []
    for part in content:
        text = part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None
        if not isinstance(text, str):
            raise BadMessages("a message has a part that is not text")
        texts.append(text)
    return {**message, "content": "".join(texts)}
