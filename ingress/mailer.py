"""The producer of jobs and cancels. A job that was not acked fails its attempt; the producer is replaced (C8)."""

from __future__ import annotations

import asyncio
import contextlib
import logging

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from schemas import jobs, topics

log = logging.getLogger(__name__)

SEND_TIMEOUT_S = 5.0
STOP_TIMEOUT_S = 3.0


class MailFailed(Exception):
    """The letter has no ack. It may still arrive: its node will find it expired or cancelled."""


class Mailer:
    """One idempotent producer for all mailboxes; ordered per mailbox while it lives."""

    def __init__(self, bootstrap: str) -> None:
        self._bootstrap = bootstrap
        self._producer: AIOKafkaProducer | None = None
        self._replacing: asyncio.Task[None] | None = None
        self._retired: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Raises KafkaError or TimeoutError."""
        producer = AIOKafkaProducer(
            bootstrap_servers=self._bootstrap,
            client_id="shiver-ingress-jobs",
            acks="all",
            enable_idempotence=True,
            linger_ms=0,
            max_request_size=topics.JOB_BYTES_MAX,
            request_timeout_ms=int(SEND_TIMEOUT_S * 1000),
        )
        try:
            await asyncio.wait_for(producer.start(), SEND_TIMEOUT_S)
        except BaseException:
            await _stop(producer)
            raise
        self._producer = producer

    async def stop(self) -> None:
        if self._replacing is not None:
            self._replacing.cancel()
            await asyncio.wait([self._replacing])
        producer, self._producer = self._producer, None
        if producer is not None:
            await _stop(producer)
        if self._retired:
            await asyncio.wait(self._retired)

    async def post(self, node_id: str, letter: jobs.Letter) -> None:
        """Send and wait for the ack. Raises MailFailed."""
        producer = self._producer
        if producer is None:
            raise MailFailed("the producer is being replaced")
        try:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                ack = await producer.send(topics.mailbox(node_id), jobs.dump(letter), letter.request_id.encode())
                ack.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody may be left to ask
                await asyncio.shield(ack)
        except (KafkaError, TimeoutError, OSError) as error:
            self._replace(producer)
            raise MailFailed(type(error).__name__) from error

    def _replace(self, broken: AIOKafkaProducer) -> None:
        """A failed idempotent batch keeps its sequence number, and later ones die of it: start anew."""
        if self._producer is not broken:
            return
        self._producer = None
        retired = asyncio.create_task(_stop(broken))
        self._retired.add(retired)
        retired.add_done_callback(self._retired.discard)
        self._replacing = asyncio.create_task(self._restart(), name="mailer-restart")

    async def _restart(self) -> None:
        while True:
            try:
                return await self.start()
            except (KafkaError, OSError, TimeoutError) as error:
                log.warning("no producer for jobs, trying again: %s", error)
                await asyncio.sleep(0.5)


async def _stop(producer: AIOKafkaProducer) -> None:
    """Letters under way may still arrive. Where they do not, stop() gives up with all its connections open and a sender
    that tries for ever, so these are ended one by one."""
    try:
        await asyncio.wait_for(producer.stop(), STOP_TIMEOUT_S)
    except (TimeoutError, KafkaError, OSError) as error:
        log.warning("a producer did not stop in order: %r", error)
        producer._message_accumulator.fail_all(KafkaError("the producer is replaced"))
        for close in (producer._sender.close, producer.client.close):
            with contextlib.suppress(TimeoutError, KafkaError, OSError):
                await asyncio.wait_for(close(), STOP_TIMEOUT_S)
