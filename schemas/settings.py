"""The environment that every process reads, once, at its start. Each package adds its own beside these."""

from __future__ import annotations

import os
from typing import NamedTuple

from schemas.errata import ErrataError, trusted_keys
from schemas.topics import LEDGER_PARTITIONS_DEV


class Settings(NamedTuple):
    """Where the shared parts are: `SHRK_KAFKA`, `SHRK_DATABASE_URL`, `SHRK_LEDGER_PARTITIONS`; and `SHRK_ERRATA_KEYS`,
    the public keys whose errata count (schemas/errata.py), separated by commas."""

    kafka: str
    database_url: str
    ledger_partitions: int
    errata_keys: frozenset[str] = frozenset()

    @staticmethod
    def from_environment(environ: dict[str, str] | None = None) -> Settings:
        """Raises SystemExit with one clear line where a setting is missing or wrong."""
        env = dict(os.environ) if environ is None else environ
        missing = [name for name in ("SHRK_KAFKA", "SHRK_DATABASE_URL") if not env.get(name)]
        if missing:
            raise SystemExit(f"set {' and '.join(missing)} (shrk up does it for the processes that it starts)")
        partitions = env.get("SHRK_LEDGER_PARTITIONS", str(LEDGER_PARTITIONS_DEV))
        if not partitions.isdigit() or not 1 <= int(partitions) <= 1024:
            raise SystemExit(f"SHRK_LEDGER_PARTITIONS must be 1 to 1024, not {partitions!r}")
        try:
            keys = trusted_keys(env.get("SHRK_ERRATA_KEYS", ""))
        except ErrataError as error:
            raise SystemExit(str(error)) from None
        return Settings(env["SHRK_KAFKA"], env["SHRK_DATABASE_URL"], int(partitions), keys)
