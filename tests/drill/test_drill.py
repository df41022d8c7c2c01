"""The bugs that need no server, on every run of the tests. Those that do: `make drill`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.drill.mutants import PURE, SERVED, Mutant
from tests.drill.mutants_limits import LIMITS
from tests.drill.runner import DrillFailed, check_passes, copy_of_the_tree, drill


@pytest.fixture(scope="module")
def tree() -> Iterator[Path]:
    """A copy in which every test of the drill passes."""
    with copy_of_the_tree() as folder:
        check_passes(folder, PURE)
        yield folder


@pytest.mark.parametrize("mutant", PURE, ids=lambda mutant: mutant.name.replace(" ", "_"))
def test_a_planted_bug_is_noticed(tree: Path, mutant: Mutant) -> None:
    drill(tree, mutant)


def test_a_bug_that_nobody_notices_fails_the_drill(tree: Path) -> None:
    harmless = PURE[0]._replace(new=PURE[0].old + "  # not a bug")
    with pytest.raises(DrillFailed, match="is not noticed by"):
        drill(tree, harmless)


def test_a_bug_that_breaks_the_program_proves_nothing(tree: Path) -> None:
    with pytest.raises(DrillFailed, match="pytest ends with"):
        drill(tree, PURE[0]._replace(new="(", tests=PURE[0].tests))


def test_a_test_that_is_not_there_fails_the_drill(tree: Path) -> None:
    with pytest.raises(DrillFailed, match="pytest ends with 4"):
        drill(tree, PURE[0]._replace(tests=("tests/unit/test_ledger_errata.py::test_nothing",)))


def test_every_text_stands_once_and_every_name_once(tree: Path) -> None:
    everything = (*PURE, *SERVED, *LIMITS)
    for mutant in everything:
        assert (tree / mutant.file).read_text().count(mutant.old) == 1, mutant
        assert mutant.old != mutant.new
    assert len({mutant.name for mutant in everything}) == len(everything)
