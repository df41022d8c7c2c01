"""Two nodes of two providers: callers choose between them, and one that does not answer is replaced unseen."""

from __future__ import annotations

from typing import Any

from tests.e2e.conftest import Running

HELLO: dict[str, Any] = {"model": "shark-mini", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}


async def _served(up: Running, response: Any) -> tuple[str, str]:
    """The node and the model of what was booked."""
    assert response.status_code == 200, response.text
    request_id = response.headers["x-shiver-request-id"]

    async def entries() -> list[Any]:
        return await up.db.fetch(
            "select account from derived.entries where request_id = $1 and account like 'provider:%'", request_id
        )

    (row,) = await up.until(entries, what="entries")
    model = await up.db.fetchval("select model from derived.requests where request_id = $1", request_id)
    provider = row["account"].removeprefix("provider:")
    node = next(node for node, known in up.stack.providers.items() if known == provider)
    return node, model


async def test_a_caller_chooses_its_hosters(paired: Running) -> None:
    for node, provider in paired.stack.providers.items():
        other = next(name for name in paired.stack.providers if name != node)
        for _ in range(3):
            assert (await _served(paired, await paired.post({**HELLO, "allow_hosters": [provider]})))[0] == node
        assert (await _served(paired, await paired.post({**HELLO, "deny_hosters": [provider]})))[0] == other
    nobody = await paired.post({**HELLO, "deny_hosters": list(paired.stack.providers.values())})
    assert "deny_hosters excluded 2" in nobody.json()["error"]["message"]


async def test_a_node_that_stands_still_is_replaced_before_the_first_token(paired: Running) -> None:
    for stream in (False, True):
        for node in paired.stack.providers:
            other = next(name for name in paired.stack.providers if name != node)
            with paired.frozen(node):
                response = await paired.post({**HELLO, "stream": stream, "fallback_models": ["shark-gemma-9b"]})
            assert await _served(paired, response) == (other, "shark-mini")
            assert "[DONE]" in response.text or not stream
    await paired.quiet()


async def test_where_all_stand_still_it_is_all_providers_failed_and_costs_nothing(paired: Running) -> None:
    first, second = paired.stack.providers
    with paired.frozen(first), paired.frozen(second):
        response = await paired.post(HELLO)
    assert (response.status_code, response.json()["error"]["code"]) == (500, "all_providers_failed")
    assert int(response.headers["retry-after"]) >= 1
    await paired.quiet()
    status = await paired.db.fetchrow(
        "select status, how from derived.requests where request_id = $1", response.headers["x-shiver-request-id"]
    )
    assert tuple(status) == ("failed", "node_died")
