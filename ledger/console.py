"""What the commands of `shrk ledger` share: settings, running, the bar, errors as one line, files that appear whole."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import sys
from collections.abc import Callable, Coroutine, Generator, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from ledger.compare import DATABASE_ERRORS
from ledger.log import LedgerError
from schemas.settings import Settings

T = TypeVar("T")

_REQUEST_ID = re.compile(r"(?:chatcmpl-)?([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})")


def parse_request_id(text: str) -> str:
    """The id in x-shiver-request-id, or in a completion's id (chatcmpl-...). Raises ValueError."""
    match = _REQUEST_ID.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no request id")
    return match[1]


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


def write_whole(out: str, pieces: Iterable[bytes]) -> int:
    """Write a file that appears only when it is whole, - being stdout, and return its bytes. Raises OSError.

    A link's target is written. What is there and is no file, as a pipe or a device, is written to and stays what it is.
    """
    if out == "-":
        if sys.stdout is None:  # the shell's >&-
            raise OSError(errno.EBADF, "stdout is closed")
        stdout = click.get_binary_stream("stdout")
        written = sum(stdout.write(piece) for piece in pieces)
        stdout.flush()
        return written
    given = Path(out)
    if given.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), out or ".")
    if given.exists() and not given.is_file():
        with given.open("wb") as file:
            return sum(file.write(piece) for piece in pieces)
    path = given.resolve()
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        file = part.open("wb")
    except OSError as error:
        raise OSError(error.errno, error.strerror, out) from None  # by the name that was given
    try:
        with file:
            written = sum(file.write(piece) for piece in pieces)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return written


@contextmanager
def one_line_for_files() -> Generator[None]:
    """What goes wrong with a file is one line and exit 1."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        raise click.ClickException(f"nothing was written: {what}") from error


def table(head: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int]) -> None:
    """Prints rows under a head, each column as wide as its widest cell; `right` are flush right."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    for row in [head, *rows]:
        cells = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        click.echo("  ".join(cells).rstrip())
