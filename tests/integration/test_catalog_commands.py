"""`shrk models`, `shrk providers`, a key's models and limits as an operator calls them, on a real database."""

from __future__ import annotations

import os

import pytest
from click.testing import CliRunner

from infra.commands.keys import keys
from infra.commands.models import models
from infra.commands.providers import providers
from infra.commands.wallet import wallet
from infra.errors import AccountRefused
from schemas.ids import hoster_id


class Shrk:
    def __init__(self, database_url: str) -> None:
        self._runner = CliRunner(env={"SHRK_KAFKA": "127.0.0.1:1", "SHRK_DATABASE_URL": database_url})

    def __call__(self, *words: str) -> str:
        group = {"models": models, "providers": providers, "keys": keys, "wallet": wallet}[words[0]]
        result = self._runner.invoke(group, list(words[1:]))
        if result.exception is not None:
            raise result.exception
        return result.output


@pytest.fixture
def shrk(database_url: str) -> Shrk:
    return Shrk(database_url)


@pytest.fixture
def name() -> str:
    return f"m-{os.urandom(4).hex()}"


def test_a_model_is_set_listed_and_removed(shrk: Shrk, name: str) -> None:
    said = shrk("models", "set", name, "--shiver", "300.001", "600", "--context", "8192", "--images")
    # The USDC price is rounded up to the next step: 300.001 SHIVER are 0.0300001 USDC.
    assert said == f"{name}: SHIVER 300.001/600, USDC 0.031/0.06 per million tokens\n"
    assert shrk("models", "alias", f"other/{name}", name) == f"other/{name} is {name}\n"
    line = next(line for line in shrk("models", "list").splitlines() if line.startswith(name))
    assert line.split() == [name, "vision", "8192", "300.001/600", "0.031/0.06", f"other/{name}"]
    shrk("models", "set", name, "--shiver", "1", "0", "--usdc", "0.5", "0", "--embedding")
    line = next(line for line in shrk("models", "list").splitlines() if line.startswith(name))
    assert line.split() == [name, "embedding", "-", "1/0", "0.5/0", f"other/{name}"]
    shrk("models", "unalias", f"other/{name}")
    shrk("models", "remove", name)
    assert name not in shrk("models", "list")
    with pytest.raises(AccountRefused, match=f"no model {name}"):
        shrk("models", "remove", name)


def test_limits_are_set_shown_and_taken_away(shrk: Shrk) -> None:
    wallet_id = f"w-{os.urandom(4).hex()}"
    shrk("wallet", "create", wallet_id)
    key = shrk("keys", "create", "--wallet", wallet_id, "--rpm", "5").strip()

    def rpm() -> str:
        return shrk("keys", "list", "--wallet", wallet_id).splitlines()[1].split()[4]

    assert rpm() == "5"
    key_id = key[9:21]
    assert shrk("keys", "limit", key, "--rpm", "20") == f"{key_id}: 20 a minute\n"
    assert rpm() == "20"
    assert shrk("keys", "limit", key_id, "--rpm", "none") == f"{key_id}: no limit a minute\n"
    assert rpm() == "-"
    with pytest.raises(AccountRefused, match="--rpm must be 1 to 60000, or none"):
        shrk("keys", "limit", key_id, "--rpm", "0")
    for wrong in ("x", "-5", "1.5", ""):  # said by click, with how the command is called
        with pytest.raises(SystemExit):
            shrk("keys", "limit", key_id, "--rpm", wrong)
    said = shrk("wallet", "limit", wallet_id, "--tokens-month", "500000")
    assert said == f"{wallet_id}: 0 tokens this UTC month, of 500000\n"
    assert "tokens     0 this UTC month, of 500000" in shrk("wallet", "show", wallet_id)
    shrk("wallet", "limit", wallet_id, "--tokens-month", "none")
    assert "tokens     0 this UTC month, no limit" in shrk("wallet", "show", wallet_id)
    with pytest.raises(AccountRefused, match="no wallet nobody"):
        shrk("wallet", "limit", "nobody", "--tokens-month", "1")


@pytest.mark.parametrize(
    ("price", "why"),
    [("1.0001", "steps of 0.001"), ("x", "is no price"), ("nan", "a price is"), ("1e10", "a price is")],
)
def test_a_price_has_a_form(shrk: Shrk, name: str, price: str, why: str) -> None:
    with pytest.raises(AccountRefused, match=why):
        shrk("models", "set", name, "--shiver", price, "1")
    assert name not in shrk("models", "list")


def test_auto_is_no_model_s_name(shrk: Shrk) -> None:
    with pytest.raises(AccountRefused, match="is not auto"):
        shrk("models", "set", "auto", "--shiver", "1", "1")


def test_a_key_of_some_models(shrk: Shrk, name: str) -> None:
    shrk("wallet", "create", name)
    shrk("models", "set", name, "--shiver", "1", "1")
    assert shrk("keys", "create", "--wallet", name, "--model", name).startswith("shvr_pro_")
    with pytest.raises(AccountRefused, match="no model nothing"):
        shrk("keys", "create", "--wallet", name, "--model", name, "--model", "nothing")


async def test_a_provider_is_listed_with_its_hoster_id_and_trusted(database_url: str, name: str) -> None:
    import asyncio

    from infra import accounts, catalog

    shrk = Shrk(database_url)
    async with accounts.connected(database_url) as db:
        await catalog.register_nodes(db, {name: name})
    said = await asyncio.to_thread(shrk, "providers", "trust", name, "0.9")
    assert said == f"{name} is trusted by 0.9\n"
    listed = await asyncio.to_thread(shrk, "providers", "list")
    line = next(line for line in listed.splitlines() if line.startswith(name))
    assert line.split() == [name, hoster_id(name), "0.9", "1", name]
    with pytest.raises(AccountRefused, match="trust is 0 to 1"):
        await asyncio.to_thread(shrk, "providers", "trust", name, "2")
