"""Appends operator's events to the ledger log: few, one at a time, acknowledged by all replicas before it returns."""

import asyncio
from typing import Any

from infra.accounts import Append
from infra.errors import Unreachable
from schemas.events import Event, dump
from schemas.topics import LEDGER, partition_of

_TIMEOUT_S = 15.0


def appending(kafka: str, ledger_partitions: int) -> Append:
    """An `append` for `accounts.credit`. It raises Unreachable if the log does not acknowledge within 15 s; the event
    may have been appended all the same, and repeating it is harmless.
    """

    async def append(event: Event) -> None:
        await asyncio.to_thread(_append, kafka, ledger_partitions, event)

    return append


def _append(kafka: str, ledger_partitions: int, event: Event) -> None:
    from confluent_kafka import KafkaException, Producer

    failures: list[Any] = []
    delivered: list[Any] = []

    def done(error: Any, message: Any) -> None:
        (failures if error is not None else delivered).append(error or message)

    producer = Producer(
        {
            "bootstrap.servers": kafka,
            "acks": "all",
            "enable.idempotence": True,
            "delivery.timeout.ms": int(_TIMEOUT_S * 1000),
            "linger.ms": 0,
            "log_level": 0,
        }
    )
    key = event.key.encode()
    try:
        producer.produce(
            LEDGER, value=dump(event), key=key, partition=partition_of(key, ledger_partitions), on_delivery=done
        )
        producer.flush(_TIMEOUT_S)
    except KafkaException as error:
        raise Unreachable(f"the ledger log at {kafka} refused the event: {error.args[0].str()}") from error
    if failures or not delivered:
        why = failures[0].str() if failures else f"no acknowledgement within {_TIMEOUT_S:g} s"
        raise Unreachable(f"the ledger log at {kafka} did not take the event: {why}; it is safe to repeat")
