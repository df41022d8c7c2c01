"""Brings what was decided in bulk into the books: the sums of a chunk, by account and asset."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow  # pyright: ignore[reportMissingTypeStubs]
import pyarrow.compute  # pyright: ignore[reportMissingTypeStubs]

from ledger.books import PLATFORM, WORLD, Account, Books, burn_account, provider_account, wallet_account
from ledger.rules import LOSSES
from ledger.vector.chunk import ASSERT, Chunk, ints, tuples
from ledger.vector.lives import Charges, Lives

_arrow: Any = pyarrow  # ships no types
_do: Any = pyarrow.compute


class Posted:
    """Posts the sums of a chunk to its books."""

    def __init__(self, books: Books) -> None:
        self._books = books

    def _add(self, account: str, asset: str, nano: int, entries: int) -> None:
        if not entries:
            return
        row = self._books.accounts.get((account, asset))
        if row is None:
            row = self._books.accounts[account, asset] = Account()
        row.balance_nano += nano
        row.entries += entries

    def credits(self, chunk: Chunk, rows: list[int]) -> None:
        """Of credits in these rows. In Python's integers: a credit may be 10**18."""
        wallets, assets = chunk.words("wallet"), chunk.words("asset")
        at = _arrow.array(rows, _arrow.int64())
        for wallet, asset, nano in tuples(at, chunk["wallet"], chunk["asset"], chunk["amount_nano"]):
            self._add(WORLD, assets[asset], -nano, 1)
            self._add(wallet_account(wallets[wallet]), assets[asset], nano, 1)

    def lives(self, chunk: Chunk, lives: Lives, charges: Charges) -> None:
        """Of lives from their accept to their end."""
        count = len(lives.accept)
        if not count:
            return
        books = self._books
        books.opened_count += count
        books.ended_count += count
        assets, payers, providers = chunk.words("asset"), chunk.words("payer"), chunk.words("provider")
        asset = chunk["asset"].take(lives.accept)
        payer = _do.add(_do.multiply(chunk["payer"].take(lives.accept), len(assets)), asset)
        for key, nano, entries in _sums(payer, charges.by_client):
            account = payers[key // len(assets)], assets[key % len(assets)]
            books.held_nano.setdefault(account, 0)  # held and freed
            self._add(*account, -nano, entries)
        borne = _do.subtract(charges.charge, charges.by_client)
        for word, nano, entries in _sums(asset, borne):
            self._add(LOSSES, assets[word], -nano, entries)
        for word, nano, entries in _sums(asset, charges.burn):
            self._add(burn_account(assets[word]), assets[word], nano, entries)
        for word, nano, entries in _sums(asset, charges.platform):
            self._add(PLATFORM, assets[word], nano, entries)
        earns = _do.greater(charges.providers, 0)
        provider = chunk["provider"].take(lives.end.filter(earns))
        provider = _do.add(_do.multiply(provider, len(assets)), asset.filter(earns))
        for key, nano, entries in _sums(provider, charges.providers.filter(earns)):
            self._add(provider_account(providers[key // len(assets)]), assets[key % len(assets)], nano, entries)


def _sums(keys: Any, nano: Any) -> Iterator[tuple[int, int, int]]:
    """Each key, the sum of its amounts, and how many of them are not nothing."""
    table = _arrow.table({"key": keys, "nano": nano, "entries": _do.not_equal(nano, 0).cast(_arrow.int64())})
    sums = table.group_by("key", use_threads=False).aggregate([("nano", "sum"), ("entries", "sum")])
    columns = (sums.column(name).to_pylist() for name in ("key", "nano_sum", "entries_sum"))
    return zip(*columns, strict=True)


class Pending:
    """What ordinary events post to the wallets that assertions are about, in order of rows."""

    def __init__(self, moves: list[tuple[int, tuple[str, str], int]]) -> None:
        self._moves = sorted(moves)
        self._next = 0

    def before(self, row: int, opening_nano: dict[tuple[str, str], int]) -> None:
        """Adds to `opening_nano` all that comes before `row`."""
        moves = self._moves
        while self._next < len(moves) and moves[self._next][0] < row:
            _, key, amount_nano = moves[self._next]
            opening_nano[key] = opening_nano.get(key, 0) + amount_nano
            self._next += 1


def pending_in(chunk: Chunk, lives: Lives, charges: Charges, refs: list[int]) -> Pending | None:
    asserted = _do.indices_nonzero(chunk.is_word("type", ASSERT))
    if not len(asserted):
        return None
    wallets, assets, payers = chunk.words("wallet"), chunk.words("asset"), chunk.words("payer")
    accounts = {wallet_account(wallets[code]) for code in set(ints(chunk["wallet"], asserted))}
    rows = _arrow.array(refs, _arrow.int64())
    credited = tuples(rows, chunk["wallet"], chunk["asset"], chunk["amount_nano"])
    moves = [
        (row, (wallet_account(wallets[wallet]), assets[asset]), nano)
        for row, (wallet, asset, nano) in zip(refs, credited, strict=True)
    ]
    ours = _arrow.array([payer in accounts for payer in payers], _arrow.bool_())
    at = _do.indices_nonzero(_do.and_(ours.take(chunk["payer"].take(lives.accept)), _do.greater(charges.by_client, 0)))
    accepts = tuples(lives.accept.take(at), chunk["payer"], chunk["asset"])
    ends = tuples(at, lives.end, charges.by_client)
    moves += [
        (row, (payers[payer], assets[asset]), -nano) for (row, nano), (payer, asset) in zip(ends, accepts, strict=True)
    ]
    return Pending(moves)
