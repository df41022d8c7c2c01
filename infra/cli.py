"""The `shrk` command. Each package brings its own commands; they are imported when called, so that help is instant."""

import errno
import importlib
import importlib.util
import os
import sys
from typing import Any

import click

from infra.errors import ShrkError

COMMANDS: dict[str, tuple[str, str]] = {
    "up": ("infra.up:up", "Start the whole stack here and keep it running."),
    "down": ("infra.up:down", "Stop the stack that runs here."),
    "clean": ("infra.up:clean", "Remove the state of the stack that ran here."),
    "status": ("infra.commands.status:status", "What runs here: the stack's processes, and nodes."),
    "doctor": ("infra.commands.doctor:doctor", "What is wrong, and what to do about it."),
    "keys": ("infra.commands.keys:keys", "Create, list, limit and revoke API keys."),
    "wallet": ("infra.commands.wallet:wallet", "Create, show, limit, credit and correct wallets."),
    "models": ("infra.commands.models:models", "List, price, alias and remove models."),
    "providers": ("infra.commands.providers:providers", "Register and list providers, say how far one is trusted."),
    "epochs": ("infra.commands.epochs:epochs", "Close, list and show epochs, fund the sandbox."),
    "ledger": ("ledger.commands:group", "Replay, verify, rebuild, archive and export the books."),
}
"""Name: where its click command is ("module:attribute"), and the line for it in the help."""

ADDED: dict[str, tuple[str, ...]] = {
    "ledger": ("infra.commands.rebuild:rebuild",),
}
"""Commands that stand under another package's group, which may not import what they need."""


class _Lazy(click.Group):
    """Lists commands without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name in COMMANDS if _installed(name)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS or not _installed(cmd_name):
            return None
        command = _load(COMMANDS[cmd_name][0])
        for place in ADDED.get(cmd_name, ()):
            assert isinstance(command, click.Group)
            command.add_command(_load(place))
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in self.list_commands(ctx)])


def _load(place: str) -> click.Command:
    module, _, attribute = place.partition(":")
    command: click.Command = getattr(importlib.import_module(module), attribute)
    return command


def _installed(name: str) -> bool:
    return importlib.util.find_spec(COMMANDS[name][0].partition(":")[0]) is not None


@click.command(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="shiver", prog_name="shrk")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Run and look after a Shiver network."""
    ctx.obj = _environment


#: What writing to stdout comes to: nobody reads, a full disk, a quota, a file that is too large, a broken disk.
_NOT_WRITTEN = (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def _environment() -> dict[str, str]:
    """For commands of packages that do not know of us: the environment as a process of the running stack has it."""
    from infra.addresses import as_environment, find

    return as_environment(find())


def main(args: list[str] | None = None) -> Any:
    """The entry point: an operational failure becomes one line on stderr and an exit code, never a traceback."""
    try:
        sys.exit(cli.main(args, prog_name="shrk", standalone_mode=False))
    except ShrkError as error:
        click.echo(f"shrk: {error}", err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except OSError as error:
        if error.errno not in _NOT_WRITTEN or error.filename is not None:
            raise
        # `shrk status | head`: nobody reads on. Python would complain once more when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.errno != errno.EPIPE:
            click.echo(f"shrk: the output cannot be written: {error.strerror}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
