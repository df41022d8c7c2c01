"""PostgreSQL as our child, and migrations on it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from infra import postgres as postgres_module
from infra.errors import MigrationFailed, Unreachable
from infra.migrate import migrate, status
from infra.postgres import Postgres, check
from infra.process import LogFile, running
from infra.supervisor import Backoff, Supervisor


async def scalar(url: str, query: str, *args: object) -> object:
    connection = await asyncpg.connect(url, timeout=10)
    try:
        return await connection.fetchval(query, *args)
    finally:
        await connection.close(timeout=10)


@pytest.fixture(scope="module")
def empty_url(scratch: Path) -> Iterator[str]:
    """A server of this module's own, without our tables."""
    server = Postgres(scratch / "pg-empty")
    server.prepare()
    with running(server.spec(), LogFile(scratch / "pg-empty.log")):
        yield server.url


@pytest.fixture
async def empty_database(empty_url: str) -> str:
    """A fresh database on it."""
    name = f"t{os.urandom(4).hex()}"
    await scalar(empty_url, f"create database {name}")
    return empty_url.replace("/postgres?", f"/{name}?")


async def test_it_is_18_and_durable(empty_url: str) -> None:
    assert await check(empty_url) == 18
    assert await scalar(empty_url, "show synchronous_commit") == "on"
    assert await scalar(empty_url, "show fsync") == "on"
    assert await scalar(empty_url, "show listen_addresses") == ""
    assert await scalar(empty_url, "show max_connections") == "100"


async def test_it_comes_back_with_its_data_and_stops_clean(scratch: Path) -> None:
    log = LogFile(scratch / "pg-again.log")
    for expected in (1, 2):
        server = Postgres(scratch / "pg-again")
        await asyncio.to_thread(server.prepare)
        with running(server.spec(), log) as process:
            await scalar(server.url, "create table if not exists t (n int)")
            await scalar(server.url, "insert into t values (1)")
            assert await scalar(server.url, "select count(*) from t") == expected
        assert process.returncode == 0
        assert not (server.data / "postmaster.pid").exists()


async def test_a_killed_server_is_restarted_with_its_data(scratch: Path) -> None:
    server = Postgres(scratch / "pg-killed")
    await asyncio.to_thread(server.prepare)
    said: list[str] = []
    supervisor = Supervisor(scratch / "pg-killed-logs", said.append, backoff=Backoff(first_s=0.1))
    await supervisor.start(server.spec())
    try:
        await scalar(server.url, "create table t as select 42 as n")
        pid = supervisor.children()[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(30):
            while not any("is back" in line for line in said):
                await asyncio.sleep(0.05)
        assert said[0] == "postgres died (killed by signal 9), restarting"
        assert await scalar(server.url, "select n from t") == 42
    finally:
        await supervisor.stop_all()


async def test_a_path_too_long_for_a_socket_works(scratch: Path) -> None:
    server = Postgres(scratch / ("x" * 120) / "postgres")
    await asyncio.to_thread(server.prepare)
    try:
        assert server.outside()
        with running(server.spec(), LogFile(scratch / "pg-long.log")):
            assert await scalar(server.url, "select 1") == 1
    finally:
        for folder in server.outside():
            folder.rmdir()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root must become another user")
async def test_root_may_keep_its_state_where_others_cannot_go(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    private = scratch / "private"
    private.mkdir(mode=0o700)
    monkeypatch.setattr(postgres_module, "_OUTSIDE", scratch / "outside")
    server = Postgres(private / "postgres")
    await asyncio.to_thread(server.prepare)
    assert server.outside() == [server.data]
    with running(server.spec(), LogFile(scratch / "pg-private.log")):
        assert await scalar(server.url, "select 1") == 1
    assert private.stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root must become another user")
async def test_binaries_that_others_cannot_reach_are_copied(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_module, "_OUTSIDE", scratch / "copied")
    wheel = postgres_module._wheel_folder()
    monkeypatch.setattr(postgres_module, "traversable", lambda path: not path.is_relative_to(wheel))
    server = Postgres(scratch / "pg-copied")
    await asyncio.to_thread(server.prepare)
    spec = server.spec()
    assert Path(spec.argv[0]).is_relative_to(scratch / "copied")
    with running(spec, LogFile(scratch / "pg-copied.log")):
        assert await scalar(server.url, "select 1") == 1


async def test_migrations_apply_once_even_side_by_side(empty_database: str) -> None:
    pending = await status(empty_database)
    assert pending[0] == "0001_state.sql"
    done = await asyncio.gather(migrate(empty_database), migrate(empty_database))
    assert sorted(done, key=len) == [[], pending]
    assert await status(empty_database) == []


async def test_a_failing_migration_leaves_nothing_of_itself(empty_database: str, tmp_path: Path) -> None:
    (tmp_path / "0001_good.sql").write_text("create table good (n int);")
    (tmp_path / "0002_bad.sql").write_text("create table half (n int); select 1/0;")
    with pytest.raises(MigrationFailed, match=r"0002_bad\.sql failed and was rolled back: division by zero"):
        await migrate(empty_database, tmp_path)
    assert await scalar(empty_database, "select to_regclass('good') is not null and to_regclass('half') is null")
    (tmp_path / "0002_bad.sql").write_text("create table half (n int);")
    assert await migrate(empty_database, tmp_path) == ["0002_bad.sql"]
    (tmp_path / "0001_good.sql").write_text("create table better (n int);")
    with pytest.raises(MigrationFailed, match="was changed after it had been applied"):
        await migrate(empty_database, tmp_path)


async def test_an_unreachable_server_is_one_line_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(Unreachable) as caught:
        await check("postgresql://me:hunter2@127.0.0.1:1/x")
    assert "127.0.0.1:1" in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_a_recovery_without_a_restart_closes_admission_too_c7(scratch: Path) -> None:
    """What admission committed without waiting for the disk may be lost, and the server still has its old start."""
    server = Postgres(scratch / "pg-recovers")
    await asyncio.to_thread(server.prepare)
    known = "select exists (select from state.readiness where server_id = state.server_id())"
    with running(server.spec(), LogFile(scratch / "pg-recovers.log")):
        await migrate(server.url)
        before = await scalar(server.url, "select state.server_id()")
        assert await scalar(server.url, "select state.open_admission($1)", before) == 0
        assert await scalar(server.url, known) is True
        idle = await asyncpg.connect(server.url, timeout=10)
        os.kill(await idle.fetchval("select pg_backend_pid()"), signal.SIGKILL)
        idle.terminate()
        async with asyncio.timeout(30):
            while True:
                try:
                    if await scalar(server.url, known) is False:
                        break
                except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                    pass  # it recovers
                await asyncio.sleep(0.1)
        assert await scalar(server.url, "select state.server_id()") == before
        assert await scalar(server.url, "select state.open_admission($1)", before) == 0
        assert await scalar(server.url, known) is True
