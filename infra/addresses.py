"""Where Kafka, PostgreSQL and the ingress are: by the environment, else by the stack that runs on the state folder."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from infra.errors import NotRunning
from infra.state import StateFolder
from schemas.topics import LEDGER_PARTITIONS_DEV


@dataclass(frozen=True, slots=True)
class Addresses:
    """`kafka` is host:port, `database_url` a PostgreSQL URI, `base_url` the ingress without `/v1`, None if unknown."""

    kafka: str
    database_url: str
    ledger_partitions: int
    base_url: str | None


def as_environment(found: Addresses, env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """`env` with what the processes of the stack read."""
    told = {"SHRK_KAFKA": found.kafka, "SHRK_DATABASE_URL": found.database_url}
    return {**env, **told, "SHRK_LEDGER_PARTITIONS": str(found.ledger_partitions)}


def find(state: StateFolder | None = None, env: Mapping[str, str] = os.environ) -> Addresses:
    """SHRK_KAFKA and SHRK_DATABASE_URL, each else as the running stack has it. Raises NotRunning if one is unknown."""
    state = state or StateFolder()
    stack = state.read_stack() if state.holder_pid() is not None else {}
    kafka = env.get("SHRK_KAFKA") or stack.get("kafka")
    database_url = env.get("SHRK_DATABASE_URL") or stack.get("database_url")
    if not kafka or not database_url:
        names = " and ".join(
            name for name, value in (("SHRK_KAFKA", kafka), ("SHRK_DATABASE_URL", database_url)) if not value
        )
        raise NotRunning(f"no stack runs on {state.root}: start one with `shrk up`, or set {names}")
    partitions = env.get("SHRK_LEDGER_PARTITIONS") or stack.get("ledger_partitions") or LEDGER_PARTITIONS_DEV
    return Addresses(kafka, database_url, int(partitions), stack.get("base_url"))
