"""The bytes of a response: the whole object, or the typed events that build it, numbered from 0."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import orjson

from ingress.chat import Done, Piece, Whole, join_calls
from ingress.dialects.openai_answer import logprob_of
from schemas.errors import ApiError
from schemas.replies import ToolDelta


@dataclass(frozen=True, slots=True)
class Echo:
    """What a response repeats of its request, as the API has it."""

    model: str
    instructions: str | None
    metadata: dict[str, str]
    temperature: float
    top_p: float
    max_output_tokens: int | None
    parallel_tool_calls: bool
    tools: list[dict[str, Any]]
    tool_choice: Any
    text: dict[str, Any]
    logprobs: bool


@dataclass(slots=True)
class _Item:
    """An output item that is being written: a message, or a call where it has a name."""

    id: str
    index: int
    text: str = ""
    name: str = ""
    call_id: str = ""
    logprobs: list[Any] = field(default_factory=list)

    def json(self, status: str) -> dict[str, Any]:
        if self.name:
            return {
                "type": "function_call",
                "id": self.id,
                "call_id": self.call_id,
                "name": self.name,
                "arguments": self.text,
                "status": status,
            }
        content = [] if status == "in_progress" else [self.part()]
        return {"type": "message", "id": self.id, "role": "assistant", "status": status, "content": content}

    def part(self) -> dict[str, Any]:
        return {"type": "output_text", "text": self.text, "annotations": [], "logprobs": self.logprobs}


class Answer:
    """Writes one response. Items are opened as their first piece comes and closed before the next is opened."""

    def __init__(self, request_id: str, created_s: int, echo: Echo) -> None:
        self._request_id = request_id
        self._created_s = created_s
        self._echo = echo
        self._items: list[_Item] = []
        self._open: _Item | None = None
        self._call_index = -1
        self._sequence = 0
        self._logprobs: list[Any] = []  # told, and not written yet

    def begin(self) -> bytes:
        response = self._response("in_progress", [], None)
        return self._event("response.created", response=response) + self._event(
            "response.in_progress", response=response
        )

    def delta(self, piece: Piece) -> bytes:
        out = b""
        # Of a call the log probabilities come before it is known to be one: they open no message.
        if self._echo.logprobs:
            self._logprobs += [logprob_of(token) for token in piece.logprobs]
        if piece.text:
            if self._open is None or self._open.name:
                out += self._begin_item(_Item(f"msg_{self._request_id}_{len(self._items)}", len(self._items)))
            assert self._open is not None
            logprobs, self._logprobs = self._logprobs, []
            self._open.text += piece.text
            self._open.logprobs += logprobs
            out += self._of_item("response.output_text.delta", content_index=0, delta=piece.text, logprobs=logprobs)
        for call in piece.tool_calls:
            self._logprobs = []
            out += self._call(call)
        return out

    def end(self, done: Done) -> bytes:
        out = b""
        if not self._items:
            out += self._begin_item(_Item(f"msg_{self._request_id}_0", 0))
        status = _status(done)
        out += self._close_item(status)
        response = self._response(status, _items(self._items, status), done)
        return out + self._event(f"response.{response['status']}", response=response)

    def whole(self, choices: list[Whole], done: Done) -> bytes:
        choice = choices[0]
        items: list[_Item] = []
        calls = join_calls(choice.tool_calls)
        if choice.text or not calls:
            logprobs = [logprob_of(token) for token in choice.logprobs] if self._echo.logprobs else []
            items.append(_Item(f"msg_{self._request_id}_0", 0, choice.text, logprobs=logprobs))
        for call in calls:
            index = len(items)
            items.append(_Item(f"fc_{self._request_id}_{index}", index, call.arguments, call.name, call.id))
        status = _status(done)
        return orjson.dumps(self._response(status, _items(items, status), done))

    def error(self, error: ApiError) -> bytes:
        """The typed event, with OpenAI's error object beside it, which clients of every kind know."""
        return self._event("error", code=error.code, message=error.message, param=error.param, **error.body())

    def _call(self, call: ToolDelta) -> bytes:
        out = b""
        if call.index != self._call_index:
            self._call_index = call.index
            index = len(self._items)
            item = _Item(f"fc_{self._request_id}_{index}", index, name=call.name or "", call_id=call.id or "")
            out += self._begin_item(item)
        if call.arguments and self._open is not None:
            self._open.text += call.arguments
            out += self._of_item("response.function_call_arguments.delta", delta=call.arguments)
        return out

    def _begin_item(self, item: _Item) -> bytes:
        out = self._close_item()
        self._items.append(item)
        self._open = item
        out += self._event("response.output_item.added", output_index=item.index, item=item.json("in_progress"))
        if not item.name:
            out += self._of_item("response.content_part.added", content_index=0, part=_Item("", 0).part())
        return out

    def _close_item(self, status: str = "completed") -> bytes:
        item = self._open
        if item is None:
            return b""
        if item.name:
            out = self._of_item("response.function_call_arguments.done", name=item.name, arguments=item.text)
        else:
            item.logprobs += self._logprobs  # of what a stop string took
            out = self._of_item(
                "response.output_text.done", content_index=0, text=item.text, logprobs=item.logprobs
            ) + self._of_item("response.content_part.done", content_index=0, part=item.part())
        self._open = None
        return out + self._event("response.output_item.done", output_index=item.index, item=item.json(status))

    def _of_item(self, type_: str, **fields: Any) -> bytes:
        assert self._open is not None
        return self._event(type_, item_id=self._open.id, output_index=self._open.index, **fields)

    def _event(self, type_: str, **fields: Any) -> bytes:
        data = orjson.dumps({"type": type_, "sequence_number": self._sequence, **fields})
        self._sequence += 1
        return b"event: " + type_.encode() + b"\ndata: " + data + b"\n\n"

    def _response(self, status: str, output: list[dict[str, Any]], done: Done | None) -> dict[str, Any]:
        echo = self._echo
        return {
            "id": f"resp_{self._request_id}",
            "object": "response",
            "created_at": self._created_s,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": echo.instructions,
            "max_output_tokens": echo.max_output_tokens,
            "metadata": echo.metadata,
            "model": echo.model,
            "output": output,
            "parallel_tool_calls": echo.parallel_tool_calls,
            "previous_response_id": None,
            "store": False,
            "temperature": echo.temperature,
            "text": echo.text,
            "tool_choice": echo.tool_choice,
            "tools": echo.tools,
            "top_p": echo.top_p,
            "truncation": "disabled",
            "usage": None if done is None else _usage(done),
        }


def _status(done: Done) -> str:
    return "incomplete" if done.finishes[0] == "length" else "completed"


def _items(items: list[_Item], status: str) -> list[dict[str, Any]]:
    """Only the last one can have been cut off."""
    return [item.json("completed") for item in items[:-1]] + [item.json(status) for item in items[-1:]]


def _usage(done: Done) -> dict[str, Any]:
    """`cost` is what was charged, as in x-shiver-cost, which a stream's head cannot know."""
    input_tokens = done.prompt_tokens + done.image_tokens
    return {
        "input_tokens": input_tokens,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": done.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": input_tokens + done.completion_tokens,
        "cost": done.cost,
    }
