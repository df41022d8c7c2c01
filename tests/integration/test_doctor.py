"""What `shrk doctor` finds in a real Kafka and PostgreSQL."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Producer

from infra.addresses import Addresses
from infra.commands import doctor
from infra.commands.doctor import Finding, examine
from infra.kafka.topics import create_topics
from infra.ports import free_port
from infra.state import StateFolder
from schemas.heartbeats import NodeHeartbeat, ServedModel
from schemas.topics import NODE_HEARTBEATS, standing_topics

BEAT = NodeHeartbeat(
    node_id="node-d",
    provider_id="home",
    at_ms=1,
    version="1",
    engine="double",
    models=(ServedModel(name="shark-mini", context_tokens=1024),),
    slots=4,
    busy_by_owner={"i1": 1, "i2": 2},
)


@pytest.fixture
def node(kafka: str) -> Iterator[None]:
    """A node that says of itself what BEAT says, until the test ends."""
    create_topics(kafka, standing_topics())
    ended = threading.Event()

    def beat() -> None:
        producer = Producer({"bootstrap.servers": kafka, "log_level": 0})
        while not ended.wait(0.2):
            producer.produce(NODE_HEARTBEATS, BEAT.model_dump_json().encode(), key=b"node-d")
            producer.poll(0)
        producer.flush(10)

    thread = threading.Thread(target=beat)
    thread.start()
    yield
    ended.set()
    thread.join()


def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kafka: str, database_url: str) -> list[Finding]:
    monkeypatch.setattr(doctor.addresses, "find", lambda _: Addresses(kafka, database_url, 8, None))
    return list(examine(StateFolder(tmp_path)))


@pytest.mark.usefixtures("node")
def test_a_network_in_good_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kafka: str, database_url: str
) -> None:
    findings = told(tmp_path, monkeypatch, kafka, database_url)
    assert [finding for finding in findings if finding.level == "bad"] == []
    assert Finding("ok", "node node-d: shark-mini on double, 3/4 slots busy") in findings
    assert any("migrations are up to date" in finding.what for finding in findings)
    assert any("records behind the log" in finding.what for finding in findings)


def test_everything_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"postgresql://me:hunter2@127.0.0.1:{free_port()}/x"
    findings = told(tmp_path, monkeypatch, f"127.0.0.1:{free_port()}", url)
    bad = [finding for finding in findings if finding.level == "bad"]
    assert len(bad) == 2
    assert all(finding.advice for finding in bad)
    assert "hunter2" not in str(bad)
