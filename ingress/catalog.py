"""The models on offer and their prices, read from PostgreSQL and kept for a few seconds."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import NamedTuple

import asyncpg

from ingress.admission import DATABASE_ERRORS
from schemas.events import ModelPrice

log = logging.getLogger(__name__)

REFRESH_S = 5.0


class Model(NamedTuple):
    """`created_s` is Unix seconds, as OpenAI's models list has it."""

    name: str
    owned_by: str
    created_s: int
    price: ModelPrice


class Catalog:
    """Refreshed by whoever asks after REFRESH_S; an old copy is served while the database is away."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool
        self._models: dict[str, Model] = {}
        self._read_at_s = float("-inf")
        self._first = asyncio.Lock()

    async def models(self) -> dict[str, Model]:
        """All models by name. Raises asyncpg errors or OSError where none was ever read."""
        if not self._models:
            async with self._first:
                if not self._models:
                    await self._read()
        elif time.monotonic() - self._read_at_s > REFRESH_S:
            self._read_at_s = time.monotonic()  # first, so that one caller reads and the others go on
            try:
                await self._read()
            except DATABASE_ERRORS as error:
                log.warning("prices are not refreshed: %r", error)
        return self._models

    async def _read(self) -> None:
        rows = await self._pool.fetch("select * from state.models order by model", timeout=2)
        self._read_at_s = time.monotonic()
        self._models = {
            row["model"]: Model(
                row["model"],
                row["owned_by"],
                int(row["created_at"].timestamp()),
                ModelPrice(model=row["model"], in_nano=row["in_nano"], out_nano=row["out_nano"]),
            )
            for row in rows
        }
