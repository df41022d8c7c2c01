"""Shiver for a bench: `shrk up` on a fresh state folder, its key, its processes, its books; gone without a trace after.

A stack that does not come up leaves its folder behind, since the error names a log in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from infra.bench.servers import ROOT, http_probe
from infra.errors import ChildFailed, MachineUnfit, ShrkError
from infra.ports import LOOPBACK, free_port
from infra.process import ChildSpec, LogFile, Probe, running
from infra.state import StateFolder

MODEL = "shark-mini"
_UP_TIMEOUT_S = 300.0  # a first start fetches Kafka's jars
_STOP_GRACE_S = 90.0
_POLL_S = 0.1
_NAMES = ("ingress", "streams", "kafka", "postgres")

_BOOKS = """
select count(*) filter (where status = 'charged') as charged,
       count(*) filter (where status = 'failed') as failed,
       count(*) filter (where status = 'open') as open,
       (select count(*) from state.admissions) as holds
from derived.requests
"""


@dataclass(frozen=True)
class Books:
    """What PostgreSQL says of the requests, `settled_s` after the load had ended. `holds` and `open` should be 0."""

    charged: int
    failed: int
    open: int
    holds: int
    settled_s: float

    def note(self, answered: int) -> str:
        """A list item that says whether each of `answered` requests was charged and nothing was left behind."""
        exact = self.charged == answered and not self.failed and not self.open and not self.holds
        return (
            f"- Shiver's books {'agree' if exact else 'DO NOT AGREE'} {self.settled_s:.1f} s after the load: "
            f"{self.charged} requests charged of {answered} answered, {self.failed} failed, {self.open} open, "
            f"{self.holds} holds left"
        )


class Shiver:
    """A stack that runs."""

    def __init__(self, base_url: str, state: StateFolder) -> None:
        self.base_url = base_url
        self._state = state
        self.key = _pro_key(state)
        self.folder = state.root
        self._first_pids = self.pids()

    def pids(self) -> dict[str, list[int]]:
        """Its processes by the names of the tables. Raises ChildFailed if one of them is missing."""
        stack = self._state.read_stack()
        found: dict[str, list[int]] = {"supervisor": [int(stack.get("pid", 0))]}
        for child in stack.get("children", []):
            name = child["name"] if child["name"] in _NAMES else "node"
            if child.get("pid"):
                found.setdefault(name, []).append(int(child["pid"]))
        missing = [name for name in (*_NAMES, "node") if name not in found]
        if missing:
            raise ChildFailed(f"the stack runs without {', '.join(missing)}; see {self._state.logs}")
        return found

    def require_unharmed(self) -> None:
        """Raises ChildFailed if a process was restarted since the start: the numbers are of something else then."""
        now = self.pids()
        changed = [name for name, pids in self._first_pids.items() if now.get(name) != pids]
        if changed:
            raise ChildFailed(f"{', '.join(changed)} died and was restarted during the bench; see {self._state.logs}")

    def settle(self, timeout_s: float = 60.0) -> Books:
        """Waits until the books know the end of every request, at most `timeout_s`."""
        return asyncio.run(self._settle(timeout_s))

    async def _settle(self, timeout_s: float) -> Books:
        began_s = time.monotonic()
        try:
            db = await asyncpg.connect(self._state.read_stack()["database_url"], timeout=10)
        except (OSError, asyncpg.PostgresError, TimeoutError) as error:
            raise ShrkError(f"the books could not be read after the load: {error}") from error
        try:
            while True:
                row = await db.fetchrow(_BOOKS)
                books = Books(row["charged"], row["failed"], row["open"], row["holds"], time.monotonic() - began_s)
                if (not books.open and not books.holds) or books.settled_s > timeout_s:
                    return books
                await asyncio.sleep(_POLL_S)
        finally:
            await db.close()


@contextlib.contextmanager
def shiver(env: Mapping[str, str]) -> Iterator[Shiver]:
    """Runs a stack; `env` is added to its environment (SHRK_ENGINE, SHRK_SLOTS). Raises ShrkError."""
    root = Path(tempfile.mkdtemp(prefix="shrk-bench-"))
    state = StateFolder(root)
    port = free_port()
    base_url = f"http://{LOOPBACK}:{port}"
    spec = ChildSpec(
        name="shrk-up",
        argv=(sys.executable, "-P", "-m", "infra.cli", "up", "--port", str(port)),
        # Never the servers that the operator works with.
        env={"SHRK_KAFKA": "", "SHRK_DATABASE_URL": "", **env, "SHRK_STATE": str(root), "PYTHONPATH": str(ROOT)},
        probe=_probe(base_url, state),
        ready_timeout_s=_UP_TIMEOUT_S,
        stop_signal=signal.SIGINT,
        stop_grace_s=_STOP_GRACE_S,
        death_signal=signal.SIGTERM,
    )
    log = LogFile(root / "logs" / "shrk-up.log")
    keep = False
    try:
        with running(spec, log):
            yield Shiver(base_url, state)
    except ShrkError as error:
        keep = True  # its logs say why
        if str(root) in str(error):
            raise
        raise ChildFailed(f"{error}; the logs are kept in {state.logs}") from error
    finally:
        if not keep:
            with contextlib.suppress(ShrkError):
                state.remove()
            shutil.rmtree(root, ignore_errors=True)


def _probe(base_url: str, state: StateFolder) -> Probe:
    ready = http_probe(f"{base_url}/readyz")

    def probe() -> str | None:
        return ready() if state.keys_file.exists() else "no keys yet"

    return probe


def _pro_key(state: StateFolder) -> str:
    try:
        return str(json.loads(state.keys_file.read_text())["pro"])
    except (OSError, ValueError, KeyError) as error:
        raise MachineUnfit(f"{state.keys_file} has no pro key: {type(error).__name__}") from error
