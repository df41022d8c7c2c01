"""An old log, byte for byte, and the books that it came to when it was written. Neither may ever change.

golden_log_1.jsonl is from before adjustments, assertions and USDC's own burn: credits and lives of requests of every
kind, doubled, stray and too old. Wallet `wN` stands in partition N modulo 3. A new kind of log gets a file of its own.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from ledger.apply import step
from ledger.books import Books
from ledger.digest import digest
from ledger.invariants import broken_by, broken_in
from schemas.events import dump, parse

LOG = Path(__file__).with_name("golden_log_1.jsonl")
DIGEST = "cbc0d2f40f4dc250482bc9720c6db5ca0d96fed47882ec01a37adc46ef879329"
OUTCOMES = {
    "applied": 88,
    "already_ended": 11,
    "conflict": 7,
    "stale_owner": 6,
    "too_old": 6,
    "unknown_request": 5,
    "duplicate": 2,
}


def test_an_old_log_comes_to_the_same_books_for_ever() -> None:
    books = [Books(partition) for partition in range(3)]
    outcomes = Counter[str]()
    for value in LOG.read_bytes().splitlines():
        event = parse(value)
        assert dump(event) == value
        mine = books[int(event.wallet[1:]) % 3]
        decision = step(mine, event, mine.next_offset)
        assert broken_by(decision, event) == []
        assert broken_in(mine) == []
        outcomes[decision.outcome.value] += 1
    assert outcomes == OUTCOMES
    assert digest(books) == DIGEST
