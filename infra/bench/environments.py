"""Python environments apart from ours (gateways that are compared, suites that are run), each from its own hashed lock,
made once and kept."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from infra.errors import MachineUnfit, NoDiskSpace

_LOCKS = Path(__file__).resolve().parent.parent / "locks"
_STAMP = "made"
_INSTALL_TIMEOUT_S = 900
_DISK_BYTES = 1536 * 1024**2


def cache_folder(env: Mapping[str, str] = os.environ) -> Path:
    """SHRK_CACHE, else the user's cache folder."""
    if chosen := env.get("SHRK_CACHE"):
        return Path(chosen) / "bench"
    base = env.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "shiver" / "bench"


def ensure(name: str, say: Callable[[str], None], lock_name: str | None = None) -> Path:
    """The interpreter of environment `name`, made from infra/locks/bench-<name>.txt, or the lock of another name, where
    there is none of that lock. Raises MachineUnfit, NoDiskSpace.
    """
    lock = _LOCKS / (lock_name or f"bench-{name}.txt")
    digest = hashlib.sha256(lock.read_bytes() + platform.python_version().encode()).hexdigest()[:12]
    folder = cache_folder() / f"{name}-{digest}"
    python = folder / "bin" / "python"
    if (folder / _STAMP).exists() and python.exists():
        return python
    say(f"making the environment of {name} in {folder} (once; LiteLLM's takes a minute or two)")
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        if shutil.disk_usage(folder).free < _DISK_BYTES:
            raise NoDiskSpace(f"{_DISK_BYTES // 1024**2} MiB are needed in {folder.parent}; set SHRK_CACHE elsewhere")
    except OSError as error:
        raise MachineUnfit(f"{folder} cannot be made: {error.strerror}; set SHRK_CACHE to another folder") from error
    _call([sys.executable, "-m", "venv", str(folder)], f"python -m venv for {name}")
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary", ":all:"]
    _call([*install, "--require-hashes", "-r", str(lock)], f"pip install for {name}")
    (folder / _STAMP).touch()
    return python


def pinned(name: str) -> str:
    """The version of package `name` in infra/locks/bench-<name>.txt."""
    lines = (_LOCKS / f"bench-{name}.txt").read_text().splitlines()
    return next(line.split("==")[1].split()[0] for line in lines if line.startswith(f"{name}=="))


def _call(argv: list[str], what: str) -> None:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_INSTALL_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise MachineUnfit(f"{what} took more than {_INSTALL_TIMEOUT_S} s: is the network there?") from error
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise MachineUnfit(f"{what} failed: {lines[-1].strip()[:300] if lines else 'it said nothing'}")
