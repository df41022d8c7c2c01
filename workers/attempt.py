"""One attempt at one request, as its records say it: claimed, tokens and alive, then one last record.

All of it is synchronous: a record is numbered and handed to the outbox in one step, so no cancellation can come between
two halves of it, whoever ends the attempt (the engine, a cancel, the deadline, a drain) and whatever task is waiting.
After the last record nothing is written any more, and the ids in `tokens` always add up to `end.completion_tokens`.
"""

from __future__ import annotations

import base64
import sys
from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

from schemas.jobs import Job
from schemas.replies import (
    Alive,
    Alternative,
    ChoiceEnd,
    Claimed,
    Embedded,
    End,
    Failed,
    Rejected,
    Reply,
    TokenLogprob,
    Tokens,
    ToolDelta,
    dump,
)
from workers.chat.calls import Form
from workers.choice import Choice, Finish, Gathered
from workers.engines.base import Chance
from workers.gather import RECORD_CHARS_MAX, RECORD_IDS_MAX, RECORD_LOGPROBS_MAX, Flushable

RejectCode = Literal["context_too_long", "bad_template", "bad_job", "bad_schema", "bad_image", "unsupported"]
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
        token_bytes: of an id, for logprobs; None where none are asked for.

    Attributes:
        claimed: a claim was written, so the engine may run.
        outcome: what the last record says, None before it.
        completion_tokens: ids written so far, or tokens of inputs whose vectors were.
        places: that its choices take now.
    """

    __slots__ = (
        "_choices",
        "_gathering",
        "_nonce",
        "_now",
        "_seq",
        "_sink",
        "_spoke",
        "claimed",
        "completion_tokens",
        "deadline_at_s",
        "expires_at_s",
        "first_token_at_s",
        "image_tokens",
        "job",
        "last_record_at_s",
        "outcome",
        "places",
        "prompt_tokens",
        "started_at_s",
        "token_bytes",
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
        self.prompt_tokens = self.image_tokens = 0
        self.completion_tokens = 0
        self.places = 1
        self.token_bytes: Callable[[int], bytes] = lambda _: b""
        self._nonce = nonce
        self._sink = sink
        self._gathering = gathering
        self._now = now
        self._choices = [Choice(job, index) for index in range(job.n)]
        self._seq = 0
        self._spoke = False

    def claim(self, prompt_tokens: int, image_tokens: int = 0) -> None:
        """The job is ours and can be run."""
        if self.outcome is None and not self.claimed:
            self.claimed = True
            self.prompt_tokens, self.image_tokens = prompt_tokens, image_tokens
            self._write(Claimed, prompt_tokens=prompt_tokens, image_tokens=image_tokens)

    def alive(self) -> None:
        """A sign of life while the engine is silent; gathered tokens serve as one."""
        if self.outcome is None and self.claimed:
            if any(choice.gathered for choice in self._choices):
                self.flush()
            else:
                self._write(Alive)

    def read_calls(self, form: Form, controls: Mapping[int, str], *, sure: bool) -> None:
        """Tool calls are to be told from content, in every choice."""
        for choice in self._choices:
            choice.read_calls(form, controls, sure=sure)

    def say(self, text: str) -> None:
        """Text that comes before each choice and is not the engine's."""
        for choice in self._choices:
            choice.say(text)

    def resume(self, pieces: Sequence[tuple[int, str]]) -> bool:
        """What earlier attempts delivered of the one choice. True where a stop string is complete in it."""
        self._choices[0].resume(pieces)
        return self._choices[0].matched

    def feed(
        self,
        ids: tuple[int, ...],
        text: str,
        *,
        choice: int = 0,
        chances: tuple[Chance, ...] = (),
        whole: bool = True,
    ) -> bool:
        """What the engine brought. True once a stop string is complete: the engine need not go on."""
        if self.outcome is not None:
            return True
        one = self._choices[choice]
        matched = one.feed(ids, text, chances, whole=whole)
        self._gathered(one.gathered)
        return matched

    def finish(self, finish: Literal["stop", "length"], choice: int = 0) -> None:
        """The engine is done with a choice, or its text met a stop string. The last one's end is the attempt's."""
        one = self._choices[choice]
        if self.outcome is not None or one.finish is not None:
            return
        one.end(finish)
        if len(self._choices) > 1:
            self.flush()
            self._write(ChoiceEnd, choice=choice, finish=one.finish)
        if all(choice.finish is not None for choice in self._choices):
            self._end(self._choices[0].finish or finish)

    def embedded(self, index: int, vector: array[float], tokens: int) -> None:
        """The vector of an input."""
        if self.outcome is None:
            self.completion_tokens += tokens
            if self.first_token_at_s is None:
                self.first_token_at_s = self._now()
            self._write(Embedded, index=index, vector=_base64(vector), tokens=tokens)

    def embedded_all(self) -> None:
        """Every input has its vector."""
        if self.outcome is None:
            self._end("stop")

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
        if self.outcome is None:
            for index, choice in enumerate(self._choices):
                if choice.gathered:
                    gathered, choice.gathered = choice.gathered, Gathered()
                    self._write_gathered(index, choice, gathered)

    def _write_gathered(self, index: int, choice: Choice, gathered: Gathered) -> None:
        ids, text, calls = gathered.ids, "".join(gathered.text), _joined(gathered.calls)
        chances = gathered.chances
        # Twice what makes a flush: so ids that belong to one character, or to one text, hardly ever part here.
        ids_max = 2 * (RECORD_LOGPROBS_MAX if chances else RECORD_IDS_MAX)
        while ids or text or calls:
            part, ids = ids[:ids_max], ids[ids_max:]
            told, chances = chances[: len(part)], chances[len(part) :]
            shown, text = text[:RECORD_CHARS_MAX], text[RECORD_CHARS_MAX:]
            # Calls come behind the content that came before them.
            called, calls = ((), calls) if text else (calls[:1], calls[1:])
            choice.written_bytes += len(shown.encode())
            self.completion_tokens += len(part)
            seldom: dict[str, Any] = {}
            if told:
                seldom["logprobs"] = tuple(self._logprob(chance) for chance in told)
            if called:
                seldom["tool_calls"] = tuple(called)
            self._write(Tokens, choice=index, ids=tuple(part), text=shown, text_bytes=choice.written_bytes, **seldom)

    def _logprob(self, chance: Chance) -> TokenLogprob:
        top = tuple(self._alternative(token_id, logprob) for token_id, logprob in chance.top)
        # An engine tells one alternative at the least, and the client may want none.
        return TokenLogprob(
            **self._alternative(chance.id, chance.logprob).model_dump(), top=top[: self.job.logprobs or 0]
        )

    def _alternative(self, token_id: int, logprob: float) -> Alternative:
        data = self.token_bytes(token_id)
        return Alternative(id=token_id, text=data.decode(errors="replace"), bytes=tuple(data), logprob=logprob)

    def _gathered(self, gathered: Gathered) -> None:
        if not gathered:
            return
        if not self._spoke and (gathered.text or gathered.calls):
            # No first token waits for a timer. Ids alone show nothing: the first text is what the client waits for.
            self._spoke = True
            self.first_token_at_s = self._now()
            self.flush()
        elif len(gathered.ids) >= (RECORD_LOGPROBS_MAX if gathered.chances else RECORD_IDS_MAX):
            self.flush()
        else:
            self._gathering.gathered(self)

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


def _joined(calls: Sequence[ToolDelta]) -> list[ToolDelta]:
    """Pieces of the same call in one, as far as a record takes them."""
    joined: list[ToolDelta] = []
    for piece in calls:
        last = joined[-1] if joined else None
        if last is not None and last.index == piece.index and piece.name is None:
            arguments = last.arguments + piece.arguments
            if len(arguments) <= RECORD_CHARS_MAX:
                joined[-1] = last.model_copy(update={"arguments": arguments})
                continue
        for start in range(0, max(1, len(piece.arguments)), RECORD_CHARS_MAX):
            part = piece.arguments[start : start + RECORD_CHARS_MAX]
            joined.append(piece if not start and part == piece.arguments else _cut(piece, part, first=not start))
    return joined


def _cut(piece: ToolDelta, part: str, *, first: bool) -> ToolDelta:
    head = {"id": piece.id, "name": piece.name} if first else {"id": None, "name": None}
    return piece.model_copy(update={**head, "arguments": part})


def _base64(vector: array[float]) -> str:
    """Little-endian, whatever this machine is."""
    if sys.byteorder == "big":
        vector = array("f", vector)
        vector.byteswap()
    return base64.b64encode(vector.tobytes()).decode()
