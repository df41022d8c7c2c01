"""Wires the ingress: environment -> connections -> the parts of a request. Nothing else here connects anything."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import logging
import os
import time
from collections.abc import Coroutine
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError
from pydantic import ValidationError

from ingress.admission import DATABASE_ERRORS, Admission, open_pool
from ingress.catalog import Catalog
from ingress.dispatch import Dispatcher
from ingress.egress import Egress
from ingress.lanes import POOL_START, LanePool
from ingress.mailer import Mailer
from ingress.router import Router
from ledger.log import LedgerWriter
from schemas import heartbeats, topics
from schemas.heartbeats import IngressHeartbeat, NodeHeartbeat
from schemas.settings import Settings

log = logging.getLogger(__name__)

#: While it lasts nobody may adopt our requests; renewed every second.
LEASE_S = 10.0
RETRY_S = 0.5
#: For ends that are on their way to the log when the last connection has closed.
ENDS_S = 5.0


class Ingress:
    """One ingress process. `boot_id` is new at every start: it names the reply topics and owns the requests."""

    def __init__(self, settings: Settings, lanes: int = POOL_START) -> None:
        self._settings = settings
        self._lanes_start = lanes
        self._tasks: list[asyncio.Task[None]] = []
        self._secret = b""
        self.boot_id = f"i{int(time.time()):x}{os.urandom(4).hex()}"
        self.egress = Egress.from_environment()
        self.failed: asyncio.Event = asyncio.Event()  # the process cannot go on and wants to be restarted

    async def start(self) -> None:
        """Connect everything. Raises KafkaError, LedgerUnavailable, OSError or asyncpg errors."""
        settings = self._settings
        self.pool = await open_pool(settings.database_url)
        self.router = Router(self.boot_id)
        self.writer = LedgerWriter(settings.kafka, settings.ledger_partitions, client_id="shiver-ingress-ledger")
        self.mailer = Mailer(settings.kafka)
        self.lanes = LanePool(settings.kafka, self.boot_id, self._announce, self._on_end)
        self._beats = AIOKafkaProducer(bootstrap_servers=settings.kafka, acks="all", enable_idempotence=True)
        self._ear = AIOKafkaConsumer(
            bootstrap_servers=settings.kafka, enable_auto_commit=False, auto_offset_reset="latest"
        )
        self.catalog = Catalog(self.pool)
        self.admission = Admission(self.pool)
        self._secret = await self.pool.fetchval("select secret from state.secrets where name = 'pseudonyms'")
        await self._renew_lease()
        await asyncio.wait_for(self._beats.start(), 10)
        await asyncio.gather(self.writer.start(), self.mailer.start(), self._listen())
        await self.lanes.start(self._lanes_start)
        self.dispatcher = Dispatcher(
            self.boot_id,
            self.admission,
            self.catalog,
            self.router,
            self.lanes,
            self.writer,
            self.mailer,
            self.pseudonym,
        )
        self._run(self._hear(), "hear nodes")
        self._run(self._beat(), "heartbeat")
        log.info("ingress %s is up", self.boot_id)

    async def stop(self) -> None:
        """Let ends reach the log, tell the nodes, leave. Every wait is bounded."""
        await self.dispatcher.drain(ENDS_S)
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks, timeout=2)
        with contextlib.suppress(KafkaError, TimeoutError):
            await asyncio.wait_for(self._say_alive(leaving=True), 2)
        await self.writer.stop()
        await self.mailer.stop()
        await self.lanes.stop()
        for client in (self._beats, self._ear):
            with contextlib.suppress(KafkaError, TimeoutError):
                await asyncio.wait_for(client.stop(), 3)
        with contextlib.suppress(*DATABASE_ERRORS):
            await self.pool.execute("update state.ingresses set left_at = now() where boot_id = $1", self.boot_id)
            await asyncio.wait_for(self.pool.close(), 3)

    def pseudonym(self, node_id: str, provider_id: str) -> str:
        """What clients see of a node: stable, and of no use to find it."""
        digest = hmac.new(self._secret, f"{node_id}\0{provider_id}".encode(), hashlib.sha256).hexdigest()
        return f"node_{digest[:16]}"

    async def missing(self) -> list[str]:
        """What keeps this process from serving, in plain words; empty when it is ready."""
        out = []
        try:
            caught_up = await self.pool.fetchval(
                "select exists (select from state.readiness where server_id = state.server_id())", timeout=2
            )
            if not caught_up:
                out.append("the projection has not caught up with the log (is streams running?)")
        except DATABASE_ERRORS as error:
            out.append(f"PostgreSQL does not answer: {type(error).__name__}")
        if not self.writer.healthy:
            out.append("the ledger log does not ack")
        if not self.router.living():
            out.append("no node is online")
        if not self.lanes.free:
            out.append("no reply topic is free")
        return out

    def _run(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(self._on_end)
        self._tasks.append(task)

    def _on_end(self, task: asyncio.Task[None]) -> None:
        """A task of the process ended that should not: without it requests would hang, so the process ends too."""
        if not task.cancelled():
            log.critical("%s ended: the ingress stops, to be started again", task.get_name(), exc_info=task.exception())
            self.failed.set()

    async def _listen(self) -> None:
        """From the end: what is read was said now, so no sender's clock matters."""
        await asyncio.wait_for(self._ear.start(), 10)
        partition = TopicPartition(topics.NODE_HEARTBEATS, 0)
        self._ear.assign([partition])
        await asyncio.wait_for(self._ear.seek_to_end(partition), 10)

    async def _hear(self) -> None:
        while True:
            try:
                for records in (await self._ear.getmany(timeout_ms=1000)).values():
                    for record in records:
                        self._take_beat(record.value or b"")
            except KafkaError as error:
                log.warning("hearing nodes failed, trying again: %s", error)
                await asyncio.sleep(RETRY_S)

    def _take_beat(self, value: bytes) -> None:
        try:
            self.router.hear(NodeHeartbeat.model_validate_json(value))
        except ValidationError as error:
            log.warning("a heartbeat that cannot be read: %d errors", error.error_count())

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(heartbeats.INTERVAL_S)
            try:
                await self._renew_lease()
            except DATABASE_ERRORS as error:
                log.warning("the lease was not renewed: %r", error)
            except LeaseLost:
                log.error("this boot was given up by the others: restarting")
                self.failed.set()
                return
            try:
                await asyncio.wait_for(self._say_alive(), 2)
            except (KafkaError, TimeoutError) as error:
                log.warning("no heartbeat sent: %r", error)

    async def _renew_lease(self) -> None:
        """Raises LeaseLost where our row is gone: our reply topics go with it."""
        first = not self._tasks
        statement = (
            "insert into state.ingresses (boot_id, lease_until) values ($1, clock_timestamp() + $2::float8 * "
            "interval '1 second')"
            if first
            else "update state.ingresses set lease_until = clock_timestamp() + $2::float8 * interval '1 second', "
            "lanes = $3 where boot_id = $1"
        )
        arguments = (self.boot_id, LEASE_S) if first else (self.boot_id, LEASE_S, self.lanes.made)
        if (await self.pool.execute(statement, *arguments)).endswith(" 0"):
            raise LeaseLost

    async def _say_alive(self, *, leaving: bool = False) -> None:
        beat = IngressHeartbeat(
            boot_id=self.boot_id, at_ms=int(time.time() * 1000), lanes=self.lanes.made, leaving=leaving
        )
        await self._beats.send_and_wait(
            topics.INGRESS_HEARTBEATS, beat.model_dump_json().encode(), self.boot_id.encode()
        )

    async def _announce(self, lanes: int) -> None:
        """New lanes: the row first, so that whoever cleans up after us knows of them; then the nodes.

        Where either is away, the next beat tells it.
        """
        try:
            await self.pool.execute("update state.ingresses set lanes = $2 where boot_id = $1", self.boot_id, lanes)
            await asyncio.wait_for(self._say_alive(), 5)
        except (*DATABASE_ERRORS, KafkaError) as error:
            log.warning("new lanes were not announced yet: %r", error)


class LeaseLost(Exception):
    """Our row in state.ingresses is gone."""
