"""Which migrations are applied, and when they are refused. On a real server: tests/integration/test_postgres.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.errors import MigrationFailed
from infra.migrate import load, pending


def folder(tmp_path: Path, *names: str) -> Path:
    for name in names:
        (tmp_path / name).write_text(f"-- {name}")
    return tmp_path


def test_ours_are_in_order_without_gaps() -> None:
    numbers = [migration.number for migration in load()]
    assert numbers == list(range(1, len(numbers) + 1))


def test_the_order_is_that_of_the_numbers(tmp_path: Path) -> None:
    names = [m.name for m in load(folder(tmp_path, "0002_b.sql", "0001_z.sql", "0003_a.sql", "notes.txt"))]
    assert names == ["0001_z.sql", "0002_b.sql", "0003_a.sql"]


@pytest.mark.parametrize(
    ("names", "line"),
    [
        (("0001_a.sql", "0003_c.sql"), "0003_c.sql stands where migration 0002 should"),
        (("0001_a.sql", "0001_b.sql"), "0001_b.sql stands where migration 0002 should"),
        (("1_a.sql",), "1_a.sql is not named"),
    ],
)
def test_gaps_doubles_and_odd_names_are_refused(tmp_path: Path, names: tuple[str, ...], line: str) -> None:
    with pytest.raises(MigrationFailed, match=line):
        load(folder(tmp_path, *names))


def test_only_what_is_new_is_pending(tmp_path: Path) -> None:
    one, two, three = load(folder(tmp_path, "0001_a.sql", "0002_b.sql", "0003_c.sql"))
    assert pending([one, two, three], {}) == [one, two, three]
    assert pending([one, two, three], {1: one.sha256, 2: two.sha256}) == [three]
    with pytest.raises(MigrationFailed, match=r"0001_a\.sql was changed after it had been applied"):
        pending([one, two, three], {1: "0" * 64})
    with pytest.raises(MigrationFailed, match="database has migration 0003, which this version lacks"):
        pending([one, two], {1: one.sha256, 2: two.sha256, 3: three.sha256})
    with pytest.raises(MigrationFailed, match=r"0001_a\.sql was never applied"):
        pending([one, two], {2: two.sha256})
