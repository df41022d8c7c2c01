"""TigerBeetle beside our projection: the same usages, booked by its server through its Python client.

A usage has four postings, the wallet's and three that share it, so it is three linked transfers from the wallet: to
burn, provider and platform. Our own core makes the postings; at the end the server must have our books' balances, to
the unit. One replica on an empty file, with everything else as it comes.

PyPI has the client alone. A server is looked for in SHRK_TIGERBEETLE, then in PATH; without one this is left out.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from infra.bench import environments
from infra.bench.ledger_peers import Peer
from infra.errors import ChildFailed, MachineUnfit, NoDiskSpace, ShrkError
from infra.ports import LOOPBACK, free_port, listens
from infra.process import ChildSpec, LogFile, describe_exit, running
from ledger.apply import step
from ledger.books import Books, Posting
from schemas.events import Event, UsageRecorded

VARIABLE = "SHRK_TIGERBEETLE"
#: What shares a usage's charge: burn, provider, platform.
TRANSFERS_PER_USAGE = 3
WHAT = {1: "one client", 2: "two clients"}
_NAME = "TigerBeetle"
_SCRIPT = Path(__file__).with_name("tigerbeetle_client.py")
_VERSION = re.compile(r"\bversion (\d+\.\d+\.\d+)")
_QUICK_TIMEOUT_S = 60
_READY_TIMEOUT_S = 240
#: Where a slow machine is given up.
_TRANSFERS_PER_S_MIN = 500
#: An empty data file takes 1.1 GiB.
_DISK_BYTES, _DISK_BYTES_PER_TRANSFER = 3 * 1024**3, 2_000
_POLL_S = 0.05


def tigerbeetle(events: Iterable[Event], folder: Path, say: Callable[[str], None]) -> list[Peer]:
    """A line for one client and one for two, or a single one that says why it was left out. Raises ShrkError where the
    server's books are not ours.
    """
    try:
        server, version = find_server()
        python = environments.ensure("tigerbeetle", say)
    except MachineUnfit as error:
        return [Peer(_NAME, missing=str(error))]
    work = prepare(events, folder)
    peers: list[Peer] = []
    for clients, title in WHAT.items():
        what = f"{_NAME} {version}, {title} (transfers)"
        try:
            peers.append(_measure(work, server, python, folder / f"tigerbeetle-{clients}", what, clients))
        except (MachineUnfit, ChildFailed) as error:
            # Not the path of a log that is gone by the time this is read.
            peers.append(Peer(what, missing=str(error).partition("; see ")[0]))
        say(_line(peers[-1]))
    return peers


def find_server(env: Mapping[str, str] = os.environ) -> tuple[Path, str]:
    """The server's program, of the very release of the client's lock, and that release. Raises MachineUnfit."""
    release = environments.pinned("tigerbeetle")
    named = env.get(VARIABLE)
    found = shutil.which(named or "tigerbeetle", path=env.get("PATH"))
    if found is None:
        where = f"{VARIABLE}={named} is no program" if named else "PyPI has its client alone, and PATH no server"
        raise MachineUnfit(
            f"{where}; set {VARIABLE} to the server of release {release}, downloaded or built (infra/docs/ledger.md)"
        )
    told = _VERSION.search(_quick([found, "version"]))
    if told is None or told[1] != release:
        said = told[1] if told else "no release"
        raise MachineUnfit(f"{found} is {said} and the client in infra/locks {release}; set {VARIABLE} to that release")
    return Path(found), release


class Work(NamedTuple):
    """What is to be booked: two files of rows as the client reads them, and what every account must have then."""

    credits: Path
    usages: Path
    transfers: int  # in `usages`
    balances_nano: list[int]  # of accounts 1, 2, 3...


def prepare(events: Iterable[Event], folder: Path) -> Work:
    """Folds the events and writes their postings as transfers. Raises ShrkError for a usage with other than four."""
    books, numbers = Books(0), dict[tuple[str, str], int]()
    paths, transfers = (folder / "credits.rows", folder / "usages.rows"), 0
    with paths[0].open("wb") as credits, paths[1].open("wb") as usages:
        for offset, event in enumerate(events):
            rows = rows_of(step(books, event, offset).postings, numbers)
            if not isinstance(event, UsageRecorded):
                credits.write(rows)
                continue
            if len(rows) != TRANSFERS_PER_USAGE * 3:
                raise ShrkError(f"the usage at {offset} does not come to {TRANSFERS_PER_USAGE} transfers")
            usages.write(rows)
            transfers += TRANSFERS_PER_USAGE
    return Work(*paths, transfers, [books.accounts[key].balance_nano for key in numbers])


def rows_of(postings: tuple[Posting, ...], numbers: dict[tuple[str, str], int]) -> array[int]:
    """Debit account, credit account and amount of each transfer. Accounts without a number are given one."""
    rows = array("Q")
    payer = next((posting for posting in postings if posting.amount_nano < 0), None)
    if payer is None:
        return rows
    debit = numbers.setdefault(payer[:2], len(numbers) + 1)
    for posting in postings:
        if posting is not payer:
            credit = numbers.setdefault(posting[:2], len(numbers) + 1)
            rows.extend((debit, credit, posting.amount_nano))
    return rows


def _measure(work: Work, server: Path, python: Path, folder: Path, what: str, clients: int) -> Peer:
    """With a server and a data file of its own, both gone afterwards."""
    folder.mkdir()
    try:
        free, needed = shutil.disk_usage(folder).free, _DISK_BYTES + work.transfers * _DISK_BYTES_PER_TRANSFER
        if free < needed:
            raise NoDiskSpace(f"{needed // 1024**2} MiB are needed in {folder.parent}; set TMPDIR elsewhere")
        data = folder / "0_0.tigerbeetle"
        _quick([str(server), "format", "--cluster=0", "--replica=0", "--replica-count=1", str(data)])
        port = free_port()
        spec = ChildSpec(
            name="tigerbeetle",
            argv=(str(server), "start", f"--addresses={LOOPBACK}:{port}", str(data)),
            probe=lambda: None if listens(LOOPBACK, port) else "it does not listen yet",
        )
        with running(spec, LogFile(folder / "server.log")) as process:
            return _Run(process, python, port, folder).measure(work, what, clients)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Run:
    """A server that runs, and clients of it. Everything here is bounded in time, and raises ChildFailed."""

    def __init__(self, server: Any, python: Path, port: int, folder: Path) -> None:
        self._server, self._python, self._port, self._folder = server, python, port, folder

    def measure(self, work: Work, what: str, clients: int) -> Peer:
        """Fills, measures, and compares the balances: ShrkError where they differ."""
        accounts = str(len(work.balances_nano))
        with self._client("open", accounts, str(work.credits)) as opening:
            opening.wait(_QUICK_TIMEOUT_S)
        go = self._folder / "go"
        with contextlib.ExitStack() as stack:
            sending = [
                stack.enter_context(
                    self._client("send", str(work.usages), str(TRANSFERS_PER_USAGE), str(at), str(clients), str(go))
                )
                for at in range(clients)
            ]
            for at, client in enumerate(sending):
                client.wait_for(go.with_name(f"{go.name}.{at}"), _READY_TIMEOUT_S)
            server_s = self._cpu_s()
            go.touch()
            deadline_s = time.monotonic() + 60 + work.transfers / _TRANSFERS_PER_S_MIN
            sent = [client.wait(deadline_s - time.monotonic()) for client in sending]
            server_s = self._cpu_s() - server_s
            load = os.getloadavg()[0]
        with self._client("balances", accounts) as asking:
            have = asking.wait(_QUICK_TIMEOUT_S)
        agree(have, work.balances_nano)
        transfers = sum(each["transfers"] for each in sent)
        if transfers != work.transfers:
            raise ShrkError(f"{_NAME} was sent {transfers:,} transfers, {work.transfers:,} were to be sent")
        seconds = max(each["ended_s"] for each in sent) - min(each["began_s"] for each in sent)
        cpu_us = [1e6 * cpu_s / transfers for cpu_s in (server_s, sum(each["cpu_s"] for each in sent))]
        return Peer(what, transfers, seconds, note=note(transfers / seconds, *cpu_us, load))

    def _cpu_s(self) -> float:
        try:
            times = psutil.Process(self._server.pid).cpu_times()
        except psutil.NoSuchProcess as error:
            raise ChildFailed("its server ended") from error
        return times.user + times.system

    @contextlib.contextmanager
    def _client(self, what: str, *args: str) -> Iterator[_Client]:
        name = f"{what}-{time.monotonic_ns()}"
        result, log = self._folder / f"{name}.json", LogFile(self._folder / f"{name}.log")
        # -I: nothing of ours is importable there, as nothing of this package would be for anyone else.
        argv = (str(self._python), "-I", str(_SCRIPT), what, str(self._port), *args, str(result))
        with running(ChildSpec(name="tigerbeetle's client", argv=argv, stop_grace_s=2.0), log) as process:
            yield _Client(process, result, log, self._server)


class _Client:
    """One process of the client."""

    def __init__(self, process: Any, result: Path, log: LogFile, server: Any) -> None:
        self._process, self._result, self._log, self._server = process, result, log, server

    def wait_for(self, file: Path, timeout_s: float) -> None:
        """Until it has written `file`."""
        self._wait(file.exists, timeout_s)

    def wait(self, timeout_s: float) -> dict[str, Any]:
        """Until it has ended well; what it found."""
        self._wait(lambda: self._process.poll() == 0, timeout_s)
        return json.loads(self._result.read_text())

    def _wait(self, done: Callable[[], bool], timeout_s: float) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not done():
            # A client would wait for its server for ever.
            if (code := self._server.poll()) is not None:
                raise ChildFailed(f"its server ended ({describe_exit(code)})")
            if (code := self._process.poll()) not in (None, 0):
                raise ChildFailed(f"its client ended ({describe_exit(code)}): {self._log.last_line()[:300]}")
            if time.monotonic() > deadline_s:
                raise ChildFailed(f"its client took more than {timeout_s:.0f} s")
            time.sleep(_POLL_S)


def agree(have: Mapping[str, int], asked: list[int]) -> None:
    """Raises ShrkError unless the accounts are ours, each with our balance."""
    wrong = [number for number, nano in enumerate(asked, 1) if have.get(str(number)) != nano]
    if wrong or len(have) != len(asked):
        raise ShrkError(f"of {len(asked)} accounts {_NAME} has {len(have)}, and {len(wrong)} balances are not ours")


def note(per_s: float, server_us: float, client_us: float, load: float) -> str:
    """What stands below the table for one line of it; microseconds of CPU are of one transfer."""
    return (
        f"{per_s / TRANSFERS_PER_USAGE:,.0f} usages/s, each of them three linked transfers from its wallet; a transfer "
        f"took {server_us:.1f} us of the server's CPU and {client_us:.1f} us of the Python client's; load {load:.1f}; "
        "all balances are those of our books"
    )


def _line(peer: Peer) -> str:
    if peer.missing:
        return f"{peer.what}: not measured, {peer.missing}"
    return f"{peer.what}: {peer.events / peer.seconds:,.0f} a second"


def _quick(argv: list[str]) -> str:
    """What a short command says. Raises MachineUnfit."""
    called = f"`{Path(argv[0]).name} {argv[1]}`"
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_QUICK_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise MachineUnfit(f"{called} took more than {_QUICK_TIMEOUT_S} s") from error
    except OSError as error:
        raise MachineUnfit(f"{called} cannot be run: {error.strerror}") from error
    if done.returncode != 0:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise MachineUnfit(f"{called} failed: {lines[-1][:300] if lines else describe_exit(done.returncode)}")
    return done.stdout
