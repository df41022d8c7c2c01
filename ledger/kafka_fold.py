"""Folds a long log over columns in processes of their own, each with some of the partitions.

Partitions are independent folds, so that books only have to be put beside one another. Every record is read as
strictly as by `ledger.replay`: in its partition, without a gap, an event of its key, in its hash chain.

`fold_log` is called by whoever replays; `python -m ledger.kafka_fold` is the other side. They speak in pickles over a
pipe, each with its length before it. A child whose parent has died ends at its next word to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import pickle
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import confluent_kafka  # pyright: ignore[reportMissingTypeStubs]

import ledger
from ledger.columns import columns_of_records
from ledger.digest import chain_link, record_sha256
from ledger.errata import NO_ERRATA, Errata
from ledger.log import REQUEST_TIMEOUT_S, LedgerCorrupt, LedgerError, LedgerUnavailable
from ledger.reader import Record, check_place, event_of
from ledger.vector.fold import Fold
from schemas.topics import LEDGER

_kafka: Any = confluent_kafka  # its types are partial

_ROOT = str(Path(ledger.__file__).resolve().parents[1])
_FOLD_RECORDS = 1 << 14
_CONSUME_RECORDS = 5_000
_CONSUME_TIMEOUT_S = 0.2
_LENGTH_BYTES = 8
_SETTINGS: dict[str, Any] = {
    "group.id": "shiver-replay",  # none is joined, but the client wants a name
    "client.id": "shiver-replay",
    "enable.auto.commit": False,
    "auto.offset.reset": "error",
    "isolation.level": "read_uncommitted",
    "fetch.wait.max.ms": 50,
    "log_level": 0,  # what goes wrong is raised
    "max.partition.fetch.bytes": 4 * 1024 * 1024,
    "queued.max.messages.kbytes": 64 * 1024,
    # With the usual second of pause at a full queue it would wait most of the time.
    "fetch.queue.backoff.ms": 2,
}


class Part(NamedTuple):
    """One partition: its fold, the head of its hash chain, and the hash of the last record; before, and behind."""

    fold: Fold
    chain: bytes
    last_sha256: bytes
    end: int


class _Job(NamedTuple):
    bootstrap: str
    partitions: int
    parts: list[Part]
    errata: Errata


async def fold_log(
    bootstrap: str,
    partitions: int,
    parts: Sequence[Part],
    on_batch: Callable[[int], None],
    errata: Errata = NO_ERRATA,
) -> list[Part]:
    """Reads each part to its end. Raises LedgerUnavailable, and LedgerCorrupt as `ledger.replay` does."""
    count = max(1, min(len(parts), os.cpu_count() or 1))
    # The longest first, each to whoever has least.
    shares: list[list[Part]] = [[] for _ in range(count)]
    for part in sorted(parts, key=_records_of, reverse=True):
        min(shares, key=lambda share: sum(map(_records_of, share))).append(part)
    tasks = [asyncio.create_task(_child(_Job(bootstrap, partitions, share, errata), on_batch)) for share in shares]
    try:
        return [part for done in await asyncio.gather(*tasks) for part in done]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _records_of(part: Part) -> int:
    return part.end - part.fold.books.next_offset


async def _child(job: _Job, on_batch: Callable[[int], None]) -> list[Part]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (_ROOT, os.environ.get("PYTHONPATH"))))}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "ledger.kafka_fold",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, env=env,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(_framed(job))
        with contextlib.suppress(ConnectionError):  # then it has died, which reading says
            await process.stdin.drain()
        while True:
            size = int.from_bytes(await process.stdout.readexactly(_LENGTH_BYTES), "little")
            told: object = pickle.loads(await process.stdout.readexactly(size))
            if isinstance(told, int):
                on_batch(told)
            elif isinstance(told, LedgerError):
                raise told
            else:
                return cast("list[Part]", told)
    except asyncio.IncompleteReadError:
        raise LedgerUnavailable(f"a process that read {LEDGER} ended with status {await process.wait()}") from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _framed(what: object) -> bytes:
    data = pickle.dumps(what, protocol=5)
    return len(data).to_bytes(_LENGTH_BYTES, "little") + data


class _Reading:
    """One partition of a job, while its records come into `records`."""

    def __init__(self, part: Part, partitions: int, errata: Errata) -> None:
        self.part = part
        self.partition = part.fold.books.partition
        self.expected = part.fold.books.next_offset
        self.records: list[Record] = []
        self._partitions = partitions
        self._errata = errata

    @property
    def is_done(self) -> bool:
        return self.expected >= self.part.end

    def fold(self) -> None:
        """Takes the records that are there, but what lies behind the end. Raises LedgerCorrupt."""
        records = self.records
        if len(records) < _FOLD_RECORDS and self.expected + len(records) < self.part.end:
            return
        del records[max(0, self.part.end - self.expected) :]
        for at, record in enumerate(records, self.expected):
            if record.offset != at:
                raise LedgerCorrupt(
                    f"{LEDGER} partition {self.partition}: a gap, expected offset {at}, got {record.offset}"
                )
            check_place(record, self._partitions, self._errata)
        fold, chain, _, end = self.part
        fold.feed(columns_of_records(records), lambda rows: [event_of(records[row], self._errata) for row in rows])
        for partition, offset, key, value in records:
            chain = chain_link(chain, partition, offset, key, value)
        self.part = Part(fold, chain, record_sha256(*records[-1]), end)
        self.expected += len(records)
        self.records = []
        gc.collect(0)


def _work(job: _Job, tell: Callable[[object], None]) -> list[Part]:
    readings = {part.fold.books.partition: _Reading(part, job.partitions, job.errata) for part in job.parts}
    waiting = {partition for partition, reading in readings.items() if not reading.is_done}
    consumer = _kafka.Consumer({**_SETTINGS, "bootstrap.servers": job.bootstrap})
    try:
        consumer.assign([_kafka.TopicPartition(LEDGER, p, readings[p].expected) for p in sorted(waiting)])
        last_s = time.monotonic()
        while waiting:
            messages = consumer.consume(_CONSUME_RECORDS, timeout=_CONSUME_TIMEOUT_S)
            for message in messages:
                error = message.error()
                if error is not None:
                    raise LedgerUnavailable(f"reading {LEDGER} failed: {error.str()}")
                partition = message.partition()
                readings[partition].records.append(
                    Record(partition, message.offset(), message.key() or b"", message.value() or b"")
                )
            for partition in waiting:
                readings[partition].fold()
            if messages:
                last_s = time.monotonic()
                tell(len(messages))
            done = {partition for partition in waiting if readings[partition].is_done}
            if done:
                consumer.incremental_unassign([_kafka.TopicPartition(LEDGER, partition) for partition in done])
                waiting -= done
            if time.monotonic() - last_s > 2 * REQUEST_TIMEOUT_S:
                raise LedgerUnavailable(f"{LEDGER} gave no record for {2 * REQUEST_TIMEOUT_S:g} s; awaited {waiting}")
    except _kafka.KafkaException as error:
        raise LedgerUnavailable(f"reading {LEDGER} failed: {error}") from error
    finally:
        consumer.close()
    return [reading.part for reading in readings.values()]


def _main(stdin: BinaryIO, stdout: BinaryIO) -> None:
    def tell(what: object) -> None:
        stdout.write(_framed(what))
        stdout.flush()

    size = int.from_bytes(stdin.read(_LENGTH_BYTES), "little")
    job: _Job = pickle.loads(stdin.read(size))
    gc.disable()  # as in ledger.replay: the books are not to be walked again and again
    try:
        tell(_work(job, tell))
    except LedgerError as error:
        tell(error)


if __name__ == "__main__":
    from ledger import kafka_fold  # by its own name, as the parent pickles it

    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):  # the parent has gone, or is being stopped too
        kafka_fold._main(sys.stdin.buffer, sys.stdout.buffer)  # pyright: ignore[reportPrivateUsage]
