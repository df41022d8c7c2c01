"""The node's life. Read this file first.

    load the engines -> connect -> find the mailbox's end -> first heartbeat -> jobs ... -> SIGTERM: drain -> end

The order is the point. An engine that does not load never shows up in Kafka. The mailbox's end is known before the
first heartbeat, so the first job cannot come before we listen. Draining is told to the routers first, then what runs
may finish, and what cannot is handed back, so that another node can go on.

Whatever dies here ends the process: a node that heartbeats but does not read its mailbox would swallow jobs.
The process that starts us starts us again; others serve meanwhile: silence is noticed in 2 s.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Coroutine, Mapping
from typing import Any

from workers import kafka
from workers.engines.base import EngineError
from workers.heart import Heart
from workers.mailbox import Mailbox
from workers.outbox import Outbox
from workers.run import EngineGone, Runner
from workers.served import Served
from workers.tail import TopicMissing
from workers.warm import Warmer

log = logging.getLogger(__name__)

#: How long the last records may take to reach Kafka; after a second signal only so long.
FLUSH_S_MAX = 5.0
FLUSH_HURRY_S_MAX = 1.0


class Agent:
    """One node process, wired.

    Args:
        models: loaded engines by model name.
        runner, outbox, mailbox, warmer, heart: its parts, none of them connected.
        drain_s: what running attempts get after the first SIGTERM.
    """

    def __init__(
        self,
        models: Mapping[str, Served],
        runner: Runner,
        outbox: Outbox,
        mailbox: Mailbox,
        warmer: Warmer,
        heart: Heart,
        drain_s: float,
    ) -> None:
        self._models = models
        self._runner = runner
        self._outbox = outbox
        self._mailbox = mailbox
        self._warmer = warmer
        self._heart = heart
        self._drain_s = drain_s
        self._leave = asyncio.Event()
        self._hurry = asyncio.Event()

    def stop(self) -> None:
        """Drain and end; called again: hand back what runs and end now."""
        (self._hurry if self._leave.is_set() else self._leave).set()

    async def run(self) -> int:
        """Lives until it is stopped (0) or cannot go on (1)."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        tasks: list[asyncio.Task[None]] = []
        try:
            if await self._unless_stopped(self._connect()):
                tasks = [
                    asyncio.create_task(part.run(), name=type(part).__name__)
                    for part in (self._outbox, self._mailbox, self._warmer, self._heart)
                ]
                tasks.append(asyncio.create_task(self._runner.watch(), name="Runner"))
                log.info("ready: models=%s slots=%d", ",".join(self._models), self._runner.slots)
                await self._until_stopped(tasks)
                await self._drain()
            return 0
        except (TopicMissing, EngineGone) as error:
            log.error("%s", error)
            return 1
        finally:
            await self._close(tasks)

    async def _connect(self) -> None:
        backoff = kafka.Backoff()
        while (error := await self._outbox.start()) is not None:
            log.warning("Kafka is away (%s): trying again", type(error).__name__)
            await backoff.wait()
        await self._mailbox.open()
        await self._warmer.open()

    async def _unless_stopped(self, work: Coroutine[Any, Any, None]) -> bool:
        """Does the work; False where the node was stopped before it was done. Raises what the work raises."""
        working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(self._leave.wait())
        await asyncio.wait([working, leaving], return_when=asyncio.FIRST_COMPLETED)
        leaving.cancel()
        if working.done():
            working.result()
            return True
        working.cancel()
        await asyncio.wait([working])
        return False

    async def _until_stopped(self, tasks: list[asyncio.Task[None]]) -> None:
        """Returns when the node is to drain. Raises what ends one of its parts."""
        leaving = asyncio.create_task(self._leave.wait())
        done, _ = await asyncio.wait([leaving, *tasks], return_when=asyncio.FIRST_COMPLETED)
        leaving.cancel()
        for task in done - {leaving}:
            task.result()
            raise RuntimeError(f"{task.get_name()} ended by itself")

    async def _drain(self) -> None:
        log.info("draining: %d attempts run, %.0f s for them", self._runner.running, self._drain_s)
        self._runner.draining = True
        self._heart.changed()
        await self._runner.drain(self._drain_s, self._hurry)
        if not await self._outbox.flush(FLUSH_HURRY_S_MAX if self._hurry.is_set() else FLUSH_S_MAX):
            log.warning("ending with replies that Kafka did not take")

    async def _close(self, tasks: list[asyncio.Task[None]]) -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        parts = (self._outbox.stop(), self._mailbox.close(), self._warmer.close(), self._heart.close())
        for result in await asyncio.gather(*parts, return_exceptions=True):
            if isinstance(result, BaseException):
                log.warning("a part did not close: %s", type(result).__name__)
        for served in self._models.values():
            try:
                await served.engine.unload()
            except EngineError as error:
                log.warning("model %s did not unload: %s", served.name, type(error).__name__)
