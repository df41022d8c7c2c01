"""Processes die, servers go away, clients leave: nothing is held, lost or charged twice, and service resumes."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import DOUBLE_TOKENS, Running

BODY: dict[str, Any] = {
    "model": "shark-mini",
    "messages": [{"role": "user", "content": "count"}],
    "stream": True,
    "max_tokens": DOUBLE_TOKENS,
    "stream_options": {"include_usage": True},
}


class Stream:
    """What one streamed request brought."""

    def __init__(self) -> None:
        self.status = 0
        self.request_id = ""
        self.model = ""  # that served
        self.retry_after = ""
        self.events: list[Any] = []
        self.done = False

    @property
    def text(self) -> str:
        return "".join(c["delta"].get("content") or "" for e in self.events for c in e.get("choices", []))

    @property
    def error(self) -> dict[str, Any] | None:
        return next((event["error"] for event in self.events if "error" in event), None)

    async def run(self, up: Running, *, leave_after: int | None = None, **changes: Any) -> Stream:
        headers = {"authorization": f"Bearer {up.pro}"}
        async with up.http.stream(
            "POST", "/v1/chat/completions", json={**BODY, **changes}, headers=headers
        ) as response:
            self.status, self.request_id = response.status_code, response.headers["x-shiver-request-id"]
            self.retry_after = response.headers.get("retry-after", "")
            self.model = response.headers.get("x-shiver-model", "")
            if self.status != 200:
                self.events.append(json.loads(await response.aread()))
                return self
            async for line in response.aiter_lines():
                if line == "data: [DONE]":
                    self.done = True
                elif line.startswith("data: "):
                    self.events.append(json.loads(line[6:]))
                if leave_after is not None and len(self.events) >= leave_after:
                    return self
        return self


async def _row(up: Running, request_id: str) -> Any:
    async def ended() -> Any:
        return await up.db.fetchrow(
            "select * from derived.requests where request_id = $1 and status <> 'open'", request_id
        )

    return await up.until(ended, what=f"the end of {request_id}")


async def _serves(up: Running) -> None:
    async def good() -> bool:
        try:
            return (await Stream().run(up, max_tokens=1)).done
        except httpx.HTTPError:
            return False

    await up.until(good, 60, "service resumes")


async def test_a_client_that_leaves_stops_the_node_and_pays_for_what_it_got(faulty: Running) -> None:
    stream = await Stream().run(faulty, leave_after=6)
    row = await _row(faulty, stream.request_id)
    assert (row["status"], row["how"]) == ("charged", "client_gone")
    assert 3 <= row["completion_tokens"] < DOUBLE_TOKENS // 2
    await faulty.quiet()


async def test_a_client_that_leaves_before_a_whole_answer_pays_nothing(faulty: Running) -> None:
    with pytest.raises(httpx.ReadTimeout):
        await faulty.http.post(
            "/v1/chat", json={**BODY, "stream": False, "stream_options": None}, timeout=0.5,
            headers={"authorization": f"Bearer {faulty.pro}"},
        )  # fmt: skip
    await faulty.quiet()
    row = await faulty.db.fetchrow("select * from derived.requests order by ended_ms desc limit 1")
    assert (row["status"], row["how"], row["charge_nano"]) == ("failed", "client_gone", 0)


async def test_kill_9_of_streams_under_load_leaves_the_books_exact(faulty: Running) -> None:
    stop = asyncio.Event()
    streams: list[Stream] = []

    async def client() -> None:
        while not stop.is_set():
            stream = Stream()
            streams.append(stream)
            await stream.run(faulty, max_tokens=random.randint(1, 12))

    clients = [asyncio.create_task(client()) for _ in range(8)]
    for _ in range(3):
        await asyncio.sleep(1.5)
        faulty.kill("streams")
    await asyncio.sleep(1)
    stop.set()
    await asyncio.gather(*clients)
    assert any("streams died" in line for line in faulty.said)
    await faulty.quiet(60)
    assert len(streams) > 50
    assert all(stream.done for stream in streams)
    await _books_are_exact(faulty, streams)


async def _books_are_exact(up: Running, streams: list[Stream]) -> None:
    price = await up.db.fetchrow("select in_nano, out_nano from state.models where model = 'shark-mini'")
    for stream in streams:
        usage = stream.events[-1]["usage"]
        row = await _row(up, stream.request_id)
        assert row["completion_tokens"] == usage["completion_tokens"]
        assert row["charge_nano"] == (
            price["in_nano"] * usage["prompt_tokens"] + price["out_nano"] * usage["completion_tokens"]
        )
    sums = await up.db.fetch(
        "select request_id, sum(amount_nano) s from derived.entries group by 1 having sum(amount_nano) <> 0"
    )
    assert sums == []
    drift = await up.db.fetchval(
        "select count(*) from (select account, asset, partition, sum(amount_nano) total from derived.entries"
        " group by 1, 2, 3) e full join derived.accounts a using (account, asset, partition)"
        " where e.total is distinct from a.balance_nano"
    )
    assert drift == 0


async def test_a_node_that_dies_mid_stream_ends_it_with_an_error_event(faulty: Running) -> None:
    node = next(iter(faulty.stack.options.node_ids))
    task = asyncio.create_task(Stream().run(faulty))
    await asyncio.sleep(0.8)
    faulty.kill(node)
    stream = await task
    assert not stream.done
    assert stream.error is not None
    assert stream.error["code"] == "provider_lost"
    row = await _row(faulty, stream.request_id)
    assert (row["status"], row["how"]) == ("charged", "node_died")
    assert row["completion_tokens"] > 0
    await faulty.quiet()
    await _serves(faulty)


async def test_a_dead_node_is_a_true_500(faulty: Running) -> None:
    node = next(iter(faulty.stack.options.node_ids))
    with faulty.frozen(node):
        stream = await Stream().run(faulty)
    assert stream.status == 500
    assert stream.error is not None
    assert stream.error["code"] == "all_providers_failed"
    row = await _row(faulty, stream.request_id)
    assert (row["status"], row["charge_nano"]) == ("failed", 0)
    await faulty.quiet()
    await _serves(faulty)


async def test_an_ingress_that_dies_is_closed_by_the_expiry_and_its_client_pays_nothing_c6(faulty: Running) -> None:
    before = await faulty.db.fetchval("select max(accepted_ms) from derived.requests")
    task = asyncio.create_task(Stream().run(faulty))
    await asyncio.sleep(0.8)
    faulty.kill("ingress")
    with pytest.raises(httpx.HTTPError):
        await task
    await faulty.quiet(60)
    rows = await faulty.db.fetch("select * from derived.requests where accepted_ms > $1", before)
    assert [row["how"] for row in rows] == ["owner_died"]
    accounts = await faulty.db.fetch(
        "select account from derived.entries where request_id = $1 and amount_nano < 0", rows[0]["request_id"]
    )
    assert [row["account"] for row in accounts] == ["platform:losses"]
    await _serves(faulty)


@pytest.mark.parametrize("server", ["kafka", "postgres"])
async def test_a_server_that_goes_away_is_503_and_comes_back(faulty: Running, server: str) -> None:
    ingress = faulty.pid("ingress")
    with faulty.frozen(server):
        answers = [await Stream().run(faulty) for _ in range(2)]
    for stream in answers:
        assert stream.status == 503
        assert int(stream.retry_after) > 0
    await _serves(faulty)
    await faulty.quiet(60)
    assert faulty.pid("ingress") == ingress  # it came back without a restart


@pytest.mark.parametrize("server", ["kafka", "postgres"])
async def test_a_server_that_is_killed_is_restarted_and_service_resumes(faulty: Running, server: str) -> None:
    faulty.kill(server)
    await asyncio.sleep(0.2)
    await _serves(faulty)
    await faulty.quiet(60)
    assert any(f"{server} died" in line for line in faulty.said)
