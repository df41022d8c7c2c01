"""`shrk keys`: create, list and revoke API keys."""

import asyncio

import click

from infra import accounts, addresses
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
def create(wallet_id: str, tier: Tier, name: str, open_max: int | None, models: tuple[str, ...]) -> None:
    """Make a key and print it, once."""

    async def run() -> str:
        async with accounts.connected(addresses.find().database_url) as db:
            return await accounts.create_key(db, wallet_id, tier, name, open_max, list(models) or None)

    click.echo(asyncio.run(run()))


@keys.command("list")
@click.option("--wallet", "wallet_id", default=None, help="Only the keys of this wallet.")
def list_(wallet_id: str | None) -> None:
    """List keys, by id."""

    async def run() -> list[accounts.KeyRow]:
        async with accounts.connected(addresses.find().database_url) as db:
            return await accounts.list_keys(db, wallet_id)

    rows = asyncio.run(run())
    click.echo(f"{'ID':<14}{'TIER':<6}{'WALLET':<20}{'OPEN':<12}{'CREATED':<18}{'STATE':<10}NAME")
    for row in rows:
        state = "revoked" if row.revoked_at else "active"
        opened = f"{row.open_requests}/{row.open_max}"
        created = f"{row.created_at:%Y-%m-%d %H:%M}"
        click.echo(f"{row.key_id:<14}{row.tier:<6}{row.wallet_id:<20}{opened:<12}{created:<18}{state:<10}{row.name}")


@keys.command()
@click.argument("key")
def revoke(key: str) -> None:
    """Revoke KEY, given in clear or by its id. Takes effect at once for new requests."""

    async def run() -> str:
        async with accounts.connected(addresses.find().database_url) as db:
            return await accounts.revoke_key(db, key)

    click.echo(f"revoked {asyncio.run(run())}")
