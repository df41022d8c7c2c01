"""`shrk doctor`: looks at everything that a stack needs, and says what is wrong and what to do."""

import asyncio
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import click

from infra import addresses
from infra.errors import ShrkError
from infra.http import not_ready
from infra.ports import LOOPBACK, is_free
from infra.stack import DEFAULT_PORT
from infra.state import NEEDED_BYTES, StateFolder

_LISTEN_S = 3.0
_LAG_ALARM = 1000


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. `advice` is what to do about it, empty where nothing is to be done."""

    level: Literal["ok", "warn", "bad"]
    what: str
    advice: str = ""


@click.command()
def doctor() -> None:
    """Say what is wrong and what to do about it. Exit code 1 if something is."""
    bad = False
    for finding in examine():
        mark = {"ok": "ok  ", "warn": "warn", "bad": "BAD "}[finding.level]
        click.echo(f"{mark}  {finding.what}" + (f"\n      -> {finding.advice}" if finding.advice else ""))
        bad = bad or finding.level == "bad"
    sys.exit(1 if bad else 0)


def examine(state: StateFolder | None = None) -> Iterator[Finding]:
    """Every finding, as it is made. Takes a few seconds: it listens for nodes."""
    state = state or StateFolder()
    runs = state.holder_pid() is not None
    yield _disk(state)
    yield _guard(_java)
    yield _stack(state, runs)
    try:
        found = addresses.find(state)
    except ShrkError as error:
        yield Finding("warn", str(error), "what needs Kafka and PostgreSQL was not looked at")
        return
    yield from _kafka(found)
    yield from asyncio.run(_database(found))
    if found.base_url:
        yield _guard(lambda: _ready(found.base_url or ""))


def _guard(look: Callable[[], Finding]) -> Finding:
    try:
        return look()
    except ShrkError as error:
        return Finding("bad", str(error))


def _disk(state: StateFolder) -> Finding:
    folder = next(path for path in (state.root, *state.root.parents) if path.exists())
    free_mib = shutil.disk_usage(folder).free // 1024**2
    if free_mib * 1024**2 < NEEDED_BYTES:
        return Finding("bad", f"disk: {free_mib} MiB free for {state.root}", "free some, or set SHRK_STATE elsewhere")
    return Finding("ok", f"disk: {free_mib} MiB free for {state.root}")


def _java() -> Finding:
    from infra.kafka.java import find_java

    java = find_java()
    return Finding("ok", f"Java {java.major} from {java.origin}: {java.path}")


def _stack(state: StateFolder, runs: bool) -> Finding:
    if not runs:
        if is_free(DEFAULT_PORT, LOOPBACK):
            return Finding("ok", f"no stack runs on {state.root}; port {DEFAULT_PORT} is free")
        return Finding("warn", f"port {DEFAULT_PORT} is in use by another process", "use `shrk up --port`")
    children = state.read_stack().get("children", [])
    troubled = [f"{child['name']} is {child['state']}" for child in children if child["state"] != "ready"]
    restarted = [f"{child['name']} {child['restarts']} times" for child in children if child["restarts"]]
    if troubled:
        return Finding("bad", f"stack: {', '.join(troubled)}", f"read its log in {state.logs}")
    if restarted:
        return Finding("warn", f"stack: restarted: {', '.join(restarted)}", f"read why in {state.logs}")
    return Finding("ok", f"stack: {len(children)} processes run")


def _kafka(found: addresses.Addresses) -> Iterator[Finding]:
    from infra.kafka.topics import list_topics
    from schemas.topics import standing_topics

    try:
        topics = list_topics(found.kafka)
    except ShrkError as error:
        yield Finding("bad", str(error), "is it running? `shrk status`; SHRK_KAFKA is host:port")
        return
    yield Finding("ok", f"Kafka at {found.kafka}: {len(topics)} topics")
    for spec in standing_topics(found.ledger_partitions):
        shape = topics.get(spec.name)
        if shape is None:
            yield Finding(
                "bad", f"topic {spec.name} is missing", "start the stack once with `shrk up`: it makes topics"
            )
        elif shape.partitions != spec.partitions:
            what = f"topic {spec.name} has {shape.partitions} partitions, {spec.partitions} are declared"
            yield Finding("bad", what, "set SHRK_LEDGER_PARTITIONS to what it was made with")
    yield from _nodes(found.kafka, set(topics))


def _nodes(kafka: str, topics: set[str]) -> Iterator[Finding]:
    """Listens for heartbeats: a clock that is off cannot make a dead node look alive."""
    from pydantic import ValidationError

    from infra.kafka.listen import listen
    from schemas.heartbeats import NodeHeartbeat
    from schemas.topics import NODE_HEARTBEATS

    if NODE_HEARTBEATS not in topics:
        return
    heard: dict[str, NodeHeartbeat] = {}
    for value in listen(kafka, NODE_HEARTBEATS, _LISTEN_S):
        try:
            beat = NodeHeartbeat.model_validate_json(value)
        except ValidationError as error:
            yield Finding(
                "warn", f"a heartbeat cannot be read ({error.error_count()} errors)", "is the node's version ours?"
            )
            continue
        heard[beat.node_id] = beat
    if not heard:
        yield Finding("bad", f"no node was heard in {_LISTEN_S:g} s", "start one: `shrk up`, or `python -m workers`")
    for beat in heard.values():
        models = ", ".join(model.name for model in beat.models) or "no model"
        load = f"{sum(beat.busy_by_owner.values())}/{beat.slots} slots busy{', draining' if beat.draining else ''}"
        yield Finding("ok", f"node {beat.node_id}: {models} on {beat.engine}, {load}")


async def _database(found: addresses.Addresses) -> list[Finding]:
    from infra import migrate, postgres

    where = postgres.describe_url(found.database_url)
    try:
        major = await postgres.check(found.database_url)
        todo = await migrate.status(found.database_url)
    except ShrkError as error:
        return [Finding("bad", str(error), "is it running? `shrk status`; SHRK_DATABASE_URL is a PostgreSQL URI")]
    if todo:
        return [Finding("bad", f"PostgreSQL {major} at {where} lacks {', '.join(todo)}", "`shrk up` applies them")]
    good = Finding("ok", f"PostgreSQL {major} at {where}: migrations are up to date")
    try:
        return [good, await _lag(found)]
    except ShrkError as error:
        return [good, Finding("bad", f"projection: {error}")]


async def _lag(found: addresses.Addresses) -> Finding:
    from infra.accounts import connected
    from infra.kafka.listen import end_offsets
    from schemas.topics import LEDGER

    began = time.monotonic()
    ends = await asyncio.to_thread(end_offsets, found.kafka, LEDGER)
    async with connected(found.database_url) as db:
        rows = await db.fetch("select partition, next from derived.offsets where topic = $1", LEDGER)
    read = {row["partition"]: row["next"] for row in rows}
    ahead = [partition for partition, offset in read.items() if offset > ends.get(partition, 0)]
    if ahead:
        what = f"projection: the database has read further than the log goes (partitions {ahead})"
        return Finding("bad", what, "it belongs to another log: use the Kafka that it was made with")
    lag = sum(end - read.get(partition, 0) for partition, end in ends.items())
    told = f"projection: {lag} records behind the log ({time.monotonic() - began:.1f} s to ask)"
    if lag > _LAG_ALARM:
        return Finding("warn", told, "if it does not fall, read the log of streams")
    return Finding("ok", told)


def _ready(base_url: str) -> Finding:
    missing = not_ready(base_url)
    if not missing:
        return Finding("ok", f"ingress at {base_url} is ready")
    told = f"ingress at {base_url} is not ready: {'; '.join(missing)}"
    return Finding("bad", told, "the first line above that is not ok says why")
