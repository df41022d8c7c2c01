"""An archive folded over its columns against the same archive stepped record by record, and what is wrong with one."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from archive_kit import PARTITIONS, hostile_records, make_archive
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ledger import bulk, parquet
from ledger.archive import Archive, ArchiveCorrupt
from ledger.bulk import fold_archive
from ledger.columns import columns_of_records
from ledger.log import LedgerCorrupt
from ledger.reader import Record
from ledger.replay import Replay, read_archive
from ledger.source import Source
from ledger.verify import verify_archive
from schemas.events import BalanceAsserted, Event, WalletCredited, dump
from schemas.topics import partition_of

SEEDS = settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))


def folded(folder: Path) -> Replay:
    replay, told = Replay(PARTITIONS), list[int]()
    fold_archive(replay, Archive.open(folder), told.append)
    assert sum(told) == replay.events
    return replay


def stepped(folder: Path) -> Replay:
    replay, archive = Replay(PARTITIONS), Archive.open(folder)
    asyncio.run(read_archive(replay, archive, archive.ends(), lambda _: None))
    return replay


def same(one: Replay, other: Replay) -> None:
    assert one.outcomes == other.outcomes
    assert one.events == other.events
    assert one.chains == other.chains
    assert one.last_sha256 == other.last_sha256
    assert one.places() == other.places()
    assert one.balances() == other.balances()
    assert one.broken == other.broken
    assert one.finish() == other.finish()


@SEEDS
@given(seed=st.integers(0, 2**32), shift=st.integers(4, 8), group=st.sampled_from((8, 64, 1 << 15)))
def test_an_archive_comes_to_the_same_books(
    tmp_path_factory: pytest.TempPathFactory, seed: int, shift: int, group: int
) -> None:
    folder = tmp_path_factory.mktemp("archive")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet, "ROW_GROUP_RECORDS", group)
        make_archive(folder, hostile_records(seed, 400), 1 << shift)
    same(folded(folder), stepped(folder))


def test_single_steps_go_on_behind_an_archive(tmp_path: Path) -> None:
    logs, rng = hostile_records(5, 3_000, 0.8), random.Random(1)
    cuts = [rng.randrange(len(log) + 1) for log in logs]
    make_archive(tmp_path, [log[:cut] for log, cut in zip(logs, cuts, strict=True)], 64)
    one, other = folded(tmp_path), Replay(PARTITIONS)
    for log, cut in zip(logs, cuts, strict=True):
        other.feed(log)
        for at in range(cut, len(log), 10):
            one.feed(log[at : at + 10])
    assert one.outcomes["already_ended"] > 20
    one.broken.sort()
    other.broken.sort()
    same(one, other)


def test_partitions_in_any_order_and_one_thread_give_one_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_archive(tmp_path, hostile_records(6, 900), 128)
    expected = folded(tmp_path)
    monkeypatch.setattr(bulk.os, "cpu_count", lambda: 1)
    same(folded(tmp_path), expected)
    archive, replay = Archive.open(tmp_path), Replay(PARTITIONS)
    archive.manifest.files = dict(reversed(archive.manifest.files.items()))
    fold_archive(replay, archive, lambda _: None)
    replay.broken.sort()
    expected.broken.sort()
    same(replay, expected)


def refusal(folder: Path, plain: bool) -> str:
    with pytest.raises(LedgerCorrupt) as caught:
        stepped(folder) if plain else folded(folder)
    return str(caught.value)


@pytest.mark.parametrize("damage", [b'"version":3', b'"version":1,"more":1', b'"version":"1"', b'"version":1,'])
def test_what_is_no_event_stops_both_folds_at_its_place(tmp_path: Path, damage: bytes) -> None:
    logs = hostile_records(7, 300)
    at = len(logs[1]) // 2
    logs[1][at] = logs[1][at]._replace(value=logs[1][at].value.replace(b'"version":1', damage))
    make_archive(tmp_path, logs, 64)
    assert refusal(tmp_path, plain=False) == refusal(tmp_path, plain=True)
    assert f"ledger.events partition 1 offset {at}: not a known event" in refusal(tmp_path, plain=False)


def test_another_key_stops_both_folds_at_its_place(tmp_path: Path) -> None:
    logs = hostile_records(7, 300)
    at = len(logs[2]) // 2
    key = next(key for n in range(99) if partition_of(key := b"other-%d" % n, PARTITIONS) == 2)
    logs[2][at] = logs[2][at]._replace(key=key)
    make_archive(tmp_path, logs, 64)
    assert refusal(tmp_path, plain=False) == refusal(tmp_path, plain=True)
    assert refusal(tmp_path, plain=False) == f"ledger.events partition 2 offset {at}: its key is not its event's"


def test_every_file_is_hashed(tmp_path: Path) -> None:
    make_archive(tmp_path, hostile_records(8, 300), 64)
    victim = sorted(tmp_path.glob("partition-00001/*"))[1]
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    with pytest.raises(ArchiveCorrupt, match=rf"{victim} .* its SHA-256 is not the manifest's"):
        folded(tmp_path)


def test_a_file_of_other_records_under_its_name_is_seen(tmp_path: Path) -> None:
    """The manifest agrees with the file, so the hash does not tell."""

    def shifted(some: Sequence[Record]) -> bytes:
        return parquet.encode([record._replace(offset=record.offset + (record.partition == 2)) for record in some])

    make_archive(tmp_path, hostile_records(8, 300), 64, shifted)
    for plain in (False, True):
        assert "partition-00002/" in refusal(tmp_path, plain)


@contextlib.contextmanager
def no_bar(_: str):
    yield (lambda _: None), (lambda _: None)


def test_verify_names_the_record_whose_columns_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logs = hostile_records(9, 400, 0.95)
    place = next(r for r in logs[1] if r.offset > 70 and b'"type":"usage.recorded"' in r.value)

    def lying(some: Sequence[Record]) -> object:
        told = place.value.replace(b'"prompt_tokens":', b'"prompt_tokens":1')
        return columns_of_records([record._replace(value=told) if record == place else record for record in some])

    monkeypatch.setattr(parquet, "columns_of_records", lying)
    make_archive(tmp_path, logs, 64)
    monkeypatch.undo()
    assert folded(tmp_path).balances() != stepped(tmp_path).balances()
    report = asyncio.run(verify_archive(Source(PARTITIONS, None, Archive.open(tmp_path)), no_bar, every_batch=True))
    assert f"partition 1 offset {place.offset}: its column prompt_tokens is not what its bytes say" in report.bad[-1]


def test_an_assertion_wider_than_64_bits_is_folded_archived_and_verified(tmp_path: Path) -> None:
    credit = WalletCredited(
        wallet="w", at_ms=1, asset="SHIVER", amount_nano=10**18, external_ref="r", reason="grant", operator="o"
    )
    some: list[Event] = [credit.model_copy(update={"external_ref": f"r{n}"}) for n in range(10)]
    said = [10**19, 10**19 + 1, -(2**63), 2**63, 2**63 - 1, 10**38 - 1]
    some += [BalanceAsserted(wallet="w", at_ms=2, asset="SHIVER", amount_nano=nano) for nano in said]
    partition = partition_of(b"w", PARTITIONS)
    logs: list[list[Record]] = [[] for _ in range(PARTITIONS)]
    logs[partition] = [Record(partition, offset, b"w", dump(event)) for offset, event in enumerate(some)]
    make_archive(tmp_path, logs, 8)
    found = folded(tmp_path)
    same(found, stepped(tmp_path))
    assert found.outcomes == {"applied": 11, "assertion_failed": 5}
    source = Source(PARTITIONS, None, Archive.open(tmp_path))
    report = asyncio.run(verify_archive(source, no_bar, every_batch=False))
    assert [line.partition(": ")[0] for line in report.bad] == [
        f"ledger.events partition {partition} offset {offset}" for offset in range(11, 16)
    ]
