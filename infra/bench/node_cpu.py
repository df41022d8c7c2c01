"""The node alone over Kafka: CPU per request and latency added to the engine double's own.

`python -m infra.bench.node_cpu HOST:PORT` drives one node process (the double: 16 tokens, 20 ms apart) in a closed loop
of 1, 16, 64 and 200 streams and prints a table. The driver is a bare producer and consumer, no ingress: what it adds
itself (its own loop, one consumer for all lanes) is inside the latencies.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import time
from typing import Any

import orjson
import psutil
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from infra.kafka.topics import create_topics
from schemas.heartbeats import IngressHeartbeat
from schemas.ids import uuid7
from schemas.jobs import Job, Sampling, dump
from schemas.topics import (
    INGRESS_HEARTBEATS,
    JOB_BYTES_MAX,
    NODE_HEARTBEATS,
    lane,
    lane_topic,
    mailbox,
    mailbox_topic,
    standing_topics,
)

TOKENS = 16
INTERVAL_MS = 20
STREAMS = (1, 16, 64, 200)
WARM_S = 2.0
READY_S_MAX = 30.0


class Driver:
    """A pool of lanes, one per stream, and the answers that arrive in them."""

    def __init__(self, kafka: str, node_id: str, lanes: int) -> None:
        self.kafka = kafka
        self.node_id = node_id
        self.boot_id = f"bench{os.urandom(4).hex()}"
        self.lanes = lanes
        self.inboxes: dict[str, asyncio.Queue[Any]] = {}
        self.first_ms: list[float] = []
        self.total_ms: list[float] = []
        self.claim_ms: list[float] = []
        self.records = 0

    async def start(self) -> None:
        specs = [mailbox_topic(self.node_id), *standing_topics(1)]
        specs += [lane_topic(self.boot_id, number) for number in range(self.lanes)]
        await asyncio.to_thread(create_topics, self.kafka, specs)
        self.producer: Any = AIOKafkaProducer(
            bootstrap_servers=self.kafka, acks="all", enable_idempotence=True, max_request_size=JOB_BYTES_MAX
        )
        await self.producer.start()
        self.consumer: Any = AIOKafkaConsumer(
            bootstrap_servers=self.kafka, group_id=None, auto_offset_reset="none", fetch_max_wait_ms=10
        )
        await self.consumer.start()
        await self.consumer.topics()
        names = [lane(self.boot_id, number) for number in range(self.lanes)]
        partitions = [TopicPartition(name, 0) for name in names]
        beats = TopicPartition(NODE_HEARTBEATS, 0)
        end = await self.consumer.end_offsets([beats])
        self.consumer.assign([*partitions, beats])
        for partition in partitions:
            self.consumer.seek(partition, 0)
        self.consumer.seek(beats, end[beats])
        self.inboxes = {name: asyncio.Queue() for name in names}
        self.ready = asyncio.Event()
        self.tasks = [asyncio.create_task(self._read()), asyncio.create_task(self._beat())]

    async def stop(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.consumer.stop()
        await self.producer.stop()

    async def measure(self, streams: int, seconds: float) -> float:
        """Runs `streams` closed loops for `seconds`; returns how long it really took."""
        self.first_ms, self.total_ms, self.claim_ms, self.records = [], [], [], 0
        began_s = time.perf_counter()
        names = [lane(self.boot_id, number) for number in range(streams)]
        await asyncio.gather(*(self._loop(name, began_s + seconds) for name in names))
        return time.perf_counter() - began_s

    async def _loop(self, name: str, until_s: float) -> None:
        while time.perf_counter() < until_s:
            await self._request(name)

    async def _request(self, name: str) -> None:
        now_ms = time.time_ns() // 1_000_000
        job = Job(
            request_id=uuid7(now_ms, os.urandom(10)),
            attempt=1,
            owner=self.boot_id,
            lane=name,
            model="shark-mini",
            messages=[{"role": "user", "content": "what is 7 plus 5?"}],
            sampling=Sampling(),
            max_tokens=64,
            expires_at_ms=now_ms + 10_000,
            deadline_at_ms=now_ms + 60_000,
        )
        began_s = time.perf_counter()
        await self.producer.send(mailbox(self.node_id), dump(job), job.request_id.encode(), 0)
        tokens, first = 0, True
        while True:
            kind, reply, at_s = await self.inboxes[name].get()
            if kind == "claimed":
                self.claim_ms.append((at_s - began_s) * 1000)
            elif kind == "tokens":
                tokens += len(reply["ids"])
                if first:
                    self.first_ms.append((at_s - began_s) * 1000)
                    first = False
            elif kind == "end":
                if tokens != TOKENS or reply["completion_tokens"] != TOKENS:
                    raise RuntimeError(f"{tokens} tokens arrived, the end says {reply['completion_tokens']}")
                self.total_ms.append((at_s - began_s) * 1000)
                return
            elif kind != "alive":
                raise RuntimeError(f"the node answered {reply}")

    async def _read(self) -> None:
        while True:
            batches = await self.consumer.getmany(timeout_ms=1000)
            at_s = time.perf_counter()
            for partition, records in batches.items():
                for record in records:
                    reply = orjson.loads(record.value)
                    if partition.topic == NODE_HEARTBEATS:
                        if reply["node_id"] == self.node_id:
                            self.ready.set()
                        continue
                    self.records += 1
                    self.inboxes[partition.topic].put_nowait((reply["kind"], reply, at_s))

    async def _beat(self) -> None:
        while True:
            beat = IngressHeartbeat(boot_id=self.boot_id, at_ms=time.time_ns() // 1_000_000, lanes=self.lanes)
            await self.producer.send(INGRESS_HEARTBEATS, beat.model_dump_json().encode(), self.boot_id.encode())
            await asyncio.sleep(1)


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


async def run(kafka: str, seconds: float, streams: tuple[int, ...], keep_pid: bool) -> None:
    node_id = f"bench{os.urandom(3).hex()}"
    driver = Driver(kafka, node_id, max(streams))
    await driver.start()
    env = os.environ | {
        "SHRK_KAFKA": kafka,
        "SHRK_NODE_ID": node_id,
        "SHRK_PROVIDER_ID": "bench",
        "SHRK_ENGINE": "double",
        "SHRK_DOUBLE_TOKENS": str(TOKENS),
        "SHRK_DOUBLE_INTERVAL_MS": str(INTERVAL_MS),
        "SHRK_LOG_LEVEL": "WARNING",
    }
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "workers", env=env)
    try:
        async with asyncio.timeout(READY_S_MAX):
            await driver.ready.wait()
        if keep_pid:
            print(f"node pid {process.pid}", flush=True)
        await driver.measure(max(streams), WARM_S)
        watched = psutil.Process(process.pid)
        print(
            f"{'streams':>7} {'req/s':>7} {'CPU ms/req':>10} {'claim p50':>9} {'first +p50':>10} {'+p99':>6} ", end=""
        )
        print(f"{'total +p50':>10} {'+p99':>6} {'records/req':>11}   (ms; + is over the double's own)")
        for count in streams:
            before_s = cpu_s(watched)
            took_s = await driver.measure(count, seconds)
            used_ms = (cpu_s(watched) - before_s) * 1000
            requests = len(driver.total_ms)
            first = [value - INTERVAL_MS for value in driver.first_ms]
            total = [value - INTERVAL_MS * TOKENS for value in driver.total_ms]
            print(
                f"{count:7d} {requests / took_s:7.1f} {used_ms / requests:10.2f} "
                f"{statistics.median(driver.claim_ms):9.1f} {statistics.median(first):10.1f} "
                f"{percentile(first, 0.99):6.1f} "
                f"{statistics.median(total):10.1f} {percentile(total, 0.99):6.1f} {driver.records / requests:11.1f}",
                flush=True,
            )
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()
        await driver.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("kafka", help="host:port of a broker; topics are made in it")
    parser.add_argument("--seconds", type=float, default=8.0, help="per row")
    parser.add_argument("--streams", type=int, nargs="+", default=list(STREAMS))
    parser.add_argument("--pid", action="store_true", help="print the node's pid, for a profiler")
    args = parser.parse_args()
    asyncio.run(run(args.kafka, args.seconds, tuple(args.streams), args.pid))


if __name__ == "__main__":
    main()
