"""Looks into topics for an operator, without joining a group or committing anything."""

import time
from collections.abc import Iterator
from typing import Any

from infra.errors import Unreachable

_TIMEOUT_S = 5.0


def _consumer(bootstrap: str) -> Any:
    from confluent_kafka import Consumer

    return Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": "shrk-look",  # librdkafka wants one; nothing is ever committed to it
            "enable.auto.commit": False,
            "auto.offset.reset": "latest",
            "log_level": 0,
        }
    )


def _partitions(consumer: Any, bootstrap: str, topic: str) -> list[int]:
    from confluent_kafka import KafkaException

    try:
        found = consumer.list_topics(topic, timeout=_TIMEOUT_S).topics[topic]
    except KafkaException as error:
        raise Unreachable(f"Kafka at {bootstrap} does not answer within {_TIMEOUT_S:g} s") from error
    if found.error is not None:
        raise Unreachable(f"topic {topic} cannot be read: {found.error.str()}")
    return list(found.partitions)


def end_offsets(bootstrap: str, topic: str) -> dict[int, int]:
    """The offset after the last record, by partition. Raises Unreachable."""
    from confluent_kafka import KafkaException, TopicPartition

    consumer = _consumer(bootstrap)
    try:
        ends = {}
        for partition in _partitions(consumer, bootstrap, topic):
            where = TopicPartition(topic, partition)
            ends[partition] = consumer.get_watermark_offsets(where, timeout=_TIMEOUT_S, cached=False)[1]
        return ends
    except KafkaException as error:
        raise Unreachable(f"the end of {topic} cannot be asked for: {error.args[0].str()}") from error
    finally:
        consumer.close()


def listen(bootstrap: str, topic: str, for_s: float) -> Iterator[bytes]:
    """The values of records that arrive within `for_s` from now. Raises Unreachable."""
    from confluent_kafka import OFFSET_END, TopicPartition

    consumer = _consumer(bootstrap)
    try:
        consumer.assign(
            [TopicPartition(topic, number, OFFSET_END) for number in _partitions(consumer, bootstrap, topic)]
        )
        deadline = time.monotonic() + for_s
        while (left_s := deadline - time.monotonic()) > 0:
            message = consumer.poll(min(left_s, 0.5))
            if message is not None and message.error() is None and message.value() is not None:
                yield message.value()
    finally:
        consumer.close()
