"""`shrk status`: what runs on this machine, the stack of the state folder and nodes of any."""

import sys
import time
from typing import Any

import click

from infra.errors import Unreachable
from infra.http import not_ready
from infra.state import StateFolder


@click.command()
def status() -> None:
    """Show the processes of the stack that runs here, and nodes that run without one. Exit code 3: nothing runs."""
    state = StateFolder()
    stack = state.read_stack() if state.holder_pid() is not None else {}
    known = {child["pid"] for child in stack.get("children", [])}
    nodes = _lone_nodes(known)
    if stack:
        _show_stack(state, stack)
    else:
        click.echo(f"no stack runs on {state.root}")
    for pid, node_id, started_at in nodes:
        click.echo(f"node {node_id} runs without a stack of this folder: pid {pid}, up {_age(started_at)}")
    if not stack and not nodes:
        sys.exit(3)


def _show_stack(state: StateFolder, stack: dict[str, Any]) -> None:
    click.echo(f"stack on {state.root}: pid {stack['pid']}, up {_age(stack['started_at'])}, {stack['base_url']}/v1")
    for name in ("kafka", "database_url"):
        click.echo(f"  {name:<14}{stack[name]}")
    click.echo(f"\n  {'PROCESS':<12}{'STATE':<12}{'PID':<10}{'UP':<12}RESTARTS")
    for child in stack["children"]:
        up = _age(child["started_at"]) if child["pid"] else "-"
        click.echo(f"  {child['name']:<12}{child['state']:<12}{child['pid'] or '-'!s:<10}{up:<12}{child['restarts']}")
    click.echo()
    try:
        missing = not_ready(stack["base_url"])
    except Unreachable as error:
        missing = [str(error)]
    click.echo(f"  not ready: {'; '.join(missing)}" if missing else "  ready")


def _lone_nodes(known: set[int]) -> list[tuple[int, str, float]]:
    """Processes of `python -m workers` that the stack did not start: pid, node id, Unix time of birth."""
    import psutil

    found = []
    for process in psutil.process_iter(["pid", "cmdline", "create_time"]):
        command = process.info["cmdline"] or []
        if process.info["pid"] in known or "workers" not in command or command[command.index("workers") - 1] != "-m":
            continue
        try:
            node_id = process.environ().get("SHRK_NODE_ID", "?")
        except (psutil.AccessDenied, psutil.NoSuchProcess):
            node_id = "?"  # another user's
        found.append((process.info["pid"], node_id, process.info["create_time"]))
    return found


def _age(since_s: float) -> str:
    seconds = max(0, int(time.time() - since_s))
    days, rest = divmod(seconds, 86_400)
    hours, rest = divmod(rest, 3600)
    minutes, seconds = divmod(rest, 60)
    if days:
        return f"{days}d {hours}h"
    return f"{hours}h {minutes}m" if hours else f"{minutes}m {seconds}s" if minutes else f"{seconds}s"
