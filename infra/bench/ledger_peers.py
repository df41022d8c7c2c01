"""What others do a second beside our replay, on the same machine: a library, a tool that reads our export.

eventsourcing  as many events of its own, replayed from SQLite (infra/bench/eventsourcing_replay.py)
hledger        reads the journal that `shrk ledger export` writes of a part, and checks its balance assertions
TigerBeetle    infra/bench/ledger_tigerbeetle.py
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from infra.bench import environments
from infra.errors import MachineUnfit, ShrkError
from ledger.apply import step
from ledger.books import Books
from ledger.exports.hledger import Hledger
from ledger.exports.transactions import Head, Tally, by_epoch, transaction_of
from ledger.exports.write import export
from schemas.events import Event

EXPORTED_EVENTS = 50_000
_TIMEOUT_S = 900
_SCRIPT = Path(__file__).with_name("eventsourcing_replay.py")


class Peer(NamedTuple):
    """What one of them did, or in `missing` why it was not measured."""

    what: str
    events: int = 0
    seconds: float = 0.0
    missing: str = ""
    note: str = ""  # for below the table


def eventsourcing(count: int, folder: Path, say: Callable[[str], None]) -> Peer:
    """Raises ShrkError where it does not replay what was stored."""
    what = "eventsourcing (PyPI): replay from SQLite"
    try:
        python = environments.ensure("eventsourcing", say)
    except MachineUnfit as error:
        return Peer(what, missing=str(error))
    told = json.loads(_run([str(python), str(_SCRIPT), str(count), str(folder)], "eventsourcing").splitlines()[-1])
    if told["events"] != count or told["sum"] != count * (count - 1) // 2:
        raise ShrkError(f"eventsourcing replayed {told} of {count:,} events")
    return Peer(what, count, told["seconds"])


def hledger(events: Iterable[Event], folder: Path) -> Peer:
    """Raises ShrkError where it finds the export wrong."""
    what = "hledger: balances of our export"
    program = shutil.which("hledger")
    if program is None:
        return Peer(what, missing="it is not installed (Debian, Ubuntu: apt install hledger)")
    journal = folder / "export.journal"
    count = _export(events, journal)
    began_s = time.perf_counter()
    _run([program, "--file", str(journal), "balance", "-N", "--flat", "-O", "csv"], "hledger")
    return Peer(what, count, time.perf_counter() - began_s)


def _export(events: Iterable[Event], journal: Path) -> int:
    """Writes what these events, as one partition, come to. Returns how many they are."""
    books, tally, transactions = Books(0), Tally(), []
    for offset, event in enumerate(events):
        transaction = transaction_of(0, offset, event, step(books, event, offset))
        if transaction is not None:
            tally.add(transaction)
            transactions.append(transaction)
    head = Head({0: books.next_offset}, None, None, tally)
    with journal.open("w") as file:
        file.writelines(export(Hledger(), head, sorted(transactions, key=by_epoch)))
    return books.next_offset


def _run(argv: list[str], name: str) -> str:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise ShrkError(f"{name} took more than {_TIMEOUT_S} s") from error
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise ShrkError(f"{name} failed: {lines[-1].strip()[:300] if lines else 'it said nothing'}")
    return done.stdout
