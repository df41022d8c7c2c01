"""Runs in an environment that has TigerBeetle's client and nothing of ours: opens accounts, sends transfers, asks for
balances.

Transfers come from a file of unsigned 64-bit integers, three for each: debit account, credit account, amount; accounts
are numbered from 1. GROUP of them in a row are linked, so that all or none of them are made. What is found is written
to RESULT as JSON.

python tigerbeetle_client.py open PORT ACCOUNTS FILE RESULT
python tigerbeetle_client.py send PORT FILE GROUP CLIENT CLIENTS GO RESULT
python tigerbeetle_client.py balances PORT ACCOUNTS RESULT

`open` makes the accounts and sends FILE, unlinked. `send` takes every CLIENTS-th request of FILE, makes its transfers,
writes GO.CLIENT, waits for GO, and measures from there.
"""

import gc
import json
import sys
import time
from array import array
from itertools import islice
from pathlib import Path

import tigerbeetle as tb

#: The most that one request may hold, by its protocol.
BATCH_MAX = 8_189
LEDGER, CODE = 1, 1
GO_TIMEOUT_S = 300
#: Ids of what `open` sends, out of the way of the others.
CREDITS_FROM = 1 << 64


def client(port):
    return tb.ClientSync(cluster_id=0, replica_addresses=port)


def load(path):
    rows = array("Q")
    rows.frombytes(Path(path).read_bytes())
    return rows


def requests(rows, group, at=0, step=1, ids_from=1):
    """Lists of transfers, each as long as a request may be with whole groups."""
    size = BATCH_MAX // group * group
    count = len(rows) // 3
    linked, last = tb.TransferFlags.LINKED, tb.TransferFlags.NONE
    for begin in range(at * size, count, step * size):
        yield [
            tb.Transfer(
                id=ids_from + row,
                debit_account_id=rows[3 * row],
                credit_account_id=rows[3 * row + 1],
                amount=rows[3 * row + 2],
                ledger=LEDGER,
                code=CODE,
                flags=last if row % group == group - 1 else linked,
            )
            for row in range(begin, min(begin + size, count))
        ]


def require(results, made, asked):
    """Ends the process unless everything that was asked for was made just now."""
    bad = [result.status.name for result in results if result.status != made]
    if bad or len(results) != asked:
        sys.exit(f"of {asked} asked for {len(results)} were answered, {len(bad)} of them refused: {bad[:1]}")


def open_accounts(port, accounts, path):
    numbers = iter(range(1, int(accounts) + 1))
    with client(port) as to:
        while some := list(islice(numbers, BATCH_MAX)):
            made = to.create_accounts([tb.Account(id=number, ledger=LEDGER, code=CODE) for number in some])
            require(made, tb.CreateAccountStatus.CREATED, len(some))
        for transfers in requests(load(path), 1, ids_from=CREDITS_FROM):
            require(to.create_transfers(transfers), tb.CreateTransferStatus.CREATED, len(transfers))
    return {}


def send(port, path, group, at, step, go):
    mine = list(requests(load(path), int(group), int(at), int(step)))
    gc.collect()
    gc.freeze()  # or each full collection would walk over all of them
    with client(port) as to:
        to.lookup_accounts([1])  # connected and registered
        Path(f"{go}.{at}").touch()
        deadline_s = time.monotonic() + GO_TIMEOUT_S
        while not Path(go).exists():
            if time.monotonic() > deadline_s:
                sys.exit(f"was not told to go for {GO_TIMEOUT_S} s")
            time.sleep(0.005)
        began_s, cpu_s = time.monotonic(), time.process_time()
        for transfers in mine:
            require(to.create_transfers(transfers), tb.CreateTransferStatus.CREATED, len(transfers))
        ended_s, cpu_s = time.monotonic(), time.process_time() - cpu_s
    return {"began_s": began_s, "ended_s": ended_s, "cpu_s": cpu_s, "transfers": sum(map(len, mine))}


def balances(port, accounts):
    numbers, found = iter(range(1, int(accounts) + 1)), {}
    with client(port) as to:
        while some := list(islice(numbers, BATCH_MAX)):
            for account in to.lookup_accounts(some):
                found[account.id] = account.credits_posted - account.debits_posted
    return found


def main(what, *args):
    *given, result = args
    told = {"open": open_accounts, "send": send, "balances": balances}[what](*given)
    Path(result).write_text(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
