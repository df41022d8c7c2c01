"""The projection's part of `make bench-ledger`: the streams process, from a full log into an empty PostgreSQL."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path
from typing import NamedTuple

import asyncpg
import psutil

from infra.bench.servers import ROOT
from infra.errors import ChildFailed
from infra.process import ChildSpec, LogFile, running
from schemas.settings import Settings

WHAT = "projection into PostgreSQL"
_POLL_S = 0.1
#: Where a slow machine is given up.
_EVENTS_PER_S_MIN = 200
_RESTARTS_MAX = 20


class Projected(NamedTuple):
    """From the first transaction to the last one of the whole backlog, and what the machine did meanwhile."""

    what: str
    events: int
    seconds: float
    restarts: int
    streams_cores: float  # CPU seconds a second, of the process that got to the end
    busy_cores: float  # of the whole machine
    load: float  # the minute's load average at the end

    def note(self) -> str:
        """One line for the table."""
        return (
            f"the projection booked {self.events / self.seconds / 2:,.0f} usages/s over the whole backlog; of "
            f"{os.cpu_count()} cores {self.busy_cores:.1f} were busy, {self.streams_cores:.1f} of them with streams; "
            f"load {self.load:.1f}; streams ended and was started again {self.restarts} times"
        )


class _Moment(NamedTuple):
    """When the first transaction was seen."""

    at_s: float
    events: int
    busy_s: float


async def project(settings: Settings, count: int, folder: Path) -> Projected:
    """Its first start is not counted, any further one is. Raises ChildFailed."""
    spec = ChildSpec(
        name="streams",
        argv=(sys.executable, "-P", "-m", "streams"),
        env={
            "SHRK_KAFKA": settings.kafka,
            "SHRK_DATABASE_URL": settings.database_url,
            "SHRK_LEDGER_PARTITIONS": str(settings.ledger_partitions),
            "PYTHONPATH": str(ROOT),
        },
    )
    log, restarts = LogFile(folder / "streams.log"), 0
    db = await asyncpg.connect(settings.database_url)
    try:
        deadline_s = time.monotonic() + 60 + count / _EVENTS_PER_S_MIN
        first: _Moment | None = None
        while True:
            with running(spec, log) as process:
                begun_s = 0.0
                while process.poll() is None:
                    done = await db.fetchval("select coalesce(sum(next), 0)::bigint from derived.offsets")
                    if done and not begun_s:
                        begun_s = _cpu_s(process.pid)
                    if done and first is None:
                        first = _Moment(time.perf_counter(), done, _busy_s())
                    if first is not None and done >= count:
                        seconds = max(time.perf_counter() - first.at_s, _POLL_S)
                        return Projected(
                            WHAT,
                            done - first.events,
                            seconds,
                            restarts,
                            (_cpu_s(process.pid) - begun_s) / seconds,
                            (_busy_s() - first.busy_s) / seconds,
                            os.getloadavg()[0],
                        )
                    if time.monotonic() > deadline_s:
                        raise ChildFailed(f"streams got to {done:,} of {count:,} events: {log.last_line()}")
                    await asyncio.sleep(_POLL_S)
            restarts += 1  # as the supervisor of `shrk up` does it
            if restarts > _RESTARTS_MAX:
                raise ChildFailed(f"streams ended {restarts} times: {log.last_line()}")
    finally:
        await db.close()


def _cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def _busy_s() -> float:
    times = psutil.cpu_times()
    return times.user + times.system + getattr(times, "softirq", 0.0) + getattr(times, "steal", 0.0)
