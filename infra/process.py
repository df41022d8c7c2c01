"""One child process: how it is described, started, probed, stopped, and where its output goes."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from infra.errors import ChildFailed

Probe = Callable[[], str | None]
"""Asks a process whether it is ready: None if so, else what is missing in a few words. Returns within about 2 s."""

_LAUNCHER = Path(__file__).with_name("launch.py")
_POLL_S = 0.05
_TAIL_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """What a process is and how to treat it.

    `argv[0]` is looked up in PATH. `env` is added to ours. `probe` None means ready as soon as it runs. `stop_signal`
    asks for a clean stop, after `stop_grace_s` comes SIGKILL. `death_signal` is what Linux sends it if we die without a
    word. `uid` and `gid` are who it becomes, None for who we are.
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: Path | None = None
    probe: Probe | None = None
    ready_timeout_s: float = 60.0
    stop_signal: signal.Signals = signal.SIGTERM
    stop_grace_s: float = 10.0
    death_signal: signal.Signals = signal.SIGKILL
    uid: int | None = None
    gid: int | None = None


class LogFile:
    """A child's output, kept to about `max_bytes` in `path` and as much in `path`.1.

    The child writes to the file itself, so that logging costs us no CPU and cannot stall it. Rotation therefore copies
    and truncates: what is written between the two is lost, which is the price of a bounded log without cooperation.
    """

    def __init__(self, path: Path, max_bytes: int = 10 * 1024 * 1024) -> None:
        self.path = path
        self.max_bytes = max_bytes

    def open(self) -> int:
        """A file descriptor to hand to a child. O_APPEND, or a truncation would leave a hole before its next line."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def rotate_if_large(self) -> bool:
        """Moves the content aside if it has outgrown `max_bytes`; True if so."""
        if not self.path.exists() or self.path.stat().st_size <= self.max_bytes:
            return False
        old = self.path.with_name(self.path.name + ".1")
        shutil.copyfile(self.path, old)
        old.chmod(0o600)
        os.truncate(self.path, 0)
        return True

    def last_line(self, since_byte: int = 0) -> str:
        """The last line with text in it, from `since_byte` on; empty if there is none."""
        if not self.path.exists():
            return ""
        with self.path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            since_byte = since_byte if since_byte <= size else 0  # it was rotated since
            file.seek(max(since_byte, size - _TAIL_BYTES, 0))
            lines = file.read().decode(errors="replace").splitlines()
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def size(self) -> int:
        """Bytes in the file now."""
        return self.path.stat().st_size if self.path.exists() else 0


def spawn(spec: ChildSpec, log: LogFile) -> subprocess.Popen[bytes]:
    """Starts `spec` in its own process group. Call from the main thread: the death signal is tied to that thread."""
    uid, gid = (-1 if value is None else value for value in (spec.uid, spec.gid))
    launch = [sys.executable, "-I", "-S", str(_LAUNCHER), str(int(spec.death_signal)), str(os.getpid())]
    descriptor = log.open()
    try:
        return subprocess.Popen(
            [*launch, str(uid), str(gid), "--", *spec.argv],
            env={**os.environ, **spec.env},
            cwd=spec.cwd,
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=subprocess.STDOUT,
            process_group=0,
        )
    finally:
        os.close(descriptor)


def describe_exit(returncode: int) -> str:
    """`killed by signal 9` or `exit code 3`."""
    return f"killed by signal {-returncode}" if returncode < 0 else f"exit code {returncode}"


def signal_child(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Sends `number` to the process itself; nothing if it is gone."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to the whole process group: the process, or what it left behind."""
    # macOS answers EPERM for a group that holds only zombies.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def failure(spec: ChildSpec, returncode: int, log: LogFile, since_byte: int) -> ChildFailed:
    """The one line about a child that died before it was ready."""
    why = log.last_line(since_byte)
    said = f'; it said "{why[:300]}"' if why else ""
    return ChildFailed(f"{spec.name} did not start ({describe_exit(returncode)}){said}; see {log.path}")


def timed_out(spec: ChildSpec, missing: str, log: LogFile) -> ChildFailed:
    """The one line about a child that runs but does not become ready."""
    return ChildFailed(f"{spec.name} was not ready after {spec.ready_timeout_s:g} s ({missing}); see {log.path}")


def stop(process: subprocess.Popen[bytes], spec: ChildSpec) -> None:
    """Stops a child and waits for it: its stop signal, at most its grace, then SIGKILL to its group."""
    signal_child(process, spec.stop_signal)
    try:
        process.wait(timeout=spec.stop_grace_s)
    except subprocess.TimeoutExpired:
        kill_group(process)
        process.wait(timeout=spec.stop_grace_s)
    kill_group(process)


@contextlib.contextmanager
def running(spec: ChildSpec, log: LogFile) -> Iterator[subprocess.Popen[bytes]]:
    """Runs one child without supervision, for tests and one-off work: ready inside the block, gone after it.

    Raises ChildFailed if it dies first or is not ready within its `ready_timeout_s`.
    """
    since_byte = log.size()
    process = spawn(spec, log)
    try:
        deadline = time.monotonic() + spec.ready_timeout_s
        while spec.probe is not None and (missing := spec.probe()) is not None:
            if (returncode := process.poll()) is not None:
                raise failure(spec, returncode, log, since_byte)
            if time.monotonic() > deadline:
                raise timed_out(spec, missing, log)
            time.sleep(_POLL_S)
        yield process
    finally:
        stop(process, spec)
