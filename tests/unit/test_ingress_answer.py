"""How an answer goes out: when the status does, what counts as delivered, how each end is told and booked."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest

from ingress import answer as answering
from ingress.answer import ChatAnswer, cost_text
from ingress.chat import Piece
from ingress.dialects import openai
from ingress.failures import AttemptFailed, ClientGone, JobRejected
from schemas.errors import ApiError
from schemas.events import How

HELLO = [Piece("Hel", 1), Piece("", 1), Piece("lo", 2), Piece("", 0, "stop", over=True)]


class FakeRequest:
    """A request that is open, with what `read` will bring: pieces, None for a silence, or errors to raise."""

    def __init__(self, *brings: Piece | Exception | None) -> None:
        self.id = "0190"
        self.chat = SimpleNamespace(model="m", choices=1)
        self.admitted = SimpleNamespace(payer="wallet:w", asset="SHIVER")
        self.delivered_tokens = 0
        self.headers = [(b"x-shiver-node", b"node_0")]
        self.prompt_tokens = 9
        self.image_tokens = 0
        self.ended: list[tuple[How, int]] = []
        self.log: list[str] = []
        self._brings = deque(brings)
        self._gone = asyncio.Event()

    async def read(self, timeout_s: float) -> Piece | None:
        if not self._brings:
            await self._gone.wait()
            raise ClientGone
        self.headers = [(b"x-shiver-node", b"node_1")]  # whoever brought the first piece, and not who was asked first
        bring = self._brings.popleft()
        if isinstance(bring, Exception):
            raise bring
        return bring

    def delivered(self, piece: Piece) -> None:
        self.delivered_tokens += piece.tokens

    def client_gone(self) -> None:
        self._gone.set()

    async def finish(self, how: How) -> int:
        self.log.append("finish")
        self.ended.append((how, self.delivered_tokens))
        return 12_300_000


def _form(usage: bool = False) -> openai.Answer:
    return openai.Answer("0190", "m", 7, include_usage=usage)


async def _write(request: FakeRequest, *, stream: bool = True, usage: bool = False, gone: bool = False) -> list[Any]:
    """Run an answer; returns the ASGI messages that it sent. `gone`: the client closes at once when all is read."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        request.log.append(message["type"].rpartition(".")[2])
        sent.append(message)

    async def receive() -> Any:
        if not gone:
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    answer: Any = ChatAnswer(request, _form(usage), stream=stream, route="small: 1 left")  # type: ignore[arg-type]
    await answer({"type": "http"}, receive, send)
    return sent


def _text(sent: list[Any]) -> str:
    return b"".join(message.get("body", b"") for message in sent).decode()


def _events(sent: list[Any]) -> list[Any]:
    return [json.loads(line[6:]) for line in _text(sent).splitlines() if line.startswith("data: {")]


async def test_a_stream_is_settled_before_its_last_chunk_and_counts_what_was_sent() -> None:
    request = FakeRequest(*HELLO)
    sent = await _write(request)
    assert sent[0]["status"] == 200
    assert (b"x-shiver-node", b"node_1") in sent[0]["headers"]
    assert (b"x-shiver-route", b"small: 1 left") in sent[0]["headers"]
    assert "".join(e["choices"][0]["delta"].get("content") or "" for e in _events(sent)) == "Hello"
    assert _events(sent)[-1]["cost"] == "0.0123 SHIVER"
    assert _text(sent).endswith("data: [DONE]\n\n")
    assert request.ended == [(How.STOP, 4)]
    assert request.log[-2:] == ["finish", "body"]
    assert not sent[-1]["more_body"]


async def test_the_role_travels_with_the_first_text() -> None:
    sent = await _write(FakeRequest(*HELLO))
    assert sent[1]["body"].count(b"data: ") == 2


async def test_a_whole_answer_is_settled_before_it_is_written() -> None:
    request = FakeRequest(*HELLO)
    sent = await _write(request, stream=False)
    assert request.log == ["finish", "start", "body"]
    assert (b"x-shiver-cost", b"0.0123 SHIVER") in sent[0]["headers"]
    body = json.loads(_text(sent))
    assert body["choices"][0]["message"]["content"] == "Hello"
    assert body["usage"] == {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}


async def test_the_head_goes_out_after_a_silence_and_a_ping_is_one_line() -> None:
    sent = await _write(FakeRequest(None, None, *HELLO))
    assert sent[0]["type"] == "http.response.start"
    assert b'"role":"assistant"' in sent[1]["body"]
    assert sent[1]["body"].endswith(b": ping\n")
    assert sent[2]["body"] == b": ping\n"


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("error", "code", "how"),
    [
        (AttemptFailed(How.NODE_DIED, "silent"), "all_providers_failed", How.NODE_DIED),
        (AttemptFailed(How.DEADLINE, "late"), "deadline_exceeded", How.DEADLINE),
        (JobRejected(ApiError("context_length_exceeded")), "context_length_exceeded", How.REJECTED),
    ],
)
async def test_before_the_first_token_a_failure_is_a_true_status(
    stream: bool, error: Exception, code: str, how: How
) -> None:
    request = FakeRequest(error)
    with pytest.raises(ApiError) as caught:
        await _write(request, stream=stream)
    assert caught.value.code == code
    assert request.ended == [(how, 0)]
    assert request.log == ["finish"]


async def test_after_the_first_token_a_failure_is_an_error_event_without_done() -> None:
    request = FakeRequest(Piece("Hel", 2), AttemptFailed(How.NODE_DIED, "silent"))
    sent = await _write(request)
    assert _events(sent)[-1]["error"]["code"] == "provider_lost"
    assert "[DONE]" not in _text(sent)
    assert request.ended == [(How.NODE_DIED, 2)]


async def test_a_failure_after_the_head_went_out_for_waiting_is_an_error_event_too() -> None:
    sent = await _write(FakeRequest(None, AttemptFailed(How.NODE_DIED, "silent")))
    assert _events(sent)[-1]["error"]["code"] == "all_providers_failed"


@pytest.mark.parametrize(("stream", "delivered"), [(True, 1), (False, 0)])
async def test_a_client_that_leaves_pays_for_what_it_got(stream: bool, delivered: int) -> None:
    request = FakeRequest(HELLO[0])
    await _write(request, stream=stream, gone=True)
    assert request.ended == [(How.CLIENT_GONE, delivered)]


async def test_a_client_that_takes_nothing_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "SEND_TIMEOUT_S", 0.01)
    request = FakeRequest(*HELLO)

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    answer: Any = ChatAnswer(request, _form(), stream=True)  # type: ignore[arg-type]
    await answer({"type": "http"}, asyncio.Event().wait, send)
    assert request.ended == [(How.CLIENT_GONE, 0)]


def test_a_sandbox_key_is_told_that_it_pays_nothing() -> None:
    assert cost_text(5_000_000_000, "wallet:w", "SHIVER") == "5 SHIVER"
    assert cost_text(5_000_000_000, "platform:sandbox", "SHIVER") == "0 SHIVER"
