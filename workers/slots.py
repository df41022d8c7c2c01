"""Places at a model: as many attempts at once as its engine has slots, and a short, bounded wait for one.

The wait bridges the moment between an attempt's end and the next job, which two ingresses may send at once. It is no
queue: who cannot start soon is told `busy`, while another node may be free.
"""

from __future__ import annotations

import asyncio
from collections import deque

WAIT_S_MAX = 0.5
#: Attempts that may wait, as a share of the slots, and at least so many.
WAITING_SHARE = 0.25
WAITING_MIN = 2


class Busy(Exception):
    """No place came free in WAIT_S_MAX, or enough others wait for one."""


class Slots:
    """Counts places.

    Attributes:
        total: places there are.
        busy: places that are taken.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.busy = 0
        self._waiting_max = max(WAITING_MIN, int(total * WAITING_SHARE))
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def take(self) -> None:
        """Takes a place; the caller gives it back. Raises Busy."""
        if self.busy < self.total and not self._waiting:
            self.busy += 1
            return
        if len(self._waiting) >= self._waiting_max:
            raise Busy
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            async with asyncio.timeout(WAIT_S_MAX):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self.give()  # the place came together with the end of the wait
            elif turn in self._waiting:
                self._waiting.remove(turn)
            if isinstance(error, TimeoutError):
                raise Busy from None
            raise

    def take_now(self) -> bool:
        """Takes a place where one is free and nobody waits for it."""
        if self.busy >= self.total or self._waiting:
            return False
        self.busy += 1
        return True

    def give(self) -> None:
        """Hands a place back: to the one that waits longest, if any."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.busy -= 1
