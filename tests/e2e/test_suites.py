"""Clients and suites that we did not write, against the whole stack."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from infra import catalog
from ingress.openapi import describe
from schemas.ids import hoster_id
from tests.e2e import suites_kit
from tests.e2e.conftest import Running, running
from tests.e2e.suites_kit import SUITES, Target

#: The names that OpenAI's own tests ask for; the operator's catalog makes them ours.
ALIASES = {
    "gpt-6-astra": "shark-mini",
    "gpt-3.5-turbo-instruct": "shark-mini",
    "text-embedding-3-small": "shark-embed-large-v1",
}

#: The client asks for base64 where its caller names no format, and its tests then judge the raw answer by a type that
#: takes numbers alone. So nobody asked for what is dropped.
DROPS = {"text-embedding-3-small": ("encoding_format",)}

#: What is not offered: completions that are stored, and removing a model.
STORED = ("_retrieve", "_update", "_list", "_delete")

#: LangChain's tests that judge what a model says, not how the API says it. A model of two million parameters does not
#: find the 3 in a question, nor write Chinese, nor end a joke before its budget ends; calls, schemas and streams are
#: whole in these too.
NEEDS_A_CLEVER_MODEL = (
    "test_tool_calling[",
    "test_tool_calling_async",
    "test_structured_output",
    "test_json_mode",
    "test_agent_loop[",
    "test_unicode_tool_call_integration",
)


#: What LangChain's suite skips where we say that we take neither sounds nor documents.
NOT_RUN = {"test_audio_inputs", "test_pdf_inputs", "test_pdf_tool_message"}

#: Published names whose model takes images, as the double does.
SCRIPTED = ("shark-llama-3.3-70b-vision", "shark-gemma-9b-vision")


@pytest.fixture(scope="module")
async def target(real: Running) -> AsyncIterator[Target]:
    (provider,) = real.stack.providers.values()
    async with real.db.acquire() as db:
        await catalog.set_trust(db, provider, "0.9")  # so that a caller may ask for trusted providers alone
        for alias, model in ALIASES.items():
            await catalog.set_alias(db, alias, model, DROPS.get(alias, ()))
        await catalog.set_alias(db, "text-embedding-3-large", ALIASES["text-embedding-3-small"])
    await asyncio.sleep(6)  # an ingress reads the catalog anew every five seconds
    models = ("shark-mini", "shark-gemma-9b", "shark-embed-large-v1")
    yield Target(real.base_url, real.pro, *models, hoster_id(provider))
    await catalog.set_trust(real.db, provider, "0.5")


async def test_openai_pythons_own_tests(target: Target) -> None:
    outcomes = await asyncio.to_thread(suites_kit.openai_outcomes, target)
    assert len(outcomes) == 235
    missed = {name for name, outcome in outcomes.items() if outcome != "passed"}
    assert not {name for name in missed if not not_offered(name)}
    assert len(missed) <= 70 + 15


async def test_base64_is_numbers_only_where_the_operator_has_it_dropped(target: Target, real: Running) -> None:
    body = {"input": "a shark", "encoding_format": "base64"}
    plain = await real.post({**body, "model": "text-embedding-3-large"}, path="/v1/embeddings")
    assert "x-shiver-ignored" not in plain.headers
    packed = base64.b64decode(plain.json()["data"][0]["embedding"])
    dropped = await real.post({**body, "model": "text-embedding-3-small"}, path="/v1/embeddings")
    assert dropped.headers["x-shiver-ignored"] == "encoding_format"
    numbers = dropped.json()["data"][0]["embedding"]
    assert numbers == pytest.approx(list(struct.unpack(f"<{len(packed) // 4}f", packed)))
    assert dropped.headers["x-shiver-cost"] == plain.headers["x-shiver-cost"]
    strict = {"authorization": f"Bearer {real.pro}", "x-shiver-strict": "1"}
    refused = await real.http.post("/v1/embeddings", json={**body, "model": "text-embedding-3-small"}, headers=strict)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "encoding_format")


def not_offered(name: str) -> bool:
    if ".test_models." in name:
        return "_delete" in name
    return ".chat.test_completions." in name and any(word in name for word in STORED)


async def test_openais_client_for_node(target: Target) -> None:
    said = await asyncio.to_thread(suites_kit.node, target, "openai_node.mjs")
    assert said.strip().endswith("ok")


async def test_compatcanary(target: Target) -> None:
    options = ["--base-url", target.env["SUITE_URL"], "--model", target.model, "--api-key-env", "SUITE_KEY"]
    script = "node_modules/compatcanary/src/cli.js"
    said = await asyncio.to_thread(suites_kit.node, target, script, "scan", *options, "--format", "json")
    results = json.loads(said)["results"]
    assert [result["status"] for result in results] == ["pass"] * 7


async def _langchain(target: Target, folder: Path, env: dict[str, str] | None = None) -> dict[str, set[str]]:
    """Names of the tests by outcome."""
    loops = "asyncio_default_fixture_loop_scope = session\nasyncio_default_test_loop_scope = session\n"
    (folder / "pytest.ini").write_text("[pytest]\nasyncio_mode = auto\n" + loops)
    shutil.copy(SUITES / "langchain_suite.py", folder)  # away from our own conftest
    found: dict[str, set[str]] = {"passed": set(), "failed": set(), "skipped": set()}
    outcomes = await asyncio.to_thread(
        suites_kit.pytest, target, folder, "langchain_suite.py", "--record-mode=once", env=env
    )
    for name, outcome in outcomes.items():
        found[outcome].add(name.rpartition("::")[2])
    return found


async def test_langchains_standard_tests(target: Target, tmp_path: Path) -> None:
    found = await _langchain(target, tmp_path)
    assert not {name for name in found["failed"] if not name.startswith(NEEDS_A_CLEVER_MODEL)}
    assert len(found["failed"]) <= 14
    assert len(found["passed"]) >= 29


async def test_langchains_standard_tests_with_a_model_that_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHRK_DOUBLE_SCRIPT", str(SUITES / "langchain_script.json"))
    monkeypatch.setenv("SHRK_DOUBLE_INTERVAL_MS", "1")
    async with running("double", models=SCRIPTED) as up:
        target = Target(up.base_url, up.pro, *SCRIPTED, "")
        found = await _langchain(target, tmp_path, {"SUITE_SEES": "1"})
        await up.quiet()
    assert not found["failed"]
    assert found["skipped"] == NOT_RUN
    assert len(found["passed"]) == 47


async def test_schemathesis_with_all_checks(target: Target, real: Running, tmp_path: Path) -> None:
    """All that is described, a short search. A long one: SHRK_SCHEMATHESIS="--max-examples 200 --seed 1"."""
    for name in ("hooks.py", "schemathesis.toml"):
        shutil.copy(SUITES / name, tmp_path)  # it keeps what it found beside them
    schemathesis = str(suites_kit.python().with_name("schemathesis"))
    keys = [f"Authorization: Bearer {target.key}", f"X-API-Key: {target.key}"]
    headers = [part for key in keys for part in ("-H", key)]
    search = os.environ.get("SHRK_SCHEMATHESIS", "--max-examples 5 --seed 7").split()
    options = ["--checks", "all", "--phases", "examples,coverage,fuzzing,stateful", *search]
    argv = [schemathesis, "run", f"{target.base_url}/openapi.json", *headers, *options]
    env = {**target.env, "SCHEMATHESIS_HOOKS": "hooks", "SUITE_HOSTER": target.hoster}
    said = await asyncio.to_thread(suites_kit.call, argv, env, tmp_path, 3600)
    operations = sum(map(len, describe()["paths"].values())) - 1  # it passes over the one it read all this from
    assert f"Selected: {operations}/{operations}" in said
    assert f"Tested: {operations}" in said
    await real.quiet()
