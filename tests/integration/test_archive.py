"""`shrk ledger archive` on a real log: the same bytes however it came about, and replay from it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import asyncpg
import pytest
from books_kit import P, all_records, append_all, make_log_of, project, shrk, tree
from ledger_kit import load

ROOT = Path(__file__).resolve().parents[2]


async def archive(kafka: str, url: str, folder: Path, *arguments: str, records: int = 128) -> str:
    result = await shrk(kafka, url, "archive", "--out", str(folder), "--range", str(records), *arguments)
    assert result.exit_code == 0, result.output
    return result.output.splitlines()[-1]


async def digest(kafka: str, url: str, *arguments: str) -> str:
    result = await shrk(kafka, url, "replay", *arguments)
    assert result.exit_code == 0, result.output
    return result.output.splitlines()[-1]


async def test_the_same_log_gives_the_same_bytes(ledger_log: str, books_url: str, tmp_path: Path) -> None:
    many = load(7, 700)
    once, twice, tails = tmp_path / "once", tmp_path / "twice", tmp_path / "tails"
    await append_all(ledger_log, many[:900])
    await archive(ledger_log, books_url, twice)
    await archive(ledger_log, books_url, tails, "--tail")
    early = tree(twice)
    await append_all(ledger_log, many[900:])
    await archive(ledger_log, books_url, once)
    await archive(ledger_log, books_url, twice)
    assert tree(once) == tree(twice)
    assert len(early) < len(tree(once))
    for name in set(early) - {"manifest.json"}:
        assert early[name] == tree(once)[name]

    for _ in range(2):
        assert (await archive(ledger_log, books_url, once)).startswith("0 records written in 0 files")
    assert tree(once) == tree(twice)

    await archive(ledger_log, books_url, tails, "--tail")
    await archive(ledger_log, books_url, once, "--tail")
    assert tree(tails) == tree(once)
    assert sum(len(records) for records in await all_records(ledger_log)) == await archived(tails)


async def archived(folder: Path) -> int:
    from ledger.archive import Archive

    return sum(Archive.open(folder, P).ends().values())


async def test_replay_from_the_archive_and_the_tail_is_replay(
    ledger_log: str, books: asyncpg.Pool, books_url: str, tmp_path: Path
) -> None:
    many = load(8, 500)
    await append_all(ledger_log, many[:-200])
    await archive(ledger_log, books_url, tmp_path)
    await project(ledger_log, books)  # it ends inside the archive's last range, or behind it
    await append_all(ledger_log, many[-200:])
    option = ("--archive", str(tmp_path))
    assert await digest(ledger_log, books_url, *option) == await digest(ledger_log, books_url)
    assert (await shrk(ledger_log, books_url, "replay", "--compare", *option)).exit_code == 0
    await archive(ledger_log, books_url, tmp_path, "--tail")
    assert await digest(ledger_log, books_url, *option) == await digest(ledger_log, books_url)
    # The database is behind the archive now.
    compared = await shrk(ledger_log, books_url, "replay", "--compare", *option)
    assert compared.exit_code == 0, compared.output
    assert "PostgreSQL is the same" in compared.output


def killed_after(files: int, folder: Path, arguments: list[str], env: dict[str, str]) -> int:
    """Runs it until it has written so many files, kills it, and returns its exit status."""
    process = subprocess.Popen(arguments, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(list(folder.glob("partition-*/*.parquet"))) < files and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    return process.wait(10)


async def test_a_kill_costs_nothing(ledger_log: str, books_url: str, tmp_path: Path) -> None:
    await append_all(ledger_log, load(9, 400))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    await archive(ledger_log, books_url, whole, "--tail", records=4)
    env = {
        **os.environ,
        "SHRK_KAFKA": ledger_log,
        "SHRK_DATABASE_URL": books_url,
        "SHRK_LEDGER_PARTITIONS": str(P),
        "PYTHONPATH": str(ROOT),
    }
    code = "from ledger.commands import group; group()"
    arguments = [sys.executable, "-c", code, "archive", "--out", str(killed), "--range", "4", "--tail"]
    for enough in (5, 30):
        assert await asyncio.to_thread(killed_after, enough, killed, arguments, env) == -signal.SIGKILL
    (killed / "partition-00000" / "half.parquet.partial").write_bytes(b"half")
    await archive(ledger_log, books_url, killed, "--tail", records=4)
    assert tree(killed) == tree(whole)


async def test_what_cannot_be_is_one_line(ledger_log: str, books_url: str, tmp_path: Path) -> None:
    import fcntl

    await append_all(ledger_log, load(10, 30))
    none = await shrk(ledger_log, books_url, "replay", "--archive", str(tmp_path / "none"))
    assert none.exit_code == 1
    assert "there is no archive in" in none.output
    await archive(ledger_log, books_url, tmp_path, "--tail", records=8)
    other = await shrk(ledger_log, books_url, "archive", "--out", str(tmp_path), "--range", "16")
    assert other.exit_code == 1
    assert "has ranges of 8 records, not of 16" in other.output
    with (tmp_path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        busy = await shrk(ledger_log, books_url, "archive", "--out", str(tmp_path), "--range", "8")
    assert busy.exit_code == 1
    assert "another process archives to" in busy.output
    (tmp_path / "file").write_text("x")
    no_folder = await shrk(ledger_log, books_url, "archive", "--out", str(tmp_path / "file" / "x"))
    assert no_folder.exit_code == 1
    assert "cannot be written: Not a directory" in no_folder.output


@pytest.mark.parametrize("damage", ["missing", "byte", "size", "manifest", "no manifest"])
async def test_a_missing_or_altered_file_is_named(ledger_log: str, books_url: str, tmp_path: Path, damage: str) -> None:
    await append_all(ledger_log, load(11, 60))
    await archive(ledger_log, books_url, tmp_path, "--tail", records=8)
    victim = tmp_path / sorted(name for name in tree(tmp_path) if name.startswith("partition-00002/"))[1]
    if damage in ("manifest", "no manifest"):
        victim = tmp_path / "manifest.json"
    data = victim.read_bytes()
    if damage in ("missing", "no manifest"):
        victim.unlink()
    elif damage == "size":
        victim.write_bytes(data + b"\0")
    else:
        victim.write_bytes(data[:99] + bytes([data[99] ^ 1]) + data[100:])
    for arguments in (("replay",), ("verify",), ("verify", "--no-tail")):
        result = await shrk(ledger_log, books_url, *arguments, "--archive", str(tmp_path))
        assert result.exit_code == 1
        assert str(victim) in result.output, result.output


async def test_the_archive_of_another_log_is_refused(ledger_log: str, books_url: str, tmp_path: Path) -> None:
    await append_all(ledger_log, load(12, 60))
    await archive(ledger_log, books_url, tmp_path, "--tail", records=8)
    logs = await all_records(ledger_log)
    end = len(logs[1])
    changed = logs[1][end - 1]
    logs[1][end - 1] = changed._replace(value=changed.value.replace(b'"version":1', b'"version": 1'))
    await make_log_of(ledger_log, logs)
    replayed = await shrk(ledger_log, books_url, "replay", "--archive", str(tmp_path))
    assert f"ledger.events partition 1 offset {end - 1} is not the record in the archive" in replayed.output
    again = await shrk(ledger_log, books_url, "archive", "--out", str(tmp_path), "--range", "8", "--tail")
    assert again.exit_code == 1
    assert f"partition 1 offset {end - 1} is not the record in partition-00001/" in again.output
    logs[1].pop()
    await make_log_of(ledger_log, logs)
    shorter = await shrk(ledger_log, books_url, "replay", "--archive", str(tmp_path))
    assert f"ledger.events partition 1 ends at {end - 1}, but the archive ends at {end}" in shorter.output
