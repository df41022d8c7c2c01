"""A client's connection, as a socket sees it: offers of other protocols, endless heads, bodies that do not come."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import uvicorn
from uvicorn.server import ServerState

import ingress.connection
import ingress.serve
from ingress.connection import Connection
from tests.unit.v1_kit import KEY, ScriptedCore, app

Said = Callable[..., Awaitable[bytes]]
BODY = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}]}).encode()
HEAD = f"POST /v1/chat HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n".encode()
LENGTH = b"content-length: %d\r\n" % len(BODY)
H2C = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n"
WEBSOCKET = b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: eA==\r\n"
CHUNKED = b"%x\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (10, BODY[:10], len(BODY) - 10, BODY[10:])


@pytest.fixture
def tasks() -> set[asyncio.Task[None]]:
    """The requests that are being served."""
    return set()


@pytest.fixture
async def said(tasks: set[asyncio.Task[None]]) -> AsyncIterator[Said]:
    """Writes pieces to a new connection, one after the other, and reads what comes until it ends or falls silent."""
    config = uvicorn.Config(app(ScriptedCore()), lifespan="off")
    state = ServerState()
    state.tasks = tasks
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(config, state, {}), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    writers: list[asyncio.StreamWriter] = []

    async def talk(*pieces: bytes, answers: int = 1) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writers.append(writer)
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.01)
        heard = b""
        async with asyncio.timeout(10):
            while _answers(heard) < answers and (more := await reader.read(65_536)):
                heard += more
        return heard

    talk.writers = writers  # type: ignore[attr-defined]
    yield talk
    for writer in writers:
        writer.close()
    server.close()


def _answers(heard: bytes) -> int:
    """How many whole answers there are."""
    found = 0
    while head := re.match(rb"HTTP/1.1 .*?content-length: (\d+)\r\n.*?\r\n\r\n", heard, re.DOTALL):
        heard = heard[head.end() + int(head[1]) :] if len(heard) >= head.end() + int(head[1]) else b""
        found += heard is not None
    return found


def _statuses(heard: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1.1 (\d{3})", heard)]


@pytest.mark.parametrize("offer", [H2C, WEBSOCKET])
@pytest.mark.parametrize("framed", [LENGTH + b"\r\n" + BODY, b"transfer-encoding: chunked\r\n\r\n" + CHUNKED])
@pytest.mark.parametrize("cut", [0, 40, 10_000])
async def test_an_offer_of_another_protocol_is_declined_and_the_body_is_read(
    offer: bytes, framed: bytes, cut: int, said: Said
) -> None:
    whole = HEAD + offer + framed
    at = whole.index(b"\r\n\r\n") + 4 + cut
    heard = await said(whole[:at], whole[at:], HEAD + LENGTH + b"\r\n" + BODY, answers=2)
    assert _statuses(heard) == [200, 200]
    assert b"The shark swims." in heard


async def test_an_offer_without_a_body(said: Said) -> None:
    get = b"GET /healthz HTTP/1.1\r\nhost: x\r\n"
    assert _statuses(await said(get + H2C + b"\r\n" + get + b"\r\n", answers=2)) == [200, 200]


@pytest.mark.parametrize(
    ("pieces", "status"),
    [
        ([HEAD + b"x-a: " + b"a" * 70_000 + b"\r\n\r\n"], 431),
        ([HEAD + b"x: y\r\n" * 20_000 + LENGTH + b"\r\n" + BODY], 431),
        ([HEAD + b"x-a: ", *[b"a" * 30_000] * 3], 431),
        ([b"GET /" + b"a" * 60_000, b"a" * 60_000], 431),
        ([b"GARBAGE\r\n\r\n"], 400),
        ([HEAD + b"content-length: 5\r\ncontent-length: 6\r\n\r\n"], 400),
    ],
)
async def test_what_is_no_request_is_refused_in_our_form_and_closed(
    pieces: list[bytes], status: int, said: Said
) -> None:
    heard = await said(*pieces, answers=99)
    assert _statuses(heard) == [status]
    assert b"x-shiver-request-id: " in heard
    code = json.loads(heard.split(b"\r\n\r\n")[1])["error"]["code"]
    assert code == ("head_too_large" if status == 431 else "invalid_request")


async def test_many_requests_on_a_connection_are_no_long_head(said: Said) -> None:
    padded = HEAD + b"x-a: " + b"a" * 1000 + b"\r\n" + LENGTH + b"\r\n" + BODY
    assert _statuses(await said(*[padded] * 90, answers=90)) == [200] * 90


async def test_a_large_body_before_the_next_head_is_no_head(said: Said) -> None:
    large = json.dumps({"model": "m", "messages": [{"role": "user", "content": "a" * 500_000}]}).encode()
    first = HEAD + b"content-length: %d\r\n\r\n" % len(large) + large
    heard = await said(first + HEAD, LENGTH + b"\r\n" + BODY, answers=2)
    assert _statuses(heard) == [200, 200]


@pytest.mark.parametrize(
    "pieces", [[b""], [HEAD], [b"POST /v1/chat HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{", b"}"]]
)
async def test_who_says_nothing_more_is_left(pieces: list[bytes], said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingress.connection, "HEAD_S", 0.05)
    assert _statuses(await said(*pieces, answers=99)) in ([], [401])  # it ends, which is what is asked here


async def test_a_body_that_does_not_come_is_a_408(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingress.serve, "BODY_S", 0.05)
    heard = await said(HEAD + LENGTH + b"\r\n" + BODY[:5], answers=99)
    assert _statuses(heard) == [408]
    assert b"connection: close" in heard


async def test_a_client_that_leaves_in_its_body_is_no_error_of_ours(
    said: Said, tasks: set[asyncio.Task[None]], caplog: pytest.LogCaptureFixture
) -> None:
    await said(HEAD + LENGTH + b"\r\n" + BODY[:5], answers=0)
    (task,) = tasks
    said.writers.pop().close()  # type: ignore[attr-defined]
    async with asyncio.timeout(10):
        await task
    assert not caplog.records
