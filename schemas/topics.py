"""Every Kafka topic of Shiver, its settings, and the partition of a key. Names are made here and nowhere else.

`ledger.events` is kept for ever and its partition count is fixed at creation: a key in another partition than
`partition_of` says stops every reader, because books are kept per partition.
"""

from __future__ import annotations

from typing import NamedTuple

LEDGER = "ledger.events"
NODE_HEARTBEATS = "node.heartbeats"
INGRESS_HEARTBEATS = "ingress.heartbeats"

#: The key of epochs, payouts and settlement: all of them in one partition, so in one order (S6). No wallet has a colon.
SETTLEMENT_KEY = "shiver:settlement"

LEDGER_PARTITIONS_DEV = 8
MIB = 1024 * 1024
#: Bodies up to 1 MiB and images up to 4 MiB travel in a job, so mailboxes and their whole path take 8 MiB.
JOB_BYTES_MAX = 8 * MIB
LANES_PER_CREATE_MAX = 10

_HOUR_MS = 3_600_000


class TopicSpec(NamedTuple):
    """A topic to be made before use: Kafka never makes one by itself here."""

    name: str
    partitions: int
    config: dict[str, str]


def ledger_topic(partitions: int = LEDGER_PARTITIONS_DEV) -> TopicSpec:
    """The log of facts: never compacted, never expired, CreateTime kept as the writer gave it."""
    return TopicSpec(LEDGER, partitions, {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"})


def standing_topics(ledger_partitions: int = LEDGER_PARTITIONS_DEV) -> list[TopicSpec]:
    """What the operator tool makes once, before any process starts."""
    compacted = {"cleanup.policy": "compact", "segment.ms": str(_HOUR_MS), "min.cleanable.dirty.ratio": "0.1"}
    return [
        ledger_topic(ledger_partitions),
        TopicSpec(NODE_HEARTBEATS, 1, compacted),
        TopicSpec(INGRESS_HEARTBEATS, 1, compacted),
    ]


def mailbox(node_id: str) -> str:
    """The topic that one node alone reads its jobs and cancels from."""
    return f"jobs.{node_id}"


def mailbox_topic(node_id: str) -> TopicSpec:
    return TopicSpec(
        mailbox(node_id),
        1,
        {"retention.ms": str(_HOUR_MS), "segment.ms": str(_HOUR_MS), "max.message.bytes": str(JOB_BYTES_MAX)},
    )


def lane(boot_id: str, number: int) -> str:
    """The reply topic that one request leases: `number` counts up within the ingress process `boot_id`."""
    return f"replies.{boot_id}.{number}"


def lane_topic(boot_id: str, number: int) -> TopicSpec:
    return TopicSpec(lane(boot_id, number), 1, {"retention.ms": str(24 * _HOUR_MS), "segment.ms": str(_HOUR_MS)})


def lane_boot_id(topic: str) -> str:
    """The ingress process that owns a lane. Raises ValueError for a name that is no lane."""
    prefix, _, rest = topic.partition(".")
    boot_id, _, number = rest.rpartition(".")
    if prefix != "replies" or not boot_id or not number.isdigit():
        raise ValueError(f"not a lane: {topic!r}")
    return boot_id


def partition_of(key: bytes, partitions: int) -> int:
    """The partition of a key: Kafka's default partitioner, so that any Kafka client agrees with us."""
    return (murmur2(key) & 0x7FFFFFFF) % partitions


def murmur2(data: bytes) -> int:
    """32-bit MurmurHash2 with Kafka's seed, unsigned (org.apache.kafka.common.utils.Utils.murmur2)."""
    length = len(data)
    multiplier = 0x5BD1E995
    h = (0x9747B28C ^ length) & 0xFFFFFFFF
    whole = length & ~3
    for i in range(0, whole, 4):
        k = int.from_bytes(data[i : i + 4], "little") * multiplier & 0xFFFFFFFF
        k = (k ^ (k >> 24)) * multiplier & 0xFFFFFFFF
        h = (h * multiplier & 0xFFFFFFFF) ^ k
    if length & 3:
        h ^= int.from_bytes(data[whole:], "little")
        h = h * multiplier & 0xFFFFFFFF
    h = (h ^ (h >> 13)) * multiplier & 0xFFFFFFFF
    return h ^ (h >> 15)
