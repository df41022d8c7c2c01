"""`shrk keys`: create, list, limit and revoke API keys."""

import asyncio

import click

from infra import accounts, addresses
from infra.commands.limits import LIMIT
from schemas.keys import TIERS, Tier


@click.group()
def keys() -> None:
    """API keys. Only a hash of each is stored: what `create` prints cannot be shown again."""


@keys.command()
@click.option("--wallet", "wallet_id", required=True, help="The wallet that pays for what the key does.")
@click.option("--tier", type=click.Choice(TIERS), default="pro", show_default=True)
@click.option("--name", default="", help="A note for `shrk keys list`.")
@click.option("--open-max", type=int, default=None, help="Requests open at once; else the tier's own limit.")
@click.option("--model", "models", multiple=True, help="A model that the key may use, by its own name; else all.")
@click.option("--rpm", type=int, default=None, help="Requests a minute; else any number.")
def create(
    wallet_id: str, tier: Tier, name: str, open_max: int | None, models: tuple[str, ...], rpm: int | None
) -> None:
    """Make a key and print it, once."""

    async def run() -> str:
        async with accounts.connected(addresses.find().database_url) as db:
            return await accounts.create_key(db, wallet_id, tier, name, open_max, list(models) or None, rpm)

    click.echo(asyncio.run(run()))


@keys.command("list")
@click.option("--wallet", "wallet_id", default=None, help="Only the keys of this wallet.")
def list_(wallet_id: str | None) -> None:
    """List keys, by id."""

    async def run() -> list[accounts.KeyRow]:
        async with accounts.connected(addresses.find().database_url) as db:
            return await accounts.list_keys(db, wallet_id)

    rows = asyncio.run(run())
    click.echo(f"{'ID':<14}{'TIER':<6}{'WALLET':<20}{'OPEN':<12}{'RPM':<7}{'CREATED':<18}{'STATE':<10}NAME")
    for row in rows:
        state = "revoked" if row.revoked_at else "active"
        opened = f"{row.open_requests}/{row.open_max}"
        created = f"{row.created_at:%Y-%m-%d %H:%M}"
        limits = f"{opened:<12}{'-' if row.rpm is None else row.rpm:<7}"
        click.echo(f"{row.key_id:<14}{row.tier:<6}{row.wallet_id:<20}{limits}{created:<18}{state:<10}{row.name}")


@keys.command()
@click.argument("key")
@click.option("--rpm", type=LIMIT, required=True, help="Requests a minute, its sessions' too; `none` for any number.")
def limit(key: str, rpm: int | str) -> None:
    """Limit KEY, given in clear or by its id. Takes effect at once for new requests."""
    number = None if isinstance(rpm, str) else rpm

    async def run() -> str:
        async with accounts.connected(addresses.find().database_url) as db:
            return await accounts.limit_key(db, key, number)

    key_id = asyncio.run(run())
    click.echo(f"{key_id}: {'no limit' if number is None else number} a minute")


@keys.command()
@click.argument("key")
def revoke(key: str) -> None:
    """Revoke KEY, given in clear or by its id, and its sessions. Takes effect at once for new requests."""

    async def run() -> str:
        async with accounts.connected(addresses.find().database_url) as db:
            return await accounts.revoke_key(db, key)

    click.echo(f"revoked {asyncio.run(run())}")
