"""Stop strings over a stream: text passes until one is complete, whatever the borders of pieces and tokens. Pure."""

from collections.abc import Iterable


class StopMatcher:
    """Lets text through and ends it before the first stop string.

    The first is the one that is complete soonest in the stream; of those that end at the same character, the longest.
    So the cut does not depend on how the text was split into pieces. Text that could still turn out to be the
    beginning of a stop string is held back, and no more than that.

    Args:
        stops: the stop strings; empty ones are ignored.
    """

    def __init__(self, stops: Iterable[str]) -> None:
        self._stops = tuple(dict.fromkeys(stop for stop in stops if stop))
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""
        self.matched: str | None = None

    def feed(self, text: str) -> str:
        """The text that may go out now. After a match nothing does, and `matched` names the stop string."""
        if self.matched is not None:
            return ""
        if not self._stops:
            return text
        held = self._held + text
        ends = [(at + len(stop), -len(stop), stop) for stop in self._stops if (at := held.find(stop)) >= 0]
        if ends:
            end, _, self.matched = min(ends)
            self._held = ""
            return held[: end - len(self.matched)]
        keep = self._keep(held)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def finish(self) -> str:
        """What was held back, once no more text comes."""
        rest, self._held = self._held, ""
        return rest

    def _keep(self, held: str) -> int:
        """Length of the longest suffix that begins a stop string."""
        for size in range(min(self._longest - 1, len(held)), 0, -1):
            suffix = held[len(held) - size :]
            if any(stop.startswith(suffix) for stop in self._stops):
                return size
        return 0
