"""Creates and inspects topics through confluent-kafka's AdminClient."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from infra.errors import TopicMismatch, Unreachable

__all__ = ["TopicLike", "TopicShape", "TopicSpecTuple", "Unreachable", "broker_count", "create_topics", "list_topics"]

_BATCH = 10  # larger calls block later creations for seconds (measured)


class TopicLike(Protocol):
    """What a declared topic has: schemas.topics.TopicSpec, or TopicSpecTuple."""

    @property
    def name(self) -> str: ...
    @property
    def partitions(self) -> int: ...
    @property
    def config(self) -> Mapping[str, str]: ...


class TopicSpecTuple(NamedTuple):
    """A topic to have: its name, how many partitions, and its settings as Kafka names them."""

    name: str
    partitions: int
    config: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True)
class TopicShape:
    """A topic that exists."""

    name: str
    partitions: int


def _admin(bootstrap: str) -> Any:
    from confluent_kafka.admin import AdminClient

    # Its own log goes to stderr, a line for every refused connection; failures reach us as exceptions anyway.
    return AdminClient({"bootstrap.servers": bootstrap, "socket.timeout.ms": 10_000, "log_level": 0})


def _metadata(admin: Any, bootstrap: str, timeout_s: float) -> Any:
    from confluent_kafka import KafkaException

    try:
        return admin.list_topics(timeout=timeout_s)
    except KafkaException as error:
        raise Unreachable(f"Kafka at {bootstrap} does not answer within {timeout_s:g} s") from error


def broker_count(bootstrap: str, timeout_s: float = 5.0) -> int:
    """How many brokers the cluster at `bootstrap` has. Raises Unreachable."""
    return len(_metadata(_admin(bootstrap), bootstrap, timeout_s).brokers)


def list_topics(bootstrap: str, timeout_s: float = 5.0) -> dict[str, TopicShape]:
    """Every topic by name, Kafka's internal ones included. Raises Unreachable."""
    topics = _metadata(_admin(bootstrap), bootstrap, timeout_s).topics
    return {name: TopicShape(name, len(topic.partitions)) for name, topic in topics.items()}


def create_topics(
    bootstrap: str, specs: Iterable[TopicLike], replication_factor: int = 1, timeout_s: float = 30.0
) -> list[str]:
    """Makes the topics of `specs` that do not exist yet and returns their names. Safe to repeat, and to race.

    Raises TopicMismatch if a topic exists with another number of partitions (the keys of its records would be
    looked for in the wrong one), Unreachable if Kafka does not answer or refuses a creation.
    """
    wanted = {spec.name: spec for spec in specs}
    admin = _admin(bootstrap)
    existing = _metadata(admin, bootstrap, timeout_s).topics
    _check(wanted, {name: len(topic.partitions) for name, topic in existing.items() if name in wanted})
    missing = [spec for name, spec in wanted.items() if name not in existing]
    created: list[str] = []
    for start in range(0, len(missing), _BATCH):
        created += _create(admin, missing[start : start + _BATCH], replication_factor, timeout_s)
    raced = {spec.name for spec in missing} - set(created)
    if raced:
        found = _metadata(admin, bootstrap, timeout_s).topics
        _check(wanted, {name: len(found[name].partitions) for name in raced if name in found})
    return created


def _check(wanted: Mapping[str, TopicLike], partitions: Mapping[str, int]) -> None:
    for name, count in partitions.items():
        if count != wanted[name].partitions:
            raise TopicMismatch(
                f"topic {name} has {count} partitions where {wanted[name].partitions} are declared; "
                "it was made for other settings: use another Kafka, or `make clean` for a new one"
            )


def _create(admin: Any, specs: list[TopicLike], replication_factor: int, timeout_s: float) -> list[str]:
    from confluent_kafka import KafkaError, KafkaException
    from confluent_kafka.cimpl import NewTopic

    new = [
        NewTopic(spec.name, spec.partitions, replication_factor, config={k: str(v) for k, v in spec.config.items()})
        for spec in specs
    ]
    created = []
    for name, future in admin.create_topics(new, operation_timeout=timeout_s, request_timeout=timeout_s).items():
        try:
            future.result(timeout=timeout_s + 5)
            created.append(name)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:  # another process was first
                raise Unreachable(f"topic {name} could not be created: {error.args[0].str()}") from error
    return created
