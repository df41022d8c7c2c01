"""One attempt at one request, as its records say it: claimed, tokens and alive, then one last record.

All of it is synchronous: a record is numbered and handed to the outbox in one step, so no cancellation can come between
two halves of it, whoever ends the attempt (the engine, a cancel, the deadline, a drain) and whatever task is waiting.
After the last record nothing is written any more, and the ids in `tokens` always add up to `end.completion_tokens`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol

from schemas.jobs import Job
from schemas.replies import Alive, Claimed, End, Failed, Rejected, Reply, Tokens, dump
from workers.cutting import Cutter
from workers.gather import RECORD_CHARS_MAX, RECORD_IDS_MAX, Flushable

Finish = Literal["stop", "length", "cancelled"]
RejectCode = Literal["context_too_long", "bad_template", "bad_job"]
FailCode = Literal["engine_error", "draining", "busy", "unknown_model", "expired", "deadline"]
_DETAIL_CHARS_MAX = 300


class Sink(Protocol):
    """Where an attempt's records go, in order. Never waits, never raises."""

    def append(self, value: bytes) -> None: ...

    def close(self) -> None:
        """No record will follow."""
        ...


class Gathering(Protocol):
    """What an attempt asks of the gatherer."""

    def gathered(self, stream: Flushable) -> None: ...

    def forget(self, stream: Flushable) -> None: ...


class Attempt:
    """The protocol of one attempt.

    Args:
        job: what is attempted.
        nonce: says which process claimed it; another for every attempt.
        sink: the attempt's lane.
        gathering: decides when gathered tokens are written.
        now: monotonic clock in seconds.
        expires_at_s, deadline_at_s: the job's times on that clock.

    Attributes:
        claimed: a claim was written, so the engine may run.
        outcome: what the last record says, None before it.
        completion_tokens: ids written so far.
    """

    __slots__ = (
        "_cutter",
        "_gathering",
        "_ids",
        "_key",
        "_nonce",
        "_now",
        "_seq",
        "_sink",
        "_spoke",
        "_text",
        "_text_bytes",
        "claimed",
        "completion_tokens",
        "deadline_at_s",
        "expires_at_s",
        "first_token_at_s",
        "job",
        "last_record_at_s",
        "outcome",
        "prompt_tokens",
        "started_at_s",
    )

    def __init__(
        self,
        job: Job,
        nonce: str,
        sink: Sink,
        gathering: Gathering,
        now: Callable[[], float],
        expires_at_s: float,
        deadline_at_s: float,
    ) -> None:
        self.job = job
        self.expires_at_s = expires_at_s
        self.deadline_at_s = deadline_at_s
        self.started_at_s = self.last_record_at_s = now()
        self.first_token_at_s: float | None = None
        self.claimed = False
        self.outcome: str | None = None
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self._nonce = nonce
        self._sink = sink
        self._gathering = gathering
        self._now = now
        self._cutter = Cutter(job.stop)
        self._seq = 0
        self._ids: list[int] = []
        self._text: list[str] = []
        self._text_bytes = 0
        self._spoke = False

    def claim(self, prompt_tokens: int) -> None:
        """The job is ours and can be run."""
        if self.outcome is None and not self.claimed:
            self.claimed = True
            self.prompt_tokens = prompt_tokens
            self._write(Claimed, prompt_tokens=prompt_tokens)

    def alive(self) -> None:
        """A sign of life while the engine is silent; gathered tokens serve as one."""
        if self.outcome is None and self.claimed:
            if self._ids or self._text:
                self.flush()
            else:
                self._write(Alive)

    def feed(self, ids: tuple[int, ...], text: str) -> bool:
        """What the engine brought. True once a stop string is complete: the engine need not go on."""
        if self.outcome is not None:
            return True
        self._gather(*self._cutter.feed(ids, text))
        return self._cutter.matched

    def finish(self, finish: Literal["stop", "length"]) -> None:
        """The engine is done, or the text met a stop string."""
        if self.outcome is None:
            if self._cutter.matched:
                finish = "stop"
            else:
                self._hold(*self._cutter.finish())
            self._end(finish)

    def cancelled(self) -> None:
        """Nobody wants the rest. What was held back for a stop string is neither sent nor counted."""
        if self.outcome is None:
            self._end("cancelled")

    def reject(self, code: RejectCode, detail: str) -> None:
        """Nobody can run this job as it is."""
        if self.outcome is None:
            self._last(code, Rejected, code=code, detail=detail[:_DETAIL_CHARS_MAX])

    def fail(self, code: FailCode, detail: str = "") -> None:
        """This node cannot go on. What was gathered is written before: its tokens can be delivered."""
        if self.outcome is None:
            self.flush()
            self._last(code, Failed, code=code, detail=detail[:_DETAIL_CHARS_MAX])

    def abandon(self) -> None:
        """The lane is gone: nothing can be written, and nobody reads."""
        if self.outcome is None:
            self.outcome = "abandoned"
            self._gathering.forget(self)
            self._sink.close()

    def flush(self) -> None:
        """Write the gathered tokens now."""
        self._gathering.forget(self)
        if self.outcome is not None or not (self._ids or self._text):
            return
        ids, text = self._ids, "".join(self._text)
        self._ids, self._text = [], []
        while True:
            part, ids = ids[:RECORD_IDS_MAX], ids[RECORD_IDS_MAX:]
            shown, text = text[:RECORD_CHARS_MAX], text[RECORD_CHARS_MAX:]
            self._text_bytes += len(shown.encode())
            self.completion_tokens += len(part)
            self._write(Tokens, ids=tuple(part), text=shown, text_bytes=self._text_bytes)
            if not ids and not text:
                return

    def _gather(self, ids: tuple[int, ...], text: str) -> None:
        if not ids and not text:
            return
        self._hold(ids, text)
        if not self._spoke and text:
            # No first token waits for a timer. Ids alone show nothing: the first text is what the client waits for.
            self._spoke = True
            self.first_token_at_s = self._now()
            self.flush()
        elif len(self._ids) >= RECORD_IDS_MAX:
            self.flush()
        else:
            self._gathering.gathered(self)

    def _hold(self, ids: tuple[int, ...], text: str) -> None:
        self._ids.extend(ids)
        if text:
            self._text.append(text)

    def _end(self, finish: Finish) -> None:
        self.flush()
        self._last(finish, End, finish=finish, completion_tokens=self.completion_tokens)

    def _last(self, outcome: str, kind: type[End] | type[Rejected] | type[Failed], **fields: Any) -> None:
        self._gathering.forget(self)
        self._write(kind, **fields)
        self.outcome = outcome
        self._sink.close()

    def _write(self, kind: type[Reply], **fields: Any) -> None:
        job = self.job
        reply = kind(request_id=job.request_id, attempt=job.attempt, nonce=self._nonce, seq=self._seq, **fields)
        self._seq += 1
        self.last_record_at_s = self._now()
        self._sink.append(dump(reply))
