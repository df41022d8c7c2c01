"""Lives: an accept and the end after it, with nothing else about the same id. Which are ordinary, what they come to."""

from __future__ import annotations

from typing import Any, NamedTuple

import pyarrow  # pyright: ignore[reportMissingTypeStubs]
import pyarrow.compute  # pyright: ignore[reportMissingTypeStubs]

from ledger.books import DAY_MS
from ledger.rules import SANDBOX, TABLES, Pays
from ledger.split import BURN_DIVISOR, PROVIDERS_PERCENT
from ledger.vector.chunk import ACCEPT, FAILED, USAGE, Chunk
from schemas.events import How
from schemas.topics import LEDGER

_arrow: Any = pyarrow  # ships no types
_do: Any = pyarrow.compute
#: Rows that are folded at once. A sum over as many ordinary charges is below 2**62.
ROWS_MAX = 1 << 20
_HOLD_MAX = 1 << 42
#: A cost is at most 2**25 x (10**9 + 100 x 10**9) + 2**25 x 10**9, below 2**62.
_PRICE_MAX = 1 << 25

_RULES = 1
_CLIENT, _LOSSES, _NOBODY = range(3)
_PAYS: dict[str, int] = {
    how.value: {Pays.CLIENT: _CLIENT, Pays.LOSSES: _LOSSES, Pays.NOBODY: _NOBODY}[TABLES[_RULES][how]] for how in How
}
_UNKNOWN = -2
_OF_SANDBOX = -1


class Lives(NamedTuple):
    """Accepts and the ends after them, a pair in each place: the rows, and what was looked up for both."""

    accept: Any
    end: Any
    high: Any
    low: Any

    def filter(self, where: Any) -> Lives:
        """Those where it is true."""
        return Lives(*(column.filter(where) for column in self))


class Charges(NamedTuple):
    """What each ordinary life comes to, in nano units; all zero where nobody pays."""

    usage: Any
    pays: Any
    charge: Any
    burn: Any
    providers: Any
    platform: Any
    by_client: Any


def lives_in(chunk: Chunk) -> Lives:
    """Ids with exactly two events in the chunk, an accept and then an end."""
    present = _do.is_valid(chunk["request_lo"])
    rows, low, high = (
        _do.indices_nonzero(present), chunk["request_lo"].filter(present), chunk["request_hi"].filter(present),
    )  # fmt: skip
    count = len(rows)
    order = _do.array_sort_indices(low)  # stable, so that equal ones stay in order of rows
    low = low.take(order)
    same = _do.equal(low.slice(1), low.slice(0, max(count - 1, 0)))
    no = _arrow.array([False])
    before = _arrow.concat_arrays([no, same.slice(0, max(count - 2, 0))]).slice(0, len(same))
    after = _arrow.concat_arrays([same.slice(1), no]).slice(0, len(same))
    pairs = _do.indices_nonzero(_do.and_(same, _do.invert(_do.or_(before, after))))
    first, second = order.take(pairs), order.take(_do.add(pairs, _arrow.scalar(1, pairs.type)))
    lives = Lives(rows.take(first), rows.take(second), high.take(first), low.take(pairs))
    kinds = chunk["type"].take(lives.end)
    ends = [_arrow.scalar(chunk.code("type", word), _arrow.int32()) for word in (USAGE, FAILED)]
    good = _do.and_(
        _do.and_(chunk.is_word("type", ACCEPT).take(lives.accept), _do.equal(lives.high, high.take(second))),
        _do.or_(_do.equal(kinds, ends[0]), _do.equal(kinds, ends[1])),
    )
    return lives.filter(good)


def ordinary(chunk: Chunk, lives: Lives, bound: Any) -> Lives:
    """Of `lives` with ids that the books do not know, those that no rule refuses, whatever else stands in the log.

    `bound` has, for each row, a time that no event so far is newer than.
    """
    accept, end = lives.accept, lives.end
    wallets = {word: code for code, word in enumerate(chunk.words("wallet"))}
    wallet = chunk["wallet"].take(accept)
    payers = [_OF_SANDBOX if word == SANDBOX else _wallet_of(word, wallets) for word in chunk.words("payer")]
    payer = chunk.mapped("payer", payers, accept)
    models, one = chunk["model"], _arrow.scalar(1, _arrow.int32())
    usage = chunk.is_word("type", USAGE).take(end)
    priced = _do.and_(_do.equal(models.take(accept), models.take(end)), _do.equal(chunk["parts"].take(end), one))
    conditions = [
        _do.equal(wallet, chunk["wallet"].take(end)),
        _do.equal(chunk["epoch"].take(end), one),
        _do.equal(chunk["rules_version"].take(accept), _arrow.scalar(_RULES, _arrow.int32())),
        _do.or_(_do.equal(payer, wallet.cast(_arrow.int64())), _do.equal(payer, _OF_SANDBOX)),
        _do.less_equal(chunk["hold_nano"].take(accept), _HOLD_MAX),
        _do.less_equal(chunk["in_nano"].take(accept), _PRICE_MAX),
        _do.less_equal(chunk["out_nano"].take(accept), _PRICE_MAX),
        _do.or_(_do.invert(usage), _do.fill_null(priced, False)),
        _do.greater_equal(born_ms(lives), _do.subtract(bound.take(accept), DAY_MS)),
    ]
    holds = conditions[0]
    for condition in conditions[1:]:
        holds = _do.and_(holds, condition)
    return lives.filter(holds)


def born_ms(lives: Lives) -> Any:
    """The times in the ids."""
    return _do.shift_right(lives.high, _arrow.scalar(16, _arrow.uint64())).cast(_arrow.int64())


def charge(chunk: Chunk, lives: Lives) -> Charges:
    """As `decide._charge` and `split` have it, for one segment."""
    accept, end = lives.accept, lives.end
    usage = chunk.is_word("type", USAGE).take(end)
    pays = chunk.mapped("how", [_PAYS[how] for how in chunk.words("how")], end)
    prompt, image, tokens = (
        _do.fill_null(chunk[name].take(end), 0) for name in ("prompt_tokens", "image_tokens", "tokens")
    )
    paid = _do.and_(_do.and_(usage, _do.greater(tokens, 0)), _do.not_equal(pays, _NOBODY))
    factor = chunk["image_factor"].take(accept).cast(_arrow.int64())
    cost = _do.add(
        _do.multiply(chunk["in_nano"].take(accept), _do.add(prompt, _do.multiply(factor, image))),
        _do.multiply(chunk["out_nano"].take(accept), tokens),
    )
    clamped = _do.min_element_wise(cost, chunk["hold_nano"].take(accept))
    charge = _do.if_else(paid, clamped, 0)
    burn = _do.divide(charge, BURN_DIVISOR)
    rest = _do.subtract(charge, burn)
    providers = _do.divide(_do.multiply(rest, PROVIDERS_PERCENT), 100)
    by_client = _do.if_else(_do.equal(pays, _CLIENT), charge, 0)
    return Charges(usage, pays, charge, burn, providers, _do.subtract(rest, providers), by_client)


def broken_in_bulk(chunk: Chunk, charges: Charges, lives: Lives, partition: int, first: int) -> list[str]:
    """Invariants 1 to 3 over all ordinary lives, by multiplying where `_charge` divided. Each is named by its end."""
    charge, burn, providers, platform = charges.charge, charges.burn, charges.providers, charges.platform
    rest = _do.subtract(charge, burn)
    wrong = {
        "burn, providers and platform are not its charge": _do.not_equal(
            _do.add(_do.add(burn, providers), platform), charge
        ),
        "its burn is not 1 %": _off(_do.subtract(charge, _do.multiply(burn, BURN_DIVISOR)), BURN_DIVISOR),
        "its providers do not get 90 % of the rest": _off(
            _do.subtract(_do.multiply(rest, PROVIDERS_PERCENT), _do.multiply(providers, 100)), 100
        ),
        "its charge is above its hold": _do.greater(charge, chunk["hold_nano"].take(lives.accept)),
        "its payer is charged another amount than was booked": _do.and_(
            _do.not_equal(charges.by_client, 0), _do.not_equal(charges.by_client, charge)
        ),
    }
    return [
        f"{LEDGER} partition {partition} offset {first + row}: {what}"
        for what, where in wrong.items()
        if _do.any(where).as_py()
        for row in lives.end.filter(where).to_pylist()
    ]


def _off(remainder: Any, divisor: int) -> Any:
    return _do.or_(_do.less(remainder, 0), _do.greater_equal(remainder, divisor))


def _wallet_of(payer: str, wallets: dict[str, int]) -> int:
    """The number of the wallet whose account it is."""
    kind, _, wallet = payer.partition(":")
    return wallets.get(wallet, _UNKNOWN) if kind == "wallet" else _UNKNOWN
