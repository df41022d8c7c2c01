"""What the commands of the ledger share: where Kafka and PostgreSQL are, and a replay with a progress bar."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, cast

import click

from ledger.replay import Listener, Replay, read_into
from schemas.settings import Settings


def settings_of(ctx: click.Context) -> Settings:
    """What the program around us knows (`shrk` knows the stack that runs here), else the environment."""
    found: object = ctx.find_root().obj
    environ = cast("Callable[[], dict[str, str]]", found)() if callable(found) else dict(os.environ)
    try:
        return Settings.from_environment(environ)
    except SystemExit as error:
        raise click.ClickException(str(error)) from None


async def read_log(
    replay: Replay, settings: Settings, ends: Mapping[int, int] | None, listener: Listener | None = None
) -> None:
    """`read_into` with a bar on stderr. Raises LedgerError."""
    bar: Any = click.progressbar(length=1, label="Replaying", file=click.get_text_stream("stderr"))

    def started(total: int) -> None:
        bar.length = total

    with bar:
        await read_into(replay, settings, ends, started, bar.update, listener)
