"""The billing table as people read it, and that a new version of it leaves old requests alone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from test_ledger_core import IDS, accept, balances, credit, run, use

import infra
from ledger.commands import group
from ledger.digest import digest
from ledger.rules import ENDINGS, TABLES, Pays, billing_table
from schemas.events import Event, How

DOC = Path(infra.__file__).parent / "docs" / "ledger.md"

#: A second version that differs wherever it can: who paid pays nothing, and the other way round.
VERSION_2 = {how: Pays.NOBODY if pays is Pays.CLIENT else Pays.CLIENT for how, pays in TABLES[1].items()}


def tables_of_the_doc() -> dict[int, list[tuple[str, ...]]]:
    """The rows of each table that stands behind a line "`rules_version` N:", without backticks."""
    tables: dict[int, list[tuple[str, ...]]] = {}
    version = 0
    for line in DOC.read_text().splitlines():
        if head := re.fullmatch(r"`rules_version` (\d+):", line):
            version = int(head[1])
            tables[version] = []
        elif line.startswith("#"):
            version = 0
        elif version and line.startswith("| `"):
            tables[version].append(tuple(cell.strip().replace("`", "") for cell in line.strip("|").split("|")))
    return tables


def test_the_doc_says_what_the_code_does() -> None:
    assert tables_of_the_doc() == {version: [tuple(row) for row in billing_table(version)] for version in TABLES}


def test_every_way_to_end_has_words() -> None:
    assert set(ENDINGS) == set(How)


def test_the_command_prints_every_version_and_row() -> None:
    result = CliRunner().invoke(group, ["rules"])
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0] == "rules_version 1, that of new requests"
    assert [line.split()[0] for line in lines[2:-1]] == [how.value for how in How]
    assert "owner_died   platform:losses" in result.output
    refused = CliRunner().invoke(group, ["rules", "--version", "9"])
    assert refused.exit_code == 2
    assert "no rules_version 9; known: 1" in refused.output


def lives(rules_version: int) -> list[Event]:
    """A credit, then a request for each way to end."""
    ids = [*IDS, *(rid[:-1] + ("0" if rid[-1] != "0" else "1") for rid in IDS)]
    log: list[Event] = [credit()]
    for rid, how in zip(ids, How, strict=False):
        log += [accept(rid, rules_version=rules_version), use(rid, how=how)]
    return log


def test_old_requests_replay_to_the_same_books_after_a_new_version(monkeypatch: pytest.MonkeyPatch) -> None:
    before, _ = run(*lives(1))
    monkeypatch.setitem(TABLES, 2, VERSION_2)
    after, _ = run(*lives(1))
    assert digest([after]) == digest([before])
    assert balances(after) == balances(before)

    new, _ = run(*lives(2))  # the new version is not idle
    paying = {1: 7, 2: 5}
    cost = 5 * 1_000 + 10 * 2_000
    assert balances(before)["wallet:w"] == 10**9 - paying[1] * cost
    assert balances(new)["wallet:w"] == 10**9 - paying[2] * cost
    assert "platform:losses" in balances(before)
    assert "platform:losses" not in balances(new)


def test_both_versions_stand_side_by_side_in_one_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TABLES, 2, VERSION_2)
    monkeypatch.setattr("ledger.rules.RULES_VERSION", 2)
    old = [accept(IDS[0]), use(IDS[0])]
    books, decisions = run(accept(IDS[1], rules_version=2), *old, use(IDS[1]))
    charges = [d.request.charge_nano for d in decisions if d.request is not None and d.request.ended_ms is not None]
    assert charges == [25_000, 0]
    assert balances(books)["wallet:w"] == -25_000
