"""`shrk up` and its siblings as an operator calls them, on the real Kafka and PostgreSQL, with stand-ins for the
services: what is tested is how they are started, told, watched and stopped. The services themselves: tests/e2e."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from infra.ports import free_port, listens

IDLE = "import time\nprint('up', flush=True)\nwhile True: time.sleep(1)\n"
INGRESS = """
import http.server, os
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"node": "ok"}')
http.server.ThreadingHTTPServer((os.environ["SHRK_HOST"], int(os.environ["SHRK_PORT"])), Answer).serve_forever()
"""
MAIN = "import pathlib, infra.stack\ninfra.stack._ROOT = pathlib.Path({root!r})\nfrom infra.cli import main\nmain()\n"


class Operator:
    """Calls `shrk` on a state folder of its own."""

    def __init__(self, folder: Path, kafka: str, database_url: str) -> None:
        self.state = folder / "state"
        self.port = free_port()
        for name, code in {"streams": IDLE, "workers": IDLE, "ingress": INGRESS}.items():
            (folder / name).mkdir()
            (folder / name / "__init__.py").touch()  # a package without one would lose to the real one
            (folder / name / "__main__.py").write_text(code)
        (folder / "shrk.py").write_text(MAIN.format(root=str(folder)))
        self._command = [sys.executable, str(folder / "shrk.py")]
        self._env = {
            **os.environ,
            "SHRK_STATE": str(self.state),
            "SHRK_KAFKA": kafka,
            "SHRK_DATABASE_URL": database_url,
            "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        }

    def shrk(self, *args: str) -> subprocess.CompletedProcess[str]:
        command = [*self._command, *args]
        return subprocess.run(command, env=self._env, capture_output=True, text=True, timeout=60, check=False)

    def up(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self._command, "up", "--port", str(self.port)],
            env=self._env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def stack(self) -> dict[str, int]:
        children = json.loads((self.state / "stack.json").read_text())["children"]
        return {child["name"]: child["pid"] for child in children}


@pytest.fixture
def operator(tmp_path: Path, kafka: str, database_url: str) -> Operator:
    return Operator(tmp_path, kafka, database_url)


@pytest.fixture
def running(operator: Operator) -> Iterator[subprocess.Popen[str]]:
    with operator.up() as process:
        try:
            wait_for_line(process, "curl -N")
            yield process
        finally:
            process.kill()


def wait_for_line(process: subprocess.Popen[str], text: str) -> str:
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line
        if text in line:
            return seen
    raise AssertionError(f"it ended without {text!r}: {seen}")


def gone(pid: int, within_s: float = 5) -> bool:
    deadline = time.monotonic() + within_s
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_up_restarts_what_dies_and_down_leaves_nothing(operator: Operator, running: subprocess.Popen[str]) -> None:
    shown = operator.shrk("status").stdout
    assert "node-1      ready" in shown
    assert "  ready" in shown.splitlines()
    second = operator.shrk("up", "--port", str(operator.port))
    assert (second.returncode, second.stderr.count("\n")) == (1, 1)
    assert f"a stack already runs on {operator.state} (pid {running.pid})" in second.stderr
    assert "stop it with `shrk down` first" in operator.shrk("clean").stderr

    os.kill(operator.stack()["streams"], signal.SIGKILL)
    said = wait_for_line(running, "streams is back")
    assert "streams died (killed by signal 9), restarting" in said

    pids = operator.stack().values()
    down = operator.shrk("down")
    assert (down.returncode, down.stdout) == (0, f"stopped (pid {running.pid})\n")
    assert running.wait(30) == 0
    assert all(gone(pid) for pid in pids)
    assert not listens("127.0.0.1", operator.port)
    assert operator.shrk("down").stderr == f"shrk: no stack runs on {operator.state}\n"
    assert operator.shrk("status").returncode == 3 or "node" in operator.shrk("status").stdout
    assert operator.shrk("clean").stdout == f"removed {operator.state}\n"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells children of their parent's death")
def test_a_killed_up_leaves_nothing_and_can_start_again(operator: Operator, running: subprocess.Popen[str]) -> None:
    pids = operator.stack().values()
    keys = (operator.state / "keys.json").read_text()
    running.kill()
    assert all(gone(pid) for pid in pids)
    with operator.up() as again:
        wait_for_line(again, "curl -N")
        assert (operator.state / "keys.json").read_text() == keys
        again.send_signal(signal.SIGINT)
        assert again.wait(30) == 0


def test_keys_and_wallets_by_hand(operator: Operator) -> None:
    name = f"hand-{os.urandom(4).hex()}"
    # Ran once so that the topics are there.
    with operator.up() as process:
        wait_for_line(process, "curl -N")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert operator.shrk("wallet", "create", name).stdout == f"made wallet {name}\n"
    key = operator.shrk("keys", "create", "--wallet", name, "--name", "mine").stdout.strip()
    assert key.startswith("shvr_pro_")
    assert "mine" in operator.shrk("keys", "list", "--wallet", name).stdout
    credited = operator.shrk("wallet", "credit", name, "2.5", "--ref", f"ref-{name}")
    assert credited.stdout == f"credited 2.5 to {name} (reference ref-{name})\n"
    assert "balance    0 SHIVER" in operator.shrk("wallet", "show", name).stdout  # no projection runs here
    assert operator.shrk("keys", "revoke", key).returncode == 0
    assert "revoked" in operator.shrk("keys", "list", "--wallet", name).stdout
    refused = operator.shrk("wallet", "show", "nobody")
    assert (refused.returncode, refused.stderr) == (1, "shrk: no wallet nobody\n")


def test_doctor_names_what_is_missing(operator: Operator) -> None:
    told = operator.shrk("doctor")
    assert told.returncode == 1
    assert "no node was heard in 3 s" in told.stdout or "topic" in told.stdout
    assert "migrations are up to date" in told.stdout
    assert "Traceback" not in told.stdout + told.stderr


def test_a_service_that_cannot_start_is_one_line_and_leaves_nothing(operator: Operator, tmp_path: Path) -> None:
    (tmp_path / "ingress" / "__main__.py").write_text("raise SystemExit('SHRK_PORT is odd')")
    with operator.up() as process:
        assert process.wait(60) == 1
        assert process.stdout is not None
        told = process.stdout.read()
    assert 'shrk: ingress did not start (exit code 1); it said "SHRK_PORT is odd"' in told
    assert "Traceback" not in told
    assert all(pid is None or gone(pid) for pid in operator.stack().values())


def test_a_port_in_use_is_one_line(operator: Operator) -> None:
    import socket

    with socket.create_server(("127.0.0.1", operator.port)):
        told = operator.shrk("up", "--port", str(operator.port))
    assert told.returncode == 1
    assert told.stderr == (
        f"shrk: port {operator.port} on 127.0.0.1 is in use by another process; choose another with `shrk up --port`\n"
    )
