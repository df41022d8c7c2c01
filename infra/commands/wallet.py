"""`shrk wallet`: create, show, limit, credit and correct wallets."""

import asyncio
import getpass
import secrets

import click

from infra import accounts, addresses
from infra.commands.limits import LIMIT
from schemas.settings import Settings


@click.group()
def wallet() -> None:
    """Wallets: who pays, and what is in them."""


@wallet.command()
@click.argument("wallet_id")
@click.option(
    "--owner", default=None, help="Whose it is; sandbox limits are per owner. Default: the wallet's own name."
)
@click.option("--asset", type=click.Choice(["SHIVER", "USDC"]), default="SHIVER", show_default=True)
def create(wallet_id: str, owner: str | None, asset: accounts.Asset) -> None:
    """Make the wallet WALLET_ID."""
    settings = _settings()

    async def run() -> bool:
        async with accounts.connected(settings.database_url) as db:
            return await accounts.create_wallet(db, wallet_id, owner or wallet_id, settings.ledger_partitions, asset)

    click.echo(f"made wallet {wallet_id}" if asyncio.run(run()) else f"wallet {wallet_id} exists already")


@wallet.command()
@click.argument("wallet_id")
def show(wallet_id: str) -> None:
    """Show what WALLET_ID has, as far as the projection has read the log."""

    async def run() -> accounts.WalletView:
        async with accounts.connected(addresses.find().database_url) as db:
            return await accounts.show_wallet(db, wallet_id)

    view = asyncio.run(run())
    rows = {
        "wallet": view.wallet_id,
        "owner": view.owner_id,
        "balance": accounts.format_amount(view.balance_nano, view.asset),
        "held": accounts.format_amount(view.held_nano, view.asset),
        "available": accounts.format_amount(view.balance_nano - view.held_nano, view.asset),
        "keys": str(view.keys),
        "tokens": f"{view.tokens_month} this UTC month, {_of(view.tokens_month_max)}",
    }
    click.echo("\n".join(f"{name:<11}{value}" for name, value in rows.items()))


@wallet.command()
@click.argument("wallet_id")
@click.option("--tokens-month", type=LIMIT, required=True, help="Tokens a UTC month; `none` for any number.")
def limit(wallet_id: str, tokens_month: int | str) -> None:
    """Limit WALLET_ID, all its keys together. It is judged by what is booked, and holds from the next request."""
    number = None if isinstance(tokens_month, str) else tokens_month

    async def run() -> accounts.WalletView:
        async with accounts.connected(addresses.find().database_url) as db:
            await accounts.limit_tokens(db, wallet_id, number)
            return await accounts.show_wallet(db, wallet_id)

    view = asyncio.run(run())
    click.echo(f"{wallet_id}: {view.tokens_month} tokens this UTC month, {_of(view.tokens_month_max)}")


@wallet.command()
@click.argument("wallet_id")
@click.argument("amount")
@click.option("--ref", default=None, help="Counts once: repeat the command with it, and nothing is credited twice.")
@click.option("--reason", type=click.Choice(["top_up", "deposit", "grant"]), default="grant", show_default=True)
def credit(wallet_id: str, amount: str, ref: str | None, reason: accounts.Reason) -> None:
    """Credit WALLET_ID with AMOUNT (decimal, of the wallet's asset), by an event in the ledger log."""
    from infra.append import appending

    amount_nano = accounts.parse_amount(amount)
    reference = ref or f"shrk:{secrets.token_hex(8)}"
    settings = _settings()
    append = appending(settings.kafka, settings.ledger_partitions)

    async def run() -> None:
        async with accounts.connected(settings.database_url) as db:
            await accounts.credit(db, append, wallet_id, amount_nano, reference, getpass.getuser(), reason)

    try:
        asyncio.run(run())
    except Exception:
        # So that the operator can repeat exactly this credit, whether or not it got through.
        click.echo(f"shrk: the credit's reference is {reference}", err=True)
        raise
    click.echo(f"credited {amount} to {wallet_id} (reference {reference})")


@wallet.command(context_settings={"ignore_unknown_options": True})  # a negative amount is no option
@click.argument("wallet_id")
@click.argument("amount")
@click.option("--reason", required=True, help="Why, for whoever reads the books.")
@click.option("--ref", default=None, help="Counts once: repeat the command with it, and nothing is booked twice.")
@click.option("--approver", default=None, help="Who else agrees; needed for large amounts.")
def adjust(wallet_id: str, amount: str, reason: str, ref: str | None, approver: str | None) -> None:
    """Correct WALLET_ID by AMOUNT (decimal, of the wallet's asset; below zero it takes), by an event in the ledger log.

    Nothing that was booked is ever edited: this is a new entry, against the account `adjustments`.
    """
    from infra.append import appending

    amount_nano = accounts.parse_signed_amount(amount)
    reference = ref or f"shrk:{secrets.token_hex(8)}"
    settings = _settings()
    append = appending(settings.kafka, settings.ledger_partitions)

    async def run() -> None:
        async with accounts.connected(settings.database_url) as db:
            operator = getpass.getuser()
            await accounts.adjust(db, append, wallet_id, amount_nano, reference, operator, reason, approver)

    try:
        asyncio.run(run())
    except Exception:
        click.echo(f"shrk: the adjustment's reference is {reference}", err=True)
        raise
    click.echo(f"adjusted {wallet_id} by {amount} (reference {reference})")


def _of(limit: int | None) -> str:
    return "no limit" if limit is None else f"of {limit}"


def _settings() -> Settings:
    found = addresses.find()
    return Settings.from_environment(addresses.as_environment(found))
