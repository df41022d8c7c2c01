"""Grammars of JSON strings: any, of a length, of a format, other than some names. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

from workers.engines.grammar import Alternative, Builder, Chars, but, chars, literal

#: Characters that stand for themselves in a JSON string.
PLAIN = but(chars('"\\', (0, 0x1F), (0x7F, 0x9F)))
DIGIT = chars("0123456789")
_HEX = chars("0123456789abcdefABCDEF")


def space(builder: Builder) -> str:
    """A space or none."""
    return builder.rule(literal(" "), ())


def literal_json(value: Any) -> Alternative:
    """This value, in the one way in which it is written here."""
    return literal(json.dumps(value, ensure_ascii=False, separators=(", ", ": ")))


def char(builder: Builder) -> str:
    """One character of a JSON string, escaped or not. No half of a surrogate pair: it would be no text."""
    escaped = builder.rule(
        (chars('"\\/bfnrt'),),
        (*literal("u"), chars("0123456789abcefABCEF"), _HEX, _HEX, _HEX),
        (*literal("u"), chars("dD"), chars("01234567"), _HEX, _HEX),
    )
    return builder.rule((PLAIN,), (*literal("\\"), escaped))


def string(builder: Builder) -> Alternative:
    """Any string."""
    return string_of(builder, 0, None)


def string_of(builder: Builder, low: int, high: int | None) -> Alternative:
    """A string of so many characters."""
    return (*literal('"'), *builder.many((char(builder),), low, high), *literal('"'))


def string_but(builder: Builder, names: Iterable[str]) -> Alternative:
    """A string without escapes that is none of these names."""
    tree: dict[str, Any] = {}
    for name in names:
        at = tree
        for letter in name:
            at = at.setdefault(letter, {})
        at[""] = {}
    anything = builder.many((PLAIN,))

    def rest(at: dict[str, Any]) -> str:
        letters = [letter for letter in at if letter]
        other = Chars(but(chars("".join(letters), *_outside(PLAIN))).ranges)
        ways: list[Alternative] = [(other, *anything)]
        ways += [(*literal(letter), rest(at[letter])) for letter in letters if PLAIN.has(letter)]
        if "" not in at:
            ways.append(())
        return builder.rule(*ways)

    return (*literal('"'), rest(tree), *literal('"'))


def _outside(kept: Chars) -> list[tuple[int, int]]:
    return list(but(kept).ranges)


def _two(low: str, high: str) -> list[Alternative]:
    """Numbers of two digits from `low` to `high`."""
    return [literal(f"{number:02d}") for number in range(int(low), int(high) + 1)]


def _date(builder: Builder) -> Alternative:
    """Days up to the 28th, so that every date exists."""
    month, day = builder.rule(*_two("01", "12")), builder.rule(*_two("01", "28"))
    year = (chars("12"), DIGIT, DIGIT, DIGIT)
    return (*year, *literal("-"), month, *literal("-"), day)


def _time(builder: Builder) -> Alternative:
    hour, sixty = builder.rule(*_two("00", "23")), builder.rule((chars("012345"), DIGIT))
    fraction = builder.rule((*literal("."), *builder.many((DIGIT,), 1, 6)), ())
    zone = builder.rule(literal("Z"), (chars("+-"), hour, *literal(":"), sixty))
    return (hour, *literal(":"), sixty, *literal(":"), sixty, fraction, zone)


def _date_time(builder: Builder) -> Alternative:
    return (*_date(builder), *literal("T"), *_time(builder))


def _uuid(builder: Builder) -> Alternative:
    lower = chars("0123456789abcdef")
    sizes = (8, 4, 4, 4, 12)
    parts: Alternative = ()
    for number, size in enumerate(sizes):
        parts = (*parts, *(literal("-") if number else ()), *((lower,) * size))
    return parts


def _ipv4(builder: Builder) -> Alternative:
    octet = builder.rule(*(literal(str(number)) for number in range(256)))
    return (octet, *literal("."), octet, *literal("."), octet, *literal("."), octet)


def _email(builder: Builder) -> Alternative:
    word = chars("abcdefghijklmnopqrstuvwxyz0123456789")
    letter = chars("abcdefghijklmnopqrstuvwxyz")
    local = (word, *builder.many((builder.rule((word,), (chars("._+-"), word)),), 0, 40))
    label = (word, *builder.many((builder.rule((word,), (*literal("-"), word)),), 0, 40))
    labels = builder.many((*label, *literal(".")), 1, 4)
    return (*local, *literal("@"), *labels, *builder.many((letter,), 2, 12))


#: Formats that are followed; any other is an annotation, as the standard has it.
FORMATS: dict[str, Callable[[Builder], Alternative]] = {
    "date": _date,
    "time": _time,
    "date-time": _date_time,
    "uuid": _uuid,
    "ipv4": _ipv4,
    "email": _email,
}
