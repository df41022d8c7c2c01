"""`shrk ledger prove` and `check-proof` on a real log with real epochs: from rows, from the log, from an archive."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import pytest_asyncio
from books_kit import P, append_all, project, shrk
from epochs_kit import HOUR_MS, PROVIDERS, TERMS, address_of, earnings, epochs_of, funded, registered, settings_for
from ledger_kit import T0_MS, accepted, adopted, credited, failed, new_id, usage, wallet_in
from test_epochs import closed_events
from test_exports import names_in

from ledger import prove as module
from ledger.check_proof import report
from ledger.prove import FromLog, FromRows, NoProof, prove
from ledger.source import Source
from schemas import topics
from schemas.events import EpochClosed, Event, How, RequestEvent, Segment
from schemas.ids import uuid7

NOBODY = "postgresql://nobody@127.0.0.1:1/none"


class Drill:
    """A log with three epochs, its rows, and requests of every kind."""

    def __init__(self, kafka: str, url: str, db: asyncpg.Pool, ids: dict[str, str]) -> None:
        self.kafka, self.url, self.db, self.ids = kafka, url, db, ids
        self.events: list[EpochClosed] = []

    async def prove(self, name: str, out: Path, *more: str, url: str | None = None) -> tuple[int, str]:
        """The exit status, and the last line that was said."""
        request_id = self.ids.get(name, name)
        arguments = ("prove", "--request", request_id, "--out", str(out), *more)
        done = await shrk(self.kafka, self.url if url is None else url, *arguments)
        return done.exit_code, done.output.splitlines()[-1]

    async def good(self, name: str, out: Path, *more: str, url: str | None = None) -> tuple[bytes, str]:
        """A proof that must hold under the epoch's own roots, and what the checker says of it."""
        code, said = await self.prove(name, out, *more, url=url)
        assert code == 0, said
        data = content(out)
        event = self.events[json.loads(data)["epoch"] - 1]
        lines, holds = report(data, event.log_root, event.payout_root)
        assert holds, lines
        return data, "\n".join(lines)


def content(path: Path) -> bytes:
    return path.read_bytes()


def lives() -> tuple[dict[str, str], list[Event]]:
    """One request of each kind, of wallets in two partitions; some events twice, some that were refused."""
    ids = {
        name: uuid7(T0_MS, bytes([n]) * 10)
        for n, name in enumerate(("two", "adopted", "free", "failed", "stray", "sandbox"))
    }
    one, other = wallet_in(1, P), wallet_in(2, P)
    two = tuple(Segment(node="n", provider=p, attempt=n + 1, tokens=10 + n) for n, p in enumerate(("p1", "p2", "p1")))
    events: list[Event] = [
        accepted(ids["two"], one),
        accepted(ids["adopted"], other),
        accepted(ids["two"], one),  # twice
        usage(ids["adopted"], wallet=one),  # of another wallet
        adopted(ids["adopted"], 2, other),
        adopted(ids["adopted"], 4, other),  # not the next
        adopted(ids["adopted"], 3, other),
        usage(ids["two"], wallet=one, segments=two),
        usage(ids["two"], wallet=one, segments=two[:1]),  # ended already
        usage(ids["adopted"], 7, other),  # a stale owner
        usage(ids["adopted"], 8, other, epoch=3),
        accepted(ids["free"], one),
        usage(ids["free"], 0, one),
        accepted(ids["failed"], other),
        failed(ids["failed"], other, how=How.NO_NODE),
        failed(ids["stray"], one),
        accepted(ids["stray"], one),  # closed before it began
        accepted(ids["sandbox"], one, payer="platform:sandbox"),
        usage(ids["sandbox"], 9, one, how=How.LENGTH),
    ]
    return ids, events


@pytest_asyncio.fixture
async def drill(ledger_log: str, books: asyncpg.Pool, books_url: str) -> Drill:
    ids, events = lives()
    people = [registered(provider, address_of(provider)) for provider in PROVIDERS[:2]]
    ids["late"], ids["open"], ids["third"] = (new_id() for _ in range(3))
    wallet = wallet_in(0, P)
    steps: list[list[Event]] = [
        [*earnings(1, 20), *people, *events],
        [
            *earnings(2, 20),
            funded(10**9),
            accepted(ids["third"], wallet),
            usage(ids["third"], 5, wallet, segments=third()),
        ],
        [accepted(ids["late"], wallet)],
    ]
    for number, step in enumerate(steps):
        await append_all(ledger_log, step)
        await project(ledger_log, books)
        async with epochs_of(ledger_log, books_url) as epochs:
            await epochs.close(TERMS, T0_MS + number * HOUR_MS)
    await append_all(
        ledger_log, [usage(ids["late"], 5, wallet), accepted(ids["open"], wallet), credited(wallet, 5, "x")]
    )
    await project(ledger_log, books)
    drill = Drill(ledger_log, books_url, books, ids)
    drill.events = [event for _, event in await closed_events(ledger_log)]
    return drill


def third() -> tuple[Segment, ...]:
    return (Segment(node="n", provider="p3", attempt=1, tokens=5),)  # has no recipient, so no leaf


async def test_requests_of_every_kind_from_rows_and_from_the_log(drill: Drill, tmp_path: Path) -> None:
    said: dict[str, str] = {}
    for name in ("two", "adopted", "free", "failed", "stray", "sandbox", "third"):
        data, said[name] = await drill.good(name, tmp_path / "rows.json")
        alone, _ = await drill.good(name, tmp_path / "log.json", url=NOBODY)
        assert alone == data
        body: dict[str, Any] = json.loads(data)
        assert body["epoch"] == (2 if name == "third" else 1)
        # What counts, and nothing that was refused.
        assert len(body["records"]) == {"adopted": 4, "stray": 1}.get(name, 2)
        assert {payout["provider"] for payout in body["payouts"]} == {
            "two": {"p1", "p2"}, "adopted": {"p1"}, "sandbox": {"p1"}
        }.get(name, set())  # fmt: skip
    assert "33 completion tokens" in said["two"]
    assert "2 times adopted" in said["adopted"]
    assert "8 completion tokens" in said["adopted"]
    assert "the charge is 0 SHIVER" in said["free"]
    assert "ended by no_node without usage" in said["failed"]
    assert "never began" in said["stray"]
    assert "paid by platform:sandbox" in said["sandbox"]
    assert "provider p3: the file has no payout leaf" in said["third"]


async def test_the_leaf_is_what_the_epoch_owes(drill: Drill, tmp_path: Path) -> None:
    for epoch in (1, 2, 3):
        body = json.loads((await drill.good("adopted", tmp_path / "p.json", "--epoch", str(epoch)))[0])
        assert body["epoch"] == epoch
        row = await drill.db.fetchrow(
            "select amount, recipient from derived.entitlements "
            "where epoch = $1 and provider = 'p1' and asset = 'SHIVER'",
            epoch,
        )
        assert [(p["cumulative"], p["recipient"]) for p in body["payouts"]] == [
            (str(int(row["amount"])), row["recipient"])
        ]


async def test_from_an_archive_and_from_it_alone(drill: Drill, tmp_path: Path) -> None:
    folder, out = str(tmp_path / "archive"), tmp_path / "proof.json"
    wanted, _ = await drill.good("two", out)
    assert (await shrk(drill.kafka, drill.url, "archive", "--out", folder, "--range", "16")).exit_code == 0
    assert (await drill.good("two", out, "--archive", folder))[0] == wanted
    assert (await drill.good("two", out, "--archive", folder, url=NOBODY))[0] == wanted
    assert (await shrk(drill.kafka, drill.url, "archive", "--out", folder, "--range", "16", "--tail")).exit_code == 0
    drill.kafka = "127.0.0.1:1"
    assert (await drill.good("two", out, "--archive", folder, "--no-tail"))[0] == wanted


async def test_what_cannot_be_proven_is_one_line_and_no_file(drill: Drill, tmp_path: Path) -> None:
    out = tmp_path / "proof.json"
    for url in (None, NOBODY):
        for name, more, text in (
            (new_id(), (), "know"),
            ("open", (), "open" if url is None else "knows no request"),
            ("late", (), "has not ended before the cut of epoch 3"),
            ("third", ("--epoch", "1"), "before the cut of epoch 1"),
            ("two", ("--epoch", "9"), "epoch 9 is not closed; the last is 3"),
        ):
            code, said = await drill.prove(name, out, *more, url=url)
            assert code == 1, said
            assert said.startswith("Error: ")
            assert text in said
    assert (await drill.prove("x", out))[0] == 2
    assert (await drill.prove("two", out, "--no-tail"))[0] == 2
    code, said = await drill.prove("two", Path("/nowhere/proof.json"))
    assert (code, "nothing was written: /nowhere/" in said) == (1, True)
    assert names_in(tmp_path) == []


async def test_before_any_epoch(ledger_log: str, books: asyncpg.Pool, books_url: str, tmp_path: Path) -> None:
    request_id = new_id()
    await append_all(ledger_log, [accepted(request_id), usage(request_id)])
    await project(ledger_log, books)
    for url in (books_url, NOBODY):
        done = await shrk(ledger_log, url, "prove", "--request", request_id, "--out", str(tmp_path / "p"))
        assert done.exit_code == 1
        assert done.output.splitlines()[-1] == "Error: no epoch is closed yet"


async def test_an_epoch_that_is_not_what_the_log_makes_is_not_proven(drill: Drill, tmp_path: Path) -> None:
    await drill.db.execute("update derived.epochs set mismatch = 'roots of partition 0' where number = 1")
    code, said = await drill.prove("two", tmp_path / "p.json")
    assert (code, said) == (1, "Error: epoch 1 is not what the log makes: roots of partition 0")
    await drill.db.execute("update derived.epochs set mismatch = ''")
    await drill.db.execute("update derived.entitlements set amount = amount + 1 where epoch = 1 and provider = 'p2'")
    code, said = await drill.prove("two", tmp_path / "p.json")
    assert (code, said) == (1, "Error: the payouts of epoch 1 do not make its payout root: run shrk ledger verify")
    await drill.db.execute("delete from derived.rejections")
    code, said = await drill.prove("adopted", tmp_path / "p.json")
    assert code == 1
    assert "run shrk ledger verify" in said
    assert names_in(tmp_path) == []


async def test_an_epoch_with_false_roots_is_not_proven(drill: Drill, tmp_path: Path) -> None:
    """Somebody who may append closes an epoch over another log; nobody's rows say so."""
    last = drill.events[-1]
    lie = last.model_copy(update={"epoch": 4, "roots": (last.roots[1], last.roots[0], *last.roots[2:])})
    await append_all(drill.kafka, [lie])
    code, said = await drill.prove("two", tmp_path / "p.json", "--epoch", "4", url=NOBODY)
    assert code == 1
    assert said == "Error: the tree over partition 1 is not the one of epoch 4: run shrk ledger verify"
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("kept", [True, False])
async def test_only_the_blocks_that_are_needed_are_read(
    drill: Drill, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    """With blocks of four records: their own, the last one, and with no kept roots all others, one at a time."""
    read: list[tuple[int, int]] = []
    plain = Source.read

    def counting(self: Source, partition: int, first: int, following: int) -> Any:
        read.append((first, following))
        return plain(self, partition, first, following)

    settings = settings_for(drill.kafka, drill.url)
    request_id, partition = drill.ids["two"], topics.partition_of(wallet_in(1, P).encode(), P)
    async with Source(P, settings.kafka, None) as source:
        blocks = await block_roots(source, partition, drill.events[0].cut[partition])
        finder = FromRows(drill.db, source, lambda _: None, block_bits=2)
        if kept:

            async def roots(_: int) -> dict[int, bytes]:
                return blocks

            monkeypatch.setattr(finder, "_block_roots", roots)
        monkeypatch.setattr(Source, "read", counting)
        data = await prove(source, finder, request_id, None, lambda _: None, block_bits=2)
    event = drill.events[0]
    assert report(data, event.log_root, event.payout_root)[1]
    offsets = {record["offset"] for record in json.loads(data)["records"]}
    spans = {(offset // 4 * 4, min(event.cut[partition], offset // 4 * 4 + 4)) for offset in offsets}
    tail = event.cut[partition] // 4 * 4
    if tail < event.cut[partition]:
        spans.add((tail, event.cut[partition]))
    assert spans <= set(read)
    assert len(blocks) > 4
    others = {span for span in read if span not in spans and span[1] - span[0] == 4 and span[0] < min(offsets) // 4 * 4}
    assert bool(others) is not kept


async def test_kept_roots_are_of_whole_blocks_of_the_one_size(drill: Drill) -> None:
    """Those of a partition alone; of another size of blocks there are none."""
    rows = [(1, 0, b"a" * 32), (1, 7, b"b" * 32), (2, 7, b"c" * 32)]
    await drill.db.executemany("insert into derived.tree_blocks values ($1, $2, $3)", rows)
    async with Source(P, drill.kafka, None) as source:
        assert await FromRows(drill.db, source, lambda _: None)._block_roots(1) == {0: b"a" * 32, 7: b"b" * 32}
        assert await FromRows(drill.db, source, lambda _: None, block_bits=2)._block_roots(1) == {}


async def block_roots(source: Source, partition: int, size: int) -> dict[int, bytes]:
    from ledger.block_tree import BlockTree
    from ledger.merkle import record_leaf

    tree = BlockTree(block_bits=2)
    async for records in source.read(partition, 0, size):
        for record in records:
            tree.add(record_leaf(*record))
    return dict(tree.blocks)


async def test_check_proof_is_a_command_too(drill: Drill, tmp_path: Path) -> None:
    out = tmp_path / "proof.json"
    data, _ = await drill.good("two", out)
    event = drill.events[0]
    # Offline: no setting at all.
    good = await shrk("", "", "check-proof", str(out), "--log-root", event.log_root, "--payout-root", event.payout_root)
    assert good.exit_code == 0, good.output
    assert good.stdout.splitlines()[-1] == "verdict: it holds"
    other = drill.events[1].log_root
    assert (await shrk("", "", "check-proof", str(out), "--log-root", other)).exit_code == 1
    out.write_bytes(data.replace(b'"epoch": 1', b'"epoch": 2'))
    bad = await shrk("", "", "check-proof", str(out))
    assert (bad.exit_code, bad.stdout.splitlines()[-1]) == (1, "verdict: refused")
    assert (await shrk("", "", "check-proof", str(tmp_path / "none"))).exit_code == 1


async def test_a_request_of_two_partitions_is_refused(drill: Drill, tmp_path: Path) -> None:
    request_id = new_id()
    lives: list[Event] = [
        event
        for w in (wallet_in(0, P), wallet_in(1, P))
        for event in (accepted(request_id, w), usage(request_id, 5, w))
    ]
    assert all(isinstance(event, RequestEvent) for event in lives)
    await append_all(drill.kafka, lives)
    await project(drill.kafka, drill.db)
    async with epochs_of(drill.kafka, drill.url) as epochs:
        await epochs.close(TERMS, T0_MS + 9 * HOUR_MS)
    for url in (None, NOBODY):
        code, said = await drill.prove(request_id, tmp_path / "p.json", url=url)
        assert code == 1
        assert "partitions: a writer broke the rules" in said


async def test_a_finder_that_errs_writes_nothing(drill: Drill, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last gate is the checker itself."""
    async with Source(P, drill.kafka, None) as source:
        finder = FromLog(source, lambda _: None, lambda _: None)
        with pytest.raises(NoProof):
            await prove(source, finder, new_id(), None, lambda _: None)
        monkeypatch.setattr(module, "_paid_out", lambda *_: [module.PaidOut("p1", "0x" + "00" * 20, 1, [])])
        with pytest.raises(module.LedgerCorrupt, match="the proof that was made does not hold"):
            await prove(source, finder, drill.ids["two"], None, lambda _: None)
