"""Poison in a real log: it stops the projection and every reader, and a signed erratum lets them go on, all alike."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from aiokafka import AIOKafkaProducer
from books_kit import P, append_all, shrk
from ledger_kit import credited, load, wallet_in
from streams_kit import StreamsProcess, read_up_to
from test_rebuild import QUIET, everything

from ledger.errata import Errata
from ledger.errata_store import stored
from ledger.log import cached_partition_of
from ledger.reader import LedgerReader
from schemas import topics
from schemas.settings import Settings
from streams import rebuild as work
from streams.projection import Projection, ProjectionStopped
from streams.rebuild import Options
from streams.starts import start_offsets

W = wallet_in(2, P)
#: By a producer that knows neither events nor keys nor our partitioner: the last one lies where no key belongs.
POISONS = [(W.encode(), b'{"type":"nonsense"}', 2), (W.encode(), b"", 2), (None, b"hello", 3)]
assert cached_partition_of(b"", P) != 3


async def poisoned(kafka: str) -> list[tuple[int, int]]:
    """A log with poison in it and good records behind; where the poison lies."""
    await append_all(kafka, [*load(51, 100), credited(W, ref="a")])
    places = []
    async with AIOKafkaProducer(bootstrap_servers=kafka) as producer:
        for key, value, partition in POISONS:
            sent = await producer.send_and_wait(topics.LEDGER, value, key, partition=partition)
            places.append((partition, sent.offset))
    await append_all(kafka, [*load(52, 100), credited(W, ref="b")])
    return places


async def apply_all(kafka: str, pool: asyncpg.Pool, errata: Errata) -> None:
    """As the streams do: whatever a fetch gives."""
    places = await start_offsets(pool, kafka, P, list(range(P)))
    projection = Projection(pool, P, errata=errata)
    async with LedgerReader(kafka, P, client_id="test") as reader:
        async for records in reader.read(places, await reader.ends(), misplaced=True):
            for record in records:
                await projection.apply(record.partition, [record])


@pytest.fixture
async def key(tmp_path: Path, ledger_log: str, books_url: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A private key, its public half trusted."""
    file = tmp_path / "key"
    made = await shrk(ledger_log, books_url, "erratum", "new-key", str(file))
    monkeypatch.setenv("SHRK_ERRATA_KEYS", made.output.strip())
    return file


async def sign_all(kafka: str, url: str, key: Path, places: list[tuple[int, int]]) -> Path:
    out = key.with_name("errata.json")
    for partition, offset in places:
        signed = await shrk(
            *(kafka, url, "erratum", "sign", "--key", str(key), "--reason", "a test", "--out", str(out)),
            *("--partition", str(partition), "--offset", str(offset)),
        )
        assert signed.exit_code == 0, signed.output
    return out


async def test_poison_stops_and_an_erratum_lets_everybody_go_on_alike(
    ledger_log: str, books: asyncpg.Pool, books_url: str, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = await poisoned(ledger_log)

    async def run(*arguments: str) -> Any:
        return await shrk(ledger_log, books_url, *arguments)

    # Every reader stops, and names the place.
    with pytest.raises(ProjectionStopped, match=r"not a known event|belongs elsewhere"):
        await apply_all(ledger_log, books, Errata())
    for command in (["replay"], ["verify"], ["export", "--format", "csv", "--out", str(tmp_path / "x.csv")]):
        stopped = await run(*command)
        assert stopped.exit_code == 1
        assert any(f"partition {p} offset {o}: " in stopped.output for p, o in places), stopped.output
    assert not (tmp_path / "x.csv").exists()

    # Signed, it counts, from a file and from PostgreSQL.
    file = await sign_all(ledger_log, books_url, key, places)
    by_file = await run("replay", "--errata", str(file))
    assert by_file.exit_code == 0, by_file.output
    assert "           3  unreadable       it is no event; a signed erratum says so" in by_file.output
    assert (await run("replay")).exit_code == 1
    assert "3 of 3 errata added" in (await run("erratum", "add", str(file))).output
    assert "0 of 3 errata added" in (await run("erratum", "add", str(file))).output
    assert (await run("erratum", "list")).output.count("(counts)") == 3
    assert (await run("erratum", "list", "--json")).output == file.read_text()

    trusted = Settings.from_environment(
        {"SHRK_KAFKA": ledger_log, "SHRK_DATABASE_URL": books_url, "SHRK_LEDGER_PARTITIONS": str(P)}
        | {"SHRK_ERRATA_KEYS": (await run("erratum", "list", "--json")).output.split('"public_key": "')[1][:64]}
    )
    errata = Errata(await stored(books), trusted.errata_keys)
    await apply_all(ledger_log, books, errata)
    rows = await books.fetch(
        "select * from derived.rejections where code = 'unreadable' order by partition, \"offset\""
    )
    assert [tuple(row) for row in rows] == [(p, o, "unreadable", "unreadable", None) for p, o in sorted(places)]

    # One digest and the same rows, whoever reads, by whichever way.
    compared = await run("replay", "--compare")
    assert compared.exit_code == 0, compared.output
    digest = by_file.output.splitlines()[-1]
    assert compared.output.splitlines()[-2] == digest
    verified = await run("verify")
    assert verified.exit_code == 0, verified.output
    with monkeypatch.context() as patched:
        patched.setattr("ledger.replay.BULK_FROM", 1)  # as a long log is read: in processes, over columns
        assert digest in (await run("replay")).output
    folder = str(tmp_path / "archive")
    archived = await run("archive", "--out", folder, "--tail", "--range", "16")
    assert archived.exit_code == 0, archived.output
    assert (tmp_path / "archive" / "errata.json").read_bytes() == file.read_bytes()
    for way in (["--plain"], [], ["--compare"]):
        replayed = await run("replay", "--archive", folder, *way)
        assert digest in replayed.output, replayed.output
    for way in (["--both"], ["--no-tail"], ["--no-tail", "--every-batch"]):
        alone = await run("verify", "--archive", folder, *way)
        assert (alone.exit_code, alone.output.splitlines()[-1]) == (0, digest), alone.output
    assert (await run("export", "--format", "csv", "--out", str(tmp_path / "x.csv"))).exit_code == 0
    before = await everything(books)
    result = await work.rebuild(trusted, None, Options(), QUIET, errata)
    assert (result.swapped, result.differences.count) == (True, 0)
    assert await everything(books) == before


async def test_what_does_not_count_leaves_the_stop_and_says_why(
    ledger_log: str, books: asyncpg.Pool, books_url: str, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = await poisoned(ledger_log)
    file = await sign_all(ledger_log, books_url, key, places)

    async def why(*arguments: str) -> str:
        result = await shrk(ledger_log, books_url, *arguments)
        assert result.exit_code != 0, result.output
        return result.output

    good = json.loads(file.read_bytes())
    for change, said in (
        ({"reason": "another"}, "its signature is wrong"),
        ({"record_sha256": "0" * 64}, "its signature is wrong"),
        ({"public_key": "0" * 64}, f"its key {'0' * 64} is not in SHRK_ERRATA_KEYS"),
    ):
        file.write_text(json.dumps([{**one, **change} for one in good]))
        assert f"; an erratum does not count: {said}" in await why("replay", "--errata", str(file))
        assert "nothing was added" in await why("erratum", "add", str(file))
    file.write_text("nonsense")
    assert "no list of errata" in await why("replay", "--errata", str(file))
    assert "No such file" in await why("replay", "--errata", str(tmp_path / "none"))
    file.write_text(json.dumps(good))
    monkeypatch.setenv("SHRK_ERRATA_KEYS", "")
    assert "is not in SHRK_ERRATA_KEYS" in await why("replay", "--errata", str(file))
    monkeypatch.setenv("SHRK_ERRATA_KEYS", "zz")
    assert "'zz' is no public key" in await why("replay")
    assert await books.fetchval("select count(*) from state.errata") == 0


async def test_nobody_signs_away_a_record_that_can_be_read(ledger_log: str, books_url: str, key: Path) -> None:
    await append_all(ledger_log, [credited(W)])
    out = key.with_name("out")

    async def said(offset: int, key_file: Path = key) -> str:
        place = ("--partition", "2", "--offset", str(offset))
        result = await shrk(
            *(ledger_log, books_url, "erratum", "sign", "--key", str(key_file)),
            *("--reason", "r", "--out", str(out), *place),
        )
        assert result.exit_code == 1
        assert not out.exists()
        return result.output

    assert "partition 2 offset 0 can be read: no erratum is signed" in await said(0)
    assert "has no offset 1: it has 0 to 0" in await said(1)
    os.chmod(key, 0o640)
    assert "can be read by others: chmod 600" in await said(0)
    os.chmod(key, 0o600)
    await asyncio.to_thread(key.write_text, "nonsense")
    assert "holds no private key" in await said(0)


@pytest.fixture
def streams(ledger_log: str, books_url: str, key: Path, tmp_path: Path) -> Iterator[StreamsProcess]:
    process = StreamsProcess(ledger_log, books_url, P, tmp_path / "streams.log")
    yield process
    process.close()


async def test_the_streams_process_goes_on_when_it_starts_again(
    ledger_log: str, books: asyncpg.Pool, books_url: str, streams: StreamsProcess, key: Path
) -> None:
    places = await poisoned(ledger_log)
    streams.start()
    assert await streams.ended(40) != 0
    assert "offset" in streams.text()
    file = await sign_all(ledger_log, books_url, key, places)
    assert (await shrk(ledger_log, books_url, "erratum", "add", str(file))).exit_code == 0
    streams.start()
    async with LedgerReader(ledger_log, P, client_id="test") as reader:
        await read_up_to(books, await reader.ends(), 60)
    compared = await shrk(ledger_log, books_url, "replay", "--compare")
    assert compared.exit_code == 0, compared.output
