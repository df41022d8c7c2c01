"""The servers of the benches other than Shiver: each started alone, ready inside its block, gone after it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from infra.http import http_get
from infra.ports import LOOPBACK, free_port
from infra.process import ChildSpec, LogFile, Probe, running

ROOT = Path(__file__).resolve().parent.parent.parent


class Server:
    """One that runs: its base URL without `/v1`, and its pid."""

    def __init__(self, base_url: str, pid: int) -> None:
        self.base_url = base_url
        self.pid = pid


def http_probe(url: str) -> Probe:
    """Ready when a GET of `url` is answered with 200."""

    def probe() -> str | None:
        status, _ = http_get(url)
        return None if status == 200 else f"{url} {f'answers {status}' if status else 'does not answer yet'}"

    return probe


@contextlib.contextmanager
def serving(make_spec: Callable[[int], ChildSpec], folder: Path) -> Iterator[Server]:
    """Runs what `make_spec` describes for a free port; its log goes to `folder`. Raises ShrkError."""
    port = free_port()
    spec = make_spec(port)
    with running(spec, LogFile(folder / f"{spec.name}.log")) as process:
        yield Server(f"http://{LOOPBACK}:{port}", process.pid)


def double_spec(port: int) -> ChildSpec:
    """The upstream double."""
    return _ours("upstream-double", "infra.bench.upstream_double", port, "/v1/models")


def engine_spec(port: int, slots: int) -> ChildSpec:
    """llama.cpp's own server with shark-mini."""
    return _ours("llama-server", "infra.bench.engine_server", port, "/health", str(slots))


def passthrough_spec(port: int, upstream: str, say: Callable[[str], None]) -> ChildSpec:
    """The bare gateway, in its own environment."""
    from infra.bench import environments

    python = environments.ensure("passthrough", say)
    script = Path(__file__).with_name("passthrough.py")
    return ChildSpec(
        name="passthrough",
        # -I: nothing of ours is importable there, as nothing of this package would be for anyone else.
        argv=(str(python), "-I", str(script), str(port), upstream),
        probe=http_probe(f"http://{LOOPBACK}:{port}/healthz"),
        ready_timeout_s=30.0,
    )


def _ours(name: str, module: str, port: int, path: str, *args: str) -> ChildSpec:
    return ChildSpec(
        name=name,
        argv=(sys.executable, "-P", "-m", module, str(port), *args),
        env={"PYTHONPATH": str(ROOT)},
        probe=http_probe(f"http://{LOOPBACK}:{port}{path}"),
        ready_timeout_s=30.0,
    )
