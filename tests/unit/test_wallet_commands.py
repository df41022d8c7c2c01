"""`shrk wallet adjust`: what it hands on, and what it says."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from click.testing import CliRunner, Result

from infra import accounts
from infra.commands.wallet import wallet
from infra.errors import AccountRefused

ENV = {"SHRK_KAFKA": "127.0.0.1:1", "SHRK_DATABASE_URL": "postgresql://u@127.0.0.1:1/x"}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Arguments of `accounts.adjust`, behind the connection and the log."""
    made: list[tuple[Any, ...]] = []

    @asynccontextmanager
    async def connected(_: str) -> AsyncIterator[None]:
        yield

    async def adjust(_: Any, __: Any, *arguments: Any) -> None:
        made.append(arguments)
        if arguments[0] == "nobody":
            raise AccountRefused("no wallet nobody")

    monkeypatch.setattr(accounts, "connected", connected)
    monkeypatch.setattr(accounts, "adjust", adjust)
    monkeypatch.setattr("getpass.getuser", lambda: "me")
    return made


def shrk_wallet(*arguments: str) -> Result:
    return CliRunner(env=ENV).invoke(wallet, list(arguments))


def test_a_negative_amount_is_an_amount_and_no_option(calls: list[tuple[Any, ...]]) -> None:
    result = shrk_wallet("adjust", "acme", "-1.5", "--reason", "booked twice", "--ref", "case-9", "--approver", "you")
    assert result.exit_code == 0, result.output
    assert calls == [("acme", -1_500_000_000, "case-9", "me", "booked twice", "you")]
    assert result.output == "adjusted acme by -1.5 (reference case-9)\n"


def test_a_reference_is_made_and_told_even_where_it_fails(calls: list[tuple[Any, ...]]) -> None:
    result = shrk_wallet("adjust", "nobody", "2", "--reason", "why")
    assert isinstance(result.exception, AccountRefused)
    assert calls[0][1:] == (2_000_000_000, calls[0][2], "me", "why", None)
    assert f"the adjustment's reference is {calls[0][2]}" in result.output


@pytest.mark.parametrize("arguments", [("acme", "1"), ("acme", "1", "--reason", "x", "--aprover", "you")])
def test_a_reason_is_needed_and_a_misspelt_option_is_refused(
    calls: list[tuple[Any, ...]], arguments: tuple[str, ...]
) -> None:
    assert shrk_wallet("adjust", *arguments).exit_code == 2
    assert calls == []
