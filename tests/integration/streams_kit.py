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

from schemas import topics

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
