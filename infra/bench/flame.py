"""Where each millisecond goes: every process of Shiver profiled while it serves a load.

Python processes through py-spy (on-CPU samples, folded stacks), Kafka by its threads, PostgreSQL by its backends. The
stacks fold into a flame graph with any tool that reads the format (one `frame;frame;frame count` a line).
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from infra.bench import environments, stack
from infra.bench.gateway import shiver_plan
from infra.bench.machine import this_machine
from infra.bench.measure import Measurement, measure
from infra.bench.report import RESULTS, cpu_cells
from infra.errors import ChildFailed

PYTHON_PROCESSES = ("ingress", "node", "streams")
_RATE_HZ = 200
_STACKS_KEPT = 60
_LINES_KEPT = 25


@dataclass(frozen=True)
class Profile:
    """Samples of one process by stack, the outermost frame first."""

    name: str
    stacks: Counter[tuple[str, ...]]

    def self_time(self) -> Counter[str]:
        """Samples by the frame that was running."""
        found: Counter[str] = Counter()
        for frames, count in self.stacks.items():
            found[frames[-1]] += count
        return found

    def with_callees(self) -> Counter[str]:
        """Samples by every frame that was on the stack, each counted once a sample."""
        found: Counter[str] = Counter()
        for frames, count in self.stacks.items():
            for frame in set(frames):
                found[frame] += count
        return found

    def folded(self) -> str:
        """The largest stacks, one a line."""
        return "".join(f"{';'.join(frames)} {count}\n" for frames, count in self.stacks.most_common(_STACKS_KEPT))


def parse_folded(name: str, lines: Iterable[str]) -> Profile:
    """Raises ChildFailed for a line that is no folded stack."""
    stacks: Counter[tuple[str, ...]] = Counter()
    for line in lines:
        frames, _, count = line.strip().rpartition(" ")
        if not frames or not count.isdigit():
            raise ChildFailed(f"py-spy wrote what is no folded stack: {line[:80]!r}")
        stacks[tuple(frames.split(";"))] += int(count)
    return Profile(name, stacks)


def run(streams: int, seconds: float, say: Callable[[str], None], results: Path = RESULTS) -> str:
    """Profiles each process of Shiver for `seconds` under `streams` streams; writes and returns the summary."""
    py_spy = str(environments.ensure("py-spy", say).with_name("py-spy"))
    say(f"starting Shiver with the engine double, to be profiled at {streams} streams")
    with stack.shiver({"SHRK_ENGINE": "double", "SHRK_SLOTS": "512"}) as running:
        plan, _ = shiver_plan(running.base_url, running.key)
        pids = running.pids()
        # py-spy slows what it looks at, so that its readings and the CPU times come from two spans of one load.
        plan = replace(plan, streams=streams, seconds=seconds, seconds_max=seconds * 10 + 30, warmup_s=3.0)
        measured = measure(plan, pids)
        profiles: list[Profile] = []
        tables: dict[str, Counter[str]] = {}

        def profile() -> None:
            for name in PYTHON_PROCESSES:
                for pid in pids[name]:
                    profiles.append(record(py_spy, name, pid, seconds))
            tables["kafka, by thread"] = _thread_ms(pids["kafka"][0], seconds)
            tables["postgres, by backend"] = _backend_ms(pids["postgres"][0], seconds)

        long_enough_s = seconds * (len(PYTHON_PROCESSES) + 2) + 5
        measure(replace(plan, seconds=long_enough_s), pids, on_begin=profile)
        running.require_unharmed()
    return _write(streams, measured, profiles, tables, seconds, say, results)


def record(py_spy: str, name: str, pid: int, seconds: float) -> Profile:
    """Samples one Python process. Raises ChildFailed."""
    with tempfile.TemporaryDirectory(prefix="shrk-bench-") as folder:
        out = Path(folder) / "raw"
        argv = [py_spy, "record", "--pid", str(pid), "--format", "raw", "--output", str(out)]
        argv += ["--duration", str(max(1, round(seconds))), "--rate", str(_RATE_HZ), "--function"]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=seconds + 60, check=False)
        if done.returncode != 0 or not out.exists():
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            raise ChildFailed(f"py-spy could not profile {name}: {lines[-1] if lines else 'it said nothing'}")
        return parse_folded(name, out.read_text().splitlines())


def _thread_ms(pid: int, seconds: float) -> Counter[str]:
    """CPU milliseconds a second of each thread of a process, by the thread's name."""

    def read() -> dict[int, tuple[str, float]]:
        process = psutil.Process(pid)
        found = {}
        for thread in process.threads():
            name = Path(f"/proc/{pid}/task/{thread.id}/comm")
            label = name.read_text().strip() if name.exists() else f"thread {thread.id}"
            found[thread.id] = (label, thread.user_time + thread.system_time)
        return found

    return _difference(read, seconds)


def _backend_ms(pid: int, seconds: float) -> Counter[str]:
    """CPU milliseconds a second of each child of PostgreSQL's postmaster, by what it calls itself."""

    def read() -> dict[int, tuple[str, float]]:
        found = {}
        for child in psutil.Process(pid).children():
            try:
                # "postgres: user database host(port) state": the port and the state change, the rest names the client.
                words = " ".join(child.cmdline()).split()[1:4]
                times = child.cpu_times()
            except psutil.NoSuchProcess:
                continue
            found[child.pid] = (" ".join(words).split("(")[0], times.user + times.system)
        return found

    return _difference(read, seconds)


def _difference(read: Callable[[], dict[int, tuple[str, float]]], seconds: float) -> Counter[str]:
    """CPU milliseconds a second between two readings, `seconds` apart, summed by label."""
    before = read()
    time.sleep(seconds)
    found: Counter[str] = Counter()
    for number, (label, used_s) in read().items():
        spent_ms = (used_s - before.get(number, ("", 0.0))[1]) * 1000 / seconds
        found[label] += round(spent_ms)
    return found


def _write(
    streams: int,
    measured: Measurement,
    profiles: Sequence[Profile],
    tables: dict[str, Counter[str]],
    seconds: float,
    say: Callable[[str], None],
    results: Path,
) -> str:
    machine = this_machine()
    parts = [
        f"# Where the milliseconds go: Shiver at {streams} streams",
        "",
        machine.line(),
        "",
        f"{measured.result.requests_per_s:.0f} requests/s; CPU ms a request: {cpu_cells(measured.cpu_ms)}.",
        f"Python processes: py-spy, {_RATE_HZ} samples a second for {seconds:.0f} s each, on-CPU only. The own time of "
        "`Runner.run` is uvloop's: its C code and its system calls. Threads that wait on a queue can look busy.",
        "",
    ]
    results.mkdir(parents=True, exist_ok=True)
    for profile in profiles:
        per_request_ms = measured.cpu_ms.get(profile.name, 0.0)
        parts += _top(f"{profile.name}, self time", profile.self_time(), profile.stacks.total(), per_request_ms)
        parts += _top(f"{profile.name}, with callees", profile.with_callees(), profile.stacks.total(), per_request_ms)
        path = results / f"flame-{profile.name}-{machine.date}.folded.txt"
        path.write_text(profile.folded())
        say(f"wrote {path}")
    for title, table in tables.items():
        parts += [f"## {title}", "", "| what | CPU ms a second |", "|---|--:|"]
        parts += [f"| {label} | {value} |" for label, value in table.most_common(_LINES_KEPT) if value]
        parts += [""]
    text = "\n".join(parts)
    path = results / f"flame-{machine.date}.md"
    path.write_text(text)
    say(f"wrote {path}")
    return text


def _top(title: str, samples: Counter[str], total: int, per_request_ms: float) -> list[str]:
    """A table of the largest: share of the samples, and that share of the process's CPU time a request."""
    lines = [f"## {title}", "", "| function | share | ms a request |", "|---|--:|--:|"]
    for frame, count in samples.most_common(_LINES_KEPT):
        share = count / total if total else 0.0
        lines.append(f"| `{frame}` | {share:.1%} | {share * per_request_ms:.2f} |")
    return [*lines, ""]
