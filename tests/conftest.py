"""One real broker and one real PostgreSQL for each worker of a run, started on first use and gone at its end.

SHRK_TEST_KAFKA (host:port) and SHRK_TEST_DATABASE_URL name servers to use in place of our own; theirs must be empty,
and serve one worker: -n 0.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.kafka.broker import Broker
from infra.kafka.jars import ensure_jars
from infra.kafka.java import find_java
from infra.migrate import migrate
from infra.postgres import Postgres
from infra.process import LogFile, running

#: Files that share what is dear to start or to fetch, and so a worker; every other file is a group of its own.
_TOGETHER = {
    "test_bad_input": "the real stack",
    "test_dialects": "the real stack",
    "test_openai_client": "the real stack",
    "test_suites": "the real stack",
    "test_exports": "hledger and beancount",
    "test_exports_epochs": "hledger and beancount",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """For xdist's loadgroup: the tests of a file run on one worker, in their order."""
    for item in items:
        item.add_marker(pytest.mark.xdist_group(_TOGETHER.get(item.path.stem, item.path.stem)))


@pytest.fixture(scope="session")
def scratch() -> Iterator[Path]:
    """A folder for servers, gone at the end. Not pytest's own: PostgreSQL's OS user must be able to get in, and the
    path must be short enough for a socket."""
    folder = Path(tempfile.mkdtemp(prefix="shrk-test-"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def kafka(scratch: Path) -> Iterator[str]:
    """`host:port` of a real broker with no topics."""
    if given := os.environ.get("SHRK_TEST_KAFKA"):
        yield given
        return
    broker = Broker(scratch / "kafka", ensure_jars(), find_java())
    broker.prepare()
    with running(broker.spec(), LogFile(scratch / "kafka.log")):
        yield broker.bootstrap


@pytest.fixture(scope="session")
def database_url(scratch: Path) -> Iterator[str]:
    """URI of a real PostgreSQL with every migration applied."""
    if given := os.environ.get("SHRK_TEST_DATABASE_URL"):
        asyncio.run(migrate(given))
        yield given
        return
    postgres = Postgres(scratch / "postgres")
    postgres.prepare()
    with running(postgres.spec(), LogFile(scratch / "postgres.log")):
        asyncio.run(migrate(postgres.url))
        yield postgres.url
