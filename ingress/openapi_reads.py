"""What is not asked for tokens, in the description of the API: models, usage, health, and the description itself."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from ingress.dialects.shadow import HEALTH
from ingress.openapi_answers import REF
from ingress.openapi_errors import KEYED, OURS, REQUEST_ID
from schemas.errors import Surface

#: Whether a key is needed, may be sent (two different ones are refused), or is never looked at.
OPTIONAL = ("conflicting_api_keys", "database_unavailable")


class Read(NamedTuple):
    """A call without a body. `answer` names the schema of its 200 and is None where there is none; `statuses` has those
    of codes that are not the table's."""

    method: str
    path: str
    tag: str
    summary: str
    description: str
    answer: str | None
    example: Any
    codes: tuple[str, ...]
    keyed: bool = False
    surface: Surface = "v1"
    statuses: Mapping[str, int] = MappingProxyType({})


_MODEL = {
    "id": "shark-llama-3.3-70b",
    "object": "model",
    "created": 1795000000,
    "owned_by": "shiver",
    "context_window": 131072,
    "modalities": {"input": ["text"], "output": ["text"]},
    "pricing": {"SHIVER": {"input": "3500", "output": "7000", "unit": "1M tokens"}},
    "nodes_online": 3,
}

READS: list[Read] = [
    Read(
        "get",
        "/v1/models",
        "models",
        "List models",
        "The models on offer and their other names, in OpenAI's form with what we add: context, modalities, prices, "
        "and how many nodes serve each now. Needs no key.",
        "Models",
        {"object": "list", "data": [_MODEL]},
        (*OPTIONAL, *OURS),
    ),
    Read(
        "get",
        "/v1/models/{name}",
        "models",
        "Read a model",
        "One model, by its name or an alias of it. Needs no key.",
        "Model",
        _MODEL,
        ("model_not_found", *OPTIONAL, *OURS),
        statuses={"model_not_found": 404},
    ),
    Read(
        "delete",
        "/v1/models/{name}",
        "models",
        "Remove a model",
        "Nobody but the operator removes a model: always refused.",
        None,
        None,
        ("models_read_only", *KEYED, *OURS),
        keyed=True,
    ),
    Read(
        "get",
        "/v3/models",
        "/v3",
        "List models, as Shreyansh Cloud has it",
        "The same list as /v1/models, for a caller with a key.",
        "Models",
        {"object": "list", "data": [_MODEL]},
        (*KEYED, *OURS),
        keyed=True,
        surface="v3",
    ),
    Read(
        "get",
        "/v1/usage",
        "/v1/inference",
        "Usage of this month",
        "What the key's wallet used in this UTC month, as far as the projection has read.",
        "MonthlyUsage",
        {
            "customer_id": "demo",
            "period": "2026-11",
            "total_tokens": 1234,
            "message": "Usage is eventually consistent.",
        },
        (*KEYED, "session_not_allowed", *OURS),
        keyed=True,
        surface="inference",
    ),
    Read(
        "get",
        "/v1/health",
        "/v1/inference",
        "Health",
        "The process answers, and which model is used where none is named. Needs no key.",
        "Health",
        HEALTH,
        ("conflicting_api_keys", *OURS),
        surface="inference",
    ),
    Read(
        "get",
        "/healthz",
        "operation",
        "Alive",
        "The process answers.",
        "Alive",
        {"status": "ok"},
        OURS,
    ),
    Read(
        "get",
        "/readyz",
        "operation",
        "Ready",
        "The process can serve; else 503, and what it waits for.",
        "Ready",
        {"status": "ready", "missing": []},
        OURS,
    ),
    Read(
        "get",
        "/openapi.json",
        "operation",
        "This description",
        "OpenAPI 3.1, with the models that are on offer now.",
        "OpenAPI",
        None,
        OURS,
    ),
    Read(
        "get",
        "/docs",
        "operation",
        "This description as a page",
        "Plain HTML that loads nothing from elsewhere.",
        None,
        None,
        OURS,
    ),
]

_NAME = {
    "name": "name",
    "in": "path",
    "required": True,
    "description": "A model's name or alias; it may have slashes",
    "schema": {"type": "string", "minLength": 1, "maxLength": 200},
}


def operation(read: Read, refused: dict[str, Any], known: str | None) -> dict[str, Any]:
    """The operation as OpenAPI has it; `refused` are the responses of its codes, `known` a model on offer."""
    answers = dict(refused)
    headers = {"x-shiver-request-id": REQUEST_ID}
    if read.path == "/docs":
        answers["200"] = {
            "description": "The page",
            "headers": headers,
            "content": {"text/html": {"schema": {"type": "string"}}},
        }
    elif read.answer is not None:
        body: dict[str, Any] = {"schema": {"$ref": REF + read.answer}}
        if read.example is not None:
            body["example"] = read.example
        answers["200"] = {"description": "The answer", "headers": headers, "content": {"application/json": body}}
    if read.path == "/readyz":
        waiting = {"schema": {"$ref": REF + "Ready"}, "example": {"status": "waiting", "missing": ["database"]}}
        answers["503"] = {"description": "Not yet", "headers": headers, "content": {"application/json": waiting}}
    made = {
        "tags": [read.tag],
        "summary": read.summary,
        "description": read.description,
        "operationId": read.method + read.path.replace("/", "_").replace("{", "").replace("}", "").replace(".", "_"),
        "security": [{"bearer": []}, {"x-api-key": []}] if read.keyed else [],
        "responses": dict(sorted(answers.items())),
    }
    if "{name}" in read.path:
        made["parameters"] = [{**_NAME, "example": known or "shark-llama-3.3-70b"}]
    return made
