"""One answer on its way from the engine to the lane: whole characters, cut at stop strings, content apart from calls.

    ids and text -> whole characters -> stop strings -> tool calls -> what was gathered

All of it depends on the text alone and not on its pieces. So an attempt that goes on feeds the ids that were delivered
before through the same steps, throws away what comes out, and stands where the one before it stood.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from schemas.jobs import Job
from schemas.replies import ToolDelta
from workers.chat.calls import CallParser, Delta, Form
from workers.chat.tools import call_id
from workers.cutting import Cutter
from workers.engines.base import Chance

Finish = Literal["stop", "length", "tool_calls", "cancelled"]


@dataclass(slots=True)
class Gathered:
    """What waits to be written.

    Attributes:
        ids: in order; chances go with them, one for each, where they were asked for.
        text: content.
        calls: pieces of tool calls.
    """

    ids: list[int] = field(default_factory=list)
    chances: list[Chance] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    calls: list[ToolDelta] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.ids or self.text or self.calls)


class Choice:
    """One answer.

    Args:
        job: what it answers.
        index: which of its choices.

    Attributes:
        gathered: what came out and is not written yet.
        finish: how it ended, None before.
        written_bytes: of content, over all attempts; kept by who writes.
    """

    __slots__ = ("_controls", "_cutter", "_held", "_index", "_job", "_parser", "finish", "gathered", "written_bytes")

    def __init__(self, job: Job, index: int) -> None:
        self._job = job
        self._index = index
        self._cutter: Cutter[int | Chance] = Cutter(job.stop)
        self._parser: CallParser | None = None
        self._controls: Mapping[int, str] = {}
        self._held: tuple[list[int | Chance], str] = ([], "")
        self.gathered = Gathered()
        self.finish: Finish | None = None
        self.written_bytes = 0

    @property
    def matched(self) -> bool:
        """A stop string is complete: nothing more will come out."""
        return self._cutter.matched

    def read_calls(self, form: Form, controls: Mapping[int, str], *, sure: bool) -> None:
        """Tool calls are to be told from content. See CallParser."""
        self._parser = CallParser(form, [tool.name for tool in self._job.tools], sure=sure)
        self._controls = controls

    def say(self, text: str) -> None:
        """Content that is not the engine's."""
        self._take((), text, ())

    def resume(self, pieces: Sequence[tuple[int, str]]) -> None:
        """Ids that earlier attempts delivered, and the text that each completed: they were written then."""
        for token_id, text in pieces:
            self.feed((token_id,), text)
        self.written_bytes += len("".join(self.gathered.text).encode())
        self.gathered = Gathered()

    def feed(self, ids: Sequence[int], text: str, chances: Sequence[Chance] = (), *, whole: bool = True) -> bool:
        """What the engine brought. True once a stop string is complete."""
        if self._controls:
            text = self._with_controls(ids, text)
        came: Sequence[int | Chance] = chances or ids
        held, before = self._held
        if held or not whole:
            held, text = [*held, *came], before + text
            if not whole:
                self._held = (held, text)
                return self._cutter.matched
            self._held, came = ([], ""), held
        self._pass(*self._cutter.feed(tuple(came), text))
        return self._cutter.matched

    def end(self, finish: Literal["stop", "length"]) -> None:
        """The engine has no more."""
        held, text = self._held
        self._held = ([], "")
        if held or text:
            self._pass(*self._cutter.feed(tuple(held), text))
        if self._cutter.matched:
            finish = "stop"
        else:
            self._pass(*self._cutter.finish())
        if self._parser is not None:
            passed = self._parser.finish()
            self._take((), passed.content, passed.deltas)
        self.finish = "tool_calls" if finish == "stop" and self._parser is not None and self._parser.calls else finish

    def _with_controls(self, ids: Sequence[int], text: str) -> str:
        """The text with those control tokens in it that belong to calls. They come alone, or before what has text."""
        marks = "".join(self._controls[token_id] for token_id in ids if token_id in self._controls)
        return marks + text

    def _pass(self, ids: Sequence[int | Chance], text: str) -> None:
        if self._parser is None:
            self._take(ids, text, ())
        else:
            passed = self._parser.feed(text)
            self._take(ids, passed.content, passed.deltas)

    def _take(self, ids: Sequence[int | Chance], text: str, deltas: Sequence[Delta]) -> None:
        gathered = self.gathered
        for one in ids:
            if isinstance(one, Chance):
                gathered.ids.append(one.id)
                gathered.chances.append(one)
            else:
                gathered.ids.append(one)
        if text:
            gathered.text.append(text)
        gathered.calls += [self._delta(delta) for delta in deltas if delta.name is not None or delta.arguments]

    def _delta(self, delta: Delta) -> ToolDelta:
        new = None if delta.name is None else call_id(self._job.request_id, self._index, delta.index)
        return ToolDelta(index=delta.index, id=new, name=delta.name, arguments=delta.arguments)
