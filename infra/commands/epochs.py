"""`shrk epochs`: close one now, list and show them, fund the sandbox."""

import asyncio
import getpass
import os
from datetime import UTC, datetime
from typing import Any

import click

from infra import accounts, addresses
from ledger.money import format_amount
from schemas.settings import Settings


@click.group()
def epochs() -> None:
    """Epochs: what providers may be paid, at cuts of the log."""


@epochs.command()
def close() -> None:
    """Close the epoch that is next, now. Refused where nothing has happened since the last one."""
    from infra import epochs as work

    closed = asyncio.run(work.close(_settings(), os.environ))
    number, place = closed.event.epoch, f"{closed.place.partition}/{closed.place.offset}"
    who = "closed" if closed.ours else "another closer was first and has closed"
    click.echo(f"{who} epoch {number} at {place} of the log; payout root {closed.event.payout_root}")


@epochs.command("list")
@click.option("--most", type=click.IntRange(1, 10_000), default=20, show_default=True, help="How many, newest first.")
def list_(most: int) -> None:
    """List the newest epochs."""
    from infra import epochs as work
    from ledger.console import table

    async def run() -> list[Any]:
        async with accounts.connected(addresses.find().database_url) as db:
            return await work.list_epochs(db, most)

    rows = asyncio.run(run())
    if not rows:
        click.echo("no epoch is closed yet")
        return
    lines = [
        (
            str(row["number"]),
            _time(row["at_ms"]),
            f"{sum(row['cut']):,}",
            row["payout_root"],
            "MISMATCH" if row["mismatch"] else "ok",
        )
        for row in rows
    ]
    table(("epoch", "closed (UTC)", "records", "payout root", "state"), lines, right=(0, 2))


@epochs.command()
@click.argument("number", type=click.IntRange(1))
def show(number: int) -> None:
    """Show epoch NUMBER: cut, digest, roots, what each provider may be paid in all, and what waits and why."""
    from infra import epochs as work
    from ledger.console import table

    async def run() -> dict[str, Any]:
        async with accounts.connected(addresses.find().database_url) as db:
            return await work.show_epoch(db, number)

    found = asyncio.run(run())
    _head(found["epoch"], found["before"])
    rows = found["entitlements"]
    if not rows:
        click.echo("no provider has earned anything yet")
    else:
        columns = ("provider", "asset", "earned", "of it sandbox", "payable of that", "entitled", "debt", "paid to")
        table(columns, [_line(row) for row in rows], right=(2, 3, 4, 5, 6))
    _sandbox(found)


@epochs.command("fund-sandbox")
@click.option("--asset", type=click.Choice(["SHIVER", "USDC"]), required=True)
@click.option("--amount", required=True, help="Decimal, of the asset: so much more than before.")
@click.option("--reason", required=True, help="Why, for whoever reads the books.")
@click.option("--ref", required=True, help="Counts once: repeat the command with it, and nothing is added twice.")
@click.option("--operator", default=None, help="Who answers for it. Default: you.")
@click.option("--approver", default=None, help="Who else agrees; needed for large amounts.")
def fund_sandbox(
    asset: accounts.Asset, amount: str, reason: str, ref: str, operator: str | None, approver: str | None
) -> None:
    """Let providers be paid for what free keys used, up to AMOUNT more, by an event in the ledger log."""
    from infra import epochs as work
    from infra.append import appending

    amount_nano = accounts.parse_amount(amount)
    settings = _settings()
    append = appending(settings.kafka, settings.ledger_partitions)

    async def run() -> None:
        async with accounts.connected(settings.database_url) as db:
            await work.fund_sandbox(
                db, append, asset, amount_nano, ref, reason, operator or getpass.getuser(), approver
            )

    asyncio.run(run())
    click.echo(f"the sandbox may pay {amount} {asset} more from the next epoch on (reference {ref})")


def _head(row: Any, before: Any) -> None:
    since = 0 if before is None else sum(before["cut"])
    cut = ",".join(f"{partition}:{following}" for partition, following in enumerate(row["cut"]))
    lines = {
        "epoch": f"{row['number']}, closed {_time(row['at_ms'])} UTC, at {row['partition']}/{row['offset']} of the log",
        "records": f"{sum(row['cut']):,}, {sum(row['cut']) - since:,} of them since the epoch before",
        "cut": cut,
        "digest": row["digest"],
        "log root": row["log_root"] or "none",
        "payout root": row["payout_root"],
        "terms": _terms(row["terms"]),
    }
    click.echo("\n".join(f"{name:<13}{value}" for name, value in lines.items()))
    for partition, root in enumerate(row["roots"]):
        click.echo(f"{f'root of {partition}':<13}{root}")
    if row["mismatch"]:
        click.echo(f"MISMATCH: the event is not what the log makes, pay nothing by it: {row['mismatch']}", err=True)


def _line(row: Any) -> tuple[str, ...]:
    nano = ("earned_nano", "sandbox_earned_nano", "sandbox_payable_nano", "entitled_nano", "debt_nano")
    to = f"waits: {row['waits']}" if row["waits"] else f"{row['recipient']}, {row['amount']} units"
    return (row["provider"], row["asset"], *(format_amount(int(row[name])) for name in nano), to)


def _sandbox(found: dict[str, Any]) -> None:
    funded = {row["asset"]: int(row["nano"]) for row in found["funded"]}
    for asset in ("SHIVER", "USDC"):
        rows = [row for row in found["entitlements"] if row["asset"] == asset]
        given = sum(int(row["sandbox_payable_nano"]) for row in rows)
        waits = sum(max(0, int(row["sandbox_earned_nano"]) - int(row["sandbox_payable_nano"])) for row in rows)
        if funded.get(asset) or waits:
            parts = (funded.get(asset, 0), given, waits)
            budget, spent, left = (f"{format_amount(nano)} {asset}" for nano in parts)
            click.echo(f"sandbox: {budget} funded, {spent} given to providers, {left} waits for a budget")
    for row in found["ignored"]:
        amount = f"{format_amount(row['amount_nano'])} {row['asset']}"
        click.echo(
            f"sandbox.funded at {row['partition']}/{row['offset']} does not count ({row['verdict']}): {amount}, "
            f"reference {row['external_ref']}, by {row['operator']}"
        )


def _terms(text: str | None) -> str:
    from schemas.facts import Terms

    if text is None:
        return "none"
    terms = Terms.model_validate_json(text)
    tokens = ", ".join(f"{token.asset} {token.token} ({token.decimals} decimals)" for token in terms.tokens)
    return f"chain {terms.chain_id}, contract {terms.contract}, {tokens}"


def _time(at_ms: int) -> str:
    return f"{datetime.fromtimestamp(at_ms / 1000, UTC):%Y-%m-%d %H:%M:%S}"


def _settings() -> Settings:
    return Settings.from_environment(addresses.as_environment(addresses.find()))
