"""Rows of schema derived, as the core knows them. One place, for the projection and for replay's comparison."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any

from ledger.books import Adjustment, Request
from schemas.events import ModelPrice

_PLAIN = tuple(name for name in Request._fields if name not in ("prices", "cap_day"))


def request_of_row(row: Mapping[str, Any]) -> Request:
    """The request that a row of derived.requests holds."""
    day = row["cap_day"]
    return Request(
        **{name: row[name] for name in _PLAIN},
        prices=_prices_of(row["prices"] or "[]"),
        cap_day=None if day is None else day.isoformat(),
    )


@functools.lru_cache(maxsize=1024)  # requests differ in their prices far less than in anything else
def _prices_of(text: str) -> tuple[ModelPrice, ...]:
    return tuple(ModelPrice.model_validate(price) for price in json.loads(text))


def adjustment_of_row(row: Mapping[str, Any]) -> Adjustment:
    """The adjustment that a row of derived.adjustments holds."""
    return Adjustment(**{name: row[name] for name in Adjustment._fields})
