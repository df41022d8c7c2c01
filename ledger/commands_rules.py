"""`shrk ledger rules`: who pays for a request, by how it ended. Registered by ledger/commands.py."""

from __future__ import annotations

import click

from ledger.rules import RULES_VERSION, TABLES, Row, billing_table


@click.command()
@click.option("--version", "rules_version", type=int, default=None, help="Only this rules_version.")
@click.pass_context
def rules(ctx: click.Context, rules_version: int | None) -> None:
    """Print who pays for a request, by how it ended: the table of each rules_version.

    A request keeps the version that it was accepted under. Needs neither Kafka nor a database.
    """
    if rules_version is not None and rules_version not in TABLES:
        known = ", ".join(map(str, sorted(TABLES)))
        raise click.BadParameter(f"no rules_version {rules_version}; known: {known}", ctx, param_hint="--version")
    for version in sorted(TABLES) if rules_version is None else [rules_version]:
        click.echo(f"rules_version {version}{', that of new requests' if version == RULES_VERSION else ''}")
        _print(billing_table(version))
    click.echo("A request that delivered no token costs nobody anything, however it ended.")


def _print(rows: list[Row]) -> None:
    lines = [Row("how", "tokens delivered are paid by", "it means"), *rows]
    how_width = max(len(row.how) for row in lines)
    paid_by_width = max(len(row.paid_by) for row in lines)
    for row in lines:
        click.echo(f"  {row.how:<{how_width}}  {row.paid_by:<{paid_by_width}}  {row.ending}")
