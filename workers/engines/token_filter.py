"""Which token ids a grammar lets through: for engines that take a set of ids with each step. Pure.

Grammars are over characters, tokens over bytes: a token may end inside a character, and then only its end decides.
What may come in a state is worked out once and kept, since a generation meets few states (most of all "in a string").
"""

from __future__ import annotations

from collections.abc import Sequence

from workers.engines.grammar import Matcher

#: States whose ids are kept, in each generation.
STATES_MAX = 512


class _Node:
    """Tokens by their characters.

    Attributes:
        ids: tokens that end here.
        tails: tokens that have a beginning of one more character here, by its bytes.
        next: by the next character.
    """

    __slots__ = ("ids", "next", "tails")

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.tails: dict[bytes, list[int]] = {}
        self.next: dict[str, _Node] = {}


class TokenTree:
    """A vocabulary, arranged for `TokenFilter`. One for a model.

    Args:
        table: bytes by id; empty for control tokens, which no constrained text holds.
    """

    def __init__(self, table: Sequence[bytes]) -> None:
        self.table = table
        self.root = _Node()
        self.inside: list[int] = []  # begin inside a character
        for token_id, data in enumerate(table):
            if not data:
                continue
            if 0x80 <= data[0] < 0xC0:
                self.inside.append(token_id)
                continue
            found = split(data)
            if found is None:
                continue
            node = self.root
            for char in found[0]:
                node = node.next.setdefault(char, _Node())
            if found[1]:
                node.tails.setdefault(found[1], []).append(token_id)
            else:
                node.ids.append(token_id)


class TokenFilter:
    """Follows one generation.

    Args:
        tree: of the model.
        matcher: where the generation begins; it is this filter's from now on.
        end_ids: ids that end a turn: they may come where the text is whole.
    """

    def __init__(self, tree: TokenTree, matcher: Matcher, end_ids: Sequence[int]) -> None:
        self._tree = tree
        self._matcher = matcher
        self._end_ids = list(end_ids)
        self._pending = b""
        self._start = matcher.state
        self._known: dict[tuple[frozenset[object], bytes], list[int]] = {}

    @property
    def done(self) -> bool:
        """The text is whole, and nothing can follow."""
        return self._matcher.done and not self._pending

    def restart(self) -> None:
        """Back to where the generation begins."""
        self._matcher.jump(self._start)
        self._pending = b""

    def feed(self, token_id: int) -> None:
        """This id came. One that was not allowed changes nothing: the turn has ended."""
        found = split(self._pending + self._tree.table[token_id])
        if found is not None and self._matcher.feed(found[0]):
            self._pending = found[1]

    def allowed(self) -> list[int]:
        """The ids that may come now, in order."""
        key = (self._matcher.state, self._pending)
        ids = self._known.get(key)
        if ids is None:
            ids = self._work_out()
            if len(self._known) < STATES_MAX:
                self._known[key] = ids
        return ids

    def _work_out(self) -> list[int]:
        if self._pending:
            return [token_id for token_id in self._tree.inside if self._fits(self._tree.table[token_id])]
        ids: list[int] = list(self._end_ids) if self._matcher.accepts else []
        waiting = [(self._tree.root, self._matcher.state)]
        while waiting:
            node, state = waiting.pop()
            ids += node.ids
            for tail, tailed in node.tails.items():
                if may_become(self._matcher, state, tail):
                    ids += tailed
            for char, after in node.next.items():
                if reached := self._matcher.goes_on(state, char):
                    waiting.append((after, reached))
        return sorted(set(ids))

    def _fits(self, data: bytes) -> bool:
        found = split(self._pending + data)
        if found is None:
            return False
        state = self._matcher.state
        for char in found[0]:
            state = self._matcher.goes_on(state, char)
            if not state:
                return False
        return not found[1] or may_become(self._matcher, state, found[1])


def split(data: bytes) -> tuple[str, bytes] | None:
    """Whole characters, and the beginning of one more; None for bytes that are no UTF-8."""
    for size in range(min(4, len(data) + 1)):
        body, tail = data[: len(data) - size], data[len(data) - size :]
        if tail and code_points(tail) is None:
            continue
        try:
            return body.decode(), tail
        except UnicodeDecodeError:
            continue
    return None


def code_points(beginning: bytes) -> tuple[int, int] | None:
    """The first and last code point whose UTF-8 begins so and is longer; None where there is none."""
    lead = beginning[0]
    size = 2 if 0xC2 <= lead < 0xE0 else 3 if 0xE0 <= lead < 0xF0 else 4 if 0xF0 <= lead < 0xF5 else 0
    if len(beginning) >= size or any(not 0x80 <= byte < 0xC0 for byte in beginning[1:]):
        return None
    left = size - len(beginning)
    value = lead & (0xFF >> (size + 1))
    for byte in beginning[1:]:
        value = value << 6 | byte & 0x3F
    low, high = value << 6 * left, (value + 1 << 6 * left) - 1
    low, high = max(low, {2: 0x80, 3: 0x800, 4: 0x10000}[size]), min(high, 0x10FFFF)
    return (low, high) if low <= high else None


def may_become(matcher: Matcher, state: frozenset[object], beginning: bytes) -> bool:
    """Whether a character that begins with these bytes may come in this state."""
    points = code_points(beginning)
    if points is None:
        return False
    return any(
        low <= points[1] and points[0] <= high for choice in matcher.next_chars(state) for low, high in choice.ranges
    )
