"""A small HTTP/1.1 client for one kind of call: POST, then read a streamed answer, on a connection that is kept.

Made for a load generator: one asyncio.Protocol a connection, nothing between the socket and `Answer.feed`.
"""

from __future__ import annotations

import asyncio
import time
from typing import cast
from urllib.parse import urlsplit

import orjson

from infra.bench.answers import Answer, error_text

_HEAD_BYTES_MAX = 65_536
_ERROR_BODY_BYTES_MAX = 8_192


class BadAnswer(Exception):
    """The call failed; the text says how."""


class StaleConnection(Exception):
    """A kept connection was closed before the first byte of the answer: to be sent again on a new one."""


class Target:
    """Where to send: http://host:port and a path. Raises ValueError for any other URL."""

    def __init__(self, base_url: str, path: str) -> None:
        parts = urlsplit(base_url)
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError(f"{base_url!r} is not an http:// URL")
        self.host = parts.hostname
        self.port = parts.port or 80
        self.path = parts.path.rstrip("/") + path

    def request(self, body: bytes, headers: dict[str, str]) -> bytes:
        """The bytes of a POST."""
        lines = [
            f"POST {self.path} HTTP/1.1",
            f"Host: {self.host}:{self.port}",
            "Content-Type: application/json",
            "Accept: text/event-stream",
            f"Content-Length: {len(body)}",
            *(f"{name}: {value}" for name, value in headers.items()),
        ]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class Dechunker:
    """HTTP's chunked transfer coding, undone piece by piece. `ended` is set after the last chunk's trailer."""

    __slots__ = ("_buffer", "_left", "_trailer", "ended")

    def __init__(self) -> None:
        self._buffer = b""
        self._left = 0  # bytes of the current chunk that are still to come, its CRLF included
        self._trailer = False
        self.ended = False

    def feed(self, data: bytes) -> bytes:
        """The body bytes in `data`. Raises BadAnswer for what is not this coding."""
        out: list[bytes] = []
        data = self._buffer + data if self._buffer else data
        at = 0
        while at < len(data) and not self.ended:
            if self._left:
                take = min(self._left, len(data) - at)
                body_end = at + max(0, min(take, self._left - 2))
                out.append(data[at:body_end])
                self._left -= take
                at += take
                continue
            end = data.find(b"\r\n", at)
            if end < 0:
                break
            line = data[at:end]
            at = end + 2
            if self._trailer:
                self.ended = not line
                continue
            try:
                size = int(line.split(b";", 1)[0], 16)
            except ValueError:
                raise BadAnswer("the answer is not properly chunked") from None
            self._trailer = size == 0
            self._left = size + 2 if size else 0
        self._buffer = data[at:]
        return b"".join(out)


class Connection(asyncio.Protocol):
    """One connection, one call at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self.closed = True

    @staticmethod
    async def open(target: Target) -> Connection:
        """Raises OSError."""
        _, connection = await asyncio.get_running_loop().create_connection(Connection, target.host, target.port)
        return connection

    async def call(self, request: bytes, answer: Answer, timeout_s: float) -> None:
        """Sends `request` and feeds `answer` until the answer is complete.

        Raises BadAnswer, StaleConnection. The connection is closed after either, or if `self.closed` then says so.
        """
        assert self._transport is not None
        self._answer, self._status, self._head = answer, 0, b""
        self._chunks: Dechunker | None = None
        self._left: int | None = None  # bytes of a body with Content-Length
        self._close_after = False
        self._error_body = b""
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        timer = loop.call_later(timeout_s, self._fail, BadAnswer(f"no complete answer in {timeout_s:g} s"))
        self._transport.write(request)
        try:
            await self._waiter
        finally:
            timer.cancel()
            self._waiter = None
            if self._close_after:
                self.close()
        if self._status != 200:
            raise BadAnswer(self._refusal())

    def close(self) -> None:
        """Closes the connection; a call in progress fails."""
        self.closed = True
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own class is none by name
        self.closed = False

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        if self._waiter is None or self._waiter.done():
            return
        if not self._status and not self._head:
            self._fail(StaleConnection())
        elif self._status and self._chunks is None and self._left is None:
            self._finish()  # a body that ends with the connection
        else:
            self._fail(BadAnswer("the connection broke in the middle of the answer"))

    def data_received(self, data: bytes) -> None:
        now_s = time.perf_counter()
        if self._waiter is None or self._waiter.done():
            self.close()  # bytes that nobody asked for
            return
        try:
            if not self._status:
                data = self._read_head(data)
            if self._status:
                self._read_body(data, now_s)
        except BadAnswer as error:
            self._fail(error)

    def _read_head(self, data: bytes) -> bytes:
        self._head += data
        end = self._head.find(b"\r\n\r\n")
        if end < 0:
            if len(self._head) > _HEAD_BYTES_MAX:
                raise BadAnswer("the answer's headers are too long")
            return b""
        lines = self._head[:end].split(b"\r\n")
        rest = self._head[end + 4 :]
        parts = lines[0].split(b" ", 2)
        if not parts[0].startswith(b"HTTP/1.") or len(parts) < 2 or not parts[1].isdigit():
            raise BadAnswer("the answer is not HTTP/1")
        headers = {
            name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines[1:])
        }
        self._status = int(parts[1])
        self._close_after = headers.get(b"connection", b"").lower() == b"close"
        if headers.get(b"transfer-encoding", b"").lower() == b"chunked":
            self._chunks = Dechunker()
        elif b"content-length" in headers:
            self._left = int(headers[b"content-length"])
        else:
            self._close_after = True
        return rest

    def _read_body(self, data: bytes, now_s: float) -> None:
        body = self._chunks.feed(data) if self._chunks is not None else data
        if self._status != 200:
            self._error_body = (self._error_body + body)[:_ERROR_BODY_BYTES_MAX]
        elif body:
            self._answer.feed(body, now_s)
        if self._chunks is not None:
            if self._chunks.ended:
                self._finish()
        elif self._left is not None:
            self._left -= len(body)
            if self._left <= 0:
                self._finish()

    def _finish(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, error: Exception) -> None:
        self._close_after = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error)

    def _refusal(self) -> str:
        try:
            body = orjson.loads(self._error_body)
        except ValueError:
            body = None
        said = error_text(body) if isinstance(body, dict) else self._error_body[:120].decode(errors="replace")
        return f"HTTP {self._status}: {said}"
