"""`shrk ledger replay` and `entries`, on a real log and a real database."""

from __future__ import annotations

from typing import Any

import asyncpg
import pytest
from books_kit import P, append_all, project, shrk
from ledger_kit import accepted, asserted, credited, load, new_id, usage

from ledger.log import cached_partition_of
from schemas import topics
from schemas.events import Event


async def test_replay_equals_the_projection_to_the_row(ledger_log: str, books: asyncpg.Pool, books_url: str) -> None:
    await append_all(ledger_log, load(7, 700))
    await project(ledger_log, books)
    compared = await shrk(ledger_log, books_url, "replay", "--compare")
    assert compared.exit_code == 0, compared.output
    assert "PostgreSQL is the same at these offsets" in compared.output
    alone = await shrk(ledger_log, books_url, "replay")
    assert alone.output.splitlines()[-1].startswith("digest ")
    assert alone.output.splitlines()[-1] in compared.output
    assert "burn" in alone.output

    await append_all(ledger_log, load(8, 50))  # the log is ahead: compared is what the database has read
    assert (await shrk(ledger_log, books_url, "replay", "--compare")).exit_code == 0


@pytest.mark.parametrize(
    "damage",
    [
        "update derived.accounts set balance_nano = balance_nano + 1 where account = 'burn'",
        "delete from derived.entries where posting = 1 and partition = 0",
        "insert into derived.entries values (1, 0, 9, 'wallet:x', 'SHIVER', 1, null, 1)",
        "update derived.requests set how = 'length' where how = 'stop'",
        "update derived.offsets set chain = 'x' where partition = 2",
        "delete from derived.rejections where partition = 1",
        "insert into derived.credits values ('w', 'ref', 'SHIVER', 1, 0, 0)",
        "update derived.adjustments set reason = 'another'",
    ],
)
async def test_compare_finds_a_row_that_differs(
    ledger_log: str, books: asyncpg.Pool, books_url: str, damage: str
) -> None:
    await append_all(ledger_log, load(9, 60))
    await project(ledger_log, books)
    await books.execute(damage)
    result = await shrk(ledger_log, books_url, "replay", "--compare")
    assert result.exit_code == 1
    assert "PostgreSQL differs" in result.output


async def test_c9_a_log_that_is_shorter_than_the_books_is_said(
    ledger_log: str, books: asyncpg.Pool, books_url: str
) -> None:
    await append_all(ledger_log, [credited("w1")])
    await project(ledger_log, books)
    await books.execute("update derived.offsets set next = next + 5 where next > 0")
    result = await shrk(ledger_log, books_url, "replay", "--compare")
    assert result.exit_code == 1
    assert "but the books have read to 6" in result.output


async def test_replay_names_the_place_of_an_assertion_that_fails(
    ledger_log: str, books: asyncpg.Pool, books_url: str
) -> None:
    await append_all(ledger_log, [credited("w1", 100), asserted("w1", 100), asserted("w1", 99)])
    await project(ledger_log, books)
    result = await shrk(ledger_log, books_url, "replay", "--compare")
    assert result.exit_code == 1
    place = f"ledger.events partition {cached_partition_of(b'w1', P)} offset 2"
    assert f"broken: {place}: wallet w1 has 100 nano SHIVER where 99 is asserted" in result.output
    assert "PostgreSQL is the same at these offsets" in result.output


async def test_entries_of_a_request_sum_to_zero(ledger_log: str, books: asyncpg.Pool, books_url: str) -> None:
    rid = new_id()
    many: list[Event] = [credited("w1"), accepted(rid, "w1"), usage(rid, 10, "w1")]
    await append_all(ledger_log, many)
    await project(ledger_log, books)
    result = await shrk(ledger_log, books_url, "entries", f"chatcmpl-{rid}")
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0] == f"request {rid} of wallet w1: charged, stop"
    assert lines[1] == "m: 7 prompt and 10 completion tokens for 0.0027 SHIVER"
    table = {line.split()[0]: line.split()[1] for line in lines[3:]}
    assert table == {
        "wallet:w1": "-0.0027",
        "burn": "0.000027",
        "provider:p1": "0.0024057",
        "platform": "0.0002673",
        "sum": "0",
    }
    for change, words in (
        ("update derived.entries set amount_nano = amount_nano + 1 where posting = 1", "do not sum to zero"),
        ("update derived.requests set charge_nano = charge_nano + 1", "take 2700000 nano, the charge is 2700001"),
        ("delete from derived.entries where request_id is not null", "take 0 nano, the charge is 2700001"),
    ):
        await books.execute(change)
        damaged = await shrk(ledger_log, books_url, "entries", rid)
        assert (damaged.exit_code, words in damaged.stderr) == (1, True), damaged.output


async def test_errors_are_one_line(ledger_log: str, books_url: str) -> None:
    unknown = await shrk(ledger_log, books_url, "entries", new_id())
    assert unknown.exit_code == 1
    assert "the books know no request" in unknown.output
    assert (await shrk(ledger_log, books_url, "entries", "nonsense")).exit_code == 2
    away = await shrk("127.0.0.1:1", books_url, "replay")
    assert away.exit_code == 1
    assert "does not answer" in away.output.splitlines()[-1]
    no_database: Any = await shrk(ledger_log, "postgresql://u@127.0.0.1:1/x", "entries", new_id())
    assert no_database.exit_code == 1
    assert "PostgreSQL does not answer" in no_database.output


async def test_an_unreadable_record_stops_replay_and_names_its_place(ledger_log: str, books_url: str) -> None:
    from aiokafka import AIOKafkaProducer

    await append_all(ledger_log, [credited("w1")])
    partition = cached_partition_of(b"w1", P)
    async with AIOKafkaProducer(bootstrap_servers=ledger_log) as producer:
        await producer.send_and_wait(topics.LEDGER, b"{}", b"w1", partition=partition)
    result = await shrk(ledger_log, books_url, "replay")
    assert result.exit_code == 1
    assert f"ledger.events partition {partition} offset 1: not a known event" in result.output
