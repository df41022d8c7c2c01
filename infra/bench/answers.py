"""What a streamed chat completion said and when: one answer's server-sent events, read as they come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

_DONE = b"[DONE]"
_MESSAGE_CHARS_MAX = 200


def percentile(samples: Sequence[float], percent: float) -> float:
    """The smallest sample that at least `percent` percent of all are not above (nearest rank: no interpolation).

    Raises ValueError where there is no sample or `percent` is not in 0 < percent <= 100.
    """
    if not samples or not 0 < percent <= 100:
        raise ValueError(f"no {percent} th percentile of {len(samples)} samples")
    ordered = sorted(samples)
    rank = -(-len(ordered) * percent // 100)  # ceil
    return ordered[max(0, int(rank) - 1)]


class Answer:
    """One answer. `feed` it bytes of the body as they arrive; `problem()` says in the end what is wrong with it.

    Attributes:
        first_content_s: when the first non-empty `delta.content` came, None before.
        chunks: events with content.
        chars: characters of content.
        usage_tokens: `usage.completion_tokens`, None where no event brought it.
        done: whether `[DONE]` came.
    """

    __slots__ = ("_error", "_rest", "chars", "chunks", "done", "finish", "first_content_s", "text", "usage_tokens")

    def __init__(self, keep_text: bool = False) -> None:
        self.first_content_s: float | None = None
        self.chunks = 0
        self.chars = 0
        self.usage_tokens: int | None = None
        self.finish: str | None = None
        self.done = False
        self.text: list[str] | None = [] if keep_text else None
        self._error: str | None = None
        self._rest = b""

    @property
    def tokens(self) -> int:
        """As the server counted them; without a count, one for each event with content."""
        return self.chunks if self.usage_tokens is None else self.usage_tokens

    def said(self) -> str:
        """The whole text, where it was kept."""
        return "".join(self.text or [])

    def fail(self, problem: str) -> None:
        """Notes what went wrong outside of the stream's own events."""
        self._error = self._error or problem

    def feed(self, data: bytes, now_s: float) -> None:
        """Takes the next bytes of the body, which came at `now_s`."""
        if self._rest:
            data = self._rest + data
        lines = data.split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            if line.startswith(b"data:"):
                self._event(line[5:].strip(), now_s)
            elif line.startswith(b"event:") and line[6:].strip() == b"error":
                self._error = self._error or "an error event"

    def problem(self) -> str | None:
        """None for a whole answer, else what is missing, in a few words."""
        if self._error:
            return self._error
        if not self.done:
            return "the stream ended without [DONE]"
        if self.first_content_s is None:
            return "an answer without content"
        return None if self.finish else "no finish_reason"

    def _event(self, data: bytes, now_s: float) -> None:
        if data == _DONE:
            self.done = True
            return
        try:
            event = orjson.loads(data)
        except ValueError:
            self._error = self._error or "an event that is not JSON"
            return
        if not isinstance(event, dict):
            self._error = self._error or "an event that is not an object"
            return
        if event.get("error"):
            self._error = self._error or f"error event: {error_text(event)}"
        choices = event.get("choices")
        if choices:
            self._choice(choices[0], now_s)
        usage = event.get("usage")
        if usage and isinstance(usage.get("completion_tokens"), int):
            self.usage_tokens = usage["completion_tokens"]

    def _choice(self, choice: dict[str, Any], now_s: float) -> None:
        content = (choice.get("delta") or {}).get("content")
        if content:
            if self.first_content_s is None:
                self.first_content_s = now_s
            self.chunks += 1
            self.chars += len(content)
            if self.text is not None:
                self.text.append(content)
        if choice.get("finish_reason"):
            self.finish = choice["finish_reason"]


def error_text(body: dict[str, Any]) -> str:
    """Code and message of an OpenAI error body, cut short."""
    error = body.get("error")
    if not isinstance(error, dict):
        return str(error)[:_MESSAGE_CHARS_MAX]
    return f"{error.get('code') or error.get('type') or ''} {error.get('message', '')}".strip()[:_MESSAGE_CHARS_MAX]
