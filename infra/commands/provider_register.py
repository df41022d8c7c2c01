"""`shrk providers register`: who a provider is, and where its payouts go."""

import asyncio

import click

from infra import accounts, addresses
from schemas.settings import Settings


@click.group()
def providers() -> None:
    """Providers: who runs nodes."""


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
