"""Examples for the description of the API: of answers, and of bodies by path, each small enough to be tried."""

from __future__ import annotations

from typing import Any

_WEATHER = {
    "name": "get_weather",
    "description": "The weather in a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
_ANSWER = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "legs": {"type": "integer"}},
    "required": ["name", "legs"],
    "additionalProperties": False,
}
_PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
)
_MODEL = "shark-llama-3.3-70b"
HELLO = {"model": _MODEL, "messages": [{"role": "user", "content": "hello shiver"}]}
_CALLED = [
    {"role": "user", "content": "What is the weather in Basel?"},
    {
        "role": "assistant",
        "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Basel"}'}}
        ],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": "sun"},
]
_TOOLS = [{"type": "function", "function": _WEATHER}]

CHAT: dict[str, dict[str, Any]] = {
    "stream": {**HELLO, "max_tokens": 32, "stream": True, "stream_options": {"include_usage": True}},
    "tool": {**HELLO, "tools": _TOOLS, "tool_choice": "required", "max_tokens": 64},
    "one tool": {
        **HELLO,
        "tools": _TOOLS,
        "tool_choice": {"type": "function", "function": {"name": "get_weather"}},
        "max_tokens": 64,
    },
    "tool's answer": {"model": _MODEL, "messages": _CALLED, "tools": _TOOLS, "max_tokens": 32},
    "functions": {**HELLO, "functions": [_WEATHER], "function_call": {"name": "get_weather"}, "max_tokens": 64},
    "JSON schema": {
        **HELLO,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "animal", "schema": _ANSWER, "strict": True},
        },
        "max_tokens": 64,
    },
    "sampling": {
        **HELLO,
        "n": 2,
        "seed": 7,
        "temperature": 1.2,
        "top_p": 0.9,
        "frequency_penalty": 0.5,
        "logit_bias": {"5": -100},
        "logprobs": True,
        "top_logprobs": 2,
        "stop": ["."],
        "max_tokens": 16,
    },
    "routing": {**HELLO, "model": "auto", "tier": "cheapest", "privacy_mode": True, "max_tokens": 16},
}
#: Where a model on offer takes images.
IMAGE: dict[str, Any] = {
    "model": "auto",
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is this?"},
                {"type": "image_url", "image_url": {"url": _PIXEL}},
            ],
        }
    ],
    "max_tokens": 16,
}
EXAMPLES: dict[str, dict[str, dict[str, Any]]] = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": {
        "several": {"model": _MODEL, "prompt": ["The shark", "The whale"], "n": 2, "best_of": 2, "max_tokens": 8},
        "token ids": {"model": _MODEL, "prompt": [5, 6, 7], "echo": True, "max_tokens": 8},
        "logprobs": {"model": _MODEL, "prompt": "The shark", "logprobs": 2, "max_tokens": 8},
    },
    "/v1/embeddings": {
        "base64": {"model": "shark-embed-large-v1", "input": "text", "encoding_format": "base64", "dimensions": 8},
        "token ids": {"model": "shark-embed-large-v1", "input": [[5, 6], [7]]},
    },
    "/v1/responses": {
        "stream": {"model": _MODEL, "input": "hello shiver", "stream": True, "max_output_tokens": 16},
        "tool": {
            "model": _MODEL,
            "instructions": "Be brief.",
            "input": "What is the weather in Basel?",
            "tools": [{"type": "function", **_WEATHER}],
            "tool_choice": "required",
            "max_output_tokens": 64,
        },
        "tool's answer": {
            "model": _MODEL,
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "What is the weather in Basel?"}]},
                {
                    "type": "function_call",
                    "call_id": "call_1",
                    "name": "get_weather",
                    "arguments": '{"city": "Basel"}',
                },
                {"type": "function_call_output", "call_id": "call_1", "output": "sun"},
            ],
            "max_output_tokens": 32,
        },
        "JSON schema": {
            "model": _MODEL,
            "input": "An animal, please.",
            "text": {"format": {"type": "json_schema", "name": "animal", "schema": _ANSWER, "strict": True}},
            "max_output_tokens": 64,
        },
    },
    "/v3/chat/completions": {
        "stream": {
            "model": "qwen/qwen3-4b-fp8",
            "messages": [{"role": "user", "content": "Hello!"}],
            "stream": True,
            "temperature": 0.5,
            "max_tokens": 16,
        }
    },
    "/v1/inference": {
        "stream": {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 16, "stream": True},
    },
}

USAGE = {"prompt_tokens": 12, "completion_tokens": 6, "total_tokens": 18}
CHAT_ANSWER = {
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
    "usage": USAGE,
}
CHAT_STREAM = (
    'data: {"id": "chatcmpl-019a...", "object": "chat.completion.chunk", "created": 1795000000, '
    '"model": "shark-llama-3.3-70b", "choices": [{"index": 0, "delta": {"content": "hello"}, "logprobs": null, '
    '"finish_reason": null}]}\n\ndata: [DONE]\n\n'
)
RESPONSE: dict[str, Any] = {
    "id": "resp_019a0000-0000-7000-8000-000000000000",
    "object": "response",
    "created_at": 1795000000,
    "status": "completed",
    "background": False,
    "error": None,
    "incomplete_details": None,
    "instructions": None,
    "max_output_tokens": None,
    "metadata": {},
    "model": "shark-llama-3.3-70b",
    "output": [
        {
            "type": "message",
            "id": "msg_019a0000-0000-7000-8000-000000000000_0",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": "hello!", "annotations": [], "logprobs": []}],
        }
    ],
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "store": False,
    "temperature": 0.7,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_p": 1.0,
    "truncation": "disabled",
    "usage": {
        "input_tokens": 12,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 6,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 18,
        "cost": "0.0123 SHIVER",
    },
}
