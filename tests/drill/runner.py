"""Plants one bug at a time in a copy of the tree, and wants its tests to fail there; without it they pass."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.drill.mutants import Mutant

ROOT = Path(__file__).resolve().parents[2]
_FOLDERS = ("schemas", "ledger", "ingress", "streams", "workers", "infra", "tests")
#: The docs are there because tests compare them; models, built things and results are not.
_LEFT_OUT = shutil.ignore_patterns("__pycache__", "shark-mini", "results", "*.pyc")
_EACH_TIMEOUT_S = 300
_TIMES_S = itertools.count(1_000_000_000)
_FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+?)(?:\[| - |$)", re.MULTILINE)


class DrillFailed(Exception):
    """A bug that nobody notices, or a drill that is no longer true. Says which."""


@contextmanager
def copy_of_the_tree() -> Iterator[Path]:
    """What the tests need, in a temporary folder."""
    with TemporaryDirectory(prefix="shrk-drill-") as name:
        folder = Path(name)
        for part in _FOLDERS:
            shutil.copytree(ROOT / part, folder / part, ignore=_LEFT_OUT)
        shutil.copy(ROOT / "pyproject.toml", folder)
        yield folder


def check_passes(tree: Path, mutants: Iterable[Mutant], env: Mapping[str, str] | None = None) -> None:
    """Every test that the drill relies on passes without a bug. Raises DrillFailed."""
    tests = sorted({test for mutant in mutants for test in mutant.tests})
    status, said = _pytest(tree, tests, env)
    if status != 0:
        raise DrillFailed(f"without any bug the drill's tests do not pass:\n{said}")


def drill(tree: Path, mutant: Mutant, env: Mapping[str, str] | None = None) -> None:
    """Plants the bug, runs its tests, takes it out again. Raises DrillFailed where a test does not notice."""
    file = tree / mutant.file
    text = file.read_text()
    if (count := text.count(mutant.old)) != 1:
        raise DrillFailed(f"{mutant.name!r}: its text stands {count} times in {mutant.file}, not once: {mutant.old!r}")
    _write(file, text.replace(mutant.old, mutant.new))
    try:
        status, said = _pytest(tree, mutant.tests, env)
    finally:
        _write(file, text)
    if status not in (0, 1):  # neither passed nor failed: it could not be run, which proves nothing
        raise DrillFailed(f"{mutant.name!r}: pytest ends with {status}:\n{said}")
    failed = set(_FAILED.findall(said))
    for test in mutant.tests:
        if not any(found == test or found.startswith(f"{test}::") for found in failed):
            raise DrillFailed(f"{mutant.name!r} in {mutant.file} is not noticed by {test}:\n{said}")


def _write(file: Path, text: str) -> None:
    """At a time of its own: Python would take the bytecode of another text of this size that is as old."""
    file.write_text(text)
    when_s = next(_TIMES_S)
    os.utime(file, (when_s, when_s))


def _pytest(tree: Path, tests: Iterable[str], env: Mapping[str, str] | None) -> tuple[int, str]:
    # Only the plugin that is needed: the others take three times as long as the tests.
    inside = {**os.environ, **(env or {}), "PYTHONPATH": str(tree), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    inside.pop("PYTEST_ADDOPTS", None)
    plugins = ["-p", "pytest_asyncio.plugin", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", "-q", "--tb=line", "-rfE", *plugins, *tests]
    try:
        done = subprocess.run(
            command, cwd=tree, env=inside, capture_output=True, text=True, timeout=_EACH_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise DrillFailed(f"{' '.join(tests)} did not end within {_EACH_TIMEOUT_S} s") from error
    return done.returncode, (done.stdout + done.stderr)[-6000:]
