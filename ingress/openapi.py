"""The API's own description: GET /openapi.json, and a page of it at GET /docs that needs nothing from elsewhere.

Bodies are described by the forms that read them, so that the two cannot differ; the routes of FastAPI's own kind come
from their functions. A dialect adds its call to CALLS.
"""

from __future__ import annotations

import html
import json
from typing import Any, NamedTuple

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse

from ingress.bootstrap import Ingress
from ingress.catalog import Offers
from ingress.dialects.openai import ChatRequest
from ingress.dialects.openai_completions import CompletionRequest
from ingress.dialects.openai_embeddings import EmbeddingRequest
from ingress.dialects.openai_responses import ResponsesRequest
from ingress.dialects.shadow import InferenceRequest
from ingress.dialects.shreyansh import ShreyanshRequest
from ingress.placing import AUTO
from ingress.sessions import SessionRequest
from schemas.errors import TABLE, ApiError, Surface

_REF = "#/components/schemas/"


class Call(NamedTuple):
    """A POST call: where, what it is, the form of its body, an example of it and of its answer, how errors are told.

    `tokens` is whether it asks for some: else nothing is streamed, and no node serves it.
    """

    path: str
    summary: str
    description: str
    form: type[BaseModel]
    example: dict[str, Any]
    answer: dict[str, Any]
    surface: Surface = "v1"
    tokens: bool = True


_HEADERS_TEXT = (
    " Parameters that have no effect here are taken and named in the header `x-shiver-ignored`; with the request "
    "header `x-shiver-strict: 1` they are refused with 400."
)
_HELLO = {"model": "shark-llama-3.3-70b", "messages": [{"role": "user", "content": "hello shiver"}]}
_USAGE = {"prompt_tokens": 12, "completion_tokens": 6, "total_tokens": 18}
_CHAT_ANSWER = {
    "id": "chatcmpl-019a0000-0000-7000-8000-000000000000",
    "object": "chat.completion",
    "created": 1795000000,
    "model": "shark-llama-3.3-70b",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "hello! what do you need?", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ],
    "usage": _USAGE,
}

CALLS: list[Call] = [
    Call(
        "/v1/chat/completions",
        "Chat",
        "An answer to messages: text, tool calls or JSON; whole, or as server-sent events with `stream: true`, which "
        "end with `data: [DONE]`. A stream that broke ends with an error event and no [DONE]." + _HEADERS_TEXT,
        ChatRequest,
        _HELLO,
        _CHAT_ANSWER,
    ),
    Call("/v1/chat", "Chat", "The same as /v1/chat/completions.", ChatRequest, _HELLO, _CHAT_ANSWER),
    Call(
        "/v1/completions",
        "Continue a text",
        "Continues prompts as they are, without a chat template." + _HEADERS_TEXT,
        CompletionRequest,
        {"model": "shark-llama-3.3-70b", "prompt": "The shark", "max_tokens": 16},
        {
            "id": "cmpl-019a0000-0000-7000-8000-000000000000",
            "object": "text_completion",
            "created": 1795000000,
            "model": "shark-llama-3.3-70b",
            "choices": [{"index": 0, "text": " swims at night.", "logprobs": None, "finish_reason": "stop"}],
            "usage": _USAGE,
        },
    ),
    Call(
        "/v1/embeddings",
        "Embed texts",
        "A vector for each input, as numbers or as base64 of little-endian float32; paid by prompt tokens."
        + _HEADERS_TEXT,
        EmbeddingRequest,
        {"model": "shark-embed-large-v1", "input": ["text to embed", "another text"]},
        {
            "object": "list",
            "data": [{"object": "embedding", "index": 0, "embedding": [0.012, -0.034]}],
            "model": "shark-embed-large-v1",
            "usage": {"prompt_tokens": 5, "total_tokens": 5},
        },
    ),
    Call(
        "/v1/responses",
        "Respond",
        "OpenAI's responses, whole or as typed events. Nothing is stored: what refers to something stored is refused."
        + _HEADERS_TEXT,
        ResponsesRequest,
        {"model": "shark-llama-3.3-70b", "input": "hello shiver"},
        {"id": "resp_019a0000-0000-7000-8000-000000000000", "object": "response", "status": "completed", "output": []},
    ),
    Call(
        "/v3/chat/completions",
        "Chat, as Shreyansh Cloud has it",
        "OpenAI's shape with fewer parameters, temperature 0 to 1, and errors whose code is the status."
        + _HEADERS_TEXT,
        ShreyanshRequest,
        {"model": "qwen/qwen3-4b-fp8", "messages": [{"role": "user", "content": "Hello!"}]},
        {
            "id": "019a0000000070008000000000000000",
            "object": "chat.completion",
            "created": 1795000000,
            "model": "qwen/qwen3-4b-fp8",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello!"}, "finish_reason": "stop"}],
            "usage": _USAGE,
        },
        "v3",
    ),
    Call(
        "/v1/inference",
        "Infer, as Shadow Labs has it",
        "Text for messages. A stream is `content_delta` events and one `message_stop`, and no [DONE]. Enrichment with "
        "context and tools is not offered." + _HEADERS_TEXT,
        InferenceRequest,
        {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 1024},
        {
            "id": "req_000000000000",
            "content": "Hello!",
            "model": "claude-sonnet-4-20250514",
            "usage": {"input_tokens": 12, "output_tokens": 6, "total_tokens": 18},
            "stop_reason": "end_turn",
        },
        "inference",
    ),
    Call(
        "/v1/sessions",
        "Open a session",
        "With a key that a server holds: a short-lived token that a browser may hold, in place of a key. It uses the "
        "key's wallet, limits and models, or fewer of those; with `origins` only their pages may send it. It opens no "
        "sessions and does not read usage, and ends with its key. All fields may be left out, the body too.",
        SessionRequest,
        {"expires_in": 600, "models": ["shark-llama-3.3-70b"], "origins": ["https://app.example.com"]},
        {
            "id": "ses_000000000000",
            "object": "session",
            "token": "shvr_ses_...",
            "created_at": 1795000000,
            "expires_at": 1795000600,
            "models": ["shark-llama-3.3-70b"],
            "origins": ["https://app.example.com"],
        },
        tokens=False,
    ),
]

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_TEXT, _CODE = {"type": "string"}, {"type": "integer"}
_NUMERIC_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "code"],
            "properties": {"message": _TEXT, "type": _TEXT, "code": _CODE},
        }
    },
}
_DETAIL = {"type": "object", "required": ["detail", "code"], "properties": {"detail": _TEXT, "code": _TEXT}}
#: The schema of each surface's errors.
_ERRORS: dict[Surface, tuple[str, dict[str, Any]]] = {
    "v1": ("Error", _ERROR),
    "v3": ("NumericError", _NUMERIC_ERROR),
    "inference": ("Detail", _DETAIL),
}
_REFUSALS = {
    "400": "Malformed: the form, an unknown model, a prompt that is too long, an image",
    "401": "No key, or one that is not valid",
    "404": "No such model",
    "422": "Malformed: the form, a range, an unknown model, a prompt that is too long",
    "502": "Every node that was tried failed",
    "402": "The wallet's balance or the sandbox's daily cap does not cover it",
    "403": "The key, or the session, may not do this or use this model",
    "409": "The key has its greatest number of requests open",
    "413": "The body is larger than 1 MiB",
    "429": "Too much of something: Retry-After says how long to wait",
    "500": "Every node that was tried failed, or something went wrong here",
    "503": "No node can take it now",
}


def describe(app: FastAPI, offers: Offers | None = None) -> dict[str, Any]:
    """The OpenAPI 3.1 document. With the offers its `model` fields list what may be asked for now."""
    document = get_openapi(
        title="Shiver",
        version="1",
        description="OpenAI-compatible calls, paid by the token. The key, or a session's: `Authorization: Bearer` or "
        "`X-API-Key`.",
        routes=app.routes,
    )
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    schemas.update(_ERRORS.values())
    document["components"]["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "x-api-key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    }
    # All at once: two forms may each have a part of the same name.
    wanted: list[Any] = [(form, "validation") for form in {call.form: None for call in CALLS}]
    _, made = models_json_schema(wanted, ref_template=_REF + "{model}")
    schemas.update(made["$defs"])
    for call in CALLS:
        if offers is not None and call.form is SessionRequest:
            own = schemas[call.form.__name__]["properties"]["models"]["anyOf"][0]
            own["items"] = {"type": "string", "enum": [*offers.models, *offers.aliases]}
        elif offers is not None:
            kind = "embedding" if call.form is EmbeddingRequest else "chat"
            own = schemas[call.form.__name__]["properties"]
            own["model"] = {"type": "string", "enum": [AUTO, *_names(offers, kind)]}
        document["paths"][call.path] = {"post": _operation(call)}
    return document


def _names(offers: Offers, kind: str) -> list[str]:
    names = [model.name for model in offers.models.values() if model.kind == kind]
    return [*names, *(alias for alias, name in offers.aliases.items() if name in names)]


def _operation(call: Call) -> dict[str, Any]:
    told = {
        "x-shiver-request-id": "The id of this request, on every answer",
        "x-shiver-node": "A pseudonym of the node that served",
        "x-shiver-model": "The model that served, where an alias or `auto` was asked for",
        "x-shiver-cost": "What was charged, as in `0.0123 SHIVER`; of a stream it stands in the last chunk",
        "x-shiver-ignored": "Parameters that had no effect",
    }
    if not call.tokens:
        told = {name: text for name, text in told.items() if name == "x-shiver-request-id"}
    answers: dict[str, Any] = {
        "200": {
            "description": "The answer",
            "headers": {name: {"description": text, "schema": {"type": "string"}} for name, text in told.items()},
            "content": {
                "application/json": {"schema": {"type": "object"}, "example": call.answer},
                **({"text/event-stream": {}} if call.tokens else {}),
            },
        }
    }
    name = _ERRORS[call.surface][0]
    for status in sorted({str(row.status_on(call.surface)) for row in TABLE.values()} & _REFUSALS.keys()):
        if not call.tokens and status in ("402", "409"):  # it costs nothing and takes no slot
            continue
        if status != "404" or call.surface == "v3":  # elsewhere it is only an unknown path's
            content = {"application/json": {"schema": {"$ref": _REF + name}}}
            answers[status] = {"description": _REFUSALS[status], "content": content}
    body = {"schema": {"$ref": _REF + call.form.__name__}, "example": call.example}
    return {
        "summary": call.summary,
        "description": call.description,
        "operationId": "post" + call.path.replace("/", "_"),
        "security": [{"bearer": []}, {"x-api-key": []}],
        "requestBody": {"required": call.tokens, "content": {"application/json": body}},
        "responses": answers,
    }


def add(app: FastAPI, ingress: Ingress) -> None:
    """Serve the document and its page."""

    async def described() -> dict[str, Any]:
        try:
            return describe(app, await ingress.catalog.offers())
        except ApiError:  # the database is away, and none was ever read
            return describe(app)

    async def document(_: Request) -> JSONResponse:
        return JSONResponse(await described())

    async def docs(_: Request) -> HTMLResponse:
        return HTMLResponse(page(await described()))

    app.add_route("/openapi.json", document, methods=["GET"])
    app.add_route("/docs", docs, methods=["GET"])


def page(document: dict[str, Any]) -> str:
    """The document for people: plain HTML, no script, nothing loaded from elsewhere."""
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><title>Shiver API</title><style>body{font:16px/1.5 "
        "system-ui;max-width:60em;margin:2em auto;padding:0 1em}pre{background:#f4f4f4;padding:1em;overflow:auto}"
        "td,th{text-align:left;vertical-align:top;padding:.2em .8em .2em 0}</style>",
        f"<h1>Shiver API</h1><p>{html.escape(document['info']['description'])}</p>",
        "<p><a href=/openapi.json>openapi.json</a></p>",
    ]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            parts.append(f"<h2><code>{method.upper()} {html.escape(path)}</code></h2>")
            parts.append(f"<p>{html.escape(operation.get('description', operation.get('summary', '')))}</p>")
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            if "example" in body:
                parts.append(_pre(body["example"]))
            name = body.get("schema", {}).get("$ref", "").removeprefix(_REF)
            if name in document["components"]["schemas"]:
                parts.append(_fields(document["components"]["schemas"][name]))
            answer = operation["responses"].get("200", {}).get("content", {}).get("application/json", {})
            if "example" in answer:
                parts.append("<p>Answer:</p>" + _pre(answer["example"]))
    return "".join(parts)


def _pre(value: Any) -> str:
    return f"<pre>{html.escape(json.dumps(value, indent=2))}</pre>"


def _fields(schema: dict[str, Any]) -> str:
    rows = []
    for name, field in schema.get("properties", {}).items():
        kinds = [one for one in field.get("anyOf", [field]) if one.get("type") != "null"]
        told = ", ".join(_kind(one) for one in kinds)
        needed = " (needed)" if name in schema.get("required", ()) else ""
        rows.append(f"<tr><td><code>{html.escape(name)}</code>{needed}</td><td>{html.escape(told)}</td></tr>")
    return "<table><tr><th>field</th><th>takes</th></tr>" + "".join(rows) + "</table>"


def _kind(schema: dict[str, Any]) -> str:
    if "enum" in schema or "const" in schema:
        return " | ".join(map(str, schema.get("enum", [schema.get("const")])))
    kind = str(schema.get("type", schema.get("$ref", "one of several").removeprefix(_REF)))
    said = [f"{sign} {schema[name]}" for name, sign in _LIMITS.items() if name in schema]
    return f"{kind} {', '.join(said)}".strip()


_LIMITS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "maxLength": "length <=", "maxItems": "items <="}
