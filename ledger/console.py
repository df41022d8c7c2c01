"""What the commands of `shrk ledger` share: settings, running, the bar, errors as one line."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Generator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import click

from ledger.compare import DATABASE_ERRORS
from ledger.log import LedgerError
from schemas.settings import Settings

T = TypeVar("T")


def settings_of(ctx: click.Context) -> Settings:
    """What the program around us knows (`shrk` knows the stack that runs here), else the environment."""
    found: object = ctx.find_root().obj
    environ = cast("Callable[[], dict[str, str]]", found)() if callable(found) else dict(os.environ)
    try:
        return Settings.from_environment(environ)
    except SystemExit as error:
        raise click.ClickException(str(error)) from None


def run_shell(work: Coroutine[Any, Any, T]) -> T:
    """Runs it; what is known to go wrong is one line and exit 1."""
    try:
        return asyncio.run(work)
    except LedgerError as error:
        raise click.ClickException(str(error)) from error
    except DATABASE_ERRORS as error:
        raise click.ClickException(f"PostgreSQL does not answer: {str(error) or type(error).__name__}") from error


@contextmanager
def bar(label: str) -> Generator[tuple[Callable[[int], None], Callable[[int], None]], None, None]:
    """A progress bar on stderr: one function to say how much there will be, one how much more was done."""
    shown: Any = click.progressbar(length=1, label=label, file=click.get_text_stream("stderr"))

    def started(total: int) -> None:
        shown.length = total

    with shown:
        yield started, shown.update


def table(head: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int]) -> None:
    """Prints rows under a head, each column as wide as its widest cell; `right` are flush right."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    for row in [head, *rows]:
        cells = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        click.echo("  ".join(cells).rstrip())
