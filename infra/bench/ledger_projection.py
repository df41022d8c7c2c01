"""The projection's part of `make bench-ledger`: the streams process, from a full log into an empty PostgreSQL."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import asyncpg
import psutil

from infra.bench.servers import ROOT
from infra.errors import ChildFailed
from infra.process import ChildSpec, LogFile, running
from schemas.settings import Settings

#: By how many processes share the partitions.
WHAT = {1: "projection into PostgreSQL", 2: "projection into PostgreSQL, two processes"}
_POLL_S = 0.1
#: Where a slow machine is given up.
_EVENTS_PER_S_MIN = 200
_RESTARTS_MAX = 20
_TABLES = ("offsets", "accounts", "entries", "requests", "credits", "adjustments", "rejections")


class Projected(NamedTuple):
    """From the first transaction to the last one of the whole backlog, and what the machine did meanwhile."""

    what: str
    events: int
    seconds: float
    restarts: int
    streams_cores: float  # CPU seconds a second, of the processes that got to the end
    busy_cores: float  # of the whole machine
    load: float  # the minute's load average at the end

    def note(self) -> str:
        """One line for the table."""
        return (
            f"{self.what}: {self.events / self.seconds / 2:,.0f} usages/s over the whole backlog; of "
            f"{os.cpu_count()} cores {self.busy_cores:.1f} were busy, {self.streams_cores:.1f} of them with streams; "
            f"load {self.load:.1f}; streams ended and was started again {self.restarts} times"
        )


class _Moment(NamedTuple):
    """When the first transaction was seen."""

    at_s: float
    events: int
    streams_s: float
    busy_s: float


async def project(settings: Settings, count: int, folder: Path, processes: int) -> Projected:
    """From empty tables. The first start is not counted, any further one is. Raises ChildFailed."""
    spec = ChildSpec(
        name="streams",
        argv=(sys.executable, "-P", "-m", "streams"),
        env={
            "SHRK_KAFKA": settings.kafka,
            "SHRK_DATABASE_URL": settings.database_url,
            "SHRK_LEDGER_PARTITIONS": str(settings.ledger_partitions),
            "SHRK_EPOCH_INTERVAL": "off",
            "PYTHONPATH": str(ROOT),
        },
    )
    log, restarts = LogFile(folder / "streams.log"), 0
    db = await asyncpg.connect(settings.database_url)
    try:
        await db.execute(f"truncate {', '.join(f'derived.{table}' for table in _TABLES)}")
        deadline_s = time.monotonic() + 60 + count / _EVENTS_PER_S_MIN
        first: _Moment | None = None
        with contextlib.ExitStack() as stack:
            running_now = [stack.enter_context(running(spec, log)) for _ in range(processes)]
            while True:
                done = await db.fetchval("select coalesce(sum(next), 0)::bigint from derived.offsets")
                if done and first is None:
                    first = _Moment(time.perf_counter(), done, _cpu_s(running_now), _busy_s())
                if first is not None and done >= count:
                    seconds = max(time.perf_counter() - first.at_s, _POLL_S)
                    streams_cores = (_cpu_s(running_now) - first.streams_s) / seconds
                    busy_cores = (_busy_s() - first.busy_s) / seconds
                    load = os.getloadavg()[0]
                    events = done - first.events
                    return Projected(WHAT[processes], events, seconds, restarts, streams_cores, busy_cores, load)
                if time.monotonic() > deadline_s:
                    raise ChildFailed(f"streams got to {done:,} of {count:,} events: {log.last_line()}")
                for at, process in enumerate(running_now):
                    if process.poll() is not None:
                        restarts += 1  # as the supervisor of `shrk up` does it
                        if restarts > _RESTARTS_MAX:
                            raise ChildFailed(f"streams ended {restarts} times: {log.last_line()}")
                        running_now[at] = stack.enter_context(running(spec, log))
                await asyncio.sleep(_POLL_S)
    finally:
        await db.close()


def _cpu_s(processes: Iterable[subprocess.Popen[bytes]]) -> float:
    """Of those that live."""
    total_s = 0.0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = psutil.Process(process.pid).cpu_times()
            total_s += times.user + times.system
    return total_s


def _busy_s() -> float:
    times = psutil.cpu_times()
    return times.user + times.system + getattr(times, "softirq", 0.0) + getattr(times, "steal", 0.0)
