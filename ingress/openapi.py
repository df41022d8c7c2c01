"""The API's own description: GET /openapi.json, and a page of it at GET /docs that needs nothing from elsewhere.

Bodies are described by the forms that read them, so that the two cannot differ, refusals by the table of errors. A
dialect adds its call to CALLS, what has no body stands in `openapi_reads`; a test compares both with the routes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse

from ingress import openapi_reads, openapi_words
from ingress.bootstrap import Ingress
from ingress.catalog import Model, Offers
from ingress.dialects.openai import ChatRequest
from ingress.dialects.openai_completions import CompletionRequest
from ingress.dialects.openai_embeddings import EmbeddingRequest
from ingress.dialects.openai_responses import ResponsesRequest
from ingress.dialects.rules import either, given, having, when
from ingress.dialects.shadow import InferenceRequest
from ingress.dialects.shreyansh import ShreyanshRequest
from ingress.openapi_answers import ANSWERS, CHUNKS, REF, events
from ingress.openapi_errors import ERRORS, REQUEST_ID, SESSION, of_tokens, refusals
from ingress.openapi_examples import CHAT_ANSWER, CHAT_STREAM, EXAMPLES, HELLO, IMAGE, RESPONSE, USAGE
from ingress.openapi_page import page
from ingress.openapi_reads import READS
from ingress.placing import AUTO
from ingress.sessions import SessionRequest
from schemas.errors import ApiError, Surface

#: The parts of the document, in their order on the page.
TAGS = {
    "OpenAI": "Calls in OpenAI's forms",
    "/v3": "For clients of Shreyansh Cloud",
    "/v1/inference": "For clients of Shadow Labs",
    "models": "What is on offer",
    "operation": "For whoever runs or reads this",
}
_CHAT_IMAGES = having(given(type={"const": "image_url"}))
_RESPONSE_IMAGES = having(given(type={"const": "input_image"}))
#: The forms that may hold images, and what of them shows that one does.
SHOWN: dict[type[BaseModel], dict[str, Any]] = {
    ChatRequest: {"messages": having(given(content=_CHAT_IMAGES))},
    ResponsesRequest: {"input": having(either(given(content=_RESPONSE_IMAGES), given(output=_RESPONSE_IMAGES)))},
}


class Call(NamedTuple):
    """A POST call: where, what it is, the form of its body, an example of it and of its answer, how errors are told.

    `schema` names the answer's own in `openapi_answers`; `stream` is an example of the answer as events, empty where
    there are none, `chunk` names the schema of what an event holds;
    `tokens` is whether it asks for some: else no node serves it, and it costs nothing; `tag` is a key of TAGS.
    """

    path: str
    summary: str
    description: str
    form: type[BaseModel]
    example: dict[str, Any]
    answer: dict[str, Any]
    surface: Surface = "v1"
    schema: str = ""
    stream: str = ""
    chunk: str = ""
    tokens: bool = True
    tag: str = "OpenAI"


_HEADERS_TEXT = (
    " Parameters that have no effect here are taken and named in the header `x-shiver-ignored`; with the request "
    "header `x-shiver-strict: 1` they are refused."
)
CALLS: list[Call] = [
    Call(
        "/v1/chat/completions",
        "Chat",
        "An answer to messages: text, tool calls or JSON; whole, or as server-sent events with `stream: true`, which "
        "end with `data: [DONE]`. A stream that broke ends with an error event and no [DONE]." + _HEADERS_TEXT,
        ChatRequest,
        HELLO,
        CHAT_ANSWER,
        schema="ChatCompletion",
        stream=CHAT_STREAM,
        chunk="ChatChunk",
    ),
    Call(
        "/v1/chat",
        "Chat",
        "The same as /v1/chat/completions.",
        ChatRequest,
        HELLO,
        CHAT_ANSWER,
        schema="ChatCompletion",
        stream=CHAT_STREAM,
        chunk="ChatChunk",
    ),
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
            "usage": USAGE,
        },
        schema="TextCompletion",
        stream='data: {"id": "cmpl-019a...", "object": "text_completion", "choices": [{"index": 0, "text": " swims", '
        '"logprobs": null, "finish_reason": null}]}\n\ndata: [DONE]\n\n',
        chunk="TextChunk",
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
        schema="Embeddings",
    ),
    Call(
        "/v1/responses",
        "Respond",
        "OpenAI's responses, whole or as typed events. Nothing is stored: what refers to something stored is refused."
        + _HEADERS_TEXT,
        ResponsesRequest,
        {"model": "shark-llama-3.3-70b", "input": "hello shiver"},
        RESPONSE,
        schema="Response",
        stream='event: response.output_text.delta\ndata: {"type": "response.output_text.delta", "sequence_number": 4, '
        '"item_id": "msg_019a...", "output_index": 0, "content_index": 0, "delta": "Hello", "logprobs": []}\n\n',
        chunk="ResponseEvent",
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
            "usage": USAGE,
        },
        "v3",
        schema="ShreyanshCompletion",
        stream=CHAT_STREAM,
        chunk="ShreyanshChunk",
        tag="/v3",
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
        schema="Inference",
        stream='data: {"type": "content_delta", "delta": "Hello!"}\n\n'
        'data: {"type": "message_stop", "usage": {"total_tokens": 18}}\n\n',
        chunk="InferenceEvent",
        tag="/v1/inference",
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
        schema="Session",
        tokens=False,
        tag="models",
    ),
]

_REFUSALS = {
    "400": "Malformed: the form, an unknown model, a prompt that is too long, an image",
    "401": "No key, or one that is not valid",
    "404": "No such model",
    "422": "Malformed: the form, a range, an unknown model, a prompt that is too long",
    "502": "Every node that was tried failed",
    "402": "The wallet's balance or the sandbox's daily cap does not cover it",
    "403": "The key, or the session, may not do this or use this model",
    "409": "The key has its greatest number of requests open",
    "408": "The body did not come in time",
    "413": "The body is larger than 1 MiB",
    "431": "The head is larger than 64 KiB",
    "429": "Too much of something: Retry-After says how long to wait",
    "500": "Every node that was tried failed, or something went wrong here",
    "503": "No node can take it now",
}


def describe(offers: Offers | None = None) -> dict[str, Any]:
    """The OpenAPI 3.1 document. With the offers it lists the models that may be asked for now."""
    # All at once: two forms may each have a part of the same name.
    wanted: list[Any] = [(form, "validation") for form in {call.form: None for call in CALLS}]
    _, made = models_json_schema(wanted, ref_template=REF + "{model}")
    schemas: dict[str, Any] = openapi_words.named(made["$defs"])
    for form in {call.form: None for call in CALLS}:
        openapi_words.explain(form, schemas[form.__name__])
        if offers is not None:
            _name_models(form, schemas[form.__name__], offers)
    paths: dict[str, Any] = {}
    seeing = offers is None or any(model.takes_images for model in offers.models.values())
    for call in CALLS:
        paths[call.path] = {"post": _operation(call, schemas[call.form.__name__], seeing=seeing)}
    known = next(iter(offers.models)) if offers is not None and offers.models else None
    for read in READS:
        refused = refusals(read.surface, read.codes, _REFUSALS, read.statuses)
        paths.setdefault(read.path, {})[read.method] = openapi_reads.operation(read, refused, known)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Shiver",
            "version": "1",
            "description": "OpenAI-compatible calls, paid by the token. The key, or a session's: `Authorization: "
            "Bearer` or `X-API-Key`.",
        },
        "tags": [{"name": name, "description": text} for name, text in TAGS.items()],
        "paths": paths,
        "components": {
            "schemas": {**schemas, **dict(ERRORS.values()), **ANSWERS, **CHUNKS},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "x-api-key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
        },
    }


def _name_models(form: type[BaseModel], schema: dict[str, Any], offers: Offers) -> None:
    """The models of the right kind; where an image is shown, those that take one."""
    if form is SessionRequest:
        names = schema["properties"]["models"]["anyOf"][0]
        names["items"] = {"type": "string", "enum": [*offers.models, *offers.aliases]}
        return
    kind = "embedding" if form is EmbeddingRequest else "chat"
    models = [model for model in offers.models.values() if model.kind == kind]
    own = schema["properties"]["model"]
    own.update(_one_of(models, offers)["model"])
    if own.get("default") not in own["enum"]:
        own.pop("default", None)
        schema["required"] = list({**dict.fromkeys(schema["required"]), "model": None})
    if "fallback_models" in schema["properties"]:
        schema["allOf"] = [*schema.get("allOf", ()), {"properties": _one_of(models, offers)}]
    if form in SHOWN:
        seeing = [model for model in models if model.takes_images]
        then = {"properties": _one_of(seeing, offers)} if seeing else {"not": {}}
        schema["allOf"].append(when(given(**SHOWN[form]), then))


def _one_of(models: list[Model], offers: Offers) -> dict[str, Any]:
    own = [model.name for model in models]
    names = [*own, *(alias for alias, name in offers.aliases.items() if name in own)]
    return {"model": {"enum": [AUTO, *names]}, "fallback_models": {"items": {"enum": names}}}


def _operation(call: Call, form: dict[str, Any], *, seeing: bool) -> dict[str, Any]:
    examples = {"simple": call.example, **EXAMPLES.get(call.path, {})}
    if call.form is ChatRequest and seeing:
        examples["image"] = IMAGE
    told = {
        "x-shiver-node": "A pseudonym of the node that served",
        "x-shiver-model": "The model that served, where an alias or `auto` was asked for",
        "x-shiver-cost": "What was charged, as in `0.0123 SHIVER`; of a stream it stands in the last chunk",
        "x-shiver-ignored": "Parameters that had no effect",
        "x-shiver-route": "Which nodes each constraint excludes now, where `x-shiver-trace` was sent",
    }
    if not call.tokens:
        told = {}
    content: dict[str, Any] = {
        "application/json": {
            "schema": {"$ref": REF + call.schema} if call.schema else {"type": "object"},
            "example": call.answer,
        }
    }
    if call.stream:
        content["text/event-stream"] = {"schema": _events(call), "example": call.stream}
    headers: dict[str, Any] = {name: {"description": text, "schema": {"type": "string"}} for name, text in told.items()}
    headers["x-shiver-request-id"] = REQUEST_ID
    codes = of_tokens(rich=call.form in SHOWN) if call.tokens else SESSION
    return {
        "tags": [call.tag],
        "summary": call.summary,
        "description": call.description,
        "operationId": "post" + call.path.replace("/", "_"),
        "security": [{"bearer": []}, {"x-api-key": []}],
        "parameters": openapi_words.HEADERS if call.tokens else [],
        "requestBody": {
            "required": call.tokens,
            "content": {
                "application/json": {
                    "schema": {"$ref": REF + call.form.__name__},
                    "examples": {name: {"value": _on_offer(one, form)} for name, one in examples.items()},
                }
            },
        },
        "responses": {
            "200": {"description": "The answer", "headers": headers, "content": content},
            **refusals(call.surface, codes, _REFUSALS),
        },
    }


def _events(call: Call) -> dict[str, Any]:
    """Of a stream; the error's body ends one that breaks, where its own events have no error."""
    chunk = {"$ref": REF + call.chunk}
    if call.surface != "inference":
        chunk = {"anyOf": [chunk, {"$ref": REF + ERRORS[call.surface][0]}]}
    return events(chunk, done="[DONE]" in call.stream)


def _on_offer(example: dict[str, Any], form: dict[str, Any]) -> dict[str, Any]:
    """The example, of a model that may be asked for now."""
    if "models" in example:
        known = form["properties"]["models"]["anyOf"][0]["items"].get("enum", example["models"])
        return {**example, "models": [*{*example["models"]} & {*known}] or known[:1]}
    own = form["properties"]["model"]
    asked = example.get("model", own.get("default"))
    return example if "enum" not in own or asked in own["enum"] else {**example, "model": own["enum"][-1]}


def add(app: FastAPI, ingress: Ingress) -> None:
    """Serve the document and its page."""

    latest: tuple[Offers | None, dict[str, Any]] | None = None

    async def described() -> dict[str, Any]:
        """Made anew only when the offers have changed: it takes a long time, in which nobody else is served."""
        nonlocal latest
        try:
            offers = await ingress.catalog.offers()
        except ApiError:  # the database is away, and none was ever read
            offers = None
        if latest is None or latest[0] != offers:
            latest = offers, describe(offers)
        return latest[1]

    async def document(_: Request) -> JSONResponse:
        return JSONResponse(await described())

    async def docs(_: Request) -> HTMLResponse:
        return HTMLResponse(page(await described()))

    app.add_route("/openapi.json", document, methods=["GET"])
    app.add_route("/docs", docs, methods=["GET"])
