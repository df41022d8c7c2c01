"""Kafka's jars: a checked-in list with SHA-256, fetched side by side from a Maven repository into a cache.

jgo only fetches single artifacts here. Its dependency resolver is not used: it pairs Kafka 4.3.1 with kafka-clients
3.9.1, so the list is complete (jars.txt) and nothing is resolved at run time.
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.errors import JarsUnavailable

_LIST = Path(__file__).with_name("jars.txt")
_SIDE_BY_SIDE = 12
_HTTP_TIMEOUT_S = 20


@dataclass(frozen=True, slots=True)
class Jar:
    """One jar of the list; `sha256` in hex."""

    group: str
    artifact: str
    version: str
    sha256: str

    @property
    def coordinate(self) -> str:
        """As Maven writes it."""
        return f"{self.group}:{self.artifact}:{self.version}"

    def path_in(self, cache: Path) -> Path:
        """Where a Maven repository laid out in `cache` keeps it."""
        return cache.joinpath(
            *self.group.split("."), self.artifact, self.version, f"{self.artifact}-{self.version}.jar"
        )


def parse_list(text: str) -> list[Jar]:
    """Reads lines of `group:artifact:version  sha256`; `#` starts a comment. Raises JarsUnavailable."""
    jars = []
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.split("#", 1)[0].strip()
        if not line:
            continue
        coordinate, _, digest = line.partition(" ")
        group, artifact, version, *rest = [*coordinate.split(":"), "", ""]
        sha256 = digest.strip()
        if not version or any(rest) or len(sha256) != 64 or set(sha256) - set("0123456789abcdef"):
            raise JarsUnavailable(f"jars.txt line {number} is not 'group:artifact:version  sha256': {line!r}")
        jars.append(Jar(group, artifact, version, sha256))
    return jars


def listed() -> list[Jar]:
    """The jars that the broker needs."""
    return parse_list(_LIST.read_text())


def default_cache(env: Mapping[str, str] = os.environ) -> Path:
    """Where jars are kept between runs and state folders: SHRK_CACHE, else the user's cache folder."""
    if chosen := env.get("SHRK_CACHE"):
        return Path(chosen) / "maven"
    base = env.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "shiver" / "maven"


def _is_right(jar: Jar, cache: Path) -> bool:
    path = jar.path_in(cache)
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == jar.sha256


def _context(cache: Path, repository: str | None) -> Any:
    from jgo.maven import MavenContext  # 0.4 s to import, and only a first start needs it

    # jgo warns where a repository has no .sha1 beside a jar; we check SHA-256 ourselves.
    logging.getLogger("jgo").setLevel(logging.ERROR)
    remote = {"mirror": repository.rstrip("/")} if repository else None
    return MavenContext(repo_cache=cache, local_repos=[], remote_repos=remote, timeout=_HTTP_TIMEOUT_S)


def _fetch(context: Any, jar: Jar, cache: Path) -> None:
    path = jar.path_in(cache)
    path.unlink(missing_ok=True)  # of another content: an earlier fetch that was cut off
    try:
        context.project(jar.group, jar.artifact).at_version(jar.version).artifact().resolve()
    except Exception as error:
        path.unlink(missing_ok=True)
        raise JarsUnavailable(_why(jar, error)) from error
    if not _is_right(jar, cache):
        path.unlink(missing_ok=True)
        raise JarsUnavailable(f"{jar.coordinate} from the repository has another SHA-256 than jars.txt; deleted it")


def _why(jar: Jar, error: Exception) -> str:
    hint = "; set SHRK_MAVEN_REPOSITORY to a mirror, or SHRK_KAFKA=host:port to a broker that runs"
    if isinstance(error, OSError) and "requests" in type(error).__module__:
        what = f"{jar.coordinate} could not be fetched from the Maven repository"
        return f"no network: {what} ({type(error).__name__}){hint}"
    reason = error.strerror if isinstance(error, OSError) and error.strerror else "the repository does not have it"
    return f"{jar.coordinate} could not be fetched: {reason}{hint}"


@contextlib.contextmanager
def _locked(cache: Path) -> Iterator[None]:
    """One fetcher at a time: jgo writes straight to the final path."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        lock = (cache / ".shrk-lock").open("w")
    except OSError as error:
        raise JarsUnavailable(f"the jar cache {cache} cannot be written ({error.strerror}); set SHRK_CACHE") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def ensure_jars(
    jars: Sequence[Jar] | None = None,
    cache: Path | None = None,
    repository: str | None = None,
    cancelled: threading.Event | None = None,
) -> list[Path]:
    """Paths of all `jars` (default: the broker's), fetching what `cache` lacks, with a progress bar on stderr.

    `repository` is the address of a Maven repository in place of Maven Central (default: SHRK_MAVEN_REPOSITORY). Every
    SHA-256 is checked, of cached jars too. Raises JarsUnavailable with one line for the first jar that cannot be had.
    """
    jars = listed() if jars is None else jars
    cache = cache or default_cache()
    repository = repository or os.environ.get("SHRK_MAVEN_REPOSITORY") or None
    with ThreadPoolExecutor(_SIDE_BY_SIDE, thread_name_prefix="jars") as pool:
        right = list(pool.map(lambda jar: _is_right(jar, cache), jars))
        if not all(right):
            with _locked(cache):
                missing = [jar for jar in jars if not _is_right(jar, cache)]  # another process may have fetched them
                context = _context(cache, repository)
                _wait_all([pool.submit(_fetch, context, jar, cache) for jar in missing], cancelled)
    return [jar.path_in(cache) for jar in jars]


def _wait_all(fetches: list[Future[None]], cancelled: threading.Event | None) -> None:
    import click

    pending = set(fetches)
    with click.progressbar(length=len(fetches), label="Fetching Kafka", file=click.get_text_stream("stderr")) as bar:
        try:
            while pending:
                done, pending = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
                for fetch in done:
                    fetch.result()
                    bar.update(1)
                if cancelled is not None and cancelled.is_set():
                    raise JarsUnavailable("fetching Kafka's jars was interrupted")
        finally:
            for fetch in pending:
                fetch.cancel()
