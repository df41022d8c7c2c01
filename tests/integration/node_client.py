"""An ingress in miniature, for tests of the node: lanes, a mailbox to write to, and answers counted by the Tally."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass, field
from typing import Any, Self

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import TopicAlreadyExistsError

from schemas import jobs, replies
from schemas.heartbeats import IngressHeartbeat, NodeHeartbeat
from schemas.ids import uuid7
from schemas.topics import (
    INGRESS_HEARTBEATS,
    JOB_BYTES_MAX,
    NODE_HEARTBEATS,
    TopicSpec,
    lane,
    lane_topic,
    mailbox,
    mailbox_topic,
    standing_topics,
)


@dataclass
class Answer:
    """One attempt's records as its reader counts them."""

    tally: replies.Tally
    records: list[replies.Reply] = field(default_factory=list)
    strays: int = 0
    gap: bool = False
    arrived_s: list[float] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(record.text for record in self.records if isinstance(record, replies.Tokens))

    @property
    def ids(self) -> tuple[int, ...]:
        return tuple(i for record in self.records if isinstance(record, replies.Tokens) for i in record.ids)

    @property
    def kinds(self) -> list[str]:
        return [record.kind for record in self.records]

    @property
    def end(self) -> Any:
        return self.tally.terminal


async def make_topics(kafka: str, specs: list[TopicSpec]) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    try:
        for start in range(0, len(specs), 10):
            new = [NewTopic(s.name, s.partitions, 1, topic_configs=s.config) for s in specs[start : start + 10]]
            try:
                await admin.create_topics(new)
            except TopicAlreadyExistsError:
                pass
    finally:
        await admin.close()


class Client:
    """A pool of lanes and the mailbox of one node. Lanes are used once each, in order."""

    def __init__(self, kafka: str, node_id: str, lanes: int = 8) -> None:
        self.kafka = kafka
        self.node_id = node_id
        self.boot_id = f"ing{os.urandom(5).hex()}"
        self.lanes = lanes
        self.used = 0
        self.answers: dict[tuple[str, int], Answer] = {}
        self.beats: list[NodeHeartbeat] = []
        self._changed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        # One call each: a topic that exists makes a whole creation call fail.
        for spec in standing_topics(1):
            await make_topics(self.kafka, [spec])
        specs = [lane_topic(self.boot_id, number) for number in range(self.lanes)]
        await make_topics(self.kafka, [mailbox_topic(self.node_id)])
        await make_topics(self.kafka, specs)
        self.producer: Any = AIOKafkaProducer(
            bootstrap_servers=self.kafka, acks="all", enable_idempotence=True, max_request_size=JOB_BYTES_MAX
        )
        await self.producer.start()
        self.reader: Any = await self._consumer([spec.name for spec in specs], "earliest")
        self.hearer: Any = await self._consumer([NODE_HEARTBEATS], "latest")
        self._tasks = [asyncio.create_task(work) for work in (self._read(), self._hear(), self._beat())]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for client in (self.reader, self.hearer, self.producer):
            try:
                async with asyncio.timeout(5):
                    await client.stop()
            except TimeoutError:
                pass

    def job(self, **changes: Any) -> jobs.Job:
        now_ms = time.time_ns() // 1_000_000
        fields: dict[str, Any] = {
            "request_id": uuid7(now_ms, os.urandom(10)),
            "attempt": 1,
            "owner": self.boot_id,
            "lane": lane(self.boot_id, self.used),
            "model": "shark-mini",
            "messages": [{"role": "user", "content": "what is 7 plus 5?"}],
            "sampling": jobs.Sampling(temperature=0, seed=1),
            "max_tokens": 64,
            "expires_at_ms": now_ms + 5_000,
            "deadline_at_ms": now_ms + 60_000,
        } | changes
        if "lane" not in changes:
            self.used += 1
        return jobs.Job(**fields)

    async def post(self, letter: jobs.Letter) -> Answer:
        """Sends a letter; the answer that it gets, which fills as records arrive."""
        key = (letter.request_id, letter.attempt)
        answer = self.answers.setdefault(key, Answer(replies.Tally(*key)))
        await self.producer.send_and_wait(
            mailbox(self.node_id), jobs.dump(letter), letter.request_id.encode(), partition=0
        )
        return answer

    async def cancel(self, job: jobs.Job) -> None:
        await self.post(jobs.Cancel(request_id=job.request_id, attempt=job.attempt))

    async def until(self, what: Any, timeout_s: float = 10.0) -> None:
        """Waits until `what()` is true, looked at when something arrives."""
        async with asyncio.timeout(timeout_s):
            while not what():
                self._changed.clear()
                await self._changed.wait()

    async def ended(self, answer: Answer, timeout_s: float = 10.0) -> Answer:
        await self.until(lambda: answer.end is not None or answer.gap, timeout_s)
        return answer

    async def ask(self, timeout_s: float = 10.0, **changes: Any) -> Answer:
        return await self.ended(await self.post(self.job(**changes)), timeout_s)

    async def node_ready(self, timeout_s: float = 30.0) -> None:
        await self.until(lambda: bool(self.beats), timeout_s)

    async def _consumer(self, topics: list[str], reset: str) -> Any:
        consumer: Any = AIOKafkaConsumer(
            bootstrap_servers=self.kafka, group_id=None, auto_offset_reset=reset, fetch_max_wait_ms=20
        )
        await consumer.start()
        await consumer.topics()
        consumer.assign([TopicPartition(topic, 0) for topic in topics])
        if reset == "earliest":
            await consumer.seek_to_beginning()
        else:
            await consumer.seek_to_end()
        return consumer

    async def _read(self) -> None:
        while True:
            for records in (await self.reader.getmany(timeout_ms=500)).values():
                for record in records:
                    self._count(replies.parse(record.value))
            self._changed.set()

    def _count(self, reply: replies.Reply) -> None:
        answer = self.answers[(reply.request_id, reply.attempt)]
        verdict = answer.tally.add(reply)
        if verdict is replies.Verdict.GAP:
            answer.gap = True
        elif verdict is replies.Verdict.STRAY:
            answer.strays += 1
        else:
            answer.records.append(reply)
            answer.arrived_s.append(time.perf_counter())

    async def _hear(self) -> None:
        while True:
            for records in (await self.hearer.getmany(timeout_ms=500)).values():
                beats = [NodeHeartbeat.model_validate_json(record.value) for record in records]
                self.beats.extend(beat for beat in beats if beat.node_id == self.node_id)
            self._changed.set()

    async def _beat(self) -> None:
        while True:
            beat = IngressHeartbeat(boot_id=self.boot_id, at_ms=time.time_ns() // 1_000_000, lanes=self.lanes)
            await self.producer.send(INGRESS_HEARTBEATS, beat.model_dump_json().encode(), self.boot_id.encode())
            await asyncio.sleep(1)
