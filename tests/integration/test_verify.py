"""The drill: each kind of byte is flipped once, and `shrk ledger verify` must name the place."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
import pytest
import pytest_asyncio
from books_kit import P, all_records, append_all, make_log_of, project, shrk
from ledger_kit import load

from ledger.archive import Archive
from ledger.digest import chain_link
from ledger.manifest import Manifest
from ledger.parquet import encode
from ledger.reader import Record

PLACE = 2  # the partition that every drill damages


class Drill(NamedTuple):
    """A sound log, its archive and its projection."""

    kafka: str
    url: str
    db: asyncpg.Pool
    logs: list[list[Record]]
    folder: Path

    async def verify(self, *arguments: str) -> tuple[int, str]:
        """The exit status, and the line that names the first bad place."""
        result = await shrk(self.kafka, self.url, "verify", *arguments)
        first = [line for line in result.output.splitlines() if line.startswith("first bad: ")]
        return result.exit_code, first[0] if first else result.output

    async def verify_archive(self, *arguments: str) -> tuple[int, str]:
        return await self.verify("--archive", str(self.folder), *arguments)


@pytest_asyncio.fixture
async def drill(ledger_log: str, books: asyncpg.Pool, books_url: str, tmp_path: Path) -> Drill:
    await append_all(ledger_log, load(13, 120))
    await project(ledger_log, books)
    made = await shrk(ledger_log, books_url, "archive", "--out", str(tmp_path), "--range", "16", "--tail")
    assert made.exit_code == 0, made.output
    return Drill(ledger_log, books_url, books, await all_records(ledger_log), tmp_path)


def first_of(records: list[Record], type_: bytes) -> int:
    """The offset of the third record of a type: a place in the middle."""
    return [r.offset for r in records if b'"type":"' + type_ in r.value][2]


async def test_a_sound_log_is_verified_by_every_way(drill: Drill) -> None:
    digests = set()
    ways = ((), ("--every-batch",), ("--archive",), ("--archive", "--both"), ("--archive", "--no-tail"))
    for way in ways:
        arguments = [str(drill.folder) if previous == "--archive" else "" for previous in way]
        result = await shrk(
            drill.kafka, drill.url, "verify", *[a for pair in zip(way, arguments, strict=True) for a in pair if a]
        )
        assert result.exit_code == 0, result.output
        assert "verified: records, hash chain, invariants at every prefix" in result.output
        digests.add(result.output.splitlines()[-1])
    replayed = await shrk(drill.kafka, drill.url, "replay")
    assert digests == {replayed.output.splitlines()[-1]}
    known = sum(map(len, await all_records(drill.kafka)))
    await append_all(drill.kafka, load(14, 20))  # ahead of PostgreSQL and of the archive
    ahead = await shrk(drill.kafka, drill.url, "verify")
    assert (ahead.exit_code, f"rows, which has read {known:,} of them" in ahead.output) == (0, True), ahead.output
    compared = await shrk(drill.kafka, drill.url, "replay", "--compare")
    assert "records more, which it has not read" in compared.output
    assert (await drill.verify_archive("--both"))[0] == 0


def change(records: list[Record], offset: int, old: bytes, new: bytes) -> None:
    value = records[offset].value
    assert old in value
    records[offset] = records[offset]._replace(value=value.replace(old, new, 1))


def flip_money(records: list[Record]) -> int:
    offset = first_of(records, b"wallet.credited")
    change(records, offset, b'"amount_nano":1', b'"amount_nano":2')
    return offset


def flip_words(records: list[Record]) -> int:
    """Nothing in the books depends on who the operator was."""
    offset = first_of(records, b"wallet.credited")
    change(records, offset, b'"operator":"test"', b'"operator":"tesu"')
    return offset


def flip_form(records: list[Record]) -> int:
    offset = first_of(records, b"request.accepted")
    change(records, offset, b"{", b"[")
    return offset


def flip_key(records: list[Record]) -> int:
    offset = first_of(records, b"request.accepted")
    key = records[offset].key
    records[offset] = records[offset]._replace(key=key[:-1] + bytes([key[-1] ^ 1]))
    return offset


def drop(records: list[Record]) -> int:
    offset = first_of(records, b"usage.recorded")
    del records[offset]
    return offset


def swap(records: list[Record]) -> int:
    offset = first_of(records, b"request.accepted")
    while records[offset].value == records[offset + 1].value:  # an accept that stands twice
        offset += 1
    records[offset], records[offset + 1] = records[offset + 1], records[offset]
    return offset


def cut(records: list[Record]) -> int:
    records.pop()
    return len(records)


LOG_DRILLS: list[tuple[Callable[[list[Record]], int], bool]] = [
    (flip_money, True),
    (flip_words, False),
    (flip_form, True),
    (flip_key, True),
    (drop, False),
    (swap, False),
    (cut, True),
]


@pytest.mark.parametrize(("damage", "exact"), LOG_DRILLS, ids=lambda value: getattr(value, "__name__", ""))
async def test_a_changed_record_is_named(drill: Drill, damage: Callable[[list[Record]], int], exact: bool) -> None:
    offset = damage(drill.logs[PLACE])
    await make_log_of(drill.kafka, drill.logs)
    status, first = await drill.verify()
    assert status == 1
    # Without another copy, a change that moves no row is known by the chain alone, which names the partition.
    place = f"first bad: ledger.events partition {PLACE}"
    assert first.startswith(f"{place} offset {offset}" if exact else place), first
    if damage is flip_words:
        assert "the hash chain over its records is" in first
    status, first = await drill.verify("--every-batch")
    assert status == 1
    assert first.startswith(place), first
    status, first = await drill.verify_archive("--both")
    assert status == 1
    assert first.startswith(f"{place} offset {offset}") or damage is cut, first
    assert first.startswith(place), first


ROW_DRILLS = {
    "update derived.entries set amount_nano = amount_nano + 1 where (partition, \"offset\", posting) = "
    "(select partition, \"offset\", posting from derived.entries where partition = 2 order by 2, 3 offset 5 limit 1) "
    'returning "offset"': "offset {}",
    "update derived.entries set account = account || 'x' where partition = 2 and \"offset\" = 0 and posting = 0 "
    'returning "offset"': "offset {}",
    "update derived.entries set at_ms = at_ms # 1 where partition = 2 and \"offset\" = 0 and posting = 0 "
    'returning "offset"': "offset {}",
    'delete from derived.entries where partition = 2 and "offset" = 0 and posting = 1 returning "offset"': "offset {}",
    "insert into derived.entries values (2, 100000, 0, 'wallet:x', 'SHIVER', 1, null, 1) "
    'returning "offset"': "offset {}",
    "update derived.rejections set code = 'conflict' where partition = 2 and \"offset\" = "
    "(select max(\"offset\") from derived.rejections where partition = 2 and code <> 'conflict') "
    'returning "offset"': "offset {}",
    "update derived.accounts set balance_nano = balance_nano + 1 where account = 'burn' and partition = 2 "
    "returning account": ": account ('{}'",
    "delete from derived.accounts where account = 'platform' and asset = 'SHIVER' and partition = 2 "
    "returning account": ": account ('{}'",
    "update derived.requests set charge_nano = charge_nano # 1 where request_id = (select request_id from "
    "derived.requests where partition = 2 and status = 'charged' and charge_nano between 2 and hold_nano - 2 limit 1) "
    "returning request_id": ": request {}",
    "update derived.requests set prices = '{\"x\": 1}' where request_id = (select request_id from derived.requests "
    "where partition = 2 and prices is not null limit 1) returning request_id": ": request {}",
    "update derived.credits set amount_nano = amount_nano # 1 where partition = 2 and \"offset\" = 0 "
    'returning "offset"': "offset {}: credit",
    "update derived.offsets set chain = set_byte(chain, 7, get_byte(chain, 7) # 1) where partition = 2 "
    "returning next": ", before offset {}: the hash chain",
    "update derived.offsets set last_sha256 = set_byte(last_sha256, 0, get_byte(last_sha256, 0) # 1) "
    "where partition = 2 returning next": ": offset of partition 2: PostgreSQL has next {}",
    "update derived.offsets set rejected = rejected + 1 where partition = 2 returning next": ": offset of partition 2",
    "update derived.offsets set next = next + 1 where partition = 2 returning next - 1": "offset {}: the log ends here",
    "update derived.offsets set next = next - 1 where partition = 2 returning next": ", before offset {}",
}  # fmt: skip


TABLES = ("offsets", "accounts", "entries", "requests", "credits", "rejections")


async def test_a_changed_row_is_named(drill: Drill) -> None:
    await drill.db.execute("create schema keep")
    for table in TABLES:
        await drill.db.execute(f"create table keep.{table} as table derived.{table}")
    for damage, named in ROW_DRILLS.items():
        changed = await drill.db.fetch(damage)
        assert len(changed) == 1, f"the drill itself missed: {damage}"
        place = named.format(changed[0][0])
        place = place if place[0] in ":," else f" {place}"
        for arguments in ((), ("--archive", str(drill.folder))):
            status, first = await drill.verify(*arguments)
            assert status == 1, damage
            assert first.startswith(f"first bad: ledger.events partition {PLACE}{place}"), (damage, first)
        for table in TABLES:
            await drill.db.execute(f"truncate derived.{table}; insert into derived.{table} select * from keep.{table}")
    assert (await drill.verify())[0] == 0


def forged(drill: Drill, *, chains: bool) -> int:
    """Change a record in the archive, and every hash of it in the manifest; with `chains` also the chain's heads."""
    archive = Archive.open(drill.folder, P)
    records = list(drill.logs[PLACE])
    offset = flip_words(records)
    manifest = Manifest(P, 16)
    for partition, files in archive.manifest.files.items():
        head = b""
        source = records if partition == PLACE else drill.logs[partition]
        for file in files:
            data = encode(source[file.first : file.next])
            (drill.folder / file.file).write_bytes(data)
            for record in source[file.first : file.next]:
                head = chain_link(head, *record)
            new: dict[str, Any] = {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
            manifest.add(file._replace(**new, chain=head.hex() if chains else file.chain))
    (drill.folder / "manifest.json").write_bytes(manifest.dump())
    return offset


async def test_a_forged_archive_is_found_by_its_chain(drill: Drill) -> None:
    offset = forged(drill, chains=False)
    for arguments in ((), ("--no-tail",)):
        status, first = await drill.verify_archive(*arguments)
        assert status == 1
        assert f"(partition {PLACE}, offsets {offset // 16 * 16} to " in first
        assert "the hash chain over its records and those before" in first


async def test_a_wholly_forged_archive_is_found_by_what_the_projection_read(drill: Drill) -> None:
    offset = forged(drill, chains=True)
    assert (await drill.verify_archive("--no-tail"))[0] == 0  # alone, it is a sound archive of another log
    status, first = await drill.verify_archive()
    assert status == 1
    assert first.startswith(f"first bad: ledger.events partition {PLACE}, before offset"), first
    status, first = await drill.verify_archive("--both")
    assert status == 1
    assert first.startswith(f"first bad: ledger.events partition {PLACE} offset {offset}: the log has another"), first


async def test_every_byte_of_an_archived_file_counts(drill: Drill) -> None:
    victim = sorted(drill.folder.glob(f"partition-{PLACE:05d}/*.parquet"))[0]
    data = victim.read_bytes()
    for at in {0, 5, len(data) // 2, len(data) - 20, len(data) - 1}:
        victim.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
        status, first = await drill.verify_archive("--no-tail")
        assert status == 1
        assert str(victim) in first
    victim.write_bytes(data)
    manifest = json.loads((drill.folder / "manifest.json").read_bytes())
    assert manifest["topic"] == "ledger.events"
    assert (await drill.verify_archive("--no-tail"))[0] == 0


async def test_options_that_contradict_each_other_are_refused(drill: Drill) -> None:
    for arguments in (("--both",), ("--no-tail",), ("--archive", str(drill.folder), "--both", "--no-tail")):
        assert (await drill.verify(*arguments))[0] == 2
