"""Context-free grammars over characters: what a constrained generation may say, for every engine the same. Pure.

A grammar is built from rules (`Builder`), followed through a text (`Matcher`) and written for llama.cpp (`gbnf`). What
may follow after a text is a grammar again (`Matcher.rest`): so a continued generation meets the very constraint that
its first attempt would have met, although no engine can be told to begin inside a grammar.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

CODE_POINT_MAX = 0x10FFFF
SYMBOLS_MAX = 100_000
#: Ways in which a text can be read so far; more means a grammar that is too ambiguous to follow.
HEADS_MAX = 20_000


class GrammarTooLarge(ValueError):
    """More symbols or ambiguity than one request may cost."""


@dataclass(frozen=True, slots=True)
class Chars:
    """One character out of ranges of code points, ends included, in order and apart."""

    ranges: tuple[tuple[int, int], ...]

    def has(self, char: str) -> bool:
        code = ord(char)
        return any(low <= code <= high for low, high in self.ranges)


Symbol = Chars | str  # a string is the name of a rule
Alternative = tuple[Symbol, ...]


def chars(*ranges: str | tuple[int, int]) -> Chars:
    """One of these: a string stands for each of its characters, a pair of code points for a range."""
    pairs: list[tuple[int, int]] = []
    for one in ranges:
        pairs.extend([(ord(char), ord(char)) for char in one] if isinstance(one, str) else [one])
    merged: list[tuple[int, int]] = []
    for low, high in sorted(pairs):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], high))
        else:
            merged.append((low, high))
    return Chars(tuple(merged))


def but(excluded: Chars) -> Chars:
    """Any character but these; surrogates are none."""
    ranges, at = [], 0
    for low, high in chars(*excluded.ranges, (0xD800, 0xDFFF)).ranges:
        if at < low:
            ranges.append((at, low - 1))
        at = high + 1
    if at <= CODE_POINT_MAX:
        ranges.append((at, CODE_POINT_MAX))
    return Chars(tuple(ranges))


def literal(text: str) -> Alternative:
    """This text and no other."""
    return tuple(Chars(((ord(char), ord(char)),)) for char in text)


@dataclass(frozen=True, slots=True)
class Grammar:
    """Rules by name, each a choice of sequences; `root` is where a text begins."""

    rules: Mapping[str, tuple[Alternative, ...]]
    root: str

    def gbnf(self) -> str:
        """The grammar in llama.cpp's own notation."""
        names = {name: f"r{number}" for number, name in enumerate(self.rules)} | {self.root: "root"}
        lines = []
        for name, alternatives in self.rules.items():
            lines.append(f"{names[name]} ::= " + " | ".join(_gbnf_sequence(one, names) for one in alternatives))
        return "\n".join(lines) + "\n"


class Builder:
    """Makes rules. Raises GrammarTooLarge where they become too many."""

    def __init__(self) -> None:
        self._rules: dict[str, tuple[Alternative, ...]] = {}
        self._symbols = 0

    def rule(self, *alternatives: Alternative) -> str:
        """A new rule; its name."""
        return self.define(self.name(), *alternatives)

    def name(self) -> str:
        """A name for a rule that is defined later: how rules refer to themselves."""
        name = f"#{len(self._rules)}"
        self._rules[name] = ()
        return name

    def define(self, name: str, *alternatives: Alternative) -> str:
        self._symbols += 1 + sum(1 + len(one) for one in alternatives)
        if self._symbols > SYMBOLS_MAX:
            raise GrammarTooLarge("the grammar is too large")
        self._rules[name] = tuple(dict.fromkeys(alternatives))
        return name

    def many(self, item: Alternative, at_least: int = 0, at_most: int | None = None) -> Alternative:
        """The item so many times."""
        if at_most is None:
            name = self.name()
            self.define(name, (*item, name), ())
            return (*item * at_least, name)
        rest: Alternative = ()
        for _ in range(at_most - at_least):
            rest = (self.rule((*item, *rest), ()),)
        return (*item * at_least, *rest)

    def grammar(self, root: Alternative) -> Grammar:
        """The grammar, without what can never be said. Raises GrammarTooLarge where a rule begins with itself, and
        where nothing at all can be said."""
        name = self.rule(root)
        rules = _reachable(_sayable(_reachable(self._rules, (name,))), (name,))
        if not rules[name]:
            raise GrammarTooLarge("nothing can be said")
        _check_left_recursion(rules)
        return Grammar(rules, name)


class _Stack:
    """What has to come still, from here on: a symbol, then the rest. The same stack is the same object."""

    __slots__ = ("rest", "top")

    def __init__(self, top: Symbol, rest: _Stack | None) -> None:
        self.top = top
        self.rest = rest

    def symbols(self) -> Iterator[Symbol]:
        at: _Stack | None = self
        while at is not None:
            yield at.top
            at = at.rest


class Matcher:
    """Follows a text through a grammar, in every way that it can be read.

    Args:
        grammar: the grammar, from its root.
    """

    def __init__(self, grammar: Grammar) -> None:
        self._grammar = grammar
        self._known: dict[tuple[Symbol, int], _Stack] = {}
        self._lengths: dict[str, int] | None = None
        self._heads: frozenset[_Stack | None] = self._open([self._push((grammar.root,), None)])

    @property
    def accepts(self) -> bool:
        """The text is whole: it may end here."""
        return None in self._heads

    @property
    def done(self) -> bool:
        """The text is whole, and nothing can follow."""
        return self._heads == {None}

    @property
    def state(self) -> frozenset[object]:
        """Where the matcher is; equal for two texts after which the same may follow. Of this matcher alone."""
        return self._heads

    def feed(self, text: str) -> bool:
        """Go on by a text. False, and nothing has happened, where it cannot come here.

        Raises: GrammarTooLarge for a text that can be read in too many ways.
        """
        heads = self._heads
        for char in text:
            heads = self._step(heads, char)
            if not heads:
                return False
        self._heads = heads
        return True

    def goes_on(self, state: frozenset[object], char: str) -> frozenset[object]:
        """The state after one more character, empty where it cannot come. The matcher stays where it is."""
        return self._step(state, char)  # type: ignore[arg-type]

    def jump(self, state: frozenset[object]) -> None:
        """Be where `state` was taken from, or `goes_on` led to."""
        self._heads = state  # type: ignore[assignment]

    def next_chars(self, state: frozenset[object]) -> list[Chars]:
        """What may come next in a state."""
        return [head.top for head in state if isinstance(head, _Stack) and isinstance(head.top, Chars)]

    def choices(self) -> list[tuple[Chars, int]]:
        """What may come next, and how many symbols would at least be left after it: for who wants to end soon."""
        found = {
            (stack.top, sum(self._shortest(symbol) for symbol in stack.symbols()) - 1)
            for stack in self._heads
            if stack is not None and isinstance(stack.top, Chars)
        }
        return sorted(found, key=lambda choice: (choice[1], choice[0].ranges))

    def rest(self) -> Grammar:
        """What may still come, as a grammar of its own."""
        alternatives = [tuple(stack.symbols()) if stack is not None else () for stack in self._heads]
        names = [symbol for one in alternatives for symbol in one if isinstance(symbol, str)]
        rules = _reachable(self._grammar.rules, names)
        return Grammar(rules | {"#rest": tuple(sorted(alternatives, key=repr))}, "#rest")

    def _step(self, heads: Iterable[_Stack | None], char: str) -> frozenset[_Stack | None]:
        rests: list[_Stack | None] = []
        for stack in heads:
            if stack is not None and stack.top.has(char):  # type: ignore[union-attr]  # heads begin with characters
                rests.append(stack.rest)
        return self._open(rests)

    def _open(self, stacks: list[_Stack | None]) -> frozenset[_Stack | None]:
        """Every stack with its first rule replaced, until characters are on top."""
        seen: set[_Stack | None] = set()
        heads: set[_Stack | None] = set()
        while stacks:
            stack = stacks.pop()
            if stack in seen:
                continue
            seen.add(stack)
            if len(seen) > HEADS_MAX:
                raise GrammarTooLarge("the grammar is too ambiguous")
            if stack is None or isinstance(stack.top, Chars):
                heads.add(stack)
            else:
                stacks += [self._push(one, stack.rest) for one in self._grammar.rules[stack.top]]
        return frozenset(heads)

    def _push(self, symbols: Alternative, rest: _Stack | None) -> _Stack | None:
        for symbol in reversed(symbols):
            key = (symbol, id(rest))
            stack = self._known.get(key)
            if stack is None:
                stack = self._known[key] = _Stack(symbol, rest)
            rest = stack
        return rest

    def _shortest(self, symbol: Symbol) -> int:
        if isinstance(symbol, Chars):
            return 1
        if self._lengths is None:
            self._lengths = _shortest_lengths(self._grammar.rules)
        return self._lengths[symbol]


def _reachable(
    rules: Mapping[str, tuple[Alternative, ...]], names: Iterable[str]
) -> dict[str, tuple[Alternative, ...]]:
    """The rules that these lead to, in the order that they had: parts before wholes, mostly, which is quick to fold."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += [symbol for one in rules[name] for symbol in one if isinstance(symbol, str)]
    return {name: alternatives for name, alternatives in rules.items() if name in found}


def _sayable(rules: Mapping[str, tuple[Alternative, ...]]) -> dict[str, tuple[Alternative, ...]]:
    """The rules without alternatives that no text can end: a range without numbers, a list of itself."""
    lengths = _shortest_lengths(rules)

    def ends(one: Alternative) -> bool:
        return all(isinstance(symbol, Chars) or lengths[symbol] < SYMBOLS_MAX for symbol in one)

    return {name: tuple(one for one in alternatives if ends(one)) for name, alternatives in rules.items()}


def _shortest_lengths(rules: Mapping[str, tuple[Alternative, ...]]) -> dict[str, int]:
    """The least number of characters of each rule."""
    lengths = dict.fromkeys(rules, SYMBOLS_MAX)
    changed = True
    while changed:
        changed = False
        for name, alternatives in rules.items():
            for one in alternatives:
                length = sum(1 if isinstance(symbol, Chars) else lengths[symbol] for symbol in one)
                if length < lengths[name]:
                    lengths[name], changed = length, True
    return lengths


def _check_left_recursion(rules: Mapping[str, tuple[Alternative, ...]]) -> None:
    """A rule that can begin with itself says nothing, and llama.cpp refuses it."""
    empty: set[str] = set()
    grown = True
    while grown:
        grown = False
        for name, alternatives in rules.items():
            if name not in empty and any(all(s in empty for s in one) for one in alternatives):
                empty.add(name)
                grown = True
    firsts: dict[str, list[str]] = {}
    for name, alternatives in rules.items():
        firsts[name] = []
        for one in alternatives:
            for symbol in one:
                if isinstance(symbol, str):
                    firsts[name].append(symbol)
                if symbol not in empty:
                    break
    done: set[str] = set()
    for start in rules:
        path: list[tuple[str, Iterator[str]]] = [] if start in done else [(start, iter(firsts[start]))]
        on_path = {start}
        while path:
            name, following = path[-1]
            step = next(following, None)
            if step is None:
                path.pop()
                on_path.discard(name)
                done.add(name)
            elif step in on_path:
                raise GrammarTooLarge("a rule refers to itself before it says anything")
            elif step not in done:
                path.append((step, iter(firsts[step])))
                on_path.add(step)


def _gbnf_sequence(symbols: Alternative, names: Mapping[str, str]) -> str:
    parts: list[str] = []
    text = ""
    for symbol in symbols:
        if isinstance(symbol, Chars) and len(symbol.ranges) == 1 and symbol.ranges[0][0] == symbol.ranges[0][1]:
            text += _gbnf_char(symbol.ranges[0][0])
            continue
        if text:
            parts.append(f'"{text}"')
            text = ""
        parts.append(names[symbol] if isinstance(symbol, str) else _gbnf_class(symbol))
    if text or not parts:
        parts.append(f'"{text}"')
    return " ".join(parts)


def _gbnf_class(symbol: Chars) -> str:
    return "[" + "".join(f"{_gbnf_char(low)}-{_gbnf_char(high)}" for low, high in symbol.ranges) + "]"


def _gbnf_char(code: int) -> str:
    char = chr(code)
    if char.isascii() and char.isalnum():
        return char
    return f"\\x{code:02X}" if code < 0x100 else f"\\u{code:04X}" if code < 0x10000 else f"\\U{code:08X}"
