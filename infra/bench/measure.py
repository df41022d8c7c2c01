"""One measurement: a plan run by the generator in its own process, and the CPU times of the same span."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import orjson

from infra.bench.cpu import CpuMeter, per_request_ms
from infra.bench.load import Plan, Result
from infra.bench.servers import ROOT
from infra.errors import ChildFailed

_SLACK_S = 90.0


@dataclass(frozen=True)
class Measurement:
    """What the clients saw, and CPU milliseconds a good request of each process."""

    result: Result
    cpu_ms: dict[str, float]

    def cpu_all_ms(self) -> float:
        """Of all processes but the load's own."""
        return sum(value for name, value in self.cpu_ms.items() if name not in ("generator", "double"))


def measure(plan: Plan, pids: Mapping[str, list[int]], on_begin: Callable[[], None] | None = None) -> Measurement:
    """Runs `plan`; `pids` are the processes whose CPU time is taken. `on_begin` is called when the warm-up is over.

    Raises ChildFailed if the generator fails, or one of the processes ends.
    """
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "infra.bench.load"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    limit = threading.Timer(60 + plan.warmup_s + plan.seconds_max + plan.timeout_s + _SLACK_S, process.kill)
    limit.start()
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(orjson.dumps(asdict(plan)) + b"\n")
        process.stdin.flush()
        meter = CpuMeter({**pids, "generator": [process.pid]})
        _expect(process, "begin")
        before = meter.read()
        if on_begin is not None:
            on_begin()
        _expect(process, "measured")
        used_s = meter.read().since(before)
        result = Result(**_expect(process, "end")["result"])
        process.wait()
    finally:
        limit.cancel()
        process.kill()
        process.wait()
    return Measurement(result, per_request_ms(used_s, result.requests))


def _expect(process: subprocess.Popen[bytes], event: str) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise ChildFailed(f"the load generator ended early (exit code {process.wait()}); its error is above")
    told = orjson.loads(line)
    if told.get("event") != event:
        raise ChildFailed(f"the load generator said {told.get('event')!r} where {event!r} was due")
    return told
