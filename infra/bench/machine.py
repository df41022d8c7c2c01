"""What a table was measured on: enough to judge the numbers, nothing that names the machine or its owner."""

from __future__ import annotations

import datetime
import os
import platform
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Machine:
    """CPU model, cores this process may use, memory, kernel, Python, and the day."""

    cpu: str
    cores: int
    memory_gib: float
    kernel: str
    python: str
    date: str

    def line(self) -> str:
        """In one line."""
        return (
            f"{self.cpu}, {self.cores} cores, {self.memory_gib:.0f} GiB, {self.kernel}, "
            f"Python {self.python}, {self.date}"
        )


def this_machine() -> Machine:
    """Reads /proc where there is one."""
    return Machine(
        cpu=_field(Path("/proc/cpuinfo"), "model name") or platform.processor() or platform.machine() or "unknown CPU",
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_gib=_memory_gib(),
        kernel=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
    )


def _memory_gib() -> float:
    kib = _field(Path("/proc/meminfo"), "MemTotal").removesuffix("kB").strip()
    return int(kib) / 1024**2 if kib.isdigit() else 0.0


def _field(path: Path, name: str) -> str:
    """The value of the first `name : value` line; empty without one."""
    if not path.exists():
        return ""
    for line in path.read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""
