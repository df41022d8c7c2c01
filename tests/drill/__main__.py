"""`make drill`: every planted bug, those that need Kafka and PostgreSQL too. Arguments: parts of names.

One server of each for all of them; the databases of one run are gone before the next.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from infra.kafka.broker import Broker
from infra.kafka.jars import ensure_jars
from infra.kafka.java import find_java
from infra.postgres import Postgres
from infra.process import LogFile, running
from tests.drill.mutants import PURE, SERVED, Mutant
from tests.drill.mutants_limits import LIMITS
from tests.drill.runner import DrillFailed, check_passes, copy_of_the_tree, drill


def main(wanted: list[str]) -> int:
    """Exit status: 0 where every bug was noticed."""
    chosen = [m for m in (*PURE, *SERVED, *LIMITS) if not wanted or any(part in m.name for part in wanted)]
    if not chosen:
        print(f"no bug has {' or '.join(wanted)} in its name", file=sys.stderr)
        return 2
    served = [mutant for mutant in chosen if mutant not in PURE]
    with copy_of_the_tree() as tree:
        missed = _run(tree, [mutant for mutant in chosen if mutant in PURE], None)
        if served:
            missed += _with_servers(tree, served)
    print(f"{len(chosen) - missed} of {len(chosen)} bugs were noticed")
    return 1 if missed else 0


def _run(tree: Path, mutants: list[Mutant], postgres: Postgres | None, kafka: str = "") -> int:
    """How many were not noticed."""
    missed = 0
    if not mutants:
        return 0
    try:
        check_passes(tree, mutants, _fresh(postgres, kafka))
    except DrillFailed as error:
        print(error, file=sys.stderr)
        return len(mutants)
    for mutant in mutants:
        began_s = time.monotonic()
        try:
            drill(tree, mutant, _fresh(postgres, kafka))
            print(f"noticed in {time.monotonic() - began_s:4.1f} s: {mutant.name}", flush=True)
        except DrillFailed as error:
            missed += 1
            print(error, file=sys.stderr, flush=True)
    return missed


def _with_servers(tree: Path, mutants: list[Mutant]) -> int:
    with tempfile.TemporaryDirectory(prefix="shrk-test-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o711)  # PostgreSQL's OS user must get in
        broker, postgres = Broker(folder / "kafka", ensure_jars(), find_java()), Postgres(folder / "postgres")
        broker.prepare()
        postgres.prepare()
        with (
            running(broker.spec(), LogFile(folder / "kafka.log")),
            running(postgres.spec(), LogFile(folder / "postgres.log")),
        ):
            return _run(tree, mutants, postgres, broker.bootstrap)


def _fresh(postgres: Postgres | None, kafka: str) -> dict[str, str]:
    """The environment of one run, with an empty database."""
    if postgres is None:
        return {}
    return {"SHRK_TEST_KAFKA": kafka, "SHRK_TEST_DATABASE_URL": asyncio.run(_empty_database(postgres.url))}


async def _empty_database(url: str) -> str:
    admin = await asyncpg.connect(url)
    try:
        for row in await admin.fetch("select datname from pg_database where datname ~ '^(books|drill)'"):
            await admin.execute(f'drop database "{row["datname"]}" with (force)')
        await admin.execute("create database drill")
    finally:
        await admin.close()
    return urlunsplit(urlsplit(url)._replace(path="/drill"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
