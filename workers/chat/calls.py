"""Tool calls in a stream of text: what is content, what is a call, whatever the borders of pieces. Pure.

    Hermes, Qwen   <tool_call>{"name": ..., "arguments": {...}}</tool_call>
    Mistral        [TOOL_CALLS][{"name": ..., "arguments": {...}}, ...]
    Llama 3        {"name": ..., "parameters": {...}} as the whole answer, or behind <|python_tag|>

Text that may yet become a call is withheld, and no more than that. What turns out to be none (no JSON, no known tool,
no object of arguments, an end in its middle) comes out as content, to the letter; nothing is lost.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, NamedTuple

#: A call longer than this is content.
CALL_CHARS_MAX = 200_000
CALLS_MAX = 128
_WHITE = " \t\r\n"
#: The beginning of a call whose arguments can be told while they come.
_OPENING = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)')


@dataclass(frozen=True, slots=True)
class Form:
    """How a family of models writes calls.

    Attributes:
        name: of the family.
        opener: begins a call, or a list of them.
        closer: ends a call.
        listed: calls stand in a JSON list.
        bare: an answer that begins with a brace may be a call, without opener.
        arguments: the key of the arguments.
        controls: texts of control tokens that have to be seen in the stream.
    """

    name: str
    opener: str
    closer: str = ""
    listed: bool = False
    bare: bool = False
    arguments: str = "arguments"
    controls: tuple[str, ...] = ()


HERMES = Form("hermes", "<tool_call>", "</tool_call>", controls=("<tool_call>", "</tool_call>"))
MISTRAL = Form("mistral", "[TOOL_CALLS]", listed=True, controls=("[TOOL_CALLS]",))
LLAMA3 = Form("llama3", "<|python_tag|>", bare=True, arguments="parameters", controls=("<|python_tag|>",))


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of a call. Its first one has the name."""

    index: int
    name: str | None
    arguments: str


class Passed(NamedTuple):
    """What may go out: content, and pieces of calls."""

    content: str
    deltas: tuple[Delta, ...]


class CallParser:
    """Splits one answer's text.

    Args:
        form: how calls are written.
        names: of the tools there are.
        sure: a constraint sees to it that what begins like a call is one: its arguments go out as they come.

    Attributes:
        calls: complete or begun so far.
    """

    def __init__(self, form: Form, names: Collection[str], *, sure: bool = False) -> None:
        self._form = form
        self._names = frozenset(names)
        self._sure = sure
        self._text = ""  # not looked at yet, or not decided
        self._raw = ""  # of the call that is being read, as it came
        self._at_start = True
        self._in_call = False
        self._object: _Object | None = None
        self._expect_item = False  # in a list, or behind an opener: an object has to come
        self._in_list = False
        self._content: list[str] = []
        self._deltas: list[Delta] = []
        self.calls = 0

    def feed(self, text: str) -> Passed:
        """What may go out now."""
        self._text += text
        while self._text and (self._read_call() if self._in_call else self._read_content()):
            pass
        return self._take()

    def finish(self) -> Passed:
        """What is left, once no more text comes. A call without its end mark is one if it is whole otherwise."""
        if self._in_call:
            awaited = self._object is None and self._expect_item and self._raw.strip(_WHITE + ",;")
            if awaited or (self._object is not None and not self._object.told):
                self._raw += self._text
                self._give_up()
        elif not (self.calls and not self._text.strip(_WHITE)):
            self._content.append(self._text)
        self._text = ""
        return self._take()

    def _take(self) -> Passed:
        passed = Passed("".join(self._content), tuple(self._deltas))
        self._content, self._deltas = [], []
        return passed

    def _read_content(self) -> bool:
        """Looks for the next call; False where more text has to come first."""
        text, form = self._text, self._form
        if self._at_start and form.bare:
            stripped = text.lstrip(_WHITE)
            if not stripped:
                return False
            if stripped[0] == "{":
                self._begin(len(text) - len(stripped))
                return True
        found = text.find(form.opener)
        if found >= 0:
            white = len(text[:found]) - len(text[:found].rstrip(_WHITE))
            self._say(text[: found - white])
            self._text = text[found - white :]
            self._begin(white + len(form.opener))
            return True
        keep = _suffix_that_begins(text, form.opener)
        keep = len(text) - len(text[: len(text) - keep].rstrip(_WHITE))
        self._say(text[: len(text) - keep])
        self._text = text[len(text) - keep :]
        return False

    def _say(self, text: str) -> None:
        if text:
            self._at_start = False
            self._content.append(text)

    def _begin(self, size: int) -> None:
        self._at_start = False
        self._in_call, self._expect_item, self._in_list = True, True, False
        self._raw, self._text = self._text[:size], self._text[size:]

    def _read_call(self) -> bool:
        """Reads on in a call; False where more text has to come first."""
        if self._object is not None:
            return self._read_object()
        stripped = self._text.lstrip(_WHITE)
        white = self._text[: len(self._text) - len(stripped)]
        if not stripped:
            return False
        if self._expect_item:
            return self._read_item(white, stripped)
        return self._read_behind(white, stripped)

    def _read_item(self, white: str, stripped: str) -> bool:
        if self._form.listed and not self._in_list and stripped[0] == "[":
            self._in_list = True
            self._raw += white + "["
            self._text = stripped[1:]
        elif stripped[0] == "{" and self.calls < CALLS_MAX:
            self._raw += white
            self._text = stripped
            self._object = _Object()
        else:
            self._give_up()
        return True

    def _read_behind(self, white: str, stripped: str) -> bool:
        """Behind a whole call: its end mark, or another one."""
        form = self._form
        if form.listed:
            if self._in_list and stripped[0] in ",]":
                self._expect_item = stripped[0] == ","
                self._in_call = self._expect_item
                self._raw, self._text = ("," if self._expect_item else ""), stripped[1:]
                return True
        elif form.closer:
            if stripped.startswith(form.closer):
                self._in_call, self._text = False, stripped[len(form.closer) :]
                return True
            if form.closer.startswith(stripped):
                return False
        elif stripped[0] == ";" or stripped[0] == "{":
            self._expect_item = True
            self._raw, self._text = white + stripped[: stripped[0] == ";"], stripped[stripped[0] == ";" :]
            return True
        self._in_call = False  # no end mark: the call stands, and what follows is content
        return True

    def _read_object(self) -> bool:
        reading = self._object
        assert reading is not None
        used = reading.feed(self._text)
        self._raw += self._text[:used]
        self._text = self._text[used:]
        if self._sure:
            self._tell_early(reading)
        if len(reading.text) > CALL_CHARS_MAX and not reading.told:
            self._give_up()
        elif reading.done:
            self._object = None
            self._complete(reading)
        return bool(self._text)

    def _tell_early(self, reading: _Object) -> None:
        """The name as soon as the arguments begin, then the arguments as they come."""
        if not reading.told:
            opening = _OPENING.match(reading.text)
            if opening is None or (name := json.loads(opening[1])) not in self._names:
                return
            reading.told = opening.end()
            self._deltas.append(Delta(self.calls, name, ""))
            self.calls += 1
        end = reading.closed_at or len(reading.text)
        if end > reading.told:
            self._deltas.append(Delta(self.calls - 1, None, reading.text[reading.told : end]))
            reading.told = end

    def _complete(self, reading: _Object) -> None:
        if not reading.told:
            call = _call_of(reading.text, self._names)
            if call is None:
                self._give_up()
                return
            self._deltas += [Delta(self.calls, call[0], ""), Delta(self.calls, None, call[1])]
            self.calls += 1
        self._raw, self._expect_item = "", False

    def _give_up(self) -> None:
        """It was no call: all of it is content."""
        self._content.append(self._raw)
        self._raw, self._object = "", None
        self._in_call = self._expect_item = self._in_list = False


class _Object:
    """Finds the end of a JSON object by its braces.

    Attributes:
        text: of the object, so far.
        done: the last brace was there.
        told: how much of the text was passed on, 0 for nothing.
        closed_at: where the first object inside it ended, 0 before.
    """

    __slots__ = ("_depth", "_escaped", "_quoted", "closed_at", "done", "text", "told")

    def __init__(self) -> None:
        self.text = ""
        self.done = False
        self.told = 0
        self.closed_at = 0
        self._depth = 0
        self._quoted = self._escaped = False

    def feed(self, text: str) -> int:
        """How much of the text belongs to the object."""
        begun = len(self.text)
        for at, char in enumerate(text):
            if self._quoted:
                if self._escaped:
                    self._escaped = False
                elif char == "\\":
                    self._escaped = True
                elif char == '"':
                    self._quoted = False
            elif char == '"':
                self._quoted = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                if self._depth == 1 and not self.closed_at:
                    self.closed_at = begun + at + 1
                if self._depth == 0:
                    self.text += text[: at + 1]
                    self.done = True
                    return at + 1
        self.text += text
        return len(text)


def _call_of(text: str, names: Collection[str]) -> tuple[str, str] | None:
    """Name and arguments, as they were written where they are the last that the object has."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    name = value.get("name")
    arguments: Any = value.get("arguments", value.get("parameters", {}))
    if not isinstance(name, str) or name not in names:
        return None
    if isinstance(arguments, str):  # some write them as a text of JSON
        try:
            inner = json.loads(arguments)
        except (ValueError, RecursionError):
            return None
        return (name, arguments) if isinstance(inner, dict) else None
    if not isinstance(arguments, dict):
        return None
    opening = _OPENING.match(text)
    written = text[opening.end() : text.rindex("}")].rstrip(_WHITE) if opening else ""
    try:
        if written and json.loads(written) == arguments:
            return name, written
    except ValueError:
        pass  # other keys follow: written anew
    return name, json.dumps(arguments, ensure_ascii=False)


def _suffix_that_begins(text: str, word: str) -> int:
    for size in range(min(len(word) - 1, len(text)), 0, -1):
        if word.startswith(text[len(text) - size :]):
            return size
    return 0
