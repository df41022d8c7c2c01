"""TigerBeetle's lines of the ledger's bench: when it is left out, what it is sent, when its books are believed."""

from __future__ import annotations

import importlib.util
import sys
from array import array
from collections import Counter
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from infra.bench import environments, ledger_tigerbeetle
from infra.bench.ledger import ARCHIVE, KAFKA, Measured, Rate, synthetic, table
from infra.bench.ledger_peers import Peer
from infra.bench.ledger_projection import WHAT
from infra.bench.ledger_tigerbeetle import (
    TRANSFERS_PER_USAGE,
    VARIABLE,
    agree,
    find_server,
    note,
    prepare,
    tigerbeetle,
)
from infra.errors import MachineUnfit, ShrkError

RELEASE = environments.pinned("tigerbeetle")
_SERVER = """#!{python} -IS
import socket, sys, time
if sys.argv[1] == "version":
    print("TigerBeetle version {release}+0123abc")
if sys.argv[1] == "start":
    {start}
"""
_LISTENS = """at = socket.create_server(("127.0.0.1", int(sys.argv[2].rpartition(":")[2]))); time.sleep(60)"""


def server(folder: Path, release: str = RELEASE, start: str = "pass") -> str:
    """A program that has the commands of the server."""
    path = folder / "a-server"
    path.write_text(_SERVER.format(python=sys.executable, release=release, start=start))
    path.chmod(0o755)
    return str(path)


def lines_of(peers: list[Peer]) -> str:
    rates = [Rate(name, 1_000_000, 25.0) for name in ("append to Kafka, acked", *WHAT.values(), KAFKA, ARCHIVE)]
    return table(Measured(rates, [], 50_000_000, "abc", peers))


def test_without_a_server_one_line_says_how_to_come_by_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    peers = tigerbeetle(synthetic(1_000), tmp_path, print)
    assert len(peers) == 1
    text = lines_of(peers)
    assert text.count("TigerBeetle") == 1
    assert "- TigerBeetle: not measured, PyPI has its client alone, and PATH no server; set SHRK_TIGERBEETLE to" in text
    assert f"release {RELEASE}, downloaded or built (infra/docs/ledger.md)\n" in text
    assert list(tmp_path.iterdir()) == []


def test_the_table_has_its_transfers_and_its_usages() -> None:
    text = lines_of([Peer("TigerBeetle 1.2.3, one client (transfers)", 600_000, 10.0, note=note(60_000, 1.7, 8.4, 2))])
    assert "| TigerBeetle 1.2.3, one client (transfers) | 600,000 | 10.0 | 60,000 |" in text
    assert "- TigerBeetle 1.2.3, one client (transfers): 20,000 usages/s, each of them three linked transfers" in text
    assert "a transfer took 1.7 us of the server's CPU and 8.4 us of the Python client's; load 2.0" in text


def test_a_server_of_the_locks_release_is_taken_from_the_variable_or_from_path(tmp_path: Path) -> None:
    path = Path(server(tmp_path))
    assert find_server({VARIABLE: str(path), "PATH": ""}) == (path, RELEASE)
    in_path = path.rename(path.with_name("tigerbeetle"))
    assert find_server({"PATH": str(tmp_path)}) == (in_path, RELEASE)


def test_no_other_server_is_taken(tmp_path: Path) -> None:
    with pytest.raises(MachineUnfit, match=rf"{VARIABLE}=/nowhere is no program; set {VARIABLE} to the server of"):
        find_server({VARIABLE: "/nowhere", "PATH": str(tmp_path)})
    with pytest.raises(MachineUnfit, match=rf"a-server is 0\.1\.2 and the client in infra/locks {RELEASE}"):
        find_server({VARIABLE: server(tmp_path, release="0.1.2")})
    with pytest.raises(MachineUnfit, match="is no release"):
        find_server({VARIABLE: server(tmp_path, release="of today")})


@pytest.mark.parametrize(
    ("start", "why"),
    [
        ("sys.exit('no io_uring here')", 'tigerbeetle did not start (exit code 1); it said "no io_uring here"'),
        (_LISTENS, "its client ended (exit code 1): ModuleNotFoundError: No module named 'tigerbeetle'"),
    ],
)
def test_what_fails_is_one_line_and_leaves_nothing(
    start: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, server(tmp_path, start=start))
    monkeypatch.setattr(ledger_tigerbeetle, "_DISK_BYTES", 0)
    monkeypatch.setattr(environments, "ensure", lambda *_: Path(sys.executable))
    (folder := tmp_path / "work").mkdir()
    peers = tigerbeetle(synthetic(1_000), folder, print)
    assert [peer.missing for peer in peers] == [why, why]
    assert [path.suffix for path in folder.iterdir()] == [".rows", ".rows"]


def test_the_transfers_make_our_balances(tmp_path: Path) -> None:
    work = prepare(synthetic(1_000), tmp_path)
    have = Counter[int]()
    for path in (work.credits, work.usages):
        rows = client_rows(path)
        for at in range(0, len(rows), 3):
            have[rows[at]] -= rows[at + 2]
            have[rows[at + 1]] += rows[at + 2]
    assert len(client_rows(work.usages)) == 3 * work.transfers
    assert work.transfers >= 3 * 450
    balances = {str(number): nano for number, nano in have.items()}
    agree(balances, work.balances_nano)
    assert sum(work.balances_nano) == 0
    for wrong in (balances | {"2": 1}, balances | {"10000": 0}, dict(list(balances.items())[1:])):
        with pytest.raises(ShrkError, match=r"of \d+ accounts TigerBeetle has \d+, and [01] balances are not ours"):
            agree(wrong, work.balances_nano)


@pytest.mark.parametrize("clients", [1, 2])
def test_clients_send_every_row_once_and_no_chain_in_two_requests(
    clients: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = client_script(monkeypatch)
    count = 10_000 * TRANSFERS_PER_USAGE
    rows = array("Q", [number for row in range(count) for number in (1, 2, row)])
    amounts, ids = list[int](), list[int]()
    for at in range(clients):
        for transfers in client.requests(rows, TRANSFERS_PER_USAGE, at, clients):
            assert 0 < len(transfers) <= 8_189
            assert [transfer.flags for transfer in transfers] == [1, 1, 0] * (len(transfers) // 3)
            amounts += [transfer.amount for transfer in transfers]
            ids += [transfer.id for transfer in transfers]
    assert sorted(amounts) == list(range(count))
    assert sorted(ids) == list(range(1, count + 1))


def test_a_client_ends_where_a_transfer_was_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    client = client_script(monkeypatch)
    made, other = SimpleNamespace(name="CREATED"), SimpleNamespace(name="EXISTS")
    client.require([SimpleNamespace(status=made)] * 2, made, 2)
    with pytest.raises(SystemExit, match=r"of 2 asked for 2 were answered, 1 of them refused: \['EXISTS'\]"):
        client.require([SimpleNamespace(status=made), SimpleNamespace(status=other)], made, 2)
    with pytest.raises(SystemExit, match="of 2 asked for 1 were answered, 0 of them refused"):
        client.require([SimpleNamespace(status=made)], made, 2)


def client_rows(path: Path) -> array[int]:
    rows = array("Q")
    rows.frombytes(path.read_bytes())
    return rows


def client_script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script that runs in an environment of its own, over as much of TigerBeetle's client as making lists takes."""
    library = ModuleType("tigerbeetle")
    flags = SimpleNamespace(LINKED=1, NONE=0)
    monkeypatch.setattr(library, "TransferFlags", flags, raising=False)
    monkeypatch.setattr(library, "Transfer", SimpleNamespace, raising=False)
    monkeypatch.setitem(sys.modules, "tigerbeetle", library)
    path = Path(ledger_tigerbeetle.__file__).with_name("tigerbeetle_client.py")
    spec = importlib.util.spec_from_file_location("tigerbeetle_client", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
