"""What is on offer, read from PostgreSQL and kept for a few seconds: models, aliases, prices, trust in providers."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

import asyncpg

from ingress.admission import DATABASE_ERRORS
from schemas.droppable import DROPPABLE
from schemas.errors import ApiError
from schemas.event_base import Asset
from schemas.events import ModelPrice

log = logging.getLogger(__name__)

REFRESH_S = 5.0
TIMEOUT_S = 2.0

Kind = Literal["chat", "embedding"]


class Model(NamedTuple):
    """A model under its own name. `context_tokens` is what is published, None where no limit is; `created_s` is Unix
    seconds, as OpenAI's list has it."""

    name: str
    owned_by: str
    created_s: int
    kind: Kind
    takes_images: bool
    context_tokens: int | None
    prices: Mapping[Asset, ModelPrice]

    @property
    def cheapness(self) -> int:
        """Orders models by price: what a prompt token and an answered one cost together, in the same asset for all."""
        price = self.prices["SHIVER"]
        return price.in_nano + price.out_nano


class Offers(NamedTuple):
    """The catalog at one time. `aliases` has the model's own name by each other name, `trust` that of 0 to 1 by
    provider id; a provider that the operator never judged is missing there. `drops` has the parameters that an alias
    takes out of its requests, of those that drop any."""

    models: Mapping[str, Model]
    aliases: Mapping[str, str]
    trust: Mapping[str, float]
    drops: Mapping[str, frozenset[str]] = MappingProxyType({})

    def find(self, name: str, param: str = "model") -> Model:
        """The model of this name or alias. Raises ApiError model_not_found."""
        model = self.models.get(name) or self.models.get(self.aliases.get(name, ""))
        if model is None:
            raise ApiError("model_not_found", f"No model {name[:80]!r}: GET /v1/models lists them.", param=param)
        return model


class Catalog:
    """Refreshed by whoever asks after REFRESH_S; an old copy is served while the database is away."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool
        self._offers: Offers | None = None
        self._read_at_s = float("-inf")
        self._first = asyncio.Lock()

    async def offers(self) -> Offers:
        """Raises ApiError database_unavailable where none was ever read."""
        if self._offers is None:
            async with self._first:
                if self._offers is None:
                    try:
                        self._offers = await self._read()
                    except DATABASE_ERRORS as error:
                        raise ApiError("database_unavailable") from error
        elif time.monotonic() - self._read_at_s > REFRESH_S:
            self._read_at_s = time.monotonic()  # first, so that one caller reads and the others go on
            try:
                self._offers = await self._read()
            except DATABASE_ERRORS as error:
                log.warning("the catalog is not refreshed: %r", error)
        return self._offers

    async def _read(self) -> Offers:
        async with self._pool.acquire(timeout=TIMEOUT_S) as db, db.transaction(isolation="repeatable_read"):
            models = await db.fetch("select * from state.models order by model", timeout=TIMEOUT_S)
            aliases = await db.fetch("select * from state.model_aliases order by alias", timeout=TIMEOUT_S)
            trust = await db.fetch("select provider_id, trust from state.providers", timeout=TIMEOUT_S)
        self._read_at_s = time.monotonic()
        by_name = {row["model"]: _model(row) for row in models}
        # A model's own name goes before an alias; what is not droppable was put there by hand, and keeps its effect.
        drops = {row["alias"]: DROPPABLE & set(row["drops"]) for row in aliases if row["alias"] not in by_name}
        return Offers(
            by_name,
            {row["alias"]: row["model"] for row in aliases},
            {row["provider_id"]: float(row["trust"]) for row in trust},
            {alias: names for alias, names in drops.items() if names},
        )


def _model(row: asyncpg.Record) -> Model:
    name = row["model"]
    return Model(
        name,
        row["owned_by"],
        int(row["created_at"].timestamp()),
        row["kind"],
        row["takes_images"],
        row["context_tokens"],
        {
            "SHIVER": ModelPrice(model=name, in_nano=row["in_nano"], out_nano=row["out_nano"]),
            "USDC": ModelPrice(model=name, in_nano=row["in_nano_usdc"], out_nano=row["out_nano_usdc"]),
        },
    )
