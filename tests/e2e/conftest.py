"""Whole stacks, as `shrk up` starts them: one with the real engine, one with the engine double for faults."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import psutil
import pytest

from infra.catalog import shipped_models
from infra.ports import free_port
from infra.stack import Options, Stack
from infra.state import StateFolder

#: The double of the fault stack: 100 tokens, 20 ms apart, so that a request lasts two seconds.
DOUBLE_TOKENS = 100


@dataclass
class Running:
    """A stack that is up, and hands on its parts."""

    stack: Stack
    http: httpx.AsyncClient
    db: asyncpg.Pool
    said: list[str] = field(default_factory=list)

    @property
    def base_url(self) -> str:
        return self.stack.base_url

    @property
    def pro(self) -> str:
        assert self.stack.keys is not None
        return self.stack.keys.pro

    @property
    def dev(self) -> str:
        assert self.stack.keys is not None
        return self.stack.keys.dev

    def pid(self, name: str) -> int:
        return next(child.pid for child in self.stack.supervisor.children() if child.name == name and child.pid)

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        os.kill(self.pid(name), number)

    @contextmanager
    def frozen(self, name: str) -> Iterator[None]:
        """The process and its children stand still: connections stay open and nobody answers."""
        parent = psutil.Process(self.pid(name))
        family = [parent, *parent.children(recursive=True)]
        for process in family:
            process.suspend()
        try:
            yield
        finally:
            for process in family:
                process.resume()

    async def post(self, body: Any, *, key: str | None = None, path: str = "/v1/chat/completions") -> httpx.Response:
        headers = {"authorization": f"Bearer {self.pro if key is None else key}"} if key != "" else {}
        content = {"content": body} if isinstance(body, bytes) else {"json": body}
        return await self.http.post(path, headers=headers, **content)

    async def until(self, good: Callable[[], Awaitable[Any]], timeout_s: float = 30.0, what: str = "") -> Any:
        """Poll until `good()` is truthy; fails after `timeout_s` with what was waited for."""
        async with asyncio.timeout(timeout_s + 5):
            for _ in range(int(timeout_s / 0.05)):
                if value := await good():
                    return value
                await asyncio.sleep(0.05)
        raise AssertionError(f"not within {timeout_s} s: {what}")

    async def quiet(self, timeout_s: float = 40.0) -> None:
        """Until no request holds anything and the books have read the whole log."""

        async def nothing_open() -> bool:
            return not await self.db.fetchval("select count(*) from state.admissions")

        await self.until(nothing_open, timeout_s, "no admission is left")
        row = await self.db.fetchrow(
            "select (select sum(held_nano) from state.wallets) held, (select sum(open_requests) from state.keys) open"
        )
        assert (row["held"], row["open"]) == (0, 0)


@asynccontextmanager
async def running(engine: str, nodes: int = 1, models: tuple[str, ...] | None = None) -> AsyncIterator[Running]:
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="shrk-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        os.chmod(folder, 0o755)  # PostgreSQL may run as another user
        state = StateFolder(Path(folder) / "s")
        state.create()
        said: list[str] = []
        node_ids: dict[str, str | None] = {f"node-{number + 1}": None for number in range(nodes)}
        options = Options(port=port, engine=engine, node_ids=node_ids, models=models or shipped_models())
        stack = Stack(state, options, said.append)
        try:
            await stack.start()
            async with (
                asyncpg.create_pool(stack.database_url, min_size=1, max_size=4) as db,
                httpx.AsyncClient(base_url=stack.base_url, timeout=60) as http,
            ):
                yield Running(stack, http, db, said)
        finally:
            await stack.stop()


@pytest.fixture(scope="session")
async def real() -> AsyncIterator[Running]:
    """With llama.cpp and shark-mini."""
    async with running("llamacpp") as up:
        yield up


@pytest.fixture(scope="session")
async def paired() -> AsyncIterator[Running]:
    """Two nodes of two providers, with the engine double as it comes."""
    async with running("double", nodes=2) as up:
        yield up


@pytest.fixture(scope="session")
async def faulty() -> AsyncIterator[Running]:
    """With the engine double, slow enough to be hit in the middle of an answer."""
    os.environ["SHRK_DOUBLE_TOKENS"] = str(DOUBLE_TOKENS)
    async with running("double") as up:
        yield up
