"""The state folder: everything that a stack keeps between runs, who runs on it now, and how it is removed.

Only the standard library is imported: `make clean` runs `python -m infra.state clean` without an environment.

    up.lock          held by the running `shrk up`; its text says who that is
    stack.json       the stack's addresses and processes, rewritten at every change
    keys.json        the demo keys in clear, 0600 (the database has only their hashes)
    outside.json     folders outside that belong to this one (see infra/postgres.py)
    kafka/ postgres/ logs/
"""

import contextlib
import fcntl
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from infra.errors import AlreadyRunning, MachineUnfit, NoDiskSpace, NotRunning, ShrkError

NEEDED_BYTES = 1024**3
_MARKS = ("up.lock", "kafka", "postgres", "logs")


def default_folder(env: Mapping[str, str] = os.environ) -> Path:
    """SHRK_STATE, else `.shiver` in the current directory."""
    return Path(env.get("SHRK_STATE") or ".shiver").absolute()


class StateFolder:
    """One state folder; nothing is touched before `create()`."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = (root or default_folder()).absolute()
        self.logs = self.root / "logs"
        self.kafka = self.root / "kafka"
        self.postgres = self.root / "postgres"
        self.keys_file = self.root / "keys.json"

    def create(self) -> None:
        """Makes the folder. Raises MachineUnfit if it cannot be written, NoDiskSpace if less than 1 GiB is free."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            # As root, PostgreSQL runs as another user and must get through; it can list nothing, and what matters
            # inside is 0700 or 0600.
            self.root.chmod(0o711 if os.geteuid() == 0 else 0o700)
            self.logs.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise MachineUnfit(
                f"the state folder {self.root} cannot be written: {error.strerror}; set SHRK_STATE"
            ) from error
        free_bytes = shutil.disk_usage(self.root).free
        if free_bytes < NEEDED_BYTES:
            raise NoDiskSpace(
                f"only {free_bytes // 1024**2} MiB are free for the state folder {self.root}, "
                f"{NEEDED_BYTES // 1024**2} MiB are needed; free some, or set SHRK_STATE to a folder on another disk"
            )

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the folder for this process. Raises AlreadyRunning, naming the holder."""
        path = self.root / "up.lock"
        # Never truncated before it is ours: the text is the holder's.
        with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise AlreadyRunning(
                    f"a stack already runs on {self.root} (pid {file.read().strip() or 'unknown'}); "
                    "stop it with `shrk down`, or set SHRK_STATE to another folder"
                ) from error
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
            try:
                yield
            finally:
                file.seek(0)
                file.truncate(0)

    def holder_pid(self) -> int | None:
        """The pid of the running `shrk up`, or None. That it holds the lock proves that the pid is not a stale one."""
        path = self.root / "up.lock"
        if not path.exists():
            return None
        with path.open("r+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                text = file.read().strip()
                return int(text) if text.isdigit() else None
        return None

    def require_holder_pid(self) -> int:
        """As `holder_pid`; raises NotRunning."""
        pid = self.holder_pid()
        if pid is None:
            raise NotRunning(f"no stack runs on {self.root}")
        return pid

    def wait_released(self, timeout_s: float) -> bool:
        """Waits until nobody holds the folder; False if that took longer than `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while self.holder_pid() is not None:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return True

    def write_stack(self, stack: Mapping[str, Any]) -> None:
        """Says what runs, for `shrk status`, in one atomic step."""
        write_private(self.root / "stack.json", json.dumps(stack, indent=1))

    def read_stack(self) -> dict[str, Any]:
        """What was last written; empty if nothing was."""
        path = self.root / "stack.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def add_outside(self, folder: Path) -> None:
        """Notes a folder elsewhere that lives and dies with this one."""
        folders = {str(known) for known in self.outside()} | {str(folder)}
        write_private(self.root / "outside.json", json.dumps(sorted(folders)))

    def outside(self) -> list[Path]:
        """The folders elsewhere that belong to this one."""
        path = self.root / "outside.json"
        return [Path(text) for text in json.loads(path.read_text())] if path.exists() else []

    def remove(self) -> bool:
        """Deletes the folder and what belongs to it; False if there was none.

        Raises AlreadyRunning if a stack runs on it, ShrkError if it does not look like a state folder.
        """
        if not self.root.exists():
            return False
        if (pid := self.holder_pid()) is not None:
            raise AlreadyRunning(f"a stack runs on {self.root} (pid {pid}); stop it with `shrk down` first")
        if any(self.root.iterdir()) and not any((self.root / mark).exists() for mark in _MARKS):
            raise ShrkError(f"{self.root} does not look like a state folder of shrk; nothing was removed")
        for folder in self.outside():
            # Only where infra/postgres.py makes them: the file could have been edited.
            if folder.parent.name.startswith("shiver") and folder.exists():
                shutil.rmtree(folder)
        shutil.rmtree(self.root)
        return True


def write_private(path: Path, text: str) -> None:
    """Replaces `path` by `text` in one step, readable by its owner alone."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    temporary.replace(path)


def main(args: list[str]) -> int:
    """`clean` removes the state folder. Returns the exit code."""
    if args != ["clean"]:
        print("usage: python -m infra.state clean", file=sys.stderr)
        return 2
    state = StateFolder()
    try:
        removed = state.remove()
    except (ShrkError, OSError) as error:
        print(f"shrk: {error}", file=sys.stderr)
        return 1
    if removed:
        print(f"removed {state.root}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
