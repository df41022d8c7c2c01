"""The upstream of the gateways that are compared: an OpenAI-compatible server whose engine is a clock.

Every streamed completion is 16 tokens, 20 ms apart, the first after 20 ms: the timing of our own engine double
(workers/engines/double.py). It speaks just enough HTTP/1.1 to keep connections, on bare asyncio protocols, so that it
takes little of the machine that it shares with what is measured.

    python -m infra.bench.upstream_double PORT
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any, cast

import orjson
import uvloop

HOST = "127.0.0.1"
TOKENS = 16
INTERVAL_S = 0.020
_BYTES_MAX = 2 * 1024 * 1024
_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
    b"Cache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n"
)


def _frame(body: bytes) -> bytes:
    return f"{len(body):x}\r\n".encode() + body + b"\r\n"


def _events() -> list[bytes]:
    """The 16 writes of an answer, the last with finish_reason and [DONE]."""
    common = {"id": "chatcmpl-double", "object": "chat.completion.chunk", "created": 0, "model": "double"}

    def event(delta: dict[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return b"data: " + orjson.dumps({**common, "choices": [choice]}) + b"\n\n"

    events = [_frame(event({"role": "assistant", "content": "tok "}))]
    events += [_frame(event({"content": "tok "})) for _ in range(TOKENS - 1)]
    events[-1] += _frame(event({}, "stop")) + _frame(b"data: [DONE]\n\n") + b"0\r\n\r\n"
    return events


_EVENTS = _events()


class Double(asyncio.Protocol):
    """One connection. Requests on it are answered one after the other."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._buffer = b""
        self._busy = False
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own class is none by name

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if len(self._buffer) > _BYTES_MAX:
            self._transport.abort()
        elif not self._busy:
            self._next()

    def _next(self) -> None:
        """Answers the next request of the buffer, if it is complete."""
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        lines = self._buffer[:end].split(b"\r\n")
        headers = {
            name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines[1:])
        }
        length = int(headers.get(b"content-length", b"0"))
        if b"transfer-encoding" in headers:
            self._refuse(411, "send a Content-Length")
            return
        if len(self._buffer) < end + 4 + length:
            return
        body = self._buffer[end + 4 : end + 4 + length]
        self._buffer = self._buffer[end + 4 + length :]
        method, path = [*lines[0].split(b" "), b"", b""][:2]
        if method == b"GET":
            self._plain(200, {"object": "list", "data": [{"id": "double", "object": "model"}]})
        elif method != b"POST" or not path.endswith(b"/chat/completions"):
            self._plain(404, {"error": {"message": "POST /v1/chat/completions", "type": "invalid_request_error"}})
        else:
            self._complete(body)

    def _complete(self, body: bytes) -> None:
        try:
            streamed = orjson.loads(body).get("stream") is True
        except (ValueError, AttributeError):
            streamed = False
        if not streamed:
            self._refuse(400, "this double only streams")
            return
        self._busy = True
        self._due_s = self._loop.time() + INTERVAL_S
        self._timer = self._loop.call_at(self._due_s, self._token, 0)

    def _token(self, number: int) -> None:
        self._transport.write(_HEAD + _EVENTS[0] if number == 0 else _EVENTS[number])
        if number + 1 < TOKENS:
            self._due_s += INTERVAL_S
            self._timer = self._loop.call_at(self._due_s, self._token, number + 1)
        else:
            self._busy, self._timer = False, None
            self._next()

    def _refuse(self, status: int, message: str) -> None:
        self._plain(status, {"error": {"message": message, "type": "invalid_request_error"}})

    def _plain(self, status: int, body: dict[str, Any]) -> None:
        data = orjson.dumps(body)
        head = f"HTTP/1.1 {status} -\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        self._transport.write(head.encode() + data)
        if status == 411:
            self._transport.close()


async def _serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Double, HOST, port, backlog=1024)
    async with server:
        await server.serve_forever()


def main() -> None:
    """Serves until it is ended."""
    try:
        uvloop.run(_serve(int(sys.argv[1])))
    except KeyboardInterrupt:
        return


if __name__ == "__main__":
    main()
