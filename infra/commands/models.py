"""`shrk models`: what is on offer, at which price, under which other names."""

import asyncio
from typing import Any

import click

from infra import accounts, addresses, catalog
from ledger.money import format_amount

_TOKENS = 10**6


@click.group()
def models() -> None:
    """Models and aliases. Ingresses take a change within five seconds; open requests keep their prices."""


@models.command("list")
def list_() -> None:
    """List models, prices per million tokens in and out, and aliases."""

    async def run() -> tuple[list[Any], dict[str, list[str]]]:
        async with accounts.connected(addresses.find().database_url) as db:
            rows = await db.fetch("select * from state.models order by model")
            aliases: dict[str, list[str]] = {}
            for row in await db.fetch("select * from state.model_aliases order by alias"):
                aliases.setdefault(row["model"], []).append(_alias(row["alias"], row["drops"]))
            return rows, aliases

    rows, aliases = asyncio.run(run())
    click.echo(f"{'MODEL':<30}{'KIND':<11}{'CONTEXT':<9}{'SHIVER IN/OUT':<16}{'USDC IN/OUT':<16}ALIASES")
    for row in rows:
        kind = "vision" if row["takes_images"] else row["kind"]
        shiver = f"{_price(row['in_nano'])}/{_price(row['out_nano'])}"
        usdc = f"{_price(row['in_nano_usdc'])}/{_price(row['out_nano_usdc'])}"
        context = row["context_tokens"] or "-"
        names = ", ".join(aliases.get(row["model"], []))
        click.echo(f"{row['model']:<30}{kind:<11}{context!s:<9}{shiver:<16}{usdc:<16}{names}".rstrip())


@models.command("set")
@click.argument("name")
@click.option("--shiver", nargs=2, required=True, metavar="IN OUT", help="Per million tokens, in steps of 0.001.")
@click.option("--usdc", nargs=2, metavar="IN OUT", help="Else the SHIVER price at $0.0001.")
@click.option("--context", type=click.IntRange(1, 10**8), help="Tokens, as published.")
@click.option("--embedding", is_flag=True, help="It makes vectors, and no text.")
@click.option("--images", is_flag=True, help="It takes images.")
def set_(
    name: str,
    shiver: tuple[str, str],
    usdc: tuple[str, str] | None,
    context: int | None,
    embedding: bool,
    images: bool,
) -> None:
    """Put the model NAME into the catalog, or change all of it."""
    cost = catalog.price(*shiver, *(usdc or (None, None)))

    async def run() -> None:
        async with accounts.connected(addresses.find().database_url) as db:
            await catalog.set_model(db, name, cost, "embedding" if embedding else "chat", images, context)

    asyncio.run(run())
    click.echo(
        f"{name}: SHIVER {_price(cost.in_nano)}/{_price(cost.out_nano)}, "
        f"USDC {_price(cost.in_nano_usdc)}/{_price(cost.out_nano_usdc)} per million tokens"
    )


@models.command()
@click.argument("name")
def remove(name: str) -> None:
    """Take the model NAME and its aliases out of the catalog."""

    async def run() -> None:
        async with accounts.connected(addresses.find().database_url) as db:
            await catalog.remove_model(db, name)

    asyncio.run(run())
    click.echo(f"removed {name}")


@models.command()
@click.argument("alias")
@click.argument("model")
@click.option("--drop", default="", metavar="NAME,NAME", help="Parameters to take out of its requests; else none.")
def alias(alias: str, model: str, drop: str) -> None:
    """Let ALIAS be another name of MODEL."""
    drops = [name for name in (part.strip() for part in drop.split(",")) if name]

    async def run() -> None:
        async with accounts.connected(addresses.find().database_url) as db:
            await catalog.set_alias(db, alias, model, drops)

    asyncio.run(run())
    click.echo(f"{_alias(alias, sorted(set(drops)))} is {model}")


@models.command()
@click.argument("alias")
def unalias(alias: str) -> None:
    """Take the name ALIAS away."""

    async def run() -> None:
        async with accounts.connected(addresses.find().database_url) as db:
            await catalog.remove_alias(db, alias)

    asyncio.run(run())
    click.echo(f"removed {alias}")


def _alias(name: str, drops: list[str]) -> str:
    return f"{name} (drops {' '.join(drops)})" if drops else name


def _price(nano_per_token: int) -> str:
    return format_amount(nano_per_token * _TOKENS)
