"""What the description of the API says of fields together: the server takes and refuses the same bodies."""

from __future__ import annotations

from typing import Any

import pytest

from ingress.openapi import describe
from tests.unit.openapi_kit import (
    CALL,
    CHAT,
    COMPLETION,
    HI,
    HOSTER,
    OLD_CALL,
    PIXEL,
    PLAIN,
    RESPONSE,
    TOOL,
    body_schema,
    taken,
)
from tests.unit.v1_kit import ScriptedCore


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return describe(ScriptedCore().offers)


def messages(*more: Any) -> dict[str, Any]:
    return {"messages": [*HI["messages"], *more]}


def parts(kind: str, count: int) -> list[Any]:
    url: Any = {"url": PIXEL} if kind == "image_url" else PIXEL
    return [{"type": kind, "image_url": url}] * count


def answered(output: Any) -> dict[str, Any]:
    """A response's input with a call and its output."""
    call = {"type": "function_call", "call_id": "c", **OLD_CALL}
    return {"input": [call, {"type": "function_call_output", "call_id": "c", "output": output}]}


#: What a schema can say of fields together, and of the values of one: each beside its opposite.
BOTH_AGREE: list[tuple[str, dict[str, Any], bool]] = [
    (CHAT, {"top_logprobs": 2}, False),
    (CHAT, {"top_logprobs": 2, "logprobs": False}, False),
    (CHAT, {"top_logprobs": 2, "logprobs": True}, True),
    (CHAT, {"top_logprobs": 0}, True),
    (CHAT, {"top_logprobs": None}, True),
    (CHAT, {"tool_choice": "required"}, False),
    (CHAT, {"tool_choice": "required", "tools": []}, False),
    (CHAT, {"tool_choice": "required", "tools": [TOOL]}, True),
    (CHAT, {"tool_choice": "required", "functions": [{"name": "f"}]}, True),
    (CHAT, {"tool_choice": TOOL}, False),
    (CHAT, {"tool_choice": TOOL, "tools": [TOOL]}, True),
    (CHAT, {"tool_choice": "none"}, True),
    (CHAT, {"tools": [TOOL, TOOL]}, False),
    (CHAT, {"functions": [{"name": "f"}, {"name": "f"}]}, False),
    (CHAT, {"logit_bias": {"5": 1, "x": 0, "12345678901": 0.0}}, True),
    (CHAT, {"logit_bias": {"x": 1}}, False),
    (CHAT, {"logit_bias": {"1234567890": 1}}, False),
    (CHAT, {"logit_bias": {"123456789": 101}}, False),
    (CHAT, {"logit_bias": {"123456789": 100}}, True),
    (CHAT, {"allow_hosters": [HOSTER, HOSTER.upper(), HOSTER.replace("-", "")]}, True),
    (CHAT, {"allow_hosters": ["p1"]}, False),
    (CHAT, {"deny_hosters": [HOSTER + "0"]}, False),
    (CHAT, {"deny_hosters": ["{" + HOSTER + "}"]}, False),
    (CHAT, messages({"role": "assistant"}), False),
    (CHAT, messages({"role": "assistant", "content": None, "refusal": None, "tool_calls": []}), False),
    (CHAT, messages({"role": "assistant", "refusal": "no"}), True),
    (CHAT, messages({"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}), True),
    (CHAT, messages({"role": "assistant", "tool_calls": [CALL]}), True),
    (CHAT, messages({"role": "assistant", "function_call": OLD_CALL}), True),
    (CHAT, messages({"role": "tool", "tool_call_id": "c", "content": "x"}), False),
    (CHAT, messages({"role": "function", "name": "f", "content": "x"}), False),
    (
        CHAT,
        messages({"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "tool_call_id": "c", "content": "x"}),
        True,
    ),
    (
        CHAT,
        messages({"role": "assistant", "tool_calls": [CALL]}, {"role": "function", "name": "f", "content": "x"}),
        False,
    ),
    (
        CHAT,
        messages({"role": "assistant", "function_call": OLD_CALL}, {"role": "function", "name": "f", "content": "x"}),
        True,
    ),
    (CHAT, messages({"role": "user", "content": parts("image_url", 16)}), True),
    (CHAT, messages({"role": "user", "content": parts("image_url", 17)}), False),
    (CHAT, messages({"role": "user", "content": []}), False),
    (COMPLETION, {"best_of": 2}, False),
    (COMPLETION, {"best_of": 2, "n": 1}, False),
    (COMPLETION, {"best_of": 2, "n": 2}, True),
    (COMPLETION, {"best_of": 8, "n": 7}, False),
    (COMPLETION, {"best_of": 9, "n": 8}, False),
    (COMPLETION, {"best_of": 1}, True),
    (COMPLETION, {"best_of": None}, True),
    (COMPLETION, {"echo": True, "logprobs": 0, "max_tokens": 0}, False),
    (COMPLETION, {"echo": True, "max_tokens": 0}, True),
    (COMPLETION, {"echo": True, "logprobs": 0, "prompt": ["a", [1]]}, False),
    (COMPLETION, {"echo": True, "logprobs": 0, "prompt": ["a", "b"]}, True),
    (COMPLETION, {"prompt": [1.0, 2]}, True),
    (COMPLETION, {"prompt": [[1], "a"]}, True),
    (COMPLETION, {"prompt": [[]]}, False),
    (RESPONSE, {"background": True}, False),
    (RESPONSE, {"background": False}, True),
    (RESPONSE, {"input": [{"type": "reasoning"}]}, False),
    (RESPONSE, {"input": [{"type": "reasoning"}], "instructions": ""}, False),
    (RESPONSE, {"input": [{"type": "reasoning"}], "instructions": "x"}, True),
    (RESPONSE, {"input": [{"role": "user", "content": []}]}, False),
    (RESPONSE, {"input": [{"role": "user", "content": parts("input_image", 1)}]}, True),
    (RESPONSE, {"input": [{"role": "user", "content": parts("input_image", 17)}]}, False),
    (RESPONSE, {"input": [{"role": "system", "content": parts("input_image", 1)}]}, False),
    (RESPONSE, {"input": [{"role": "system", "content": [{"type": "refusal", "refusal": "x"}]}]}, True),
    (RESPONSE, {"input": [{"type": "function_call_output", "call_id": "c", "output": ""}]}, False),
    (RESPONSE, answered([]), True),
    (RESPONSE, answered(parts("input_image", 16)), True),
    (RESPONSE, answered(parts("input_image", 17)), False),
    (RESPONSE, answered([{"type": "refusal", "refusal": "x"}]), False),
    (RESPONSE, {"tool_choice": "required"}, False),
    (RESPONSE, {"tool_choice": {"type": "function", "name": "f"}, "tools": [{"type": "function", "name": "f"}]}, True),
    ("/v1/inference", {"max_tokens": 5.0}, True),
    ("/v1/inference", {"max_tokens": 0}, False),
    ("/v1/inference", {"tools": None}, False),
    ("/v1/inference", {"context": {}}, False),
    ("/v3/chat/completions", {"stream": None}, True),
]


@pytest.mark.parametrize(("path", "changes", "good"), BOTH_AGREE, ids=lambda value: repr(value)[:50])
def test_the_schema_and_the_server_agree(
    path: str, changes: dict[str, Any], good: bool, document: dict[str, Any]
) -> None:
    body = {**PLAIN[path], **changes}
    assert (body_schema(document, path).is_valid(body), taken(path, body)) == (good, good)


@pytest.mark.parametrize(
    ("path", "changes"),
    [
        (CHAT, messages({"role": "user", "content": parts("image_url", 1)})),
        (RESPONSE, {"input": [{"role": "user", "content": parts("input_image", 1)}]}),
    ],
)
async def test_images_are_for_models_that_take_them(path: str, changes: dict[str, Any]) -> None:
    core = ScriptedCore()
    blind = core.offers.models["m"]._replace(name="blind", takes_images=False)
    offers = core.offers._replace(models={**core.offers.models, "blind": blind}, aliases={"dark": "blind", "a": "m"})
    schema = body_schema(describe(offers), path)
    for model, good in (("m", True), ("a", True), ("auto", True), ("blind", False), ("dark", False)):
        assert schema.is_valid({**PLAIN[path], **changes, "model": model}) == good
        assert schema.is_valid({**PLAIN[path], "model": model})
    assert not schema.is_valid({**PLAIN[path], **changes, "fallback_models": ["blind"]})
    nobody = body_schema(describe(offers._replace(models={"blind": blind}, aliases={})), path)
    assert not nobody.is_valid({**PLAIN[path], **changes, "model": "auto"})
    assert nobody.is_valid({**PLAIN[path], "model": "blind", "fallback_models": ["blind"]})
    assert not nobody.is_valid({**PLAIN[path], "model": "blind", "fallback_models": ["auto"]})
