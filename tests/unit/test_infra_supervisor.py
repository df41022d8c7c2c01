"""The supervisor with real, tiny child processes."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest

from infra.errors import ChildFailed
from infra.process import ChildSpec, LogFile, running
from infra.supervisor import Backoff, Supervisor

QUICK = Backoff(first_s=0.05, cap_s=0.2, healthy_after_s=60)
SLEEPER = (sys.executable, "-S", "-c", "import time; print('up', flush=True); time.sleep(60)")
STUBBORN = (
    sys.executable,
    "-S",
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)",
)


class Said(list[str]):
    async def wait_for(self, text: str, timeout_s: float = 10) -> str:
        async with asyncio.timeout(timeout_s):
            while not (found := [line for line in self if text in line]):
                await asyncio.sleep(0.02)
        return found[0]


@pytest.fixture
def said() -> Said:
    return Said()


@pytest.fixture
async def supervisor(tmp_path: Path, said: Said) -> AsyncIterator[Supervisor]:
    made = Supervisor(tmp_path / "logs", said.append, backoff=QUICK)
    yield made
    made.hurry()
    await made.stop_all()


def logged(tmp_path: Path, name: str) -> Callable[[], str | None]:
    """Ready once the child has written something."""
    log = tmp_path / "logs" / f"{name}.log"
    return lambda: None if log.exists() and log.stat().st_size else "silent"


def test_backoff_doubles_up_to_its_cap() -> None:
    backoff = Backoff(first_s=0.5, cap_s=30)
    assert [backoff.delay_s(n) for n in (1, 2, 3, 7, 100)] == [0.5, 1, 2, 30, 30]


async def test_a_killed_child_is_named_and_restarted(supervisor: Supervisor, said: Said, tmp_path: Path) -> None:
    await supervisor.start(ChildSpec("streams", SLEEPER, probe=logged(tmp_path, "streams")))
    (first,) = supervisor.children()
    assert first.state == "ready"
    assert first.pid is not None
    os.kill(first.pid, signal.SIGKILL)
    await said.wait_for("streams is back")
    assert said[0] == "streams died (killed by signal 9), restarting"
    (second,) = supervisor.children()
    assert second.pid != first.pid
    assert (second.state, second.restarts) == ("ready", 1)


async def test_a_child_that_keeps_dying_is_retried_with_growing_waits(
    supervisor: Supervisor, said: Said, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    code = f"""
import time, pathlib, sys
runs = pathlib.Path({str(runs)!r})
n = len(runs.read_text()) if runs.exists() else 0
runs.write_text("x" * (n + 1))
if 0 < n < 3: sys.exit("no luck")
print("up", flush=True); time.sleep(0.3 if n == 0 else 60); sys.exit(7)
"""

    def ready() -> str | None:
        # A run that has not written yet shows the count of the one before it.
        wanted = 1 if supervisor.children()[0].restarts == 0 else 4
        return None if runs.exists() and len(runs.read_text()) == wanted else "not yet"

    await supervisor.start(ChildSpec("node", (sys.executable, "-S", "-c", code), probe=ready))
    await said.wait_for("node is back")
    assert said[0] == 'node died (exit code 7, it said "up"), restarting'
    assert [line for line in said if "did not start (exit code 1)" in line and 'it said "no luck"' in line]
    assert supervisor.children()[0].restarts == 3


async def test_a_child_that_dies_at_first_is_one_clear_line(supervisor: Supervisor) -> None:
    spec = ChildSpec("ingress", (sys.executable, "-S", "-c", "raise SystemExit('port 1 taken')"), probe=lambda: "no")
    with pytest.raises(ChildFailed, match=r'ingress did not start \(exit code 1\); it said "port 1 taken"'):
        await supervisor.start(spec)


async def test_a_program_that_does_not_exist_says_so(supervisor: Supervisor) -> None:
    with pytest.raises(ChildFailed, match="no-such-program: no such program"):
        await supervisor.start(ChildSpec("x", ("no-such-program",), probe=lambda: "no"))


async def test_a_child_that_never_becomes_ready_is_given_up(supervisor: Supervisor) -> None:
    spec = ChildSpec("x", SLEEPER, probe=lambda: "still loading", ready_timeout_s=0.3)
    with pytest.raises(ChildFailed, match=r"x was not ready after 0.3 s \(still loading\)"):
        await supervisor.start(spec)


async def test_stops_in_reverse_order_and_kills_what_will_not(
    supervisor: Supervisor, said: Said, tmp_path: Path
) -> None:
    await supervisor.start(ChildSpec("first", SLEEPER, probe=logged(tmp_path, "first")))
    stubborn = ChildSpec("second", STUBBORN, probe=logged(tmp_path, "second"), stop_grace_s=0.3)
    await supervisor.start(stubborn)
    pids = [child.pid for child in supervisor.children()]
    await supervisor.stop_all()
    assert [child.state for child in supervisor.children()] == ["stopped", "stopped"]
    assert not [pid for pid in pids if pid is not None and psutil.pid_exists(pid)]
    assert said == ["second did not stop within 0.3 s, killed"]
    with pytest.raises(ChildFailed, match="stopping"):
        await supervisor.start(stubborn)


async def test_hurry_ends_the_grace(supervisor: Supervisor, said: Said, tmp_path: Path) -> None:
    await supervisor.start(ChildSpec("slow", STUBBORN, probe=logged(tmp_path, "slow"), stop_grace_s=60))
    began = time.monotonic()
    stopping = asyncio.create_task(supervisor.stop_all())
    await asyncio.sleep(0.1)
    supervisor.hurry()
    await stopping
    assert time.monotonic() - began < 5
    assert said == ["slow is killed at once"]


async def test_grandchildren_do_not_outlive_a_stop(supervisor: Supervisor, tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, time\n"
        "p = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(60)'])\n"
        "print(p.pid, flush=True); time.sleep(60)"
    )
    await supervisor.start(ChildSpec("parent", (sys.executable, "-c", code), probe=logged(tmp_path, "parent")))
    grandchild = int((tmp_path / "logs" / "parent.log").read_text())
    await supervisor.stop_all()
    deadline = time.monotonic() + 5
    while psutil.pid_exists(grandchild) and psutil.Process(grandchild).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells children of their parent's death")
def test_children_die_with_a_killed_supervisor(tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from infra.process import ChildSpec, LogFile, spawn
child = spawn(ChildSpec("c", {SLEEPER!r}), LogFile(Path({str(tmp_path)!r}) / "c.log"))
print(child.pid, flush=True)
sys.stdin.read()
"""
    root = str(Path(__file__).resolve().parents[2])
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        cwd=root,
        env={**os.environ, "PYTHONPATH": root},
    ) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        deadline = time.monotonic() + 10
        while not (tmp_path / "c.log").stat().st_size:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        parent.kill()
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_running_stops_its_child_when_the_block_fails(tmp_path: Path) -> None:
    pids: list[int] = []

    def fail() -> None:
        with running(ChildSpec("c", SLEEPER), LogFile(tmp_path / "c.log")) as child:
            pids.append(child.pid)
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        fail()
    assert not psutil.pid_exists(pids[0])


def test_a_log_stays_within_its_bounds_while_it_is_written(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "x.log", max_bytes=1000)
    descriptor = log.open()
    try:
        for number in range(100):
            os.write(descriptor, f"line {number:04} {'x' * 40}\n".encode())
            log.rotate_if_large()
    finally:
        os.close(descriptor)
    assert log.size() <= 1060
    assert (tmp_path / "x.log.1").stat().st_size <= 1060
    kept = (tmp_path / "x.log.1").read_bytes() + log.path.read_bytes()
    assert b"line 0099" in kept
    assert b"\0" not in kept
