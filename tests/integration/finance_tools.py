"""The real hledger and beancount, for tests of exports."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.compute
import pyarrow.parquet
import pytest

from ledger.exports.names import from_beancount, from_hledger

Balances = dict[tuple[str, str], int]

_AMOUNT = re.compile(r"(-?\d+) ([A-Z]+)NANO")
_APT_TIMEOUT_S = 300
_TOOL_TIMEOUT_S = 300
_BEANCOUNT_SUMS = """
import json, sys
from beancount import loader
from beancount.core.data import Open, Transaction
entries, errors, _ = loader.load_file(sys.argv[1])
assert not errors, errors
sums, names = {}, {}
for entry in entries:
    if isinstance(entry, Open):
        names[entry.account] = entry.meta["account"]
    if isinstance(entry, Transaction):
        for posting in entry.postings:
            key = posting.account + " " + posting.units.currency
            sums[key] = sums.get(key, 0) + posting.units.number
print(json.dumps({"sums": {key: str(value) for key, value in sums.items()}, "names": names}))
"""


@pytest.fixture(scope="session")
def hledger() -> str:
    """The program, installed from Debian's archive where we may."""
    if found := shutil.which("hledger"):
        return found
    what = "hledger is missing, and these tests run it: apt-get install hledger"
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        pytest.fail(what, pytrace=False)
    env = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in (["apt-get", "update"], ["apt-get", "install", "-y", "--no-install-recommends", "hledger"]):
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=_APT_TIMEOUT_S, check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            pytest.fail(f"{what} (it failed here: {last})", pytrace=False)
    return shutil.which("hledger") or pytest.fail(what, pytrace=False)


def run_hledger(hledger: str, journal: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """In the plainest locale: an export is ASCII."""
    command = [hledger, "-f", str(journal), *arguments]
    env = os.environ | {"LC_ALL": "C"}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=_TOOL_TIMEOUT_S, check=False)


def hledger_balances(hledger: str, journal: Path) -> Balances:
    """What hledger finds in every account, under our names."""
    done = run_hledger(hledger, journal, "balance", "--flat", "--empty", "--no-total", "--output-format=csv")
    assert done.returncode == 0, done.stderr
    found: Balances = {}
    for row in csv.DictReader(io.StringIO(done.stdout)):
        for amount, asset in _AMOUNT.findall(row["balance"]):
            found[from_hledger(row["account"]), asset] = int(amount)
    return found


def bean_check(file: Path) -> subprocess.CompletedProcess[str]:
    """The program that comes with beancount."""
    command = [str(Path(sys.executable).parent / "bean-check"), "--no-cache", str(file)]
    return subprocess.run(command, capture_output=True, text=True, timeout=_TOOL_TIMEOUT_S, check=False)


def beancount_balances(file: Path) -> Balances:
    """What beancount finds in every account, under our names."""
    done = subprocess.run(
        [sys.executable, "-c", _BEANCOUNT_SUMS, str(file)],
        env=os.environ | {"BEANCOUNT_DISABLE_LOAD_CACHE": "1"},
        capture_output=True,
        text=True,
        timeout=_TOOL_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    found: Balances = {}
    for key, value in told["sums"].items():
        name, _, unit = key.partition(" ")
        assert told["names"][name] == from_beancount(name)
        found[from_beancount(name), unit.removesuffix("NANO")] = int(value)
    return found


def csv_balances(file: Path) -> Balances:
    """The sums of a CSV export."""
    found: Balances = {}
    with file.open(newline="") as lines:
        for row in csv.DictReader(lines):
            key = (row["account"], row["asset"])
            found[key] = found.get(key, 0) + int(row["amount_nano"])
    return found


def parquet_balances(file: Path) -> Balances:
    """The sums of a Parquet export, made by pyarrow; each must be the last balance that its rows say."""
    table = pyarrow.parquet.read_table(file)
    wide = table.set_column(
        table.schema.get_field_index("amount_nano"),
        "amount_nano",
        table["amount_nano"].cast(pyarrow.decimal128(38, 0)),  # sums may pass 64 bits
    )
    sums = wide.group_by(["account", "asset"]).aggregate([("amount_nano", "sum")]).to_pylist()
    last = {(row["account"], row["asset"]): int(row["balance_nano"]) for row in table.to_pylist()}
    found = {(row["account"], row["asset"]): int(row["amount_nano_sum"]) for row in sums}
    assert found == last
    return found
