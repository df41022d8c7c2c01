"""A database and a ledger log of its own for each test that asks: books are compared to the row."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest_asyncio
from ledger_kit import drop_topic, make_topic

from infra.migrate import migrate

PARTITIONS = 4
_numbers = itertools.count()


@pytest_asyncio.fixture(scope="session")
async def template(database_url: str) -> str:
    """A migrated database that nobody connects to, so that others can be copied from it."""
    name = "books_template"
    admin = await asyncpg.connect(database_url)
    await admin.execute(f"create database {name}")
    await admin.close()
    await migrate(_named(database_url, name))
    return name


@pytest_asyncio.fixture
async def books_url(database_url: str, template: str) -> AsyncIterator[str]:
    """The URL of a database with every migration and nothing else."""
    name = f"books_{next(_numbers)}"
    admin = await asyncpg.connect(database_url)
    await admin.execute(f"create database {name} template {template}")
    yield _named(database_url, name)
    await admin.execute(f"drop database {name} with (force)")
    await admin.close()


@pytest_asyncio.fixture
async def books(books_url: str) -> AsyncIterator[Any]:
    """A pool on `books_url`, with the streams' own settings."""
    from streams.app import open_pool

    pool = await open_pool(books_url)
    yield pool
    await pool.close()


@pytest_asyncio.fixture
async def ledger_log(kafka: str) -> AsyncIterator[str]:
    """`host:port` of a broker whose ledger.events is empty and has PARTITIONS partitions."""
    await drop_topic(kafka)
    await make_topic(kafka, PARTITIONS)
    yield kafka
    await drop_topic(kafka)


def _named(url: str, name: str) -> str:
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))
