"""A log folded over columns by processes of their own, against the same log stepped record by record."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from books_kit import P, make_log_of, shrk

from ledger import replay as replay_module
from ledger.log import LedgerCorrupt, LedgerUnavailable
from ledger.reader import Record
from ledger.replay import Replay, read_into
from ledger.source import Source
from schemas.events import dump
from schemas.topics import partition_of

sys.path.append(str(Path(__file__).parents[1] / "unit"))
from hostile_log import hostile_log


def hostile_records(seed: int, count: int) -> list[list[Record]]:
    logs: list[list[Record]] = [[] for _ in range(P)]
    for event in hostile_log(seed, count, 0.7):
        key = event.key.encode()
        partition = partition_of(key, P)
        logs[partition].append(Record(partition, len(logs[partition]), key, dump(event)))
    return logs


async def read(kafka: str, *, plain: bool, ends: dict[int, int] | None = None, into: Replay | None = None) -> Replay:
    replay, told = into or Replay(P), list[int]()
    before = replay.events
    async with Source(P, kafka) as source:
        await read_into(replay, source, ends, lambda _: None, told.append, plain=plain)
    assert sum(told) >= replay.events - before
    return replay


def same(one: Replay, other: Replay) -> None:
    assert one.outcomes == other.outcomes
    assert one.events == other.events
    assert one.chains == other.chains
    assert one.last_sha256 == other.last_sha256
    assert one.places() == other.places()
    assert one.balances() == other.balances()
    assert sorted(one.broken) == sorted(other.broken)
    assert one.finish() == other.finish()


@pytest.fixture
def bulk_from_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes for the shortest of logs."""
    monkeypatch.setattr(replay_module, "BULK_FROM", 1)


async def test_processes_come_to_the_same_books(ledger_log: str, bulk_from_one: None) -> None:
    logs = hostile_records(1, 6_000)
    await make_log_of(ledger_log, logs)
    plain = await read(ledger_log, plain=True)
    assert plain.events == 6_000
    same(await read(ledger_log, plain=False), plain)
    # In two goes, the second with what the first had open; then one by steps.
    cut = {partition: len(log) // 2 for partition, log in enumerate(logs)}
    later = {partition: len(log) * 3 // 4 for partition, log in enumerate(logs)}
    begun = await read(ledger_log, plain=False, ends=cut)
    await read(ledger_log, plain=False, ends=later, into=begun)
    same(await read(ledger_log, plain=True, into=begun), plain)


async def test_an_archive_then_processes(ledger_log: str, tmp_path: Path, bulk_from_one: None) -> None:
    await make_log_of(ledger_log, hostile_records(2, 2_000))
    made = await shrk(ledger_log, "none", "archive", "--out", str(tmp_path), "--range", "64")
    assert made.exit_code == 0, made.output
    archive = ("--archive", str(tmp_path))
    outputs = {
        way: await shrk(ledger_log, "none", "replay", *way)
        for way in ((), archive, ("--plain",), (*archive, "--plain"))
    }
    assert len({result.stdout for result in outputs.values()}) == 1
    assert "2,000 events in 4 partitions" in outputs[()].stdout
    # What was not looked at is said, where it was not.
    words = "of these were taken from the archive as its manifest has them"
    assert [way for way, result in outputs.items() if words in result.stderr] == [archive]


async def test_what_is_no_event_is_named(ledger_log: str, bulk_from_one: None) -> None:
    logs = hostile_records(3, 1_000)
    at = len(logs[1]) // 2
    logs[1][at] = logs[1][at]._replace(value=logs[1][at].value[:-1])
    await make_log_of(ledger_log, logs)
    said = set[str]()
    for plain in (True, False):
        with pytest.raises(LedgerCorrupt) as caught:
            await read(ledger_log, plain=plain)
        said.add(str(caught.value))
    assert len(said) == 1
    assert f"ledger.events partition 1 offset {at}: not a known event" in said.pop()


async def test_a_key_in_another_partition_is_named(ledger_log: str, bulk_from_one: None) -> None:
    logs = hostile_records(3, 1_000)
    strange = logs[1].pop()
    logs[2].append(strange)
    await make_log_of(ledger_log, logs)
    with pytest.raises(LedgerCorrupt, match=rf"partition 2 offset {len(logs[2]) - 1}: its key belongs to partition 1"):
        await read(ledger_log, plain=False)


async def test_a_process_that_dies_is_one_line(
    ledger_log: str, bulk_from_one: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make_log_of(ledger_log, hostile_records(4, 200))
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(LedgerUnavailable, match=r"a process that read ledger.events ended with status 1"):
        await read(ledger_log, plain=False)
