"""Bodies, and the schemas of the description of the API that they are judged by."""

from __future__ import annotations

import json
from typing import Any

from jsonschema import Draft202012Validator

from ingress.dialects import openai, openai_completions, openai_embeddings, openai_responses, shadow, shreyansh
from schemas.errors import ApiError

PARSERS: dict[str, Any] = {
    "/v1/chat/completions": openai,
    "/v1/completions": openai_completions,
    "/v1/embeddings": openai_embeddings,
    "/v1/responses": openai_responses,
    "/v3/chat/completions": shreyansh,
    "/v1/inference": shadow,
}
CHAT, COMPLETION, RESPONSE = "/v1/chat/completions", "/v1/completions", "/v1/responses"
HI: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
PLAIN: dict[str, dict[str, Any]] = {
    CHAT: HI,
    COMPLETION: {"model": "m", "prompt": "hi"},
    "/v1/embeddings": {"model": "embed", "input": "hi"},
    RESPONSE: {"model": "m", "input": "hi"},
    "/v3/chat/completions": HI,
    "/v1/inference": HI,
}
TOOL = {"type": "function", "function": {"name": "f"}}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
OLD_CALL = {"name": "f", "arguments": "{}"}
#: Codes that no request for tokens can come to.
ELSEWHERE = {"not_found", "method_not_allowed", "models_read_only", "session_not_allowed", "session_cap"}
PIXEL = "data:image/png;base64,aGk="
HOSTER = "019a0000-0000-7000-8000-00000000000a"


def validator(document: dict[str, Any], schema: dict[str, Any], *, closed: bool = False) -> Draft202012Validator:
    """With `closed` no object has a field that is not described."""
    root = {**schema, "components": document["components"]}
    return Draft202012Validator(_closed(root) if closed else root)


def _closed(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: _closed(value) for name, value in schema.items()}
    if made.get("type") == "object" and "required" in made and "additionalProperties" not in made:
        made["additionalProperties"] = False
    return made


def body_schema(document: dict[str, Any], path: str) -> Draft202012Validator:
    content = document["paths"][path]["post"]["requestBody"]["content"]
    return validator(document, content["application/json"]["schema"])


def taken(path: str, body: dict[str, Any]) -> bool:
    try:
        PARSERS[path].parse(json.dumps(body).encode(), {})
    except ApiError:
        return False
    return True
