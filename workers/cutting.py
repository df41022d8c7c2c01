"""Stop strings over ids and text together: which ids belong to the text that goes out. Pure.

The rule: text from the first stop string on is not sent. A piece (one id, mostly) goes out with the first character of
its text that does; a piece whose text is wholly cut is neither sent nor counted, and so are ids that had no text of
their own yet when the cut came.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Generic, TypeVar

from workers.chat.stops import StopMatcher

T = TypeVar("T")


class Cutter(Generic[T]):
    """Passes ids (or what stands for them) and text on, and holds back what may be cut.

    Args:
        stops: the stop strings; with none everything passes at once.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._matcher = StopMatcher(stops) if any(stops) else None
        self._held: deque[tuple[int, tuple[T, ...]]] = deque()  # where its text begins, ids
        self._fed_chars = 0
        self._sent_chars = 0

    @property
    def matched(self) -> bool:
        """A stop string is complete: nothing more will pass."""
        return self._matcher is not None and self._matcher.matched is not None

    def feed(self, ids: tuple[T, ...], text: str) -> tuple[tuple[T, ...], str]:
        """The ids and the text that may go out now."""
        if self._matcher is None:
            return ids, text
        if self.matched:
            return (), ""
        if ids:
            self._held.append((self._fed_chars, ids))
        self._fed_chars += len(text)
        passed = self._matcher.feed(text)
        self._sent_chars += len(passed)
        out: list[T] = []
        while self._held and self._held[0][0] < self._sent_chars:
            out.extend(self._held.popleft()[1])
        if self.matched:
            self._held.clear()
        return tuple(out), passed

    def finish(self) -> tuple[tuple[T, ...], str]:
        """What was held back, once the engine has no more."""
        if self._matcher is None or self.matched:
            return (), ""
        out = [token_id for _, ids in self._held for token_id in ids]
        self._held.clear()
        return tuple(out), self._matcher.finish()
