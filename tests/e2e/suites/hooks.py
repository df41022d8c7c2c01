"""For schemathesis: mends bodies that are valid by the schema where they break a rule that no schema can say.

Everything else of a body stays as it was generated, and nothing is left out. What is mended: names that have to be
among other names (a chosen tool, a call that is answered), numbers of the model (token ids, the size of a vector, the
length of its context), what this stack has (one provider, a node with a latency), and what is an image, or a schema
that a sampler can follow. Each rule has a test of its own in tests/unit. Answers are kept short: they cost time.

A body that breaks the schema is left alone: the checks want it refused. Streams are checked to their end.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import schemathesis

HOSTER = os.environ["SUITE_HOSTER"]
#: One red pixel.
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
)
#: Of an answer, and of what is asked: the small models have room for 1,024 tokens.
TOKENS_MAX = 4
CHARS_MAX = 8
NAME_CHARS_MAX = 16
ITEMS_MAX = 3
IMAGES_MAX = 2
#: Ids below it are in every small model's vocabulary.
IDS = 200
DIMENSIONS_MAX = 16
LATENCY_MS = 600_000
SCHEMAS: tuple[dict[str, Any], ...] = (
    {},
    {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]},
    {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2},
)
_CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
_OLD_CALL = {"name": "f", "arguments": "{}"}


@schemathesis.hook
def map_case(context: Any, case: Any) -> Any:
    if isinstance(case.body, dict) and case.meta.generation.mode.is_positive:
        for mend in _MENDS.get(case.path, ()):
            mend(case.body)
        if case.headers.get("x-shiver-strict", "").strip().lower() in ("1", "true"):
            case.headers["x-shiver-strict"] = "0"  # a body has fields that nobody knows
    return case


def _mend_limits(*names: str) -> Callable[[dict[str, Any]], None]:
    def mend(body: dict[str, Any]) -> None:
        given = [name for name in names if body.get(name) is not None]
        for name in given:
            body[name] = min(body[name], TOKENS_MAX)
        if not given:
            body[names[0]] = TOKENS_MAX

    return mend


def _mend_routing(body: dict[str, Any]) -> None:
    if body.get("max_latency_ms"):
        body["max_latency_ms"] = LATENCY_MS
    if body.get("allow_hosters"):
        body["allow_hosters"][0] = HOSTER
    if body.get("deny_hosters"):
        body["deny_hosters"] = [one for one in body["deny_hosters"] if one.replace("-", "") != HOSTER.replace("-", "")]


def _mend_ids(body: dict[str, Any]) -> None:
    for name in ("prompt", "input"):
        if isinstance(body.get(name), list):
            body[name] = [_known(one) for one in body[name][: ITEMS_MAX * 2]]
        elif isinstance(body.get(name), str):
            body[name] = body[name][:CHARS_MAX]
    if body.get("dimensions"):
        body["dimensions"] = min(body["dimensions"], DIMENSIONS_MAX)


def _mend_bias(body: dict[str, Any]) -> None:
    bias = body.get("logit_bias") or {}
    if bias:
        body["logit_bias"] = {str(int(key) % IDS) if value else key: value for key, value in bias.items()}


def _known(one: Any) -> Any:
    """A token id of every model, a list of them, or a text that is not too long."""
    if isinstance(one, list):
        return [_known(inner) for inner in one[:CHARS_MAX]]
    if isinstance(one, str):
        return one[:CHARS_MAX]
    return one % IDS


def _mend_tools(field: str, choice: str, inner: str | None) -> Callable[[dict[str, Any]], None]:
    """`inner` is where the function stands in a tool and in a choice of it, None where it is the same object."""

    def mend(body: dict[str, Any]) -> None:
        if not body.get(field):
            return
        del body[field][ITEMS_MAX:]
        for number, tool in enumerate(body[field]):
            function = tool if inner is None else tool[inner]
            function["name"] = f"{function['name'][:NAME_CHARS_MAX]}_{number}"
            parameters = function.get("parameters")
            if parameters is not None and (function.get("strict") or len(repr(parameters)) > CHARS_MAX * 4):
                function["parameters"] = SCHEMAS[1]
            if function.get("description"):
                function["description"] = function["description"][:CHARS_MAX]
        chosen = body.get(choice)
        if not isinstance(chosen, dict):
            return
        allowed = chosen.get("type") == "allowed_tools"
        choices = (chosen["tools"] if inner is None else chosen["allowed_tools"]["tools"]) if allowed else [chosen]
        first = body[field][0]
        for one in choices:
            (one if inner is None else one[inner])["name"] = (first if inner is None else first[inner])["name"]

    return mend


def _mend_messages(body: dict[str, Any]) -> None:
    messages = body["messages"]
    del messages[ITEMS_MAX:]
    images = 0
    for message in messages:
        images = _mend_content(message, images)
        if message["role"] == "assistant" and message.get("tool_calls"):
            del message["tool_calls"][ITEMS_MAX:]
            for call in message["tool_calls"]:
                call["id"] = call["id"][:CHARS_MAX]
                _mend_call(call["function"])
        if message["role"] == "assistant" and message.get("function_call"):
            _mend_call(message["function_call"])
        if message["role"] == "tool":
            message["tool_call_id"] = _CALL["id"]
        if message["role"] != "assistant" and message.get("name"):
            message["name"] = message["name"][:NAME_CHARS_MAX]
    if {message["role"] for message in messages} & {"tool", "function"}:
        messages.insert(0, {"role": "assistant", "tool_calls": [_CALL], "function_call": _OLD_CALL})


def _mend_call(function: dict[str, Any]) -> None:
    function["name"] = function["name"][:NAME_CHARS_MAX]
    function["arguments"] = function["arguments"][:CHARS_MAX]


def _mend_texts(body: dict[str, Any]) -> None:
    del body["messages"][ITEMS_MAX:]
    for message in body["messages"]:
        message["content"] = message["content"][:CHARS_MAX]


def _mend_content(message: dict[str, Any], images: int, field: str = "content") -> int:
    """Texts of some words, images that are some; returns how many there are by now."""
    content = message.get(field)
    if isinstance(content, str):
        message[field] = content[:CHARS_MAX]
    elif isinstance(content, list):
        kept = []
        for part in content[:ITEMS_MAX]:
            if "image" in part["type"]:
                images += 1
                if images > IMAGES_MAX:
                    part = {"type": part["type"].replace("image_url", "text").replace("image", "text"), "text": ""}
                elif isinstance(part["image_url"], dict):
                    part["image_url"]["url"] = PIXEL
                else:
                    part["image_url"] = PIXEL
            name = "refusal" if part["type"] == "refusal" else "text"
            if name in part:
                part[name] = part[name][:CHARS_MAX]
            kept.append(part)
        message[field] = kept
    return images


def _mend_items(body: dict[str, Any]) -> None:
    if body.get("instructions"):
        body["instructions"] = body["instructions"][:CHARS_MAX]
    items = body["input"]
    if isinstance(items, str):
        body["input"] = items[:CHARS_MAX]
        return
    del items[ITEMS_MAX:]
    images = 0
    for item in items:
        kind = item.get("type")
        if kind in (None, "message"):
            images = _mend_content(item, images)
        elif kind == "function_call":
            item["call_id"] = item["call_id"][:CHARS_MAX]
            _mend_call(item)
        elif kind == "function_call_output":
            item["call_id"] = _CALL["id"]
            images = _mend_content(item, images, "output")
    if any(item.get("type") == "function_call_output" for item in items):
        items.insert(0, {"type": "function_call", "call_id": _CALL["id"], **_OLD_CALL})
    if not body.get("instructions") and all(item.get("type") == "reasoning" for item in items):
        items.append({"role": "user", "content": "x"})  # the one that was there was cut off


def _mend_schema(form: Any, inner: str | None) -> None:
    """A schema that a sampler can follow, by the length of its name any of a few."""
    if form and form["type"] == "json_schema":
        spec = form if inner is None else form[inner]
        spec["schema"] = SCHEMAS[len(spec["name"]) % len(SCHEMAS)]


def _mend_response_format(body: dict[str, Any]) -> None:
    _mend_schema(body.get("response_format"), "json_schema")


def _mend_text(body: dict[str, Any]) -> None:
    _mend_schema((body.get("text") or {}).get("format"), None)


_CHAT = (
    _mend_limits("max_tokens", "max_completion_tokens"),
    _mend_routing,
    _mend_bias,
    _mend_tools("tools", "tool_choice", "function"),
    _mend_tools("functions", "function_call", None),
    _mend_messages,
    _mend_response_format,
)
_RESPONSE = (
    _mend_limits("max_output_tokens"),
    _mend_routing,
    _mend_tools("tools", "tool_choice", None),
    _mend_items,
    _mend_text,
)
_MENDS: dict[str, tuple[Callable[[dict[str, Any]], None], ...]] = {
    "/v1/chat": _CHAT,
    "/v1/chat/completions": _CHAT,
    "/v1/completions": (_mend_limits("max_tokens"), _mend_routing, _mend_bias, _mend_ids),
    "/v1/embeddings": (_mend_routing, _mend_ids),
    "/v1/responses": _RESPONSE,
    "/v3/chat/completions": (_mend_limits("max_tokens"), _mend_texts),
    "/v1/inference": (_mend_limits("max_tokens"), _mend_texts),
}


@schemathesis.check
def stream_is_whole(ctx: Any, response: Any, case: Any) -> None:
    """A stream that breaks is described, and is a fault all the same."""
    if "text/event-stream" in "".join(response.headers.get("content-type", ())):
        last = response.content.decode().rstrip().rpartition("\n\n")[2]
        ends = (
            "data: [DONE]",
            "event: response.completed",
            "event: response.incomplete",
            'data: {"type":"message_stop"',
        )
        assert last.startswith(ends), f"the stream ends with {last[:300]}"
