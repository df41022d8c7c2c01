"""Keeps the processes of the stack running: starts them until ready, restarts what dies, stops all in reverse order."""

import asyncio
import contextlib
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from infra.errors import ChildFailed
from infra.process import (
    ChildSpec,
    LogFile,
    describe_exit,
    failure,
    kill_group,
    signal_child,
    spawn,
    timed_out,
)

_POLL_S = 0.05
_WATCH_S = 0.1
_ROTATE_EVERY_S = 5.0


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to wait before the n-th restart in a row: `first_s` doubled each time, at most `cap_s`.

    A process that ran for `healthy_after_s` starts again from `first_s`.
    """

    first_s: float = 0.5
    cap_s: float = 30.0
    healthy_after_s: float = 60.0

    def delay_s(self, failures: int) -> float:
        """The wait after the `failures`-th death in a row (1 for the first)."""
        return min(self.cap_s, self.first_s * 2 ** min(failures - 1, 30))


@dataclass(frozen=True, slots=True)
class ChildStatus:
    """A child as seen from outside. `state` is starting, ready, restarting or stopped; times are Unix seconds."""

    name: str
    pid: int | None
    state: str
    started_at: float
    restarts: int


class _Child:
    def __init__(self, spec: ChildSpec, log: LogFile) -> None:
        self.spec = spec
        self.log = log
        self.process: subprocess.Popen[bytes] | None = None
        self.state = "starting"
        self.started_at = 0.0
        self.ready_at = 0.0  # monotonic
        self.since_byte = 0  # where its log stood when it was started
        self.restarts = 0
        self.failures = 0  # deaths in a row
        self.watcher: asyncio.Task[None] | None = None

    def status(self) -> ChildStatus:
        pid = self.process.pid if self.process is not None and self.process.returncode is None else None
        return ChildStatus(self.spec.name, pid, self.state, self.started_at, self.restarts)


class Supervisor:
    """Runs children in one asyncio loop, which must be that of the main thread.

    `say` gets one line per thing an operator should know; `on_change` is called after every change of a child's state.
    """

    def __init__(
        self,
        log_dir: Path,
        say: Callable[[str], None],
        on_change: Callable[[], None] | None = None,
        backoff: Backoff | None = None,
    ) -> None:
        self._log_dir = log_dir
        self._say = say
        self._on_change = on_change or (lambda: None)
        self._backoff = backoff or Backoff()
        self._children: list[_Child] = []
        self._stopping = False
        self._hurry = asyncio.Event()

    def children(self) -> list[ChildStatus]:
        """Every child, in the order of their starts."""
        return [child.status() for child in self._children]

    async def start(self, spec: ChildSpec) -> None:
        """Starts a child and returns when it is ready; from then on it is watched and restarted.

        Raises ChildFailed if it dies before, or is not ready within its `ready_timeout_s`.
        """
        if self._stopping:
            raise ChildFailed(f"{spec.name} was not started: the stack is stopping")
        child = _Child(spec, LogFile(self._log_dir / f"{spec.name}.log"))
        self._children.append(child)
        await self._bring_up(child)
        child.watcher = asyncio.create_task(self._watch(child), name=f"watch {spec.name}")

    async def stop_all(self) -> None:
        """Stops every child, the last started first, each within its grace; what is left is killed."""
        self._stopping = True
        for child in reversed(self._children):
            if child.watcher is not None:
                child.watcher.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await child.watcher
            await self._stop(child)

    def hurry(self) -> None:
        """Cuts the grace short: a stop in progress, and every later one, goes on with SIGKILL."""
        self._hurry.set()

    def _set(self, child: _Child, state: str) -> None:
        child.state = state
        self._on_change()

    async def _bring_up(self, child: _Child) -> None:
        spec = child.spec
        child.since_byte = child.log.size()
        child.process = spawn(spec, child.log)
        child.started_at = time.time()
        self._set(child, "starting")
        deadline = time.monotonic() + spec.ready_timeout_s
        missing: str | None = "not probed yet"
        while missing is not None:
            if (returncode := child.process.poll()) is not None:
                raise failure(spec, returncode, child.log, child.since_byte)
            # In a thread: a probe may block for a second or two, and the other children must be watched meanwhile.
            missing = await asyncio.to_thread(spec.probe) if spec.probe is not None else None
            if missing is not None:
                if time.monotonic() > deadline:
                    raise timed_out(spec, missing, child.log)
                await asyncio.sleep(_POLL_S)
        child.ready_at = time.monotonic()
        self._set(child, "ready")

    async def _watch(self, child: _Child) -> None:
        next_rotation = time.monotonic() + _ROTATE_EVERY_S
        while True:
            await asyncio.sleep(_WATCH_S)
            if time.monotonic() > next_rotation:
                await asyncio.to_thread(child.log.rotate_if_large)
                next_rotation = time.monotonic() + _ROTATE_EVERY_S
            assert child.process is not None
            if (returncode := child.process.poll()) is not None:
                if time.monotonic() - child.ready_at > self._backoff.healthy_after_s:
                    child.failures = 0
                said = child.log.last_line(child.since_byte)[:300] if returncode > 0 else ""
                await self._restart(child, describe_exit(returncode) + (f', it said "{said}"' if said else ""))

    async def _restart(self, child: _Child, why: str) -> None:
        """Restarts until it is ready again, however often that takes."""
        self._say(f"{child.spec.name} died ({why}), restarting")
        while True:
            assert child.process is not None
            kill_group(child.process)  # what it left behind may hold its port
            child.failures += 1
            self._set(child, "restarting")
            await asyncio.sleep(self._backoff.delay_s(child.failures))
            child.restarts += 1
            try:
                await self._bring_up(child)
            except ChildFailed as error:
                wait_s = self._backoff.delay_s(child.failures + 1)
                self._say(f"{error}; trying again in {wait_s:g} s")
                await self._stop(child)
                continue
            assert child.process is not None
            self._say(f"{child.spec.name} is back (pid {child.process.pid})")
            return

    async def _stop(self, child: _Child) -> None:
        process, spec = child.process, child.spec
        if process is None:
            return
        if process.poll() is None:
            signal_child(process, spec.stop_signal)
            deadline = time.monotonic() + spec.stop_grace_s
            await _exited(process, lambda: time.monotonic() > deadline or self._hurry.is_set())
            if process.poll() is None:
                why = (
                    "is killed at once"
                    if self._hurry.is_set()
                    else f"did not stop within {spec.stop_grace_s:g} s, killed"
                )
                self._say(f"{spec.name} {why}")
        kill_group(process)
        await _exited(process, lambda: False)  # SIGKILL cannot be refused; this only reaps
        self._set(child, "stopped")


async def _exited(process: subprocess.Popen[bytes], given_up: Callable[[], bool]) -> None:
    # Popen has no event to await, and a poll each 50 ms costs nothing.
    while process.poll() is None and not given_up():
        await asyncio.sleep(_POLL_S)
