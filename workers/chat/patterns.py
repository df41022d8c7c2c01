"""Regular expressions of JSON schemas as grammars of what stands between a JSON string's quotes. Pure.

The part that schemas use: characters, classes, groups, choices, repetition, ^ at the beginning and $ at the end. A
pattern that does not begin with ^, or end with $, may have anything before, or behind. All else is an error, and what
could only be followed in too many ways at once.
"""

from __future__ import annotations

from typing import Any

from workers.chat.automata import Choice, Many, Node, One, Sequence, TooManyWays, rules_of
from workers.chat.strings import PLAIN
from workers.engines.grammar import Alternative, Builder, Chars, but, chars, literal

PATTERN_CHARS_MAX = 1000
REPEAT_MAX = 1000
_DEPTH_MAX = 20
_DIGIT = chars("0123456789")
_WORD = chars((0x30, 0x39), (0x41, 0x5A), (0x61, 0x7A), "_")
_SPACE = chars(" \t\n\r\f\v")
_ASCII = chars((0x20, 0x7E))


def _ascii_but(excluded: Chars) -> Chars:
    """Beyond ASCII, engines of regular expressions do not agree on what is a digit, a letter or a space."""
    return but(chars(*but(_ASCII).ranges, *excluded.ranges))


_CLASSES = {
    "d": _DIGIT,
    "D": _ascii_but(_DIGIT),
    "w": _WORD,
    "W": _ascii_but(_WORD),
    "s": _SPACE,
    "S": _ascii_but(_SPACE),
}
_SIGNS = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v"}
#: How what may not stand plainly in a JSON string is written there.
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r", "\b": "\\b", "\f": "\\f"}
#: What a JSON string holds neither plainly nor by one of these.
_UNSAYABLE = but(chars(*PLAIN.ranges, "".join(_ESCAPES))).ranges


class BadPattern(ValueError):
    """A pattern that is wrong or asks for what is not supported; the text does not repeat it."""


def pattern(builder: Builder, source: Any) -> Alternative:
    """What matches the pattern. Raises BadPattern."""
    if not isinstance(source, str) or len(source) > PATTERN_CHARS_MAX:
        raise BadPattern(f"it is no text of at most {PATTERN_CHARS_MAX} characters")
    begins, ends = source.startswith("^"), source.endswith("$") and not _is_escaped(source, len(source) - 1)
    body = source[1 if begins else 0 : len(source) - 1 if ends else len(source)]
    reader = _Reader(body)
    whole = reader.choice(0)
    if reader.at < len(body):
        raise BadPattern("a parenthesis closes what was not opened")
    if (begins or ends) and reader.top_choices > 1:
        raise BadPattern("^ and $ are not supported beside a choice outside of a group")
    anything = Many(One(but(chars())), 0, None)
    expression = Sequence((*(() if begins else (anything,)), whole, *(() if ends else (anything,))))
    try:
        return (rules_of(builder, expression, lambda found: _one(builder, found)),)
    except TooManyWays as error:
        raise BadPattern(str(error)) from None


def _is_escaped(source: str, at: int) -> bool:
    count = 0
    while at - count > 0 and source[at - count - 1] == "\\":
        count += 1
    return count % 2 == 1


def _one(builder: Builder, one: Chars) -> str:
    """A character of a set, as a JSON string has it."""
    return builder.rule(*_ways(one))


def _ways(one: Chars) -> list[Alternative]:
    plain = but(chars(*but(one).ranges, *but(PLAIN).ranges))
    ways: list[Alternative] = [(plain,)] if plain.ranges else []
    return ways + [literal(written) for sign, written in _ESCAPES.items() if one.has(sign)]


def _said(one: Chars) -> One:
    """A set of which JSON can say something; what it cannot say is not in it."""
    kept = but(chars(*but(one).ranges, *_UNSAYABLE))
    if not kept.ranges:
        raise BadPattern("a class has no character that JSON can say")
    return One(kept)


class _Reader:
    def __init__(self, source: str) -> None:
        self._source = source
        self.at = 0
        self.top_choices = 1

    def choice(self, depth: int) -> Node:
        if depth > _DEPTH_MAX:
            raise BadPattern("its groups are too deep")
        ways = [self._sequence(depth)]
        while self._peek() == "|":
            self.at += 1
            ways.append(self._sequence(depth))
        if depth == 0:
            self.top_choices = len(ways)
        return Choice(tuple(ways))

    def _peek(self) -> str:
        return self._source[self.at : self.at + 1]

    def _next(self) -> str:
        char = self._peek()
        if not char:
            raise BadPattern("it ends too soon")
        self.at += 1
        return char

    def _sequence(self, depth: int) -> Node:
        parts: list[Node] = []
        while self._peek() not in ("", "|", ")"):
            parts.append(self._repeated(self._atom(depth)))
        return Sequence(tuple(parts))

    def _atom(self, depth: int) -> Node:
        char = self._next()
        if char == "(":
            if self._peek() == "?":
                self.at += 1
                if self._next() != ":":
                    raise BadPattern("groups that look around or have names are not supported")
            inner = self.choice(depth + 1)
            if self._next() != ")":
                raise BadPattern("a group is not closed")
            return inner
        if char == "[":
            return _said(self._class())
        if char == ".":
            return _said(but(chars("\n\r\u2028\u2029")))
        if char == "\\":
            return _said(self._escape())
        if char in "^$*+?{":
            raise BadPattern(f"{char} is not supported where it stands")
        return _said(chars(char))

    def _escape(self) -> Chars:
        char = self._next()
        if char in _CLASSES:
            return _CLASSES[char]
        if char in "xu":
            size = 2 if char == "x" else 4
            digits = self._source[self.at : self.at + size]
            self.at += size
            try:
                code = int(digits, 16) if len(digits) == size else -1
            except ValueError:
                code = -1
            if code < 0 or 0xD800 <= code <= 0xDFFF:
                raise BadPattern("an escaped code is no character")
            return chars((code, code))
        if char in _SIGNS:
            return chars(_SIGNS[char])
        if char.isalnum():
            raise BadPattern(f"\\{char} is not supported")
        return chars(char)

    def _class(self) -> Chars:
        negated = self._peek() == "^"
        self.at += negated
        found: list[str | tuple[int, int]] = []
        first = True
        while first or self._peek() != "]":
            first = False
            low = self._class_item()
            if self._peek() == "-" and self._source[self.at + 1 : self.at + 2] not in ("]", ""):
                self.at += 1
                high = self._class_item()
                if not (_is_single(low) and _is_single(high)) or low.ranges[0][0] > high.ranges[0][0]:
                    raise BadPattern("a class has a range that is none")
                found.append((low.ranges[0][0], high.ranges[0][0]))
            else:
                found.extend(low.ranges)
        self.at += 1
        return but(chars(*found)) if negated else chars(*found)

    def _class_item(self) -> Chars:
        char = self._next()
        return self._escape() if char == "\\" else chars(char)

    def _repeated(self, atom: Node) -> Node:
        sign = self._peek()
        if sign not in ("*", "+", "?", "{") or not sign:
            return atom
        self.at += 1
        low, high = {"*": (0, None), "+": (1, None), "?": (0, 1), "{": (0, 0)}[sign]
        if sign == "{":
            low, high = self._counts()
        if self._peek() == "?":  # lazy: the same texts
            self.at += 1
        if self._peek() in ("*", "+", "{"):
            raise BadPattern("a repetition is repeated")
        return Many(atom, low, high)

    def _counts(self) -> tuple[int, int | None]:
        text = ""
        while (char := self._next()) != "}":
            text += char
        low, comma, high = text.partition(",")
        if not (low.isdecimal() and (not high or high.isdecimal())):
            raise BadPattern("a repetition has no counts")
        at_least, at_most = int(low), (int(high) if high else None) if comma else int(low)
        if max(at_least, at_most or 0) > REPEAT_MAX or (at_most is not None and at_most < at_least):
            raise BadPattern(f"a repetition is above {REPEAT_MAX}, or ends below where it begins")
        return at_least, at_most


def _is_single(one: Chars) -> bool:
    return len(one.ranges) == 1 and one.ranges[0][0] == one.ranges[0][1]
