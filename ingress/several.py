"""Completions of several prompts: one request of the core for each, one after the other, answered as one.

Each has its own hold, its own entry in the log and its own node; a limit of requests a minute counts the first alone.
That one is opened before the status goes out, so that a refusal is a true status; what is delivered of the others is
paid as far as it went, like any stream. A node's slot is given back as soon as its prompt is done, or a caller's own
prompts would wait for each other.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from ingress.admission import Admitted
from ingress.chat import Chat, Piece
from ingress.dispatch import Dispatcher, Request, new_request_id
from ingress.failures import JobRejected
from schemas.errors import ApiError
from schemas.events import How
from schemas.keys import ApiKey

_HOW = {"stop": How.STOP, "length": How.LENGTH, "tool_calls": How.TOOL_CALLS}


class _Part(NamedTuple):
    request: Request
    how: How | None  # None while it runs


class Several:
    """What `ingress.answer` drives, like a Request; choice i belongs to prompt i // n."""

    def __init__(self, dispatcher: Dispatcher, key: ApiKey, chat: Chat, first: Request) -> None:
        self._dispatcher = dispatcher
        self._key = key
        self._parts = [_Part(first, None)]
        self._gone = False
        self.chat = chat
        self.id = first.id

    @classmethod
    async def open(cls, dispatcher: Dispatcher, request_id: str, key: ApiKey, chat: Chat) -> Several:
        """Raises ApiError as `Dispatcher.open`, for the first prompt."""
        return cls(dispatcher, key, chat, await dispatcher.open(request_id, key, _one(chat, 0)))

    @property
    def admitted(self) -> Admitted:
        return self._parts[0].request.admitted

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        return self._parts[0].request.headers

    @property
    def prompt_tokens(self) -> int:
        return sum(part.request.prompt_tokens for part in self._parts)

    @property
    def image_tokens(self) -> int:
        return 0

    @property
    def delivered_tokens(self) -> int:
        return sum(part.request.delivered_tokens for part in self._parts)

    def delivered(self, piece: Piece) -> None:
        self._parts[piece.choice // self.chat.n].request.delivered(piece)

    def client_gone(self) -> None:
        self._gone = True
        self._parts[-1].request.client_gone()

    async def read(self, timeout_s: float) -> Piece | None:
        """As Request.read. A prompt that cannot be opened is raised as JobRejected: the answer has begun by then."""
        index, n = len(self._parts) - 1, self.chat.n
        request = self._parts[-1].request
        piece = await request.read(timeout_s)
        if piece is None or not piece.over:
            return None if piece is None else piece._replace(choice=index * n + piece.choice)
        finish = piece.finish or "stop"
        self._parts[-1] = _Part(request, _HOW[finish])
        if len(self._parts) == len(self.chat.prompts):
            return piece
        request.free_node()
        try:
            opened = await self._dispatcher.open(new_request_id(), self._key, _one(self.chat, index + 1), counted=False)
        except ApiError as error:
            raise JobRejected(error) from None
        self._parts.append(_Part(opened, None))
        if self._gone:
            opened.client_gone()
        # With one choice for each prompt its end comes with the request's; with more, each had its own.
        return Piece("", 0, finish, index * n) if n == 1 else Piece("", 0)

    async def finish(self, how: How) -> int:
        """End all of them; what ran to its own end ends so, the rest as `how`. Returns the charge of all."""
        return sum([await part.request.finish(part.how or how) for part in self._parts])


def _one(chat: Chat, index: int) -> Chat:
    return replace(chat, prompts=(chat.prompts[index],))
