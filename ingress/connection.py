"""A client's connection: uvicorn's HTTP/1.1, with limits on what has not become a request yet.

What uvicorn lacks, and why it matters here:
- A request that offers another protocol (`Upgrade: h2c`, which Java's client does on every first call over http) loses
  its body. The offer is declined, as RFC 9110 has it: the request is served as it is.
- A head has no greatest size, and nothing has to be said in any time: strangers could fill memory and file descriptors.
- What is no HTTP is answered in OpenAI's form too, with a request id.
"""

from __future__ import annotations

import asyncio
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from ingress import surfaces
from ingress.dispatch import new_request_id
from schemas.errors import ApiError

HEAD_BYTES_MAX = 65_536
#: From the connection's beginning, or the first byte behind an answer, until a request's head is there.
HEAD_S = 30.0
_FRAMING = (b"content-length", b"transfer-encoding")


class Connection(HttpToolsProtocol):
    """One connection; httptools calls the `on_` methods."""

    _patience: asyncio.TimerHandle | None = None
    _in_head = True
    _moved = False
    _head_bytes = 0
    _declining = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._hurry()

    def connection_lost(self, exc: Exception | None) -> None:
        self._take_time()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        self._moved = False
        try:
            self._feed(data)
        except httptools.HttpParserError as error:
            cause = error.__context__
            self._refuse(cause if isinstance(cause, ApiError) else ApiError("invalid_request", "This is no HTTP."))
            return
        # What came together with the end of a head, or of a body, is not counted.
        self._head_bytes = self._head_bytes + len(data) if self._in_head and not self._moved else 0
        if self._head_bytes > HEAD_BYTES_MAX:
            self._refuse(ApiError("head_too_large"))
        elif self.cycle is None or self.cycle.response_complete:
            self._hurry()
        else:
            self._take_time()

    def on_message_begin(self) -> None:
        if not self._declining:
            super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        if not self._declining:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._declining:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._declining:
            return
        if len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers) > HEAD_BYTES_MAX:
            raise ApiError("head_too_large")
        self._in_head, self._moved = False, True
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_head, self._moved = True, True
        super().on_message_complete()

    def _should_upgrade(self) -> bool:
        return False

    def send_400_response(self, msg: str) -> None:
        """uvicorn's own refusals, in our form."""
        self._refuse(ApiError("invalid_request", msg))

    def _feed(self, data: bytes) -> None:
        while True:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as offer:
                data = data[offer.args[0] :]
                self._decline()
            else:
                return

    def _decline(self) -> None:
        """Go on behind a head that offered another protocol: the parser took the request to end there.

        A new parser is shown what the head said of the body's length, and nothing of that is passed on again.
        """
        framing = [(name, value) for name, value in self.headers if name in _FRAMING]
        if framing:
            self.cycle.more_body, self._in_head = True, False
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._declining = True
        head = b"".join(b"%b: %b\r\n" % line for line in framing)
        self.parser.feed_data(b"POST / HTTP/1.1\r\n" + head + b"\r\n")
        self._declining = False

    def _refuse(self, error: ApiError) -> None:
        """Answer what never became a request, and close."""
        if self.transport.is_closing():
            return
        refused = surfaces.openai(error)
        head = {
            b"content-type": b"application/json",
            b"content-length": b"%d" % len(refused.body),
            b"connection": b"close",
            b"x-shiver-request-id": new_request_id().encode(),
        }
        lines: Any = [*self.server_state.default_headers, *head.items()]
        self.transport.write(
            STATUS_LINE[refused.status] + b"".join(b"%b: %b\r\n" % line for line in lines) + b"\r\n" + refused.body
        )
        self.transport.close()

    def _hurry(self) -> None:
        if self._patience is None:
            self._patience = self.loop.call_later(HEAD_S, self.transport.close)

    def _take_time(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
