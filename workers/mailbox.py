"""The node's mailbox: one partition, read from the end that it had before the first heartbeat.

A job can only have been sent to a node that was heard, so nothing between that end and the first job is missed, and
nothing that an earlier life of this node left behind is run.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from schemas.jobs import Letter, UnreadableLetter, parse
from schemas.topics import mailbox
from workers.tail import Tail

log = logging.getLogger(__name__)

#: Letters handled before the loop lets streams write again.
BURST_MAX = 32


class Mailbox:
    """Hands every letter on.

    Args:
        bootstrap: Kafka's `host:port`.
        node_id: whose mailbox.
        take: gets each letter, its record's CreateTime (ms) and our monotonic clock when it was read.

    Attributes:
        unreadable: letters that were dropped.
    """

    def __init__(self, bootstrap: str, node_id: str, take: Callable[[Letter, int, float], None]) -> None:
        self._tail = Tail(bootstrap, mailbox(node_id), "end", f"{node_id}-mailbox")
        self._take = take
        self._time = asyncio.get_running_loop().time
        self.unreadable = 0

    async def open(self) -> None:
        """Finds the mailbox's end; waits for the broker. Raises TopicMissing."""
        await self._tail.open()

    async def run(self) -> None:
        """Reads for ever. Raises TopicMissing where the mailbox vanishes."""
        while True:
            records = await self._tail.poll()
            read_at_s = self._time()
            for number, record in enumerate(records, 1):
                try:
                    letter = parse(record.value or b"")
                except UnreadableLetter as error:
                    self.unreadable += 1
                    log.warning("mailbox offset %d is unreadable (%s): dropped", record.offset, str(error)[:200])
                    continue
                self._take(letter, record.timestamp, read_at_s)
                if number % BURST_MAX == 0:
                    await asyncio.sleep(0)

    async def close(self) -> None:
        await self._tail.close()
