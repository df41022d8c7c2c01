"""Regular expressions as grammars that can be read in one way only. Pure.

An engine follows a grammar in every way in which a text can be read, and its cost grows with the ways: llama.cpp stood
still for minutes, and with it everybody on the node, over `^(a?){500}a{300}$`. So an expression becomes an automaton
with one state after each text, and every state a rule. Where that takes too many states (`a.{20}b` anywhere in a text)
it is the automaton of its positions, if those are few: then there are no more ways than positions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from workers.engines.grammar import Alternative, Builder, Chars, chars

POSITIONS_MAX = 20_000
STATES_MAX = 2_000
#: Positions of an expression that may be read in several ways.
AMBIGUOUS_MAX = 64
#: Steps from a position to the next, looked at while states are made: about a second's.
STEPS_MAX = 1_000_000


class TooManyWays(ValueError):
    """An expression that is too large, or can be read in too many ways."""


@dataclass(frozen=True, slots=True)
class One:
    """One character of a set."""

    chars: Chars


@dataclass(frozen=True, slots=True)
class Sequence:
    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    ways: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Many:
    """`at_most` None is without end."""

    item: Node
    at_least: int
    at_most: int | None


Node = One | Sequence | Choice | Many


@dataclass(frozen=True, slots=True)
class _Part:
    """Positions at which a part of the expression begins and ends, and whether it may be empty."""

    first: frozenset[int]
    last: frozenset[int]
    empty: bool


_NOTHING = _Part(frozenset(), frozenset(), True)


class _Positions:
    """Every character of an expression is a position, repetitions written out; `follow` says which come next."""

    def __init__(self) -> None:
        self.sets: list[Chars] = []
        self.follow: list[set[int]] = []
        self._steps = 0

    def of(self, node: Node) -> _Part:
        match node:
            case One():
                if len(self.sets) == POSITIONS_MAX:
                    raise TooManyWays("it is too large")
                self.sets.append(node.chars)
                self.follow.append(set())
                here = frozenset((len(self.sets) - 1,))
                return _Part(here, here, False)
            case Sequence():
                whole = _NOTHING
                for part in node.parts:
                    whole = self._then(whole, self.of(part))
                return whole
            case Choice():
                ways = [self.of(way) for way in node.ways]
                first = frozenset[int]().union(*(way.first for way in ways))
                last = frozenset[int]().union(*(way.last for way in ways))
                return _Part(first, last, any(way.empty for way in ways))
            case Many():
                return self._many(node)

    def _many(self, node: Many) -> _Part:
        first, last, before = frozenset[int](), frozenset[int](), frozenset[int]()
        least, made, empty = node.at_least, 0, False
        while node.at_most is None or made < node.at_most:
            item = self.of(node.item)
            made += 1
            if item.empty:  # n empty ones are as good as none, so that fewer will do
                least, empty = 0, True
            self._link(before, item.first)
            first = first or item.first
            before = item.last
            last = last | item.last if made > least else item.last
            if node.at_most is None and made >= max(1, least):
                self._link(item.last, item.first)
                break
        return _Part(first, last, empty or least == 0)

    def _then(self, one: _Part, other: _Part) -> _Part:
        self._link(one.last, other.first)
        first = one.first | other.first if one.empty else one.first
        last = one.last | other.last if other.empty else other.last
        return _Part(first, last, one.empty and other.empty)

    def _link(self, lasts: frozenset[int], firsts: frozenset[int]) -> None:
        self._steps += len(lasts) * len(firsts)
        if self._steps > STEPS_MAX:
            raise TooManyWays("it can be read in too many ways")
        for last in lasts:
            self.follow[last] |= firsts


def rules_of(builder: Builder, node: Node, spelt: Callable[[Chars], str]) -> str:
    """The rule of what the expression matches; `spelt` makes the rule of a character of a set. Raises TooManyWays."""
    positions = _Positions()
    whole = positions.of(node)
    spellings: dict[Chars, str] = {}

    def one(found: Chars) -> str:
        if found not in spellings:
            spellings[found] = spelt(found)
        return spellings[found]

    states = _states(positions, whole)
    if states is not None:
        return _rules(builder, states, one)
    if len(positions.sets) > AMBIGUOUS_MAX:
        raise TooManyWays("it can be read in too many ways")
    names = [builder.name() for _ in positions.sets]

    def ways(following: frozenset[int] | set[int], ends: bool) -> list[Alternative]:
        return [*((one(positions.sets[at]), names[at]) for at in sorted(following)), *([()] if ends else [])]

    for at, name in enumerate(names):
        builder.define(name, *ways(positions.follow[at], at in whole.last))
    return builder.rule(*ways(whole.first, whole.empty))


@dataclass(frozen=True, slots=True)
class _State:
    """Where each set of characters leads, by number, and whether the text may end here."""

    ways: dict[int, Chars]
    ends: bool


def _states(positions: _Positions, whole: _Part) -> list[_State] | None:
    """One state for each set of positions that a text can come to, the beginning first. None for too many."""
    pieces = _pieces(positions.sets)
    # A state is what may come next, and whether the text may end.
    ending: dict[tuple[frozenset[int], bool], int] = {(whole.first, whole.empty): 0}
    waiting = [(whole.first, whole.empty)]
    states: list[_State] = []
    steps = 0
    for following, ends in waiting:
        targets: dict[int, list[int]] = {}
        for at in following:
            for piece in pieces[positions.sets[at]]:
                targets.setdefault(piece[0], []).append(at)
        by_target: dict[int, list[tuple[int, int]]] = {}
        known: dict[tuple[int, ...], int] = {}
        spans = {piece[0]: piece for at in following for piece in pieces[positions.sets[at]]}
        for low, arrived in targets.items():
            key = tuple(arrived)
            if key not in known:
                steps += sum(len(positions.follow[at]) for at in arrived)
                after = frozenset[int]().union(*(positions.follow[at] for at in arrived))
                state = after, not whole.last.isdisjoint(arrived)
                if state not in ending:
                    if len(ending) == STATES_MAX or steps > STEPS_MAX:
                        return None
                    ending[state] = len(ending)
                    waiting.append(state)
                known[key] = ending[state]
            by_target.setdefault(known[key], []).append(spans[low])
        states.append(_State({target: chars(*found) for target, found in by_target.items()}, ends))
    return states


def _pieces(sets: list[Chars]) -> dict[Chars, list[tuple[int, int]]]:
    """Each set cut where any of them begins or ends, so that two pieces are the same or apart."""
    unique = set(sets)
    cuts = sorted({edge for one in unique for low, high in one.ranges for edge in (low, high + 1)})
    found: dict[Chars, list[tuple[int, int]]] = {}
    for one in unique:
        found[one] = [
            (low, high - 1)
            for low, high in pairwise(cuts)
            if any(begin <= low and high - 1 <= end for begin, end in one.ranges)
        ]
    return found


def _rules(builder: Builder, states: list[_State], one: Callable[[Chars], str]) -> str:
    names = [builder.name() for _ in states]
    for name, state in zip(names, states, strict=True):
        ways: list[Alternative] = [(one(found), names[target]) for target, found in state.ways.items()]
        builder.define(name, *ways, *([()] if state.ends else []))
    return names[0]
