"""Rows of schema derived, as the core knows them. One place, for the projection and for replay's comparison."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from ledger.books import Adjustment, Request
from schemas.events import ModelPrice

_PLAIN = tuple(name for name in Request._fields if name not in ("prices", "cap_day"))


def prices_of(text: str) -> tuple[ModelPrice, ...]:
    """The prices that derived.requests keeps of an accept. Raises ValueError where they are none."""
    return tuple(ModelPrice.model_validate(price) for price in json.loads(text))


def request_of_row(row: Mapping[str, Any], prices: Callable[[str], tuple[ModelPrice, ...]] = prices_of) -> Request:
    """The request that a row of derived.requests holds. `prices` may be a memory of `prices_of`: rows differ little."""
    day = row["cap_day"]
    return Request(
        **{name: row[name] for name in _PLAIN},
        prices=prices(row["prices"] or "[]"),
        cap_day=None if day is None else day.isoformat(),
    )


def adjustment_of_row(row: Mapping[str, Any]) -> Adjustment:
    """The adjustment that a row of derived.adjustments holds."""
    return Adjustment(**{name: row[name] for name in Adjustment._fields})
