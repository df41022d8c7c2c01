"""A rebuild under a running network: the streams process goes on, every request is admitted, kills leave the books."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from admission_kit import BOOT, add_key, add_wallet, counters, prepare
from books_kit import P, append_all, shrk
from ledger_kit import accepted, credited, load, new_id, usage, wallet_in
from streams_kit import ROOT, StreamsProcess, read_up_to
from test_rebuild import QUIET, everything, oid, project

from ingress.admission import Admission, Ask, open_pool
from ledger.log import LedgerWriter
from ledger.reader import LedgerReader
from schemas.settings import Settings
from streams import rebuild as work
from streams.rebuild import Options

#: Others than those of load(), which leaves some requests open.
WALLETS = [wallet_in(partition, P, nth=10) for partition in range(P)]


@pytest.fixture
def streams(ledger_log: str, books_url: str, tmp_path: Path) -> Iterator[StreamsProcess]:
    process = StreamsProcess(ledger_log, books_url, P, tmp_path / "streams.log")
    yield process
    process.close()


class Requests:
    """Requests as the ingress makes them, one after the other for each wallet, until told to stop."""

    def __init__(self, admission: Admission, writer: LedgerWriter, keys: dict[str, Any]) -> None:
        self._admission = admission
        self._writer = writer
        self._keys = keys
        self.made = 0
        self.slowest_s = 0.0
        self.stopping = False

    async def run(self) -> None:
        await asyncio.gather(*(self._of(wallet) for wallet in self._keys))

    async def _of(self, wallet: str) -> None:
        while not self.stopping:
            request_id, key = new_id(int(time.time() * 1000)), self._keys[wallet]
            began_s = time.monotonic()
            # Raises where it is refused, or the database does not answer within the ingress's own timeouts.
            got = await self._admission.admit(
                Ask(request_id, key, {"SHIVER": 10**8, "USDC": 10**8}, BOOT, "n1", ("m",), "", 0)
            )
            self.slowest_s = max(self.slowest_s, time.monotonic() - began_s)
            begin = accepted(request_id, wallet, key_id=key.key_id, owner=BOOT, hold_nano=10**8, at_ms=got.now_ms)
            await self._writer.append(begin)
            await self._writer.append(usage(request_id, 3, wallet, at_ms=got.now_ms))
            await self._admission.settle(request_id, 10**6)
            self.made += 1


@asynccontextmanager
async def requests(kafka: str, books: asyncpg.Pool, url: str) -> AsyncIterator[Requests]:
    """Running while the block runs, by at least 50 on either side of it."""
    await prepare(books)
    keys = {wallet: await add_key(books, await add_wallet(books, wallet), open_max=1000) for wallet in WALLETS}
    pool = await open_pool(url)
    writer = LedgerWriter(kafka, P, client_id="test")
    await writer.start()
    many = Requests(Admission(pool), writer, keys)
    task = asyncio.create_task(many.run())

    async def more(count: int) -> None:
        wanted = many.made + count
        async with asyncio.timeout(30):
            while many.made < wanted:
                if task.done():
                    task.result()  # says why
                await asyncio.sleep(0.01)

    try:
        await more(50)
        yield many
        await more(50)
        many.stopping = True
        await task
    finally:
        task.cancel()
        await writer.stop()
        await pool.close()


async def log_ends(kafka: str) -> dict[int, int]:
    async with LedgerReader(kafka, P, client_id="test") as reader:
        return await reader.ends()


async def test_requests_go_on_during_a_rebuild_and_after_it(
    ledger_log: str, books: asyncpg.Pool, books_url: str, streams: StreamsProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    await append_all(ledger_log, [*(credited(w, 10**15) for w in WALLETS), *load(31, 3000)])
    streams.start()
    await read_up_to(books, await log_ends(ledger_log), 60)
    async with requests(ledger_log, books, books_url) as running:
        for _ in range(2):
            before, old = running.made, await oid(books)
            result = await work.rebuild(Settings(ledger_log, books_url, P), None, Options(), QUIET)
            assert (result.swapped, result.differences.count, result.restored) == (True, 0, 0)
            assert await oid(books) != old
            assert running.made > before
    await read_up_to(books, await log_ends(ledger_log), 30)
    assert await counters(books) == {"open": {}, "held": {}, "used": {}}
    compared = await shrk(ledger_log, books_url, "replay", "--compare")
    assert compared.exit_code == 0, compared.output
    assert streams.process is not None
    assert streams.process.poll() is None
    assert "stops" not in streams.text()
    with capsys.disabled():
        print(f"\n{running.made} requests during two rebuilds, the slowest admission {running.slowest_s * 1000:.0f} ms")


async def test_kill_9_at_any_instant_leaves_whole_books(
    ledger_log: str, books: asyncpg.Pool, books_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    await append_all(ledger_log, load(32, 1500))
    await project(ledger_log, books)
    sound, first = await everything(books), await oid(books)
    rng = random.Random(5)
    swapped = 0
    began_s = time.monotonic()
    run(ledger_log, books_url).wait(60)
    whole_s = time.monotonic() - began_s
    assert await oid(books) != first
    for nth in range(7):
        old = await oid(books)
        process = run(ledger_log, books_url)
        await asyncio.sleep(whole_s * rng.uniform(0.5, 1.0))
        process.kill()
        process.wait(10)
        async with asyncio.timeout(10):  # the server notices that its client has gone
            while await books.fetchval("select count(*) from pg_locks where locktype = 'advisory'"):
                await asyncio.sleep(0.01)
        assert await everything(books) == sound
        swapped += await oid(books) != old
        await append_all(ledger_log, load(40 + nth, 5))
        await project(ledger_log, books)
        sound = await everything(books)
    assert run(ledger_log, books_url).wait(60) == 0
    assert await everything(books) == sound
    with capsys.disabled():
        print(f"\n7 kills, {swapped} of them behind the swap")


def run(kafka: str, url: str, *arguments: str) -> subprocess.Popen[bytes]:
    env = {"SHRK_KAFKA": kafka, "SHRK_DATABASE_URL": url, "SHRK_LEDGER_PARTITIONS": str(P), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "infra.cli", "ledger", "rebuild", *arguments]
    return subprocess.Popen(command, env={**os.environ, **env}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


async def test_the_command_says_what_it_did(ledger_log: str, books: asyncpg.Pool, books_url: str) -> None:
    await append_all(ledger_log, load(33, 30))
    await project(ledger_log, books)
    await books.execute("update derived.accounts set entries = entries + 1 where account = 'burn' and partition = 1")
    code, out, err = await said(ledger_log, books_url)
    assert code == 1
    assert "derived.accounts {burn,SHIVER,1}: it has (burn,SHIVER,1," in err
    assert "rows compared, 1 differ" in out
    assert "nothing was swapped; derived_next has what the log says" in err
    code, out, err = await said(ledger_log, books_url, "--discard")
    assert (code, out) == (0, "removed derived_next\n")
    code, out, err = await said(ledger_log, books_url, "--accept-differences", "--keep-old")
    assert code == 0, err
    assert "swapped; 0 admissions were made again; the old tables are in derived_old" in out
    code, _, err = await said("127.0.0.1:1", books_url)
    assert code == 1
    assert "Traceback" not in err
    assert "does not answer" in err
    assert (await said(ledger_log, "postgresql://u@127.0.0.1:1/x"))[0] == 1


async def said(kafka: str, url: str, *arguments: str) -> tuple[int, str, str]:
    env = {"SHRK_KAFKA": kafka, "SHRK_DATABASE_URL": url, "SHRK_LEDGER_PARTITIONS": str(P), "PYTHONPATH": str(ROOT)}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "infra.cli", "ledger", "rebuild", *arguments),
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()
