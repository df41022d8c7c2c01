"""The streams as a process, for tests that kill it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from confluent_kafka import ConsumerGroupState, KafkaException
from confluent_kafka.admin import AdminClient

from schemas import topics
from streams.app import GROUP

ROOT = Path(__file__).resolve().parents[2]


class StreamsProcess:
    """`python -m streams`, its output in a file."""

    def __init__(self, kafka: str, database_url: str, partitions: int, log: Path, **env: str) -> None:
        self._env = {
            **os.environ,
            "SHRK_KAFKA": kafka,
            "SHRK_DATABASE_URL": database_url,
            "SHRK_LEDGER_PARTITIONS": str(partitions),
            "PYTHONPATH": str(ROOT),
            "SHRK_EPOCH_INTERVAL": "off",  # what a test counts in the log is what it wrote there
            **env,
        }
        self.log = log
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "streams"], env=self._env, stdout=out, stderr=out, start_new_session=True
            )

    def runs(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def kill(self, how: signal.Signals = signal.SIGKILL) -> None:
        assert self.process is not None
        self.process.send_signal(how)

    async def ended(self, timeout_s: float) -> int:
        """The exit status. Raises TimeoutError."""
        assert self.process is not None
        async with asyncio.timeout(timeout_s):
            while (status := self.process.poll()) is None:
                await asyncio.sleep(0.05)
        return status

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)

    def text(self) -> str:
        return self.log.read_text(errors="replace")


async def read_up_to(db: Any, ends: Mapping[int, int], timeout_s: float) -> None:
    """Wait until the projection has read to `ends`. Raises TimeoutError."""
    async with asyncio.timeout(timeout_s):
        while True:
            rows = await db.fetch("select partition, next from derived.offsets where topic = $1", topics.LEDGER)
            places = {row["partition"]: row["next"] for row in rows}
            if all(places.get(partition, 0) >= end for partition, end in ends.items()):
                return
            await asyncio.sleep(0.05)


async def shared_by(kafka: str, workers: int, timeout_s: float = 60) -> None:
    """Wait until exactly so many living processes share the log's partitions. Raises TimeoutError."""
    admin = AdminClient({"bootstrap.servers": kafka, "log_level": 0})
    async with asyncio.timeout(timeout_s):
        while await asyncio.to_thread(_sharing, admin) != workers:
            await asyncio.sleep(0.1)


def _sharing(admin: AdminClient) -> int | None:
    """The members of the projection's group, if all have partitions; None while they are being shared out."""
    try:
        group = admin.describe_consumer_groups([GROUP])[GROUP].result(10)
    except KafkaException:  # the broker is still loading the group
        return None
    if group.state != ConsumerGroupState.STABLE or not all(m.assignment.topic_partitions for m in group.members):
        return None
    return len(group.members)
