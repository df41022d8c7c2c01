"""The drill for epochs: each field of an event, each column of a row is changed once, and verify must name it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import asyncpg
import pytest
import pytest_asyncio
from books_kit import P, all_records, append_all, make_log_of, project, shrk
from epochs_kit import OTHER_TERMS, PROVIDERS, TERMS, address_of, earnings, epochs_of, funded, registered
from ledger_kit import T0_MS

from ledger.reader import LedgerReader, Record
from schemas import topics
from schemas.events import EpochClosed, dump, parse

HOME = topics.partition_of(topics.SETTLEMENT_KEY.encode(), P)
TABLES = ("epochs", "entitlements", "tree_blocks", "recipients", "sandbox_funds")


@pytest_asyncio.fixture
async def sound(ledger_log: str, books: asyncpg.Pool, books_url: str) -> str:
    """The broker of a log with three epochs, and their rows."""
    people = [registered(provider, address_of(provider)) for provider in PROVIDERS[:2]]
    more = [
        [funded(10**9), *people],
        [funded(10**8, "b"), registered(PROVIDERS[2], address_of("p1"))],
        [funded(7, "b")],
    ]
    for seed, facts in enumerate(more):
        await append_all(ledger_log, [*earnings(seed), *facts])
        await project(ledger_log, books)
        async with epochs_of(ledger_log, books_url) as epochs:
            assert (await epochs.close(TERMS, T0_MS + seed)).ours
    await append_all(ledger_log, earnings(9))
    await project(ledger_log, books)
    return ledger_log


async def bad_lines(kafka: str, url: str, *arguments: str) -> list[str]:
    result = await shrk(kafka, url, "verify", *arguments)
    lines = [line.strip() for line in result.output.splitlines()]
    found = [line for line in lines if line.startswith(("first bad: ", "and: "))]
    assert bool(found) == (result.exit_code == 1), result.output
    return found


async def test_epochs_are_verified_by_every_way(
    sound: str, books_url: str, books: asyncpg.Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, plain = list[LedgerReader](), LedgerReader.__aenter__

    async def counted(self: LedgerReader) -> LedgerReader:
        opened.append(self)
        return await plain(self)

    monkeypatch.setattr(LedgerReader, "__aenter__", counted)
    made = await shrk(sound, books_url, "archive", "--out", str(tmp_path), "--range", "16", "--tail")
    assert made.exit_code == 0, made.output
    archive = ("--archive", str(tmp_path))
    for arguments in ((), ("--every-batch",), archive, (*archive, "--both"), (*archive, "--no-tail")):
        opened.clear()
        result = await shrk(sound, books_url, "verify", *arguments)
        assert result.exit_code == 0, result.output
        assert len(opened) == ("--no-tail" not in arguments)  # one connection, whatever there is to stop at
        assert "3 epochs verified: cut, heads, roots, digest, entitlements, payout root" in result.output
    # The newest rows may be on their way; books that were reset to before an epoch still let the log be verified.
    await books.execute("delete from derived.epochs where number = 3")
    await books.execute(
        "delete from derived.entitlements where epoch = 3; delete from derived.sandbox_funds where epoch = 3; "
        "delete from derived.recipients where epoch = 3"
    )
    assert await bad_lines(sound, books_url) == []


def changed(event: EpochClosed, field: str) -> EpochClosed:
    def flip(text: str) -> str:
        return text[:-1] + ("0" if text[-1] != "0" else "1")

    value: Any = getattr(event, field)
    match field:
        case "cut":
            at = next(p for p in range(P) if p != HOME and value[p] > 0)
            value = tuple(n - (p == at) for p, n in enumerate(value))
        case "heads" | "roots":
            value = (flip(value[0]), *value[1:])
        case "log_root" | "digest" | "payout_root":
            value = flip(value)
        case "terms":
            value = OTHER_TERMS
        case "epoch":
            value += 1
        case _:
            raise AssertionError(field)
    return event.model_copy(update={field: value})


EVENT_DRILLS = {
    "cut": "heads of partition",
    "heads": "epoch 2: heads of partition 0: it says",
    "roots": "epoch 2: roots of partition 0: it says",
    "log_root": "epoch 2: log_root: it says",
    "digest": "epoch 2: digest: it says",
    "payout_root": "epoch 2: payout_root: it says",
    "terms": "epoch 2: payout_root: it says",
    "epoch": "epoch 3 is closed where 2 is next",
}


@pytest.mark.parametrize("field", EVENT_DRILLS)
async def test_a_field_of_an_event_that_lies_is_named(sound: str, books_url: str, field: str) -> None:
    logs = await all_records(sound)
    second = [record for record in logs[HOME] if b'"type":"epoch.closed"' in record.value][1]
    event = parse(second.value)
    assert isinstance(event, EpochClosed)
    lie = Record(HOME, second.offset, second.key, dump(changed(event, field)))
    logs[HOME][second.offset] = lie
    await make_log_of(sound, logs)
    lines = await bad_lines(sound, books_url)
    place = f"ledger.events partition {HOME} offset {second.offset}"
    assert any(place in line and EVENT_DRILLS[field] in line for line in lines), lines


ROW_DRILLS = {
    "update derived.epochs set payout_root = '0x' || repeat('a', 64) where number = 2": "derived.epochs.payout_root is",
    "update derived.epochs set digest = repeat('a', 64) where number = 2": "derived.epochs.digest is",
    "update derived.epochs set log_root = repeat('a', 64) where number = 2": "derived.epochs.log_root is",
    "update derived.epochs set at_ms = at_ms + 1 where number = 2": "derived.epochs.at_ms is",
    'update derived.epochs set "offset" = "offset" + 1 where number = 2': "derived.epochs.offset is",
    "update derived.epochs set partition = partition + 1 where number = 2": "derived.epochs.partition is",
    "update derived.epochs set cut[2] = cut[2] + 1 where number = 2": "derived.epochs.cut is",
    "update derived.epochs set heads[1] = repeat('a', 64) where number = 2": "derived.epochs.heads is",
    "update derived.epochs set roots[1] = repeat('a', 64) where number = 2": "derived.epochs.roots is",
    "update derived.epochs set chains[1] = '\\x00' where number = 2": "derived.epochs.chains is",
    "update derived.epochs set trees[1] = '\\x00' where number = 2": "derived.epochs.trees is",
    "update derived.epochs set terms = jsonb_set(terms, '{chain_id}', '5') where number = 2": "derived.epochs.terms is",
    "update derived.epochs set mismatch = 'x' where number = 2": "derived.epochs.mismatch is",
    "delete from derived.epochs where number = 2": "derived.epochs has no row of it",
    "insert into derived.epochs select 4, partition, \"offset\", at_ms, cut, heads, roots, log_root, digest, terms, "
    "payout_root, chains, trees from derived.epochs where number = 3": "epoch 4: derived.epochs has rows of it",
    **{
        f"update derived.entitlements set {column} = {column} + 1 where epoch = 2 and provider = 'p2' "
        "and asset = 'SHIVER'": f"derived.entitlements of p2/SHIVER: {column} is"
        for column in (
            "earned_nano", "sandbox_earned_nano", "sandbox_payable_nano", "entitled_nano", "debt_nano", "amount",
        )
    },
    "update derived.entitlements set recipient = 'x' where epoch = 2 and provider = 'p2'": "p2/USDC: recipient is",
    "update derived.entitlements set waits = 'x' where epoch = 2 and provider = 'p2'": "p2/USDC: waits is",
    "delete from derived.entitlements where epoch = 1 and provider = 'p1'": "p1/SHIVER: PostgreSQL has none",
    "insert into derived.entitlements values (1, 'x', 'USDC', 1, 1, 1, 1, 1, '', 1, '')": "x/USDC: PostgreSQL has one",
    "insert into derived.entitlements values (9, 'x', 'USDC', 1, 1, 1, 1, 1, '', 1, '')": "epoch 9: derived.entitle",
    "update derived.recipients set recipient = 'x' where provider = 'p1'": "derived.recipients of p1: recipient is",
    "update derived.sandbox_funds set verdict = 'counted' where epoch = 3": "verdict is counted, the log makes",
    "update derived.sandbox_funds set amount_nano = 1 where epoch = 1": "amount_nano is 1, the log makes",
    "insert into derived.tree_blocks values (1, 0, sha256(''))": "block 0 of partition 1: another root",
}  # fmt: skip


async def test_a_changed_row_of_an_epoch_is_named(sound: str, books: asyncpg.Pool, books_url: str) -> None:
    await books.execute("create schema keep")
    for table in TABLES:
        await books.execute(f"create table keep.{table} as table derived.{table}")
    for damage, named in ROW_DRILLS.items():
        assert not (await books.execute(damage)).endswith(" 0"), f"the drill itself missed: {damage}"
        lines = await bad_lines(sound, books_url)
        assert any(named in line for line in lines), (damage, lines)
        for table in TABLES:
            await books.execute(f"truncate derived.{table}; insert into derived.{table} select * from keep.{table}")
    assert await bad_lines(sound, books_url) == []


async def test_books_that_are_being_made_again_are_no_lie(sound: str, books: asyncpg.Pool, books_url: str) -> None:
    made = ("offsets", "accounts", "entries", "requests", "credits", "rejections", "adjustments", *TABLES)
    await books.execute("; ".join(f"truncate derived.{table}" for table in made))
    result = await shrk(sound, books_url, "verify")
    assert result.exit_code == 0, result.output
    assert "3 epochs verified" in result.output  # by the log alone
    await project(sound, books, only=HOME)
    (line,) = await bad_lines(sound, books_url)
    assert "epoch 1 is not verified: PostgreSQL has read only a part of what is before its cut" in line
    await project(sound, books)
    async with epochs_of(sound, books_url) as epochs:
        await epochs.follow()
    assert await bad_lines(sound, books_url) == []
