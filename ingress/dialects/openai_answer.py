"""The bytes of a chat completion. A plain stream's chunk is one join of bytes made beforehand: it is the hot path."""

from __future__ import annotations

from typing import Any

import orjson

from ingress.chat import Done, Piece, Whole, join_calls
from schemas.errors import ApiError
from schemas.replies import Alternative, TokenLogprob, ToolDelta


class Answer:
    """Writes one answer's JSON. `model` is echoed as it was asked for; `old_functions`: calls as `function_call`."""

    def __init__(
        self,
        request_id: str,
        model: str,
        created_s: int,
        *,
        include_usage: bool,
        choices: int = 1,
        old_functions: bool = False,
        logprobs: bool = False,
    ) -> None:
        self._include_usage = include_usage
        self._choices = choices
        self._old = old_functions
        self._logprobs = logprobs
        head = {"id": f"chatcmpl-{request_id}", "object": "chat.completion.chunk", "created": created_s, "model": model}
        self._head = head
        self._open = b"data: " + orjson.dumps(head)[:-1] + b',"choices":[{"index":0,"delta":'
        self._close = b',"logprobs":null,"finish_reason":null}]' + (b',"usage":null}' if include_usage else b"}")
        self._close_plain = b"}" + self._close + b"\n\n"

    def begin(self) -> bytes:
        role = {"role": "assistant", "content": "", "refusal": None}
        first = self._open + orjson.dumps(role) + self._close + b"\n\n"
        return first + b"".join(self._chunk(index, role) for index in range(1, self._choices))

    def delta(self, piece: Piece) -> bytes:
        text, _, _, choice, logprobs, calls, _, _ = piece
        if not (choice or logprobs or calls):
            return self._open + b'{"content":' + orjson.dumps(text) + self._close_plain if text else b""
        out = b""
        if piece.text or piece.logprobs:
            out = self._chunk(
                piece.choice, {"content": piece.text}, _logprobs(piece.logprobs) if self._logprobs else None
            )
        for call in calls:
            out += self._chunk(choice, self._call_delta(call))
        return out

    def end(self, done: Done) -> bytes:
        """The last chunks: the cost stands in the usage chunk where one was asked for, else beside the finish."""
        finishes = [
            {**self._head, "choices": [_choice(index, self._finish(finish), delta={})]}
            for index, finish in enumerate(done.finishes)
        ]
        if not self._include_usage:
            finishes[-1]["cost"] = done.cost
            return b"".join(map(_event, finishes)) + b"data: [DONE]\n\n"
        last = {**self._head, "choices": [], "usage": {**usage(done), "cost": done.cost}}
        return b"".join(_event({**chunk, "usage": None}) for chunk in finishes) + _event(last) + b"data: [DONE]\n\n"

    def whole(self, choices: list[Whole], done: Done) -> bytes:
        return orjson.dumps(
            {
                **self._head,
                "object": "chat.completion",
                "choices": [
                    _choice(
                        index,
                        self._finish(done.finishes[index]),
                        _logprobs(choice.logprobs) if self._logprobs else None,
                        message=self._message(choice),
                    )
                    for index, choice in enumerate(choices)
                ],
                "usage": usage(done),
            }
        )

    def error(self, error: ApiError) -> bytes:
        """The end of a stream that broke: no [DONE] follows, so that nobody takes it for a whole answer."""
        return _event(error.body())

    def _finish(self, finish: str) -> str:
        return "function_call" if self._old and finish == "tool_calls" else finish

    def _chunk(self, index: int, delta: dict[str, Any], logprobs: Any = None) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}
        usage_null = {"usage": None} if self._include_usage else {}
        return _event({**self._head, "choices": [choice], **usage_null})

    def _call_delta(self, call: ToolDelta) -> dict[str, Any]:
        function = (
            {"arguments": call.arguments} if call.name is None else {"name": call.name, "arguments": call.arguments}
        )
        if self._old:
            return {"function_call": function}
        named = {} if call.id is None else {"id": call.id, "type": "function"}
        return {"tool_calls": [{"index": call.index, **named, "function": function}]}

    def _message(self, choice: Whole) -> dict[str, Any]:
        calls = join_calls(choice.tool_calls)
        content = None if calls and not choice.text else choice.text
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if calls and self._old:
            message["function_call"] = {"name": calls[0].name, "arguments": calls[0].arguments}
        elif calls:
            message["tool_calls"] = [
                {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in calls
            ]
        return message


def usage(done: Done) -> dict[str, Any]:
    """OpenAI's usage: the tokens of images are among the prompt's."""
    prompt_tokens = done.prompt_tokens + done.image_tokens
    counts: dict[str, Any] = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": done.completion_tokens,
        "total_tokens": prompt_tokens + done.completion_tokens,
    }
    if done.image_tokens:
        counts["prompt_tokens_details"] = {"text_tokens": done.prompt_tokens, "image_tokens": done.image_tokens}
    return counts


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(data) + b"\n\n"


def _choice(index: int, finish: str, logprobs: Any = None, **content: Any) -> dict[str, Any]:
    return {"index": index, **content, "logprobs": logprobs, "finish_reason": finish}


def _logprobs(tokens: Any) -> dict[str, Any]:
    return {"content": [logprob_of(token) for token in tokens], "refusal": None}


def logprob_of(token: TokenLogprob) -> dict[str, Any]:
    """One token's entry, which the chat and the responses API share."""
    return {**_alternative(token), "top_logprobs": [_alternative(one) for one in token.top]}


def _alternative(token: Alternative) -> dict[str, Any]:
    return {"token": token.text, "logprob": token.logprob, "bytes": list(token.bytes)}
