"""Places at an engine: so many generations at once, the others wait in order and for a bounded time."""

import asyncio

from workers.engines.base import EngineBusy


class Slots:
    """Counts places.

    Args:
        count: generations at once.
        wait_s: how long one may wait for a place.
    """

    def __init__(self, count: int, wait_s: float) -> None:
        self._free = asyncio.Semaphore(count)
        self._count = count
        self._wait_s = wait_s

    async def take(self) -> None:
        """Wait for a place. Raises EngineBusy after `wait_s`."""
        if not self._free.locked():
            await self._free.acquire()
            return
        try:
            async with asyncio.timeout(self._wait_s):
                await self._free.acquire()
        except TimeoutError as error:
            raise EngineBusy(f"all {self._count} slots stayed taken for {self._wait_s:g} s") from error

    def give(self) -> None:
        """Hand a place back."""
        self._free.release()
