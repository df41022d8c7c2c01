"""A node of another kind joins the stack: one slot, alone with its model, and so slow to read a prompt that it can be
met in the middle of that. Clients leave it, and it dies under them."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
from aiokafka import AIOKafkaConsumer, TopicPartition

from infra import catalog
from infra.kafka.topics import create_topics
from ledger.money import format_amount
from schemas.heartbeats import NodeHeartbeat
from schemas.topics import NODE_HEARTBEATS, mailbox_topic
from tests.e2e.conftest import Running
from tests.e2e.test_faults import Stream

MODEL = "slow-reader"
FALLBACK = "shark-mini"
SHORT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
#: At PREFILL_MS for each byte of the prompt: ten minutes, while SHORT takes half a second.
LONG = {**SHORT, "messages": [{"role": "user", "content": "x" * 60_000}]}
PREFILL_MS = "10"


class Node:
    """Its process, and what it says of itself."""

    def __init__(self, node_id: str, process: asyncio.subprocess.Process, ear: Any) -> None:
        self.node_id = node_id
        self.process = process
        self._ear = ear
        self._beat: NodeHeartbeat | None = None

    async def busy(self) -> int | None:
        """Slots that are taken there, None before it was heard."""
        for records in (await self._ear.getmany(timeout_ms=50)).values():
            beats = [NodeHeartbeat.model_validate_json(record.value) for record in records]
            self._beat = next((beat for beat in reversed(beats) if beat.node_id == self.node_id), self._beat)
        return None if self._beat is None else sum(self._beat.busy_by_owner.values())

    def is_busy_with(self, slots: int) -> Callable[[], Awaitable[bool]]:
        async def so() -> bool:
            return await self.busy() == slots

        return so


@asynccontextmanager
async def joined(up: Running) -> AsyncIterator[Node]:
    node_id = f"slow-{os.urandom(3).hex()}"
    await asyncio.to_thread(create_topics, up.stack.kafka, [mailbox_topic(node_id)])
    async with up.db.acquire() as db:
        await catalog.set_model(db, MODEL, catalog.price("500", "900"))
        providers = await catalog.register_nodes(db, {node_id: None})
    ear = AIOKafkaConsumer(bootstrap_servers=up.stack.kafka, auto_offset_reset="latest")
    await ear.start()
    ear.assign([TopicPartition(NODE_HEARTBEATS, 0)])
    await ear.seek_to_end()
    settings = {
        "SHRK_KAFKA": up.stack.kafka,
        "SHRK_NODE_ID": node_id,
        "SHRK_PROVIDER_ID": providers[node_id],
        "SHRK_ENGINE": "double",
        "SHRK_MODELS": MODEL,
        "SHRK_SLOTS": "1",
        "SHRK_DOUBLE_PREFILL_MS": PREFILL_MS,
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "workers", env=os.environ | settings, stderr=asyncio.subprocess.PIPE
    )

    async def online() -> bool:
        response = await up.http.get(f"/v1/models/{MODEL}")
        return response.status_code == 200 and response.json()["nodes_online"] == 1

    try:
        await up.until(online, what=f"{node_id} is online")
        yield Node(node_id, process, ear)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()
        await ear.stop()


async def _ended(up: Running, request_id: str) -> Any:
    async def ended() -> Any:
        return await up.db.fetchrow(
            "select * from derived.requests where request_id = $1 and status <> 'open'", request_id
        )

    return await up.until(ended, what=f"the end of {request_id}")


async def test_a_client_that_leaves_in_prefill_stops_the_node_and_pays_nothing(faulty: Running) -> None:
    await faulty.quiet()
    async with joined(faulty) as node:
        for stream in (True, False):
            asking = asyncio.create_task(faulty.post({**LONG, "stream": stream}))
            await faulty.until(node.is_busy_with(1), what="the node reads the prompt")
            request_id = await faulty.db.fetchval("select request_id from state.admissions")
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            # It would go on reading for ten minutes.
            await faulty.until(node.is_busy_with(0), what="the slot is free again")
            row = await _ended(faulty, request_id)
            assert (row["status"], row["how"], row["charge_nano"]) == ("failed", "client_gone", 0)
            assert not await faulty.db.fetch("select from derived.entries where request_id = $1", request_id)
            await faulty.quiet()
        served = await faulty.post(SHORT)  # on its one slot
        assert (served.status_code, served.headers["x-shiver-model"]) == (200, MODEL)
        node.process.send_signal(signal.SIGTERM)
        _, log = await node.process.communicate()
        assert log.decode().count("end=cancelled") == 2
        assert "Traceback" not in log.decode()


async def test_a_fallback_takes_over_from_a_node_that_dies_in_prefill_and_is_what_is_paid(faulty: Running) -> None:
    await faulty.quiet()
    body = {**LONG, "fallback_models": [FALLBACK]}
    async with joined(faulty) as node:
        asking = asyncio.create_task(faulty.post(body))
        await faulty.until(node.is_busy_with(1), what="the node reads the prompt")
        node.process.kill()
        response = await asking
        assert response.status_code == 200, response.text
        await _is_paid_as_the_fallback(faulty, response, response.json()["usage"])

        async def away() -> bool:
            return (await faulty.http.get(f"/v1/models/{MODEL}")).json()["nodes_online"] == 0

        await faulty.until(away, what="the node is known to be gone")
        stream = Stream()
        await stream.run(faulty, **body)
        assert stream.done
        assert stream.model == FALLBACK
    await faulty.quiet()


async def _is_paid_as_the_fallback(up: Running, response: httpx.Response, usage: dict[str, int]) -> None:
    assert (response.headers["x-shiver-model"], response.json()["model"]) == (FALLBACK, MODEL)
    prices = await up.db.fetch("select * from state.models where model = any($1)", [MODEL, FALLBACK])
    by_model = {row["model"]: row for row in prices}
    paid_nano = (
        by_model[FALLBACK]["in_nano"] * usage["prompt_tokens"]
        + by_model[FALLBACK]["out_nano"] * usage["completion_tokens"]
    )
    assert response.headers["x-shiver-cost"] == f"{format_amount(paid_nano)} SHIVER"
    request_id = response.headers["x-shiver-request-id"]
    row = await _ended(up, request_id)
    assert (row["status"], row["how"], row["model"]) == ("charged", "length", FALLBACK)
    assert row["charge_nano"] == row["payer_charge_nano"] == paid_nano
    # The hold was that of the dearer model.
    assert row["hold_nano"] > by_model[MODEL]["in_nano"] * usage["prompt_tokens"] > paid_nano
    entries = await up.db.fetch("select account, amount_nano from derived.entries where request_id = $1", request_id)
    assert sum(entry["amount_nano"] for entry in entries) == 0
    (node_1,) = up.stack.providers.values()
    earned = {entry["account"] for entry in entries if entry["account"].startswith("provider:")}
    assert earned == {f"provider:{node_1}"}
