"""Writes an answer to the client's connection: streamed (SSE) or whole. It decides how the request ended.

What is counted as delivered: in a stream, the tokens whose chunk the socket took; in a whole answer, all of them, and
they are settled before a byte is written. The status goes out with the first token, or after HEAD_WAIT_S of waiting, so
that a request that found no node, or a dead one, still gets a true 4xx or 503.
"""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.types import Receive, Scope, Send

from ingress.chat import Answer, Done, Piece, Whole
from ingress.dispatch import Request
from ingress.failures import AttemptFailed, ClientGone, JobRejected
from ingress.several import Several
from ledger.money import format_amount
from schemas.errors import ApiError
from schemas.events import How

HEAD_WAIT_S = 10.0
PING_S = 10.0
#: A client that takes nothing for this long is gone.
SEND_TIMEOUT_S = 60.0
_READ_S = 3600.0

#: nginx gathers an answer before it passes it on, unless it is told not to.
_UNBUFFERED = (b"x-accel-buffering", b"no")
_HOW = {"stop": How.STOP, "length": How.LENGTH, "tool_calls": How.TOOL_CALLS}


class ChatAnswer:
    """An ASGI response for one open request, in the bytes of `form`.

    `ignored` are the parameters that have no effect here, for x-shiver-ignored; `route` is for x-shiver-route.
    """

    def __init__(
        self,
        request: Request | Several,
        form: Answer,
        *,
        stream: bool,
        ignored: tuple[str, ...] = (),
        route: str | None = None,
    ) -> None:
        self._request = request
        self._stream = stream
        self._form = form
        self._headers: list[tuple[bytes, bytes]] = []
        if route is not None:
            self._headers.append((b"x-shiver-route", route.encode()))
        if ignored:
            self._headers.append((b"x-shiver-ignored", ", ".join(ignored).encode()))
        self._finishes = [""] * request.chat.choices
        self._begun = False
        self._opening = b""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Write the answer. Raises ApiError only where nothing has been written yet."""
        watcher = asyncio.create_task(self._watch(receive))
        try:
            await (self._write_stream(send) if self._stream else self._write_whole(send))
        except ClientGone:
            await self._request.finish(How.CLIENT_GONE)
        except AttemptFailed as failure:
            await self._request.finish(failure.how)
            await self._break(send, _error_of(failure, self._request.delivered_tokens))
        except JobRejected as rejected:
            await self._request.finish(How.REJECTED)
            await self._break(send, rejected.error)
        except asyncio.CancelledError:  # the server is stopping and its patience is over
            self._request.client_gone()
            await self._request.finish(How.CLIENT_GONE)
            raise
        except BaseException:
            await self._request.finish(How.ERROR)
            raise
        finally:
            watcher.cancel()

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._request.client_gone()

    async def _write_stream(self, send: Send) -> None:
        piece = await self._request.read(HEAD_WAIT_S)
        await self._begin(send)
        while True:
            if piece is None:
                await self._send(send, b": ping\n")
            elif piece.over:
                break
            elif piece.finish is not None:
                self._finishes[piece.choice] = piece.finish
            else:
                if chunk := self._form.delta(piece):
                    await self._send(send, chunk)
                self._request.delivered(piece)
            piece = await self._request.read(PING_S)
        end = self._form.end(await self._done(piece))
        await send({"type": "http.response.body", "body": self._take_opening() + end, "more_body": False})

    async def _write_whole(self, send: Send) -> None:
        pieces: list[Piece] = []
        choices = [_Gathered() for _ in self._finishes]
        while not (piece := await self._read_whole()).over:
            if piece.finish is not None:
                self._finishes[piece.choice] = piece.finish
            choices[piece.choice].add(piece)
            pieces.append(piece)
        for one in pieces:  # all or nothing: who leaves before the answer is whole has none of it
            self._request.delivered(one)
        done = await self._done(piece)
        body = self._form.whole([choice.whole() for choice in choices], done)
        headers = [*self._request.headers, *self._headers, (b"x-shiver-cost", done.cost.encode())]
        await _start(send, 200, b"application/json", headers, len(body))
        await send({"type": "http.response.body", "body": body})

    async def _done(self, last: Piece) -> Done:
        """Settle: what the request came to."""
        finish = last.finish or "stop"
        cost = self._cost(await self._request.finish(_HOW[finish]))
        finishes = [own or finish for own in self._finishes]
        request = self._request
        return Done(finishes, request.prompt_tokens, request.delivered_tokens, cost, request.image_tokens)

    async def _read_whole(self) -> Piece:
        while (piece := await self._request.read(_READ_S)) is None:
            pass
        return piece

    async def _begin(self, send: Send) -> None:
        self._begun = True
        headers = [*self._request.headers, *self._headers, (b"cache-control", b"no-cache"), _UNBUFFERED]
        await _start(send, 200, b"text/event-stream; charset=utf-8", headers)
        self._opening = self._form.begin()

    def _take_opening(self) -> bytes:
        """The first chunk (the role), which travels in one write with what follows it."""
        opening, self._opening = self._opening, b""
        return opening

    async def _send(self, send: Send, body: bytes) -> None:
        try:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                await send({"type": "http.response.body", "body": self._take_opening() + body, "more_body": True})
        except TimeoutError:
            raise ClientGone from None

    async def _break(self, send: Send, error: ApiError) -> None:
        if not self._begun:
            raise error
        await send({"type": "http.response.body", "body": self._take_opening() + self._form.error(error)})

    def _cost(self, charge_nano: int) -> str:
        return cost_text(charge_nano, self._request.admitted.payer, self._request.admitted.asset)


class _Gathered:
    """The pieces of one choice of an answer that is not streamed."""

    __slots__ = ("logprobs", "texts", "tool_calls", "vector")

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.logprobs: list[Any] = []
        self.tool_calls: list[Any] = []
        self.vector = ""

    def add(self, piece: Piece) -> None:
        self.texts.append(piece.text)
        self.logprobs.extend(piece.logprobs)
        self.tool_calls.extend(piece.tool_calls)
        self.vector = piece.vector or self.vector

    def whole(self) -> Whole:
        return Whole("".join(self.texts), self.logprobs, self.tool_calls, self.vector)


def cost_text(charge_nano: int, payer: str, asset: str) -> str:
    """What the client's wallet was charged, exactly: "0.0123 SHIVER". A sandbox key pays nothing."""
    return f"{format_amount(charge_nano if payer.startswith('wallet:') else 0)} {asset}"


def _error_of(failure: AttemptFailed, delivered: int) -> ApiError:
    if failure.how is How.DEADLINE:
        return ApiError("deadline_exceeded")
    return ApiError("provider_lost" if delivered else "all_providers_failed", f"The answer broke off: {failure}.")


async def _start(
    send: Send, status: int, content_type: bytes, headers: list[tuple[bytes, bytes]], length: int | None = None
) -> None:
    head: list[Any] = [(b"content-type", content_type), *headers]
    if length is not None:
        head.append((b"content-length", str(length).encode()))
    await send({"type": "http.response.start", "status": status, "headers": head})
