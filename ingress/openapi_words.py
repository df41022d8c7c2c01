"""What the fields of the bodies mean, in the description of the API, and the names of their parts."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel

#: Parts of this name are in more than one form; pydantic tells them apart by their modules.
_MODULES = {"ingress__dialects__openai_messages__": "Chat", "ingress__dialects__openai_responses__": "Response"}

#: By the field's name, for all forms.
FIELDS: dict[str, str] = {
    "allow_hosters": "Only nodes of these providers may serve, by their UUIDs; an empty list allows all.",
    "background": "Nothing runs here without its caller: only false is taken.",
    "best_of": "At most `n`: more answers would be made and paid than are shown.",
    "conversation": "Nothing is stored here: only null is taken.",
    "deny_hosters": "Nodes of these providers may not serve, by their UUIDs.",
    "dimensions": "Cuts the vector and scales it to length 1; at most what the model has.",
    "echo": "Puts the prompt before the text. With `logprobs` the prompts have to be texts.",
    "encoding_format": "`float` numbers or `base64` of little-endian float32.",
    "expires_in": "Seconds until the token is over.",
    "fallback_models": "Tried in their order after `model`.",
    "frequency_penalty": "Lowers the chance of tokens by how often they came.",
    "function_call": "The older form of `tool_choice`, beside `functions`.",
    "functions": "The older form of `tools`, answered in its own. Without an effect beside `tools`.",
    "include": "`message.output_text.logprobs`; others are without an effect.",
    "input": "What is answered or embedded: a text, or a list.",
    "instructions": "A system message before the input.",
    "logit_bias": "By token id, added to its logit; ids are the model's own.",
    "logprobs": "Tell the tokens' log probabilities; of a completion, with how many alternatives.",
    "max_completion_tokens": "As `max_tokens`, and goes before it.",
    "max_latency_ms": "Only nodes whose first token came within this lately.",
    "max_output_tokens": "Of the answer; clamped to the context that is left.",
    "max_tokens": "Of the answer; clamped to the context that is left.",
    "messages": "The conversation. A tool's answer comes behind the message that called it.",
    "metadata": "Up to 16 pairs; a response returns them.",
    "modalities": "Answers are text.",
    "model": "A model's name, an alias, or `auto` for any that can do what is asked.",
    "models": "The only ones that the token may use; without it those of the key.",
    "n": "Answers to make; all are paid.",
    "origins": "The only ones whose pages may send the token.",
    "parallel_tool_calls": "Whether an answer may have several calls.",
    "presence_penalty": "Lowers the chance of tokens that came at all.",
    "previous_response_id": "Nothing is stored here: only null is taken.",
    "privacy_mode": "Never an upstream of somebody else's.",
    "prompt": "What is continued, without a template: a text, token ids, or up to 16 of either.",
    "response_format": "Text, any JSON object, or JSON of a schema.",
    "seed": "The same seed on the same node makes the same answer.",
    "stop": "The answer ends before one of these.",
    "stream": "Server-sent events instead of a whole answer.",
    "stream_options": "`include_usage` adds a last chunk with the usage.",
    "temperature": "How freely tokens are chosen; 0 takes the likeliest.",
    "text": "The format of the answer: text, any JSON object, or JSON of a schema.",
    "tier": "What ranks the nodes that may serve: price, speed, or both.",
    "tool_choice": "Whether, and which, function is called.",
    "tools": "Functions that may be called; no two have the same name.",
    "top_logprobs": "Alternatives told with each token; a chat needs `logprobs: true` beside it.",
    "top_p": "Only the likeliest tokens of this share.",
    "trusted_only": "Only nodes of providers that the operator trusts.",
}
_IDLE = "Taken without an effect, and named in `x-shiver-ignored`."

#: The headers that every request for tokens may have.
HEADERS: list[dict[str, Any]] = [
    {
        "name": "x-shiver-strict",
        "in": "header",
        "required": False,
        "description": "`1`: what would be named in `x-shiver-ignored` is refused instead",
        "schema": {"type": "string"},
        "example": "0",
    },
    {
        "name": "x-shiver-trace",
        "in": "header",
        "required": False,
        "description": "Sent with any value: the answer has `x-shiver-route`",
        "schema": {"type": "string"},
        "example": "1",
    },
]


def explain(form: type[BaseModel], schema: dict[str, Any]) -> None:
    """Puts the words into the schema of a request's form."""
    idle = getattr(form, "IDLE", {})
    schema.pop("description", None)  # written for who reads the code
    for name, field in schema["properties"].items():
        field["description"] = _IDLE if name in idle else FIELDS[name]


def named(parts: dict[str, Any]) -> dict[str, Any]:
    """The parts with short names."""
    text = json.dumps(parts)
    for module, short in _MODULES.items():
        text = text.replace(module, short)
    return json.loads(text)
