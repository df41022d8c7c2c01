"""The node agent as a process on a real Kafka."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator

import pytest

from schemas.topics import mailbox
from tests.integration.node_client import Client

DOUBLE = {"SHRK_ENGINE": "double", "SHRK_DOUBLE_TOKENS": "16", "SHRK_DOUBLE_INTERVAL_MS": "20"}


@contextlib.asynccontextmanager
async def node(kafka: str, node_id: str, **env: str) -> AsyncIterator[asyncio.subprocess.Process]:
    settings = {"SHRK_KAFKA": kafka, "SHRK_NODE_ID": node_id, "SHRK_PROVIDER_ID": "prov"} | env
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "workers", env=os.environ | settings, stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    log = asyncio.create_task(process.stderr.read())
    process.log = log  # type: ignore[attr-defined]
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        text = (await log).decode()
        sys.stderr.write(text)
        assert "Traceback" not in text


@contextlib.asynccontextmanager
async def running(kafka: str, lanes: int = 8, **env: str) -> AsyncIterator[tuple[Client, asyncio.subprocess.Process]]:
    node_id = f"n{os.urandom(4).hex()}"
    async with Client(kafka, node_id, lanes) as client, node(kafka, node_id, **(DOUBLE | env)) as process:
        await client.node_ready()
        yield client, process


async def test_a_job_is_claimed_answered_and_ended(kafka: str) -> None:
    async with running(kafka) as (client, _):
        answer = await client.ask()
        assert answer.kinds[0] == "claimed"
        assert set(answer.kinds[1:-1]) == {"tokens"}
        assert answer.end.finish == "stop"
        assert answer.end.completion_tokens == answer.tally.completion_tokens == 16
        assert answer.tally.prompt_tokens > 10
        last = [record for record in answer.records if record.kind == "tokens"][-1]
        assert last.text_bytes == len(answer.text.encode())
        assert not answer.gap
        assert answer.strays == 0


async def test_the_edges_of_a_job(kafka: str) -> None:
    async with running(kafka, 16) as (client, _):
        nothing = await client.ask(max_tokens=0)
        assert (nothing.kinds, nothing.end.finish) == (["claimed", "end"], "length")
        short = await client.ask(max_tokens=5)
        assert (short.end.finish, short.end.completion_tokens, len(short.ids)) == ("length", 5, 5)
        unknown = await client.ask(model="none-such")
        assert (unknown.kinds, unknown.end.code) == (["failed"], "unknown_model")
        long = await client.ask(messages=[{"role": "user", "content": "x" * 70_000}])
        assert (long.kinds, long.end.code) == (["rejected"], "context_too_long")
        image = await client.ask(messages=[{"role": "user", "content": [{"type": "image_url"}]}])
        assert (image.kinds, image.end.code) == (["rejected"], "bad_job")
        now_ms = time.time_ns() // 1_000_000
        expired = await client.ask(expires_at_ms=now_ms - 1)
        assert (expired.kinds, expired.end.code) == (["failed"], "expired")
        late = await client.ask(deadline_at_ms=now_ms - 1)
        assert late.end.code == "deadline"
        whole = await client.ask()
        word = whole.text.split()[1]
        cut = await client.ask(stop=(word,))
        assert cut.end.finish == "stop"
        assert cut.text == whole.text[: whole.text.index(word)]
        assert cut.end.completion_tokens == len(cut.ids) < 16
        assert bytes(cut.ids) == cut.text.encode()


async def test_an_attempt_is_never_run_twice(kafka: str) -> None:
    async with running(kafka) as (client, _):
        job = client.job()
        answer = await client.post(job)
        await client.post(job)
        await client.ended(answer)
        await client.post(job)
        await client.ask()
        assert answer.strays == 0


async def test_cancels(kafka: str) -> None:
    async with running(kafka, SHRK_DOUBLE_TOKENS="500") as (client, _):
        job = client.job(max_tokens=500)
        answer = await client.post(job)
        await client.until(lambda: answer.tally.completion_tokens >= 3)
        began_s = time.perf_counter()
        await client.cancel(job)
        await client.ended(answer)
        assert time.perf_counter() - began_s < 0.5
        assert answer.end.finish == "cancelled"
        assert answer.end.completion_tokens == answer.tally.completion_tokens < 100

        early = client.job()
        await client.cancel(early)
        answer = await client.ended(await client.post(early))
        assert (answer.kinds, answer.end.completion_tokens) == (["end"], 0)
        await client.until(lambda: not client.beats[-1].busy_by_owner)


async def test_alive_while_the_engine_is_silent_and_the_deadline(kafka: str) -> None:
    async with running(kafka, SHRK_DOUBLE_INTERVAL_MS="60000") as (client, _):
        job = client.job()
        job = job.model_copy(update={"deadline_at_ms": time.time_ns() // 1_000_000 + 2_200})
        answer = await client.ended(await client.post(job))
        assert answer.kinds[:4] == ["claimed", "alive", "alive", "alive"]
        gaps_s = [b - a for a, b in zip(answer.arrived_s, answer.arrived_s[1:], strict=False)]
        assert max(gaps_s) < 0.6
        assert answer.end.code == "deadline"


async def test_a_full_node_says_so(kafka: str) -> None:
    async with running(kafka, SHRK_SLOTS="1", SHRK_DOUBLE_INTERVAL_MS="500") as (client, _):
        first = client.job()
        holder = await client.post(first)
        await client.until(lambda: bool(holder.records))
        await client.until(lambda: client.beats[-1].busy_by_owner == {client.boot_id: 1}, timeout_s=0.6)
        refused = await client.ask()
        assert (refused.kinds, refused.end.code) == (["failed"], "busy")
        waiting = await client.post(client.job())
        await client.cancel(first)
        await client.until(lambda: bool(waiting.records))
        assert waiting.kinds[0] == "claimed"  # a place came free in time


async def test_an_unreadable_letter_is_dropped_without_its_content(kafka: str) -> None:
    async with running(kafka) as (client, process):
        await client.producer.send_and_wait(mailbox(client.node_id), b'{"kind":"job","secret":"my prompt"}')
        answer = await client.ask(messages=[{"role": "user", "content": "do not log me"}])
        assert answer.end.finish == "stop"
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
        text = (await process.log).decode()  # type: ignore[attr-defined]
        assert "unreadable" in text
        assert "my prompt" not in text
        assert "do not log me" not in text
        assert f"request={answer.tally.request_id} attempt=1 model=shark-mini end=stop" in text


async def test_sigterm_drains(kafka: str) -> None:
    async with running(kafka, SHRK_DOUBLE_TOKENS="40", SHRK_DRAIN_S="10") as (client, process):
        answer = await client.post(client.job())
        await client.until(lambda: answer.tally.completion_tokens > 0)
        process.send_signal(signal.SIGTERM)
        await client.until(lambda: client.beats[-1].draining, timeout_s=0.7)
        refused = await client.ask()
        assert refused.end.code == "draining"
        await client.ended(answer)
        assert (answer.end.finish, answer.end.completion_tokens) == ("stop", 40)
        assert await process.wait() == 0


async def test_a_drain_hands_back_what_takes_too_long(kafka: str) -> None:
    async with running(kafka, SHRK_DOUBLE_TOKENS="5000", SHRK_DRAIN_S="60") as (client, process):
        answer = await client.post(client.job(max_tokens=5000))
        await client.until(lambda: answer.tally.completion_tokens > 0)
        process.send_signal(signal.SIGTERM)
        await client.until(lambda: client.beats[-1].draining)
        began_s = time.perf_counter()
        process.send_signal(signal.SIGTERM)
        await client.ended(answer)
        assert (answer.end.kind, answer.end.code) == ("failed", "draining")
        assert answer.tally.completion_tokens > 0
        assert await process.wait() == 0
        assert time.perf_counter() - began_s < 4


async def test_the_owner_dies(kafka: str) -> None:
    async with running(kafka, SHRK_DOUBLE_TOKENS="5000") as (client, _):
        client._tasks[2].cancel()  # its heartbeats
        answer = await client.ended(await client.post(client.job(max_tokens=5000)), 20)
        assert answer.end.finish == "cancelled"


async def test_a_lane_that_does_not_exist_costs_only_its_own_request(kafka: str) -> None:
    async with running(kafka) as (client, _):
        lost = client.job(lane="replies.nobody.0")
        await client.post(lost)
        answer = await client.ask()
        assert answer.end.finish == "stop"
        await client.until(lambda: not client.beats[-1].busy_by_owner, 15)


@pytest.mark.parametrize(
    ("env", "status", "line"),
    [
        ({"SHRK_ENGINE": "none"}, 2, "SHRK_ENGINE must be one of"),
        ({"SHRK_SLOTS": "0"}, 2, "SHRK_SLOTS must be 1 to"),
        ({"SHRK_NODE_ID": "a b"}, 2, "SHRK_NODE_ID must be"),
        ({"SHRK_MODELS": "m=none.gguf", "SHRK_ENGINE": "llamacpp"}, 2, "no model at none.gguf"),
        ({}, 1, "has no topic jobs.nobox"),
    ],
)
async def test_a_node_that_cannot_start_says_why(kafka: str, env: dict[str, str], status: int, line: str) -> None:
    async with node(kafka, **({"node_id": "nobox"} | DOUBLE | env)) as process:
        assert await asyncio.wait_for(process.wait(), 20) == status
        text = (await process.log).decode()  # type: ignore[attr-defined]
        assert line in text
        assert len([one for one in text.splitlines() if "httptools" not in one]) <= 2


async def test_llamacpp_answers(kafka: str) -> None:
    async with running(kafka, SHRK_ENGINE="llamacpp") as (client, _):
        answers = await asyncio.gather(*(client.ask() for _ in range(4)))
        for answer in answers:
            assert answer.text.strip() == "7 plus 5 is 12."
            assert answer.end.finish == "stop"
            assert answer.end.completion_tokens == len(answer.ids)


async def test_a_mailbox_is_read_from_its_end(kafka: str) -> None:
    node_id = f"n{os.urandom(4).hex()}"
    async with Client(kafka, node_id) as client:
        stale = await client.post(client.job())
        async with node(kafka, node_id, **DOUBLE):
            await client.node_ready()
            assert (await client.ask()).end.finish == "stop"
            assert stale.records == []
