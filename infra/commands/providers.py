"""`shrk providers`: who runs nodes, where their payouts go, and how far the operator trusts them."""

import asyncio
from typing import Any

import click

from infra import accounts, addresses, catalog
from schemas.ids import hoster_id
from schemas.settings import Settings


@click.group()
def providers() -> None:
    """Providers. Callers name them by their hoster id in allow_hosters and deny_hosters."""


@providers.command("list")
def list_() -> None:
    """List providers."""

    async def run() -> list[Any]:
        async with accounts.connected(addresses.find().database_url) as db:
            return await db.fetch(
                "select p.provider_id, p.name, p.trust, count(n.node_id) as nodes from state.providers p "
                "left join state.nodes n using (provider_id) group by 1, 2, 3 order by p.provider_id"
            )

    rows = asyncio.run(run())
    click.echo(f"{'PROVIDER':<38}{'HOSTER ID':<38}{'TRUST':<7}{'NODES':<7}NAME")
    for row in rows:
        provider_id = row["provider_id"]
        click.echo(
            f"{provider_id:<38}{hoster_id(provider_id):<38}{float(row['trust']):<7g}{row['nodes']:<7}{row['name']}"
        )


@providers.command()
@click.argument("provider_id")
@click.argument("value")
def trust(provider_id: str, value: str) -> None:
    """Trust PROVIDER_ID by VALUE, 0 to 1; above 0.8 it serves requests that ask for trusted_only."""

    async def run() -> None:
        async with accounts.connected(addresses.find().database_url) as db:
            await catalog.set_trust(db, provider_id, value)

    asyncio.run(run())
    click.echo(f"{provider_id} is trusted by {value}")


@providers.command()
@click.argument("provider")
@click.option("--name", required=True, help="For people.")
@click.option("--recipient", required=True, help="Where its payouts go: an address on the chain, 0x...")
def register(provider: str, name: str, recipient: str) -> None:
    """Register PROVIDER, or register it anew with another recipient, by an event in the ledger log.

    The id never changes, and what was paid is kept by it: another recipient is not paid anew.
    """
    from infra import epochs as work
    from infra.append import appending

    settings = Settings.from_environment(addresses.as_environment(addresses.find()))
    append = appending(settings.kafka, settings.ledger_partitions)

    async def run() -> None:
        async with accounts.connected(settings.database_url) as db:
            await work.register_provider(db, append, provider, name, recipient)

    asyncio.run(run())
    click.echo(f"registered provider {provider}; from the next epoch on it is paid to {recipient}")
