"""Errata: what is signed, what counts, and that a record which can be read is never touched."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ledger import commands
from ledger.digest import record_sha256
from ledger.errata import NO_ERRATA, Errata
from ledger.outcomes import Outcome
from ledger.reader import Record, check_place
from ledger.replay import Replay
from schemas.errata import (
    ErrataError,
    Erratum,
    dump_file,
    is_signed,
    load_file,
    new_key,
    public_key_of,
    sign,
    trusted_keys,
)
from schemas.events import Unreadable, UnreadableEvent, WalletCredited, dump
from schemas.topics import partition_of

KEY = "11" * 32
OTHER = "22" * 32
TRUSTED = frozenset((public_key_of(KEY),))
GOOD = WalletCredited(
    wallet="w", at_ms=1, asset="SHIVER", amount_nano=5, external_ref="r", reason="grant", operator="o"
)
POISON = Record(0, 0, b"w", b'{"type":"nonsense"}')


def erratum(record: Record = POISON, key: str = KEY, **changes: Any) -> Erratum:
    fields: dict[str, Any] = {
        "partition": record.partition,
        "offset": record.offset,
        "record_sha256": record_sha256(*record).hex(),
        "reason": "a producer went mad",
        "operator": "ada",
        "at_ms": 1_800_000_000_000,
        "public_key": public_key_of(key),
    }
    return sign(Erratum(**fields), key).model_copy(update=changes)


def test_what_is_signed_is_pinned() -> None:
    assert erratum().signed_bytes() == (
        b"shiver erratum 1\n1:01:032:" + record_sha256(*POISON) + b"19:a producer went mad3:ada13:1800000000000"
    )
    assert erratum().signature == erratum().signature  # Ed25519 has no randomness
    assert is_signed(erratum())


@pytest.mark.parametrize(
    "changes",
    [
        {"partition": 1},
        {"offset": 1},
        {"record_sha256": "0" * 64},
        {"reason": "another"},
        {"operator": "bob"},
        {"at_ms": 5},
        {"public_key": public_key_of(OTHER)},
        {"signature": "0" * 128},
    ],
)
def test_every_field_is_under_the_signature(changes: dict[str, Any]) -> None:
    assert not is_signed(erratum(**changes))


def test_no_two_errata_have_the_same_signed_bytes() -> None:
    assert erratum(reason="a1:b", operator="c").signed_bytes() != erratum(reason="a", operator="1:bc").signed_bytes()


def test_it_counts_for_its_record_alone() -> None:
    errata = Errata([erratum()], TRUSTED)
    assert errata.event_of(*POISON) == Unreadable()
    for other in (POISON._replace(offset=1), POISON._replace(partition=1)):
        with pytest.raises(UnreadableEvent, match=r"^not a known event: [^;]*$"):
            errata.event_of(*other)


@pytest.mark.parametrize(
    ("made", "trusted", "why"),
    [
        (erratum(), frozenset[str](), "is not in SHRK_ERRATA_KEYS"),
        (erratum(key=OTHER), TRUSTED, f"its key {public_key_of(OTHER)} is not in SHRK_ERRATA_KEYS"),
        (erratum(reason="another"), TRUSTED, "its signature is wrong"),
        (erratum(POISON._replace(value=b"{}")), TRUSTED, r"it is for another record \(its SHA-256"),
        (erratum(POISON._replace(key=b"v")), TRUSTED, "it is for another record"),
    ],
)
def test_one_that_does_not_count_leaves_the_stop_and_says_why(made: Erratum, trusted: frozenset[str], why: str) -> None:
    with pytest.raises(UnreadableEvent, match=f"^not a known event: .*; an erratum does not count: .*{why}"):
        Errata([made], trusted).event_of(*POISON)


def test_a_second_one_that_counts_is_enough() -> None:
    assert Errata([erratum(key=OTHER), erratum()], TRUSTED).covers(*POISON)


def test_what_can_be_read_is_never_touched() -> None:
    record = Record(0, 0, b"w", dump(GOOD))
    errata = Errata([erratum(record)], TRUSTED)
    assert errata.event_of(*record) == GOOD
    assert not errata.covers(*record)


def test_a_key_that_is_not_its_events_is_unreadable_too() -> None:
    record = Record(0, 0, b"v", dump(GOOD))
    with pytest.raises(UnreadableEvent, match=r"^its key is not its event's$"):
        NO_ERRATA.event_of(*record)
    assert Errata([erratum(record)], TRUSTED).event_of(*record) == Unreadable()


def test_a_misplaced_record_passes_only_if_it_cannot_be_read() -> None:
    from ledger.log import LedgerCorrupt

    wrong = 1 - partition_of(b"w", 2)
    for value, passes in ((b"", True), (dump(GOOD), False)):
        record = Record(wrong, 0, b"w", value)
        with pytest.raises(LedgerCorrupt, match="its key belongs to partition"):
            check_place(record, 2)
        if passes:
            check_place(record, 2, Errata([erratum(record)], TRUSTED))
        else:
            with pytest.raises(LedgerCorrupt, match="its key belongs to partition"):
                check_place(record, 2, Errata([erratum(record)], TRUSTED))


def test_replay_counts_a_rejection_and_nothing_else() -> None:
    poison = POISON._replace(offset=1)
    records = [Record(0, 0, b"w", dump(GOOD)), poison, Record(0, 2, b"w", dump(GOOD))]
    replay = Replay(1, errata=Errata([erratum(poison)], TRUSTED))
    told = replay.feed(records)
    assert [decision.outcome for _, _, decision in told] == [Outcome.APPLIED, Outcome.UNREADABLE, Outcome.DUPLICATE]
    books = replay.books[0]
    assert (books.next_offset, books.rejected, books.max_event_ms) == (3, 2, 1)
    assert books.balance_nano("wallet:w", "SHIVER") == 5
    replay.finish()
    assert replay.broken == []


def test_a_file_is_the_same_bytes_for_the_same_errata() -> None:
    several = [erratum(), erratum(key=OTHER), erratum(POISON._replace(offset=7))]
    data = dump_file([*several, *reversed(several)])
    assert data == dump_file(reversed(several))
    assert set(load_file(data)) == set(several)
    assert load_file(b"[]") == ()


@pytest.mark.parametrize("data", [b"", b"{}", b'[{"partition": 1}]', b"[" + b"1," * 3 + b"1]", b'[{"offset": -1}]'])
def test_a_file_that_is_none_is_said_in_one_line(data: bytes) -> None:
    with pytest.raises(ErrataError, match=r"^no list of errata: [^\n]+$"):
        load_file(data)


def test_keys() -> None:
    assert len(new_key()) == 64
    assert new_key() != new_key()
    assert trusted_keys("") == frozenset()
    assert trusted_keys(f" {public_key_of(KEY)} ,{public_key_of(OTHER)},") == {public_key_of(KEY), public_key_of(OTHER)}
    with pytest.raises(ErrataError, match="SHRK_ERRATA_KEYS: 'ABC' is no public key"):
        trusted_keys("ABC")
    for bad in ("", "xyz", "11" * 31):
        with pytest.raises(ErrataError, match="64 hexadecimal digits"):
            public_key_of(bad)


def test_new_key_is_for_its_owner_alone_and_never_overwritten(tmp_path: Path) -> None:
    file = tmp_path / "key"
    made = CliRunner().invoke(commands.group, ["erratum", "new-key", str(file)])
    assert made.exit_code == 0, made.output
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert made.output.strip() == public_key_of(file.read_text())
    again = CliRunner().invoke(commands.group, ["erratum", "new-key", str(file)])
    assert again.exit_code == 1
    assert "File exists" in again.output
