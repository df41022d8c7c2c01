"""Files that commands write: whole or not at all, and nothing else is put in the place of what was there."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from ledger.console import write_whole

ROOT = Path(__file__).parents[2]


def test_a_pipe_or_device_is_written_to_and_stays_what_it_is(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    end = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)  # so that nobody waits for another
    try:
        assert write_whole(str(pipe), [b"a", b"bc"]) == 3
        assert os.read(end, 9) == b"abc"
    finally:
        os.close(end)
    assert stat.S_ISFIFO(pipe.lstat().st_mode)
    assert os.listdir(tmp_path) == ["pipe"]


def test_a_link_stays_a_link_and_its_file_gets_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    link = tmp_path / "link"
    link.symlink_to("file")
    assert write_whole(str(link), [b"new"]) == 3
    assert (link.is_symlink(), (tmp_path / "file").read_bytes()) == (True, b"new")
    assert sorted(os.listdir(tmp_path)) == ["file", "link"]


def test_what_stops_half_way_leaves_what_was_there(tmp_path: Path) -> None:
    def pieces():
        yield b"half"
        raise OSError(28, "No space left on device")

    out = tmp_path / "file"
    out.write_bytes(b"old")
    with pytest.raises(OSError, match="No space left"):
        write_whole(str(out), pieces())
    assert (out.read_bytes(), os.listdir(tmp_path)) == (b"old", ["file"])


@pytest.mark.parametrize("out", ["", ".", "/", "..", "{}", "{}/none/file", "{}/file/under"])
def test_where_no_file_can_be_is_an_error_by_the_given_name(tmp_path: Path, out: str) -> None:
    (tmp_path / "file").touch()
    out = out.format(tmp_path)
    with pytest.raises(OSError, match=r"Is a directory|No such file|Not a directory") as caught:
        write_whole(out, [b"x"])
    assert caught.value.filename == (out or ".")
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(
    ("way", "said"),
    [("> /dev/full", "shrk: the output cannot be written: No space left on device"), ("| true", ""), (">&-", "")],
)
def test_stdout_that_takes_nothing_is_no_traceback(way: str, said: str) -> None:
    shell = f"set -o pipefail; '{sys.executable}' -m infra.cli ledger rules {way}"
    done = subprocess.run(["bash", "-c", shell], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr.strip() == said
    assert done.returncode == (0 if way == ">&-" else 1) or way == "| true"  # true may be slower than we are
