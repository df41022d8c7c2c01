"""Where the projection goes on, and whether the log is still the one that it has read (C9).

A log that was lost, cut or made anew must never be skipped over. So for every partition that is assigned: the topic's
id is the one that is written down, the log's end is not before `next`, and the record at `next - 1` is, byte for byte,
the last one that was applied.
"""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
from aiokafka import AIOKafkaConsumer, TopicPartition
from confluent_kafka import TopicCollection
from confluent_kafka.admin import AdminClient

from ledger.digest import record_sha256
from schemas import topics

TIMEOUT_S = 10.0


class LogChanged(Exception):
    """ledger.events is not the log that the books were made from. A person must look; nothing is applied."""


async def start_offsets(db: Any, kafka: str, ledger_partitions: int, partitions: list[int]) -> dict[int, int]:
    """The next offset of each of `partitions`, checked. Rows of partitions that are new here begin at 0.

    Raises LogChanged, KafkaException, KafkaError, TimeoutError or asyncpg errors.
    """
    topic_id, count = await asyncio.wait_for(asyncio.to_thread(describe, kafka), 2 * TIMEOUT_S)
    if count != ledger_partitions:
        raise LogChanged(f"{topics.LEDGER} has {count} partitions where {ledger_partitions} are configured")
    await db.execute(
        "insert into derived.offsets (topic, partition, next, topic_id) select $1, p, 0, $2 from unnest($3::int[]) p "
        "on conflict do nothing",
        topics.LEDGER,
        topic_id,
        partitions,
    )
    rows = await db.fetch(
        "select partition, next, topic_id, last_sha256 from derived.offsets where topic = $1 and partition = any ($2)",
        topics.LEDGER,
        partitions,
    )
    for row in rows:
        if row["topic_id"] != topic_id:
            raise LogChanged(
                f"{topics.LEDGER} was made anew: its id is {topic_id}, the books were made from {row['topic_id']}. "
                "Restore the old log, or rebuild the books from the new one"
            )
    await _check_last_records(kafka, [row for row in rows if row["next"]])
    return {row["partition"]: row["next"] for row in rows}


def describe(kafka: str) -> tuple[str, int]:
    """Kafka's id of ledger.events, and its partition count. Blocks. Raises KafkaException."""
    admin = AdminClient({"bootstrap.servers": kafka, "log_level": 2})
    asked = admin.describe_topics(TopicCollection([topics.LEDGER]), request_timeout=TIMEOUT_S)
    description = asked[topics.LEDGER].result(TIMEOUT_S)
    return str(description.topic_id), len(description.partitions)


async def _check_last_records(kafka: str, rows: list[asyncpg.Record]) -> None:
    if not rows:
        return
    consumer = AIOKafkaConsumer(bootstrap_servers=kafka, enable_auto_commit=False, auto_offset_reset="none")
    try:
        async with asyncio.timeout(TIMEOUT_S):
            await consumer.start()
            places = {TopicPartition(topics.LEDGER, row["partition"]): row for row in rows}
            ends = await consumer.end_offsets(list(places))
            for place, row in places.items():
                if ends[place] < row["next"]:
                    raise LogChanged(
                        f"{topics.LEDGER} partition {place.partition} ends at {ends[place]}, but the books have read "
                        f"to {row['next']}: the log was lost or cut"
                    )
            consumer.assign(list(places))
            for place, row in places.items():
                consumer.seek(place, row["next"] - 1)
            for place, row in places.items():
                _check(await consumer.getone(place), row)
    finally:
        await asyncio.wait_for(consumer.stop(), 3)


def _check(record: object, row: asyncpg.Record) -> None:
    partition, offset = record.partition, record.offset  # type: ignore[attr-defined]
    found = record_sha256(partition, offset, record.key or b"", record.value or b"")  # type: ignore[attr-defined]
    if offset != row["next"] - 1 or found != row["last_sha256"]:
        raise LogChanged(
            f"{topics.LEDGER} partition {partition} offset {row['next'] - 1} is not the record that the books were "
            "made from: the log was changed or made anew"
        )
