"""`shrk up` runs the stack in the foreground until Ctrl-C, `shrk down` stops it, `shrk clean` removes its state."""

import asyncio
import os
import shlex
import shutil
import signal
import sys
import time
from pathlib import Path

import click

from infra.errors import NotRunning, ShrkError
from infra.stack import DEFAULT_PORT, Options, Stack, end_leftovers
from infra.state import StateFolder

_DOWN_TIMEOUT_S = 90.0
_QUESTION = '{"model":"shark-mini","stream":true,"messages":[{"role":"user","content":"what is 7 plus 5?"}]}'


@click.command()
@click.option("--port", type=click.IntRange(1, 65535), default=DEFAULT_PORT, show_default=True, help="Of the ingress.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address that the ingress binds.")
def up(port: int, host: str) -> None:
    """Start Kafka, PostgreSQL, the streams, a node and the ingress, and keep them running until Ctrl-C.

    State is kept in $SHRK_STATE, else in .shiver in the current directory. SHRK_KAFKA and SHRK_DATABASE_URL name
    servers to use in place of our own.
    """
    began = time.monotonic()
    state = StateFolder()
    state.create()
    with state.lock():
        end_leftovers(state, _say)
        asyncio.run(_run(Stack(state, Options.from_environment(port, host), _say), began))


async def _run(stack: Stack, began: float) -> None:
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()

    def ask() -> None:
        if asked.is_set():
            stack.supervisor.hurry()  # the second Ctrl-C means: now
        asked.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, ask)
    starting = asyncio.create_task(stack.start(), name="start")
    stopping = asyncio.create_task(asked.wait(), name="stop")
    try:
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            await starting  # raises what it failed with
            click.echo(banner(stack, time.monotonic() - began))
            await stopping
        _say("stopping")
    finally:
        for task in (starting, stopping):
            task.cancel()
        await asyncio.gather(starting, stopping, return_exceptions=True)
        await stack.stop()


def banner(stack: Stack, took_s: float) -> str:
    """What an operator needs to know of a stack that is up."""
    assert stack.keys is not None
    curl = (
        f"curl -N {stack.base_url}/v1/chat/completions -H 'Authorization: Bearer {stack.keys.pro}' "
        f"-H 'Content-Type: application/json' -d {shlex.quote(_QUESTION)}"
    )
    rows = {
        "base URL": f"{stack.base_url}/v1",
        "dev key": f"{stack.keys.dev}   (sandbox: free, $5 a day)",
        "pro key": f"{stack.keys.pro}   (pays from wallet demo, which has test credit)",
        "shrk": shrk_path(),
        "state": str(stack.state.root),
        "logs": str(stack.state.logs),
    }
    table = "\n".join(f"  {name:<10}{value}" for name, value in rows.items())
    return f"\nShiver is up ({took_s:.1f} s). Ctrl-C stops it.\n\n{table}\n\n{curl}\n"


def shrk_path() -> str:
    """How to call this command again."""
    called = Path(sys.argv[0]).absolute()
    beside = Path(sys.executable).with_name("shrk")
    for path in (called, beside):
        if path.name == "shrk" and os.access(path, os.X_OK):
            return str(path)
    return shutil.which("shrk") or f"{sys.executable} -m infra.cli"


@click.command()
def down() -> None:
    """Stop the stack that runs on the state folder."""
    state = StateFolder()
    pid = state.require_holder_pid()
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError as error:
        raise NotRunning(f"no stack runs on {state.root}") from error
    except PermissionError as error:
        raise ShrkError(f"the stack on {state.root} (pid {pid}) belongs to another user") from error
    if not state.wait_released(_DOWN_TIMEOUT_S):
        raise ShrkError(f"the stack (pid {pid}) was asked to stop but runs on after {_DOWN_TIMEOUT_S:g} s; try again")
    click.echo(f"stopped (pid {pid})")


@click.command()
def clean() -> None:
    """Remove the state folder: the log, the books, the keys. Refused while a stack runs on it."""
    state = StateFolder()
    if state.remove():
        click.echo(f"removed {state.root}")
    else:
        click.echo(f"nothing to remove: there is no {state.root}")


def _say(line: str) -> None:
    click.echo(f"shrk: {line}", err=True)
