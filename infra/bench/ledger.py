"""`make bench-ledger`: what the ledger does a second, on a real Kafka and PostgreSQL that are gone afterwards.

append      LedgerWriter: idempotent, acked
projection  the streams process, from a log that is full already into an empty PostgreSQL
archive     from Kafka to Parquet
replay      from Kafka, and from the archive: record by record, and over columns as `shrk ledger replay` does it
peers       infra/bench/ledger_peers.py, infra/bench/ledger_tigerbeetle.py

python -m infra.bench.ledger [--events N] [--quick] [--results FOLDER]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import NamedTuple

from infra.bench.ledger_peers import EXPORTED_EVENTS, Peer, eventsourcing, hledger
from infra.bench.ledger_projection import WHAT, Projected, project
from infra.bench.ledger_tigerbeetle import tigerbeetle
from infra.bench.machine import this_machine
from infra.bench.report import RESULTS, Bar, markdown, write
from infra.errors import ShrkError
from infra.kafka.broker import Broker
from infra.kafka.jars import ensure_jars
from infra.kafka.java import find_java
from infra.kafka.topics import create_topics
from infra.migrate import migrate
from infra.postgres import Postgres
from infra.process import LogFile, running
from ledger.archive import Archive, write_archive
from ledger.bulk import fold_archive
from ledger.log import LedgerError, LedgerWriter
from ledger.manifest import RANGE_RECORDS
from ledger.replay import Replay, read_archive, read_into
from ledger.source import Source
from schemas.events import Event, How, ModelPrice, RequestAccepted, Segment, UsageRecorded, WalletCredited
from schemas.ids import uuid7
from schemas.settings import Settings
from schemas.topics import LEDGER, LEDGER_PARTITIONS_DEV, ledger_topic

EVENTS, QUICK_EVENTS = 1_000_000, 50_000
_WALLETS_MAX = 2_000
_OPEN_REQUESTS = 500
_APPEND_AT_ONCE = 5_000
_T0_MS = 1_800_000_000_000
_PRICE = ModelPrice(model="shark-mini", in_nano=100_000, out_nano=200_000)
KAFKA, KAFKA_PLAIN = "replay from Kafka", "replay from Kafka, record by record"
ARCHIVE, ARCHIVE_PLAIN = "replay from the archive", "replay from the archive, record by record"


class Rate(NamedTuple):
    """One line of the table."""

    what: str
    events: int
    seconds: float

    @property
    def per_s(self) -> float:
        return self.events / self.seconds

    def cells(self) -> list[str]:
        return [self.what, f"{self.events:,}", f"{self.seconds:.1f}", f"{self.per_s:,.0f}"]


def synthetic(count: int, seed: int = 1) -> Iterator[Event]:
    """`count` valid events: a credit for each of many wallets, then accepts and usages of four postings each."""
    rng = random.Random(seed)
    wallets = [f"wallet-{n}" for n in range(max(1, min(_WALLETS_MAX, count // 20)))]
    for wallet in wallets[:count]:
        yield WalletCredited(
            wallet=wallet, at_ms=_T0_MS, asset="SHIVER", amount_nano=10**15, external_ref="grant", reason="grant",
            operator="bench",
        )  # fmt: skip
    waiting: deque[RequestAccepted] = deque()
    left = count - len(wallets)
    while left > 0:
        if len(waiting) >= min(_OPEN_REQUESTS, left):
            yield _usage(waiting.popleft(), rng)
        else:
            accept = _accept(rng.choice(wallets), _T0_MS + count - left, rng)
            waiting.append(accept)
            yield accept
        left -= 1


def _accept(wallet: str, at_ms: int, rng: random.Random) -> RequestAccepted:
    return RequestAccepted(
        wallet=wallet, at_ms=at_ms, request_id=uuid7(at_ms, rng.randbytes(10)), key_id="key-of-the-bench",
        owner="boot-of-the-bench", rules_version=1, asset="SHIVER", prices=(_PRICE,), rate_nano_usd=100_000_000,
        cap_day=None, hold_nano=10**9, payer=f"wallet:{wallet}",
    )  # fmt: skip


def _usage(accept: RequestAccepted, rng: random.Random) -> UsageRecorded:
    segment = Segment(
        node="node-of-the-bench", provider=f"provider-{rng.randrange(50)}", attempt=1, tokens=rng.randrange(1, 2_000)
    )
    return UsageRecorded(
        wallet=accept.wallet, at_ms=accept.at_ms + 1_000, request_id=accept.request_id, epoch=1, how=How.STOP,
        model=_PRICE.model, prompt_tokens=rng.randrange(1, 1_000), segments=(segment,),
    )  # fmt: skip


async def append(settings: Settings, count: int) -> Rate:
    """Through the writer that every process uses. Making the events is not counted."""
    writer = LedgerWriter(settings.kafka, settings.ledger_partitions, client_id="shiver-bench")
    await writer.start()
    events, seconds = synthetic(count), 0.0
    try:
        while batch := [event for _, event in zip(range(_APPEND_AT_ONCE), events, strict=False)]:
            began_s = time.perf_counter()
            await asyncio.gather(*[writer.append(event) for event in batch])
            seconds += time.perf_counter() - began_s
    finally:
        await writer.stop()
    return Rate("append to Kafka, acked", count, seconds)


async def archive(settings: Settings, folder: Path) -> Rate:
    """With its tail, so that all is in it."""
    began_s = time.perf_counter()
    written = await write_archive(
        settings, folder, range_records=RANGE_RECORDS, tail=True, on_start=_nothing, on_file=_nothing
    )
    return Rate("archive: Kafka to Parquet", written.records, time.perf_counter() - began_s)


async def replay_kafka(settings: Settings, *, plain: bool) -> tuple[Rate, str]:
    """As `shrk ledger replay` does it: the start of its processes is counted. Returns the digest too."""
    books, began_s = Replay(settings.ledger_partitions), time.perf_counter()
    async with Source(settings.ledger_partitions, settings.kafka) as source:
        await read_into(books, source, None, _nothing, _nothing, plain=plain)
    what = KAFKA_PLAIN if plain else KAFKA
    return Rate(what, books.events, time.perf_counter() - began_s), _finished(books)


async def replay_archive(settings: Settings, folder: Path, *, plain: bool) -> tuple[Rate, str]:
    """The archive alone, its hashes checked."""
    books, began_s = Replay(settings.ledger_partitions), time.perf_counter()
    found = Archive.open(folder, settings.ledger_partitions)
    if plain:
        await read_archive(books, found, found.ends(), _nothing)
    else:
        await asyncio.to_thread(fold_archive, books, found, _nothing)
    what = ARCHIVE_PLAIN if plain else ARCHIVE
    return Rate(what, books.events, time.perf_counter() - began_s), _finished(books)


class Measured(NamedTuple):
    """Every rate, how the projection went, the archive's size, the digest of all replays, peers."""

    rates: list[Rate]
    projected: list[Projected]
    archive_bytes: int
    digest: str
    peers: list[Peer]


async def measure(count: int) -> Measured:
    """Raises ShrkError and LedgerError."""
    async with _servers() as (settings, folder):
        rates = [await append(settings, count)]
        _say(rates[-1])
        projected = [await project(settings, count, folder, processes) for processes in WHAT]
        for rate in [Rate(each.what, each.events, each.seconds) for each in projected]:
            rates.append(rate)
            _say(rate)
        rates.append(await archive(settings, folder / "archive"))
        _say(rates[-1])
        size = sum(path.stat().st_size for path in (folder / "archive").rglob("*.parquet"))
        digests = set[str]()
        for plain in (False, True):
            for replayed in (
                replay_archive(settings, folder / "archive", plain=plain),
                replay_kafka(settings, plain=plain),
            ):
                rate, digest = await replayed
                digests.add(digest)
                rates.append(rate)
                _say(rate)
        if len(digests) > 1:
            raise ShrkError(f"the replays do not agree: {sorted(digests)}")
    return Measured(rates, projected, size, digest, compare(count))


def compare(count: int) -> list[Peer]:
    """Others, once our own servers are gone."""
    folder = _folder()
    try:
        some = (event for _, event in zip(range(min(EXPORTED_EVENTS, count)), synthetic(count), strict=False))
        peers = [eventsourcing(count, folder, _note), hledger(some, folder)]
        return peers + tigerbeetle(synthetic(count), folder, _note)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.asynccontextmanager
async def _servers() -> AsyncIterator[tuple[Settings, Path]]:
    """A broker and a PostgreSQL of our own; kept, with their logs, where something failed."""
    folder = _folder()
    broker, postgres = Broker(folder / "kafka", ensure_jars(), find_java()), Postgres(folder / "postgres")
    broker.prepare()
    postgres.prepare()
    keep = False
    try:
        with (
            running(broker.spec(), LogFile(folder / "kafka.log")),
            running(postgres.spec(), LogFile(folder / "postgres.log")),
        ):
            await migrate(postgres.url)
            create_topics(broker.bootstrap, [ledger_topic(LEDGER_PARTITIONS_DEV)])
            yield Settings(broker.bootstrap, postgres.url, LEDGER_PARTITIONS_DEV), folder
    except Exception as error:
        keep = True
        print(f"bench: the logs are kept in {folder} ({type(error).__name__})", file=sys.stderr)
        raise
    finally:
        for path in () if keep else (folder, *postgres.outside()):
            shutil.rmtree(path, ignore_errors=True)


def _folder() -> Path:
    """PostgreSQL's OS user must be able to get in, and the path must be short enough for a socket."""
    folder = Path(tempfile.mkdtemp(prefix="shrk-bench-"))
    folder.chmod(0o711)
    return folder


def table(measured: Measured) -> str:
    """Markdown: the rates, the bars of the issue, and what they mean."""
    rates = measured.rates
    by = {rate.what: rate.per_s for rate in rates}
    bars = [
        *[Bar(f"{what} of 15,000 usage events/s", f"{by[what] / 2:,.0f}", by[what] / 2 >= 15_000)
          for what in WHAT.values()],
        Bar("replay from Kafka of 150,000/s", f"{by[KAFKA]:,.0f}", by[KAFKA] >= 150_000),
        Bar("replay from the archive of 1,500,000/s", f"{by[ARCHIVE]:,.0f}", by[ARCHIVE] >= 1_500_000),
    ]  # fmt: skip
    peers = [Rate(peer.what, peer.events, peer.seconds) for peer in measured.peers if not peer.missing]
    text = markdown(
        "The ledger", this_machine(), ("", "events", "seconds", "events/s"), [rate.cells() for rate in rates + peers]
    )
    notes = [
        f"- one half of the events are `usage.recorded`, with four postings each; {LEDGER} has "
        f"{LEDGER_PARTITIONS_DEV} partitions",
        f"- the archive has {measured.archive_bytes / rates[0].events:.0f} bytes an event; all replays gave digest "
        f"{measured.digest}",
        *[f"- {each.note()}" for each in measured.projected],
        "- hledger parses text and checks assertions; eventsourcing's events have two fields of their own, ours up to "
        "16, and four postings",
        *[f"- {peer.what}: not measured, {peer.missing}" for peer in measured.peers if peer.missing],
        *[f"- {peer.what}: {peer.note}" for peer in measured.peers if peer.note],
        *[bar.line() for bar in bars],
    ]
    return text + "\n" + "\n".join(notes) + "\n"


def main(args: list[str]) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m infra.bench.ledger", description="Measures the ledger here.")
    parser.add_argument("--events", type=int, help=f"how many ({EVENTS:,})")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_EVENTS:,} events: the numbers mean little")
    parser.add_argument("--results", type=Path, help="folder of the results")
    chosen = parser.parse_args(args)
    count = chosen.events or (QUICK_EVENTS if chosen.quick else EVENTS)
    if count < 1_000:
        parser.error("--events must be 1000 or more")
    # A smoke must not replace the results of a real run.
    results = chosen.results or (Path(tempfile.mkdtemp(prefix="shrk-bench-results-")) if chosen.quick else RESULTS)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as an exception, so that everything started is stopped
    try:
        measured = asyncio.run(measure(count))
    except (ShrkError, LedgerError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    text = table(measured)
    rates = {rate.what: round(rate.per_s) for rate in measured.rates}
    rates |= {peer.what: round(peer.events / peer.seconds) for peer in measured.peers if not peer.missing}
    data = {
        "events": count,
        "digest": measured.digest,
        "streams_restarts": sum(each.restarts for each in measured.projected),
        "rates": rates,
    }
    write("ledger", this_machine(), text, data, results)
    print(f"\n{text}", flush=True)
    return 0


def _finished(books: Replay) -> str:
    digest = books.finish()
    if books.broken:
        raise ShrkError(f"the books are broken: {books.broken[0]}")
    return digest


def _nothing(_: int) -> None:
    """Shows no progress: it would be measured too."""


def _note(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


def _say(rate: Rate) -> None:
    print(f"bench: {rate.what}: {rate.per_s:,.0f} events/s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
