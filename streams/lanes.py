"""Removes the reply topics of ingresses that are gone, when nobody can want to read them any more."""

from __future__ import annotations

import asyncio
import logging

import asyncpg
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from schemas import topics

log = logging.getLogger(__name__)

#: How long answers stay readable after their ingress is gone. To grow to a day once a client can re-attach to a stream.
WINDOW_S = 600.0
DELETE_BATCH_MAX = 64
TIMEOUT_S = 15.0


async def remove_dead_lanes(db: asyncpg.Connection, kafka: str, window_s: float = WINDOW_S) -> int:
    """One ingress a call: topics first, then its row, so that a crash in between is made good by the next call."""
    row = await db.fetchrow(
        "select boot_id, lanes from state.ingresses i "
        "where coalesce(left_at, lease_until) < clock_timestamp() - $1::float8 * interval '1 second' "
        "and not exists (select from state.admissions a where a.owner = i.boot_id) order by boot_id limit 1",
        window_s,
    )
    if row is None:
        return 0
    names = await asyncio.to_thread(_delete_all, kafka, row["boot_id"], row["lanes"])
    await db.execute("delete from state.ingresses where boot_id = $1", row["boot_id"])
    log.info("removed %d reply topics of ingress %s", len(names), row["boot_id"])
    return len(names)


def _delete_all(kafka: str, boot_id: str, told: int) -> list[str]:
    """The lanes that the ingress told of, and those that it had made and not told of when it died."""
    admin = AdminClient({"bootstrap.servers": kafka, "log_level": 2})
    prefix = topics.lane(boot_id, 0).removesuffix("0")
    found = {name for name in admin.list_topics(timeout=TIMEOUT_S).topics if name.startswith(prefix)}
    names = sorted(found | {topics.lane(boot_id, number) for number in range(told)})
    _delete(admin, names)
    return names


def _delete(admin: AdminClient, names: list[str]) -> None:
    for start in range(0, len(names), DELETE_BATCH_MAX):
        answers = admin.delete_topics(names[start : start + DELETE_BATCH_MAX], operation_timeout=TIMEOUT_S)
        for answer in answers.values():
            try:
                answer.result(TIMEOUT_S)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                    raise
