"""Grammars of JSON numbers within bounds. Pure."""

from __future__ import annotations

from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal

from workers.engines.grammar import Alternative, Builder, Chars, chars, literal

DIGIT = chars("0123456789")
_FROM_ONE = chars("123456789")
#: Whole digits: what a double holds exactly.
DIGITS_MAX = 15
_BIG = 10**DIGITS_MAX - 1
FRACTION_MAX = 6


def any_integer(builder: Builder) -> Alternative:
    return (*_sign(builder), builder.rule(literal("0"), (_FROM_ONE, *builder.many((DIGIT,), 0, DIGITS_MAX - 1))))


def any_number(builder: Builder) -> Alternative:
    fraction = builder.rule((*literal("."), *builder.many((DIGIT,), 1, DIGITS_MAX)), ())
    exponent = builder.rule(
        (chars("eE"), builder.rule((chars("+-"),), ()), *builder.many((DIGIT,), 1, 2)),
        (),
    )
    return (*any_integer(builder), fraction, exponent)


def integer_between(builder: Builder, low: int | None, high: int | None) -> Alternative:
    """An integer of that range, ends included; None is no bound. An empty range has no way to be written."""
    low, high = -_BIG if low is None else low, _BIG if high is None else high
    ways: list[Alternative] = []
    if low < 0:
        ways += [(*literal("-"), *way) for way in _natural(max(1, -high), -low)]
    ways += _natural(max(0, low), high)
    return (builder.rule(*ways),)


def number_between(builder: Builder, low: Decimal | None, high: Decimal | None) -> Alternative:
    """A number of that range, ends included, with as many decimals as its bounds have, or six."""
    places = max([_places(bound) for bound in (low, high) if bound is not None] or [0])
    ways: list[Alternative] = [integer_between(builder, _ceil(low), _floor(high))]
    for digits in {1, 2, places, FRACTION_MAX} if places <= 2 else {1, 2, places}:
        if digits:
            scale = Decimal(10) ** digits
            low_scaled = None if low is None else _ceil(low * scale)
            high_scaled = None if high is None else _floor(high * scale)
            ways.append((builder.rule(*_scaled(low_scaled, high_scaled, digits)),))
    return (builder.rule(*ways),)


def _sign(builder: Builder) -> Alternative:
    return (builder.rule(literal("-"), ()),)


def _places(bound: Decimal) -> int:
    exponent = bound.normalize().as_tuple().exponent
    return min(DIGITS_MAX, max(0, -exponent)) if isinstance(exponent, int) else 0


def _ceil(bound: Decimal | None) -> int | None:
    return None if bound is None else int(bound.to_integral_value(ROUND_CEILING))


def _floor(bound: Decimal | None) -> int | None:
    return None if bound is None else int(bound.to_integral_value(ROUND_FLOOR))


def _scaled(low: int | None, high: int | None, digits: int) -> list[Alternative]:
    """Fixed-point numbers: integers of that range with a point before their last `digits` digits."""
    low, high = -_BIG if low is None else low, _BIG if high is None else high
    ways: list[Alternative] = []
    if low < 0:
        ways += [(*literal("-"), *_pointed(way, digits)) for way in _natural(max(1, -high), -low, digits + 1)]
    return ways + [_pointed(way, digits) for way in _natural(max(0, low), high, digits + 1)]


def _pointed(way: Alternative, digits: int) -> Alternative:
    return (*way[: len(way) - digits], *literal("."), *way[len(way) - digits :])


def _natural(low: int, high: int, width: int = 1) -> list[Alternative]:
    """Each alternative is one digit or a range of digits per place; at least `width` places, else no leading zero."""
    ways: list[Alternative] = []
    while low <= high:
        places = max(width, len(str(low)))
        top = min(high, 10**places - 1)
        ways += _same_length(str(low).zfill(places), str(top).zfill(places))
        low = top + 1
    return ways


def _same_length(low: str, high: str) -> list[Alternative]:
    if not low:
        return [()]
    first, last, rest = low[0], high[0], len(low) - 1
    if low[1:] == "0" * rest and high[1:] == "9" * rest:
        return [(_digits(first, last), *(DIGIT,) * rest)]
    if first == last:
        return [(*literal(first), *way) for way in _same_length(low[1:], high[1:])]
    ways = [(*literal(first), *way) for way in _same_length(low[1:], "9" * rest)]
    if int(last) - int(first) > 1:
        ways.append((_digits(chr(ord(first) + 1), chr(ord(last) - 1)), *(DIGIT,) * rest))
    return ways + [(*literal(last), *way) for way in _same_length("0" * rest, high[1:])]


def _digits(first: str, last: str) -> Chars:
    return Chars(((ord(first), ord(last)),))
