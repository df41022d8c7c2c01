"""The broker goes away in mid-stream and comes back: a stream ends complete or failed, and never with a gap."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.kafka.broker import Broker
from infra.kafka.jars import ensure_jars
from infra.kafka.java import find_java
from infra.process import LogFile, running
from tests.integration.node_client import Client
from tests.integration.test_node import DOUBLE, node


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="shrk-test-"))
    yield path
    shutil.rmtree(path)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
async def test_the_broker_restarts_in_mid_stream(folder: Path, how: signal.Signals) -> None:
    broker = Broker(folder / "kafka", ensure_jars(), find_java())
    broker.prepare()
    log = LogFile(folder / "kafka.log")
    node_id = f"n{os.urandom(4).hex()}"
    settings = DOUBLE | {"SHRK_DOUBLE_TOKENS": "500"}
    with contextlib.ExitStack() as brokers:
        first = brokers.enter_context(running(broker.spec(), log))
        async with Client(broker.bootstrap, node_id) as client, node(broker.bootstrap, node_id, **settings) as process:
            await client.node_ready()
            answers = [await client.post(client.job(max_tokens=500)) for _ in range(4)]
            await client.until(lambda: all(answer.tally.completion_tokens > 20 for answer in answers))
            first.send_signal(how)
            await asyncio.to_thread(first.wait, 30)
            await asyncio.sleep(1)
            await asyncio.to_thread(brokers.enter_context, running(broker.spec(), log))
            for answer in answers:
                await client.ended(answer, 60)
                assert not answer.gap
                assert (answer.end.kind, answer.end.completion_tokens) == ("end", 500)
                assert answer.tally.completion_tokens == 500
            # Service resumes without a restart.
            beats = len(client.beats)
            await client.until(lambda: len(client.beats) > beats)
            again = await client.ask(max_tokens=5)
            assert again.end.finish == "length"
            assert process.returncode is None
