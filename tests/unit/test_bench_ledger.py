"""The events of the ledger's bench: valid, as many as asked for, the same every time."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from infra.bench.ledger import ARCHIVE, KAFKA, Measured, Rate, synthetic, table
from infra.bench.ledger_peers import Peer, hledger
from infra.bench.ledger_projection import WHAT, Projected
from ledger.apply import step
from ledger.books import Books
from ledger.invariants import broken_by, broken_in, overdrawn
from ledger.outcomes import Outcome
from schemas.events import UsageRecorded


@pytest.mark.parametrize("count", [1_000, 5_001])
def test_every_event_of_the_bench_is_applied(count: int) -> None:
    books, usages = Books(0), 0
    many = list(synthetic(count))
    for offset, event in enumerate(many):
        decision = step(books, event, offset)
        assert decision.outcome is Outcome.APPLIED
        assert broken_by(decision) == []
        if isinstance(event, UsageRecorded):
            usages += 1
            assert len(decision.postings) == 4
    assert len(many) == count
    assert books.opened_count - books.ended_count <= 1
    assert abs(2 * usages + count // 20 - count) <= 1
    assert broken_in(books) == []
    assert overdrawn([books]) == []
    assert many == list(synthetic(count))


def test_the_table_judges_the_bars() -> None:
    names = ("append to Kafka, acked", *WHAT.values(), KAFKA, ARCHIVE)
    projected = Projected(WHAT[2], 1_000_000, 25.0, 0, 0.9, 1.84, 3.2)
    peers = [Peer("one", 100, 4.0), Peer("other", missing="it is not here")]
    text = table(Measured([Rate(name, 1_000_000, 25.0) for name in names], [projected], 50_000_000, "abc", peers))
    assert "| one | 100 | 4.0 | 25 |" in text
    assert "- other: not measured, it is not here" in text
    assert "| append to Kafka, acked | 1,000,000 | 25.0 | 40,000 |" in text
    assert "projection into PostgreSQL of 15,000 usage events/s: 20,000, **met**" in text
    assert "20,000 usages/s over the whole backlog" in text
    assert "1.8 were busy, 0.9 of them with streams; load 3.2" in text
    assert "replay from Kafka of 150,000/s: 40,000, **NOT met**" in text
    assert "50 bytes an event" in text


def test_hledger_reads_what_the_bench_exports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("hledger"):  # the exports' own tests install it
        assert hledger(synthetic(1_000), tmp_path).events == 1_000
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert "apt install hledger" in hledger(synthetic(1_000), tmp_path).missing
