"""For schemathesis: leaves out bodies whose fields contradict each other, which a JSON schema cannot say.

A tool's answer without a call, a choice among tools that are not there, two tools of one name, best_of above n,
top_logprobs without logprobs, and images, whose URLs are more than strings: all are refused with 400, each by a test of
its own in tests/unit/test_ingress_forms.py.
"""

from __future__ import annotations

from typing import Any

import schemathesis

#: What the one node and the small models of this stack decide: providers, trust, latency, the size of a vector.
_OF_THIS_STACK = ("allow_hosters", "deny_hosters", "trusted_only", "max_latency_ms", "fallback_models", "dimensions")
_RELATED = (
    "tool_choice",
    "function_call",
    "functions",
    "tools",
    "best_of",
    "top_logprobs",
    "background",
    *_OF_THIS_STACK,
)


@schemathesis.hook
def filter_case(context: Any, case: Any) -> bool:
    body = case.body
    if not isinstance(body, dict):
        return True
    said = [*_items(body.get("messages")), *_items(body.get("input"))]
    answers = any(one.get("role") in ("tool", "function", "assistant") or "call_id" in one for one in said)
    empty = any(one.get("content") == [] for one in said)
    silent = bool(said) and all(one.get("type") == "reasoning" for one in said)
    if _largest(body.get("prompt")) > 255 or _largest(body.get("input")) > 255:
        return False  # token ids: the model has its own number of them
    long = len(said) > 20  # the small model's context is short
    images = "image_url" in repr(said)
    return not (
        answers or empty or silent or long or images or any(body.get(name) for name in (*_RELATED, *_OF_THIS_STACK))
    )


def _items(value: Any) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _largest(value: Any) -> float:
    """The largest number in a prompt of token ids, or lists of them."""
    if isinstance(value, list):
        return max(map(_largest, value), default=0)
    return value if isinstance(value, int | float) else 0
