"""JSON schemas of what the calls answer, by their names in the description of the API.

They are written by hand: the answers' writers join bytes, and have no forms. A test holds every writer to them.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

REF = "#/components/schemas/"
_TEXT: Schema = {"type": "string"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_NUMBER: Schema = {"type": "number"}
_NULL: Schema = {"type": "null"}
_BOOLEAN: Schema = {"type": "boolean"}
_FINISH: Schema = {"enum": ["stop", "length"]}
_COST: Schema = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)? (SHIVER|USDC)$"}


def _object(fields: Schema, optional: Schema | None = None) -> Schema:
    """`fields` are always there, `optional` ones sometimes."""
    return {"type": "object", "properties": {**fields, **(optional or {})}, "required": list(fields)}


def _list(item: Schema, **limits: int) -> Schema:
    return {"type": "array", "items": item, **limits}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, _NULL]}


def _ref(name: str) -> Schema:
    return {"$ref": REF + name}


_ALTERNATIVE: Schema = {"token": _TEXT, "logprob": _NUMBER, "bytes": _list({**_COUNT, "maximum": 255})}
_FUNCTION_CALL = _object({"name": _TEXT, "arguments": {"type": "string", "description": "JSON"}})
_TOOL_CALL = _object({"id": _TEXT, "type": {"const": "function"}, "function": _FUNCTION_CALL})
_MODEL = {
    "id": _TEXT,
    "object": {"const": "model"},
    "created": _COUNT,
    "owned_by": _TEXT,
    "context_window": {"type": ["integer", "null"], "minimum": 0},
    "modalities": _object(
        {"input": _list({"enum": ["text", "image"]}, minItems=1), "output": _list({"enum": ["text", "embedding"]})}
    ),
    "pricing": {
        "type": "object",
        "description": "By asset",
        "additionalProperties": _object({"input": _TEXT, "output": _TEXT, "unit": {"const": "1M tokens"}}),
    },
    "nodes_online": _COUNT,
}
_MESSAGE_ITEM = _object(
    {
        "type": {"const": "message"},
        "id": _TEXT,
        "role": {"const": "assistant"},
        "status": _TEXT,
        "content": _list(
            _object(
                {
                    "type": {"const": "output_text"},
                    "text": _TEXT,
                    "annotations": _list({}, maxItems=0),
                    "logprobs": _list(_ref("Logprob")),
                }
            )
        ),
    }
)
_CALL_ITEM = _object(
    {
        "type": {"const": "function_call"},
        "id": _TEXT,
        "call_id": _TEXT,
        "name": _TEXT,
        "arguments": _TEXT,
        "status": _TEXT,
    }
)

ANSWERS: dict[str, Schema] = {
    "Usage": _object(
        {"prompt_tokens": _COUNT, "completion_tokens": _COUNT, "total_tokens": _COUNT},
        {"prompt_tokens_details": _object({"text_tokens": _COUNT, "image_tokens": _COUNT})},
    ),
    "Logprob": _object({**_ALTERNATIVE, "top_logprobs": _list(_object(_ALTERNATIVE))}),
    "ChatCompletion": _object(
        {
            "id": {"type": "string", "pattern": "^chatcmpl-"},
            "object": {"const": "chat.completion"},
            "created": _COUNT,
            "model": _TEXT,
            "choices": _list(
                _object(
                    {
                        "index": _COUNT,
                        "message": _object(
                            {
                                "role": {"const": "assistant"},
                                "content": {"type": ["string", "null"]},
                                "refusal": _NULL,
                            },
                            {"tool_calls": _list(_TOOL_CALL, minItems=1), "function_call": _FUNCTION_CALL},
                        ),
                        "logprobs": _or_null(_object({"content": _list(_ref("Logprob")), "refusal": _NULL})),
                        "finish_reason": {"enum": ["stop", "length", "tool_calls", "function_call"]},
                    }
                ),
                minItems=1,
            ),
            "usage": _ref("Usage"),
        }
    ),
    "TextCompletion": _object(
        {
            "id": {"type": "string", "pattern": "^cmpl-"},
            "object": {"const": "text_completion"},
            "created": _COUNT,
            "model": _TEXT,
            "choices": _list(
                _object(
                    {
                        "index": _COUNT,
                        "text": _TEXT,
                        "logprobs": _or_null(
                            _object(
                                {
                                    "tokens": _list(_TEXT),
                                    "token_logprobs": _list(_NUMBER),
                                    "top_logprobs": _list({"type": "object", "additionalProperties": _NUMBER}),
                                    "text_offset": _list(_COUNT),
                                }
                            )
                        ),
                        "finish_reason": _FINISH,
                    }
                ),
                minItems=1,
            ),
            "usage": _ref("Usage"),
        }
    ),
    "Embeddings": _object(
        {
            "object": {"const": "list"},
            "data": _list(
                _object(
                    {
                        "object": {"const": "embedding"},
                        "index": _COUNT,
                        "embedding": {
                            "anyOf": [_list(_NUMBER), {"type": "string", "description": "base64 of float32"}]
                        },
                    }
                ),
                minItems=1,
            ),
            "model": _TEXT,
            "usage": _object({"prompt_tokens": _COUNT, "total_tokens": _COUNT}),
        }
    ),
    "Response": _object(
        {
            "id": {"type": "string", "pattern": "^resp_"},
            "object": {"const": "response"},
            "created_at": _COUNT,
            "status": {"enum": ["completed", "incomplete"]},
            "background": {"const": False},
            "error": _NULL,
            "incomplete_details": _or_null(_object({"reason": {"const": "max_output_tokens"}})),
            "instructions": {"type": ["string", "null"]},
            "max_output_tokens": {"type": ["integer", "null"]},
            "metadata": {"type": "object", "additionalProperties": _TEXT},
            "model": _TEXT,
            "output": _list({"oneOf": [_MESSAGE_ITEM, _CALL_ITEM]}, minItems=1),
            "parallel_tool_calls": _BOOLEAN,
            "previous_response_id": _NULL,
            "store": {"const": False},
            "temperature": _NUMBER,
            "text": _object({"format": {"type": "object"}}),
            "tool_choice": {"type": ["string", "object"]},
            "tools": _list({"type": "object"}),
            "top_p": _NUMBER,
            "truncation": {"const": "disabled"},
            "usage": _object(
                {
                    "input_tokens": _COUNT,
                    "input_tokens_details": _object({"cached_tokens": _COUNT, "cache_write_tokens": _COUNT}),
                    "output_tokens": _COUNT,
                    "output_tokens_details": _object({"reasoning_tokens": _COUNT}),
                    "total_tokens": _COUNT,
                    "cost": _COST,
                }
            ),
        }
    ),
    "ShreyanshCompletion": _object(
        {
            "id": {"type": "string", "pattern": "^[0-9a-f]{32}$"},
            "object": {"const": "chat.completion"},
            "created": _COUNT,
            "model": _TEXT,
            "choices": _list(
                _object(
                    {
                        "index": {"const": 0},
                        "message": _object({"role": {"const": "assistant"}, "content": _TEXT}),
                        "finish_reason": _FINISH,
                    }
                ),
                minItems=1,
                maxItems=1,
            ),
            "usage": _object({"prompt_tokens": _COUNT, "completion_tokens": _COUNT, "total_tokens": _COUNT}),
        }
    ),
    "Inference": _object(
        {
            "id": {"type": "string", "pattern": "^req_[0-9a-f]{12}$"},
            "content": _TEXT,
            "model": _TEXT,
            "usage": _object({"input_tokens": _COUNT, "output_tokens": _COUNT, "total_tokens": _COUNT}),
            "stop_reason": {"enum": ["end_turn", "max_tokens", "tool_use"]},
        }
    ),
    "Model": _object(_MODEL, {"alias_of": {"type": "string", "description": "The model's own name"}}),
    "Models": _object({"object": {"const": "list"}, "data": _list(_ref("Model"))}),
    "Session": _object(
        {
            "id": {"type": "string", "pattern": "^ses_"},
            "object": {"const": "session"},
            "token": {"type": "string", "pattern": "^shvr_ses_"},
            "created_at": _COUNT,
            "expires_at": _COUNT,
            "models": {"type": ["array", "null"], "items": _TEXT},
            "origins": {"type": ["array", "null"], "items": _TEXT},
        }
    ),
    "MonthlyUsage": _object(
        {
            "customer_id": _TEXT,
            "period": {"type": "string", "pattern": "^[0-9]{4}-[0-9]{2}$"},
            "total_tokens": _COUNT,
            "message": _TEXT,
        }
    ),
    "Health": _object({"status": {"const": "ok"}, "model": _TEXT}),
    "Alive": _object({"status": {"const": "ok"}}),
    "Ready": _object({"status": {"enum": ["ready", "waiting"]}, "missing": _list(_TEXT)}),
    "OpenAPI": _object({"openapi": _TEXT, "info": {"type": "object"}, "paths": {"type": "object"}}),
}


def events(data: Schema, *, done: bool = True) -> Schema:
    """One event of a stream. `data` is what the text after `data: ` holds; with `done` the last one is [DONE]."""
    text: Schema = {"contentMediaType": "application/json", "contentSchema": data}
    if done:
        text = {"if": {"const": "[DONE]"}, "else": text}
    return {
        "type": "object",
        "description": "One event",
        "properties": {"data": {"type": "string", **text}, "event": _TEXT},
        "required": ["data"],
    }


_USAGE_NOW: Schema = {"usage": _or_null({"allOf": [_ref("Usage"), {"properties": {"cost": _COST}}]}), "cost": _COST}
_CALL_DELTA = _object(
    {"index": _COUNT, "function": _object({"arguments": _TEXT}, {"name": _TEXT})},
    {"id": _TEXT, "type": {"const": "function"}},
)
#: What the events of a stream hold. One that breaks ends with the error's body.
CHUNKS: dict[str, Schema] = {
    "ChatChunk": _object(
        {
            "id": {"type": "string", "pattern": "^chatcmpl-"},
            "object": {"const": "chat.completion.chunk"},
            "created": _COUNT,
            "model": _TEXT,
            "choices": _list(
                _object(
                    {
                        "index": _COUNT,
                        "delta": _object(
                            {},
                            {
                                "role": {"const": "assistant"},
                                "content": _TEXT,
                                "refusal": _NULL,
                                "tool_calls": _list(_CALL_DELTA, minItems=1),
                                "function_call": _object({"arguments": _TEXT}, {"name": _TEXT}),
                            },
                        ),
                        "logprobs": _or_null(_object({"content": _list(_ref("Logprob")), "refusal": _NULL})),
                        "finish_reason": {"enum": ["stop", "length", "tool_calls", "function_call", None]},
                    }
                )
            ),
        },
        _USAGE_NOW,
    ),
    "TextChunk": {
        **_object(
            {"object": {"const": "text_completion"}, "id": _TEXT, "created": _COUNT, "model": _TEXT},
            {
                "choices": _list(
                    _object(
                        {
                            "index": _COUNT,
                            "text": _TEXT,
                            "logprobs": {"type": ["object", "null"]},
                            "finish_reason": {"enum": ["stop", "length", None]},
                        }
                    )
                ),
                **_USAGE_NOW,
            },
        ),
    },
    "ResponseEvent": _object(
        {"type": _TEXT, "sequence_number": _COUNT},
        {
            "response": {"type": "object"},
            "item": {"type": "object"},
            "item_id": _TEXT,
            "output_index": _COUNT,
            "content_index": _COUNT,
            "delta": _TEXT,
            "text": _TEXT,
            "arguments": _TEXT,
        },
    ),
    "ShreyanshChunk": _object(
        {
            "id": {"type": "string", "pattern": "^[0-9a-f]{32}$"},
            "object": {"const": "chat.completion.chunk"},
            "created": _COUNT,
            "model": _TEXT,
            "choices": _list(
                _object(
                    {
                        "index": {"const": 0},
                        "delta": _object({}, {"role": {"const": "assistant"}, "content": _TEXT}),
                        "finish_reason": {"enum": ["stop", "length", None]},
                    }
                ),
                minItems=1,
                maxItems=1,
            ),
        },
        {"usage": _object({"prompt_tokens": _COUNT, "completion_tokens": _COUNT, "total_tokens": _COUNT})},
    ),
    "InferenceEvent": {
        "oneOf": [
            _object({"type": {"const": "content_delta"}, "delta": _TEXT}),
            _object({"type": {"const": "message_stop"}, "usage": _object({"total_tokens": _COUNT})}),
            _object({"type": {"const": "error"}, "detail": _TEXT, "code": _TEXT}),
        ]
    },
}
