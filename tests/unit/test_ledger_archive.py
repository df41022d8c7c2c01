"""The archive's files and manifest without Kafka: bytes that depend on the records alone, and flips of each of them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from archive_kit import PARTITIONS, make_archive
from click.testing import CliRunner

from ledger.apply import apply
from ledger.archive import Archive, ArchiveCorrupt, ArchiveUnavailable
from ledger.books import Books
from ledger.commands import group
from ledger.decide import decide
from ledger.digest import chain_link
from ledger.invariants import Running
from ledger.manifest import ArchivedFile, Manifest, file_name, load
from ledger.parquet import ROW_GROUP_RECORDS, decode, encode
from ledger.reader import Record
from schemas.events import EpochClosed, Event, RequestAccepted, RequestFailed, WalletCredited, dump
from schemas.ids import uuid7
from schemas.topics import SETTLEMENT_KEY, partition_of

T0 = 1_800_000_000_000
RID = uuid7(T0, bytes(10))
SHA256 = "ab" * 32


def some(count: int, first: int = 0) -> list[Record]:
    return [Record(3, first + n, b"w%d" % (n % 7), b'{"n":%d}' % n) for n in range(count)]


def manifest() -> Manifest:
    made = Manifest(2, 128)
    for partition, first, following in ((0, 0, 128), (0, 128, 256), (0, 256, 300), (1, 0, 128)):
        made.add(ArchivedFile(partition, first, following, file_name(partition, first, following), 9, SHA256, SHA256))
    return made


def test_a_file_is_the_same_for_the_same_records_and_names_no_version() -> None:
    records = some(ROW_GROUP_RECORDS + 5, 100)
    data = encode(records)
    assert data == encode(records)
    assert b"arrow" not in data.lower()
    groups = list(decode(data))
    assert [len(group) for group in groups] == [ROW_GROUP_RECORDS, 5]
    assert [record for group in groups for record in group] == records
    assert encode(some(1)) != encode(some(1, 1))


def test_any_reader_of_parquet_reads_it(tmp_path: Path) -> None:
    import pyarrow.parquet

    (tmp_path / "x.parquet").write_bytes(encode(some(3)))
    table = pyarrow.parquet.read_table(tmp_path / "x.parquet")
    assert table.column_names[:4] == ["partition", "offset", "key", "value"]
    assert table.column("value").to_pylist() == [b'{"n":0}', b'{"n":1}', b'{"n":2}']
    assert pyarrow.parquet.read_metadata(tmp_path / "x.parquet").created_by == "shiver ledger archive 2"


@pytest.mark.parametrize("data", [b"", b"PAR1", b"x" * 100, encode(some(3))[:-9]])
def test_what_is_no_such_file_is_said(data: bytes) -> None:
    with pytest.raises(ValueError, match="Parquet"):
        list(decode(data))


def test_the_manifest_is_canonical() -> None:
    data = manifest().dump()
    again = load(data)
    assert again.dump() == data
    assert [again.end(p) for p in (0, 1)] == [300, 128]
    tail = again.last(0)
    assert tail is not None
    assert not again.is_closed(tail)


def test_every_flipped_byte_of_the_manifest_is_seen() -> None:
    data = manifest().dump()
    for at in range(len(data)):
        for bit in (1, 32):
            flipped = data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :]
            with pytest.raises(ValueError, match=r"^it|its format"):
                load(flipped)
    for cut in (data[:-1], data + b"\n", b"", b"[]", json.dumps(json.loads(data)).encode()):
        with pytest.raises(ValueError, match=r"^it"):
            load(cut)


@pytest.mark.parametrize(
    "forged",
    [
        {"chain": "zz" * 32}, {"chain": 5}, {"chain": "AB" * 32}, {"sha256": "ab"}, {"sha256": None}, {"first": 0.0},
        {"partition": False}, {"partition": 99}, {"size_bytes": "9"}, {"size_bytes": -1}, {"next": True},
    ],
)  # fmt: skip
def test_a_manifest_with_its_own_hash_and_senseless_fields_is_refused(forged: dict[str, Any]) -> None:
    body = json.loads(manifest().dump())
    body["files"][0] |= forged
    with pytest.raises(ValueError, match=r"altered|numbers or hashes"):
        load(resigned(body))


@pytest.mark.parametrize("forged", [{"partitions": True}, {"partitions": 10**12}, {"range_records": 128.0}])
def test_a_manifest_of_a_senseless_whole_is_refused(forged: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"altered|partitions|no power"):
        load(resigned(json.loads(manifest().dump()) | forged))


def resigned(body: dict[str, Any]) -> bytes:
    """A forger's: the hash is right."""
    del body["sha256"]
    unsigned = json.dumps(body, sort_keys=True, indent=1).encode() + b"\n"
    body["sha256"] = hashlib.sha256(unsigned).hexdigest()
    return json.dumps(body, sort_keys=True, indent=1).encode() + b"\n"


def closed_over(tmp_path: Path, forged: bool) -> Path:
    """An archive with an epoch over 40 credits; where `forged`, of one the amount was changed, and all hashes made
    anew but those in the epoch."""
    home = partition_of(SETTLEMENT_KEY.encode(), PARTITIONS)
    logs: list[list[Record]] = [[] for _ in range(PARTITIONS)]
    for n in range(40):
        credit = WalletCredited(
            wallet=f"w{n}", at_ms=T0, asset="SHIVER", amount_nano=9, external_ref="r", reason="grant", operator="o"
        )
        partition = partition_of(credit.key.encode(), PARTITIONS)
        logs[partition].append(Record(partition, len(logs[partition]), credit.key.encode(), dump(credit)))
    heads = list[str]()
    for records in logs:
        head = b""
        for record in records:
            head = chain_link(head, *record)
        heads.append(head.hex())
    epoch = EpochClosed(
        at_ms=T0, epoch=1, cut=tuple(map(len, logs)), heads=tuple(heads), roots=(SHA256,) * PARTITIONS, log_root=SHA256,
        digest=SHA256, terms=None, payout_root="0x" + SHA256,
    )  # fmt: skip
    logs[home].append(Record(home, len(logs[home]), SETTLEMENT_KEY.encode(), dump(epoch)))
    if forged:
        logs[1][2] = logs[1][2]._replace(value=logs[1][2].value.replace(b'"amount_nano":9', b'"amount_nano":8'))
    folder = tmp_path / f"archive-{forged}"
    make_archive(folder, logs, 4)
    return folder


@pytest.mark.parametrize("arguments", [(), ("--epoch", "1")])
@pytest.mark.parametrize("forged", [False, True])
def test_an_export_says_where_its_epoch_was_closed_over_other_records(
    tmp_path: Path, forged: bool, arguments: tuple[str, ...]
) -> None:
    folder, out = closed_over(tmp_path, forged), tmp_path / "x.csv"
    more = ("--format", "csv", "--out", str(out), "--archive", str(folder), "--no-tail", *arguments)
    result = CliRunner(env={}).invoke(group, ["export", *more])
    assert result.exit_code == int(forged), result.output
    assert ("broken: partition 1 is not what epoch 1 was closed over" in result.stderr) is forged
    assert len(out.read_text().splitlines()) > 80


@pytest.mark.parametrize("wallet_in_partition", [0, 1])
@pytest.mark.parametrize("forged", [False, True])
def test_a_statement_says_so_of_its_own_partition(tmp_path: Path, forged: bool, wallet_in_partition: int) -> None:
    folder = closed_over(tmp_path, forged)
    wallet = next(f"w{n}" for n in range(40) if partition_of(b"w%d" % n, PARTITIONS) == wallet_in_partition)
    more = ("--month", "2027-01", "--archive", str(folder), "--no-tail")
    result = CliRunner(env={}).invoke(group, ["statement", "--wallet", wallet, *more])
    wrong = forged and wallet_in_partition == 1
    assert (result.exit_code, "broken: partition 1 is not" in result.stderr) == (int(wrong), wrong), result.output
    assert "closing balance" in result.stdout


def test_verify_names_files_that_the_manifest_does_not(tmp_path: Path) -> None:
    folder = closed_over(tmp_path, False)
    made = sorted(folder.glob("partition-00001/*"))
    stray = made[0].with_name(file_name(1, 400, 404).partition("/")[2])
    stray.write_bytes(made[0].read_bytes())
    assert Archive.open(folder).strays() == [stray]
    result = CliRunner(env={}).invoke(group, ["verify", "--archive", str(folder), "--no-tail"])
    assert f"not read, since the manifest does not name it: {stray}" in result.stderr


def test_a_tail_is_replaced_and_a_hole_refused() -> None:
    made = manifest()
    longer = ArchivedFile(0, 256, 384, file_name(0, 256, 384), 9, SHA256, SHA256)
    replaced = made.add(longer)
    assert replaced is not None
    assert (replaced.first, replaced.next) == (256, 300)
    for partition, first, following in ((1, 256, 384), (1, 0, 128), (1, 128, 257), (1, 128, 128)):
        with pytest.raises(ValueError, match="does not follow"):
            made.add(
                ArchivedFile(
                    partition, first, following, file_name(partition, first, following), 9, "ab" * 32, "cd" * 32
                )
            )
    with pytest.raises(ValueError, match="is not the name"):
        made.add(ArchivedFile(1, 128, 256, "../elsewhere.parquet", 9, SHA256, SHA256))


def test_a_folder_without_an_archive_is_said(tmp_path: Path) -> None:
    with pytest.raises(ArchiveUnavailable, match="no archive"):
        Archive.open(tmp_path / "none", 4)
    (tmp_path / "manifest.json").write_bytes(manifest().dump())
    with pytest.raises(ArchiveUnavailable, match="has 2 partitions where 4"):
        Archive.open(tmp_path, 4)
    with pytest.raises(ArchiveCorrupt, match=r"partition-00000/0+-0+128.parquet .*offsets 0 to 127.* is missing"):
        Archive.open(tmp_path)


def credit(amount_nano: int = 5, ref: str = "r") -> WalletCredited:
    return WalletCredited(
        wallet="w", at_ms=T0, asset="SHIVER", amount_nano=amount_nano, external_ref=ref, reason="grant", operator="o"
    )


def failure() -> RequestFailed:
    from schemas.events import How

    return RequestFailed(wallet="w", at_ms=T0, request_id=RID, epoch=1, how=How.ERROR)


def taken(*many: Event) -> tuple[Books, Running]:
    books, running = Books(0), Running()
    for offset, event in enumerate(many):
        decision = decide(books, event, offset)
        apply(books, event, offset, decision)
        running.take(event, decision)
        assert running.wrong(books) == []
    return books, running


def test_the_running_invariants_see_what_apply_gets_wrong() -> None:
    books, running = taken(credit(), credit(), failure())
    assert running.wrong_in_all(books) == []
    books.accounts["wallet:w", "SHIVER"].balance_nano += 1
    assert running.wrong(books) == []  # not touched by this step
    assert any("wallet:w has 6" in wrong for wrong in running.wrong_in_all(books))

    books, running = taken(credit())
    books.rejected += 1
    books.opened_count += 1
    assert len(running.wrong(books)) == 2

    books, running = taken(credit())
    decision = decide(books, credit(ref="s"), 1)
    running.take(credit(ref="s"), decision)  # and never applied
    assert any("its postings make 10" in wrong for wrong in running.wrong(books))
    one_sided = decision._replace(postings=decision.postings[1:])
    running.take(credit(ref="t"), one_sided)
    assert any("all accounts together hold 5 SHIVER" in wrong for wrong in running.wrong(books))


def test_the_running_invariants_see_an_end_that_is_not_the_last() -> None:
    from ledger.decide import Decision, request_of
    from ledger.outcomes import Outcome

    books, running = taken(failure())
    accept = RequestAccepted.model_validate_json(
        json.dumps(
            {
                "wallet": "w", "at_ms": T0, "request_id": RID, "key_id": "k", "owner": "b", "rules_version": 1,
                "asset": "SHIVER", "prices": [{"model": "m", "in_nano": 1, "out_nano": 1}], "rate_nano_usd": 1,
                "cap_day": None, "hold_nano": 1, "payer": "wallet:w",
            }
        )
    )  # fmt: skip
    running.take(accept, Decision(Outcome.APPLIED, request=request_of(accept)))
    assert running.wrong(books) == [f"request {RID} goes on after its end"]


def test_a_range_is_a_power_of_two(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no power of two"):
        Manifest(2, 100)
    refused = CliRunner().invoke(group, ["archive", "--out", str(tmp_path / "a"), "--range", "100"])
    assert refused.exit_code == 2
    assert "100 is no power of two" in refused.output
    assert not (tmp_path / "a").exists()


def test_an_archive_of_the_first_format_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(manifest().dump().replace(b"archive 2", b"archive 1"))
    with pytest.raises(ArchiveCorrupt, match=r"manifest.json: it is of format 1, .* archive the log again"):
        Archive.open(tmp_path)


def test_the_columns_are_for_any_reader_too(tmp_path: Path) -> None:
    import pyarrow.parquet

    event = credit(7, "r")
    (tmp_path / "x.parquet").write_bytes(encode([Record(0, 0, b"w", dump(event)), Record(0, 1, b"w", b"{}")]))
    rows = pyarrow.parquet.read_table(tmp_path / "x.parquet").to_pylist()
    told = {"type": "wallet.credited", "wallet": "w", "at_ms": T0, "asset": "SHIVER", "amount_nano": 7}
    assert rows[0].items() >= {**told, "external_ref": "r", "request_hi": None}.items()
    assert [rows[1][name] for name in ("type", "wallet", "at_ms", "value")] == [None, None, 0, b"{}"]
