"""The whole /v1 surface over a scripted core: no Kafka, no PostgreSQL, no node, so that clients can be tried in ms.

What it answers follows from the request alone: words, calls with the arguments that a schema asks for, JSON, vectors.
`python -m tests.unit.v1_kit PORT` serves it, for trying a client by hand; any well-formed key is taken.
"""

from __future__ import annotations

import asyncio
import base64
import json
import struct
import sys
from collections import deque
from types import SimpleNamespace
from typing import Any

from fastapi import FastAPI

from ingress import placing
from ingress.app import create_app
from ingress.catalog import Model, Offers
from ingress.chat import Chat, Piece
from ingress.failures import ClientGone
from schemas.errors import ApiError
from schemas.events import How, ModelPrice
from schemas.jobs import JsonSchema, NamedTool
from schemas.keys import ENTROPY_BYTES, mint
from schemas.replies import Alternative, TokenLogprob, ToolDelta

KEY = mint("pro", b"0" * ENTROPY_BYTES)
WORDS = ("The ", "shark ", "swims.")


class ScriptedRequest:
    """An open request that says what its chat asks for; `ended` is how it ended and what had been delivered."""

    def __init__(self, request_id: str, chat: Chat) -> None:
        self.id = request_id
        self.chat = chat
        self.admitted = SimpleNamespace(payer="wallet:w", asset="SHIVER")
        self.headers = [(b"x-shiver-node", b"node_1"), (b"x-shiver-model", chat.model.encode())]
        self.prompt_tokens = 9
        self.image_tokens = 16 * len(chat.images)
        self.delivered_tokens = 0
        self.ended: list[tuple[How, int]] = []
        self.hang = False
        self.counted = True
        self._pieces = deque(pieces(chat))
        self._gone = asyncio.Event()

    async def read(self, timeout_s: float) -> Piece | None:
        if self._gone.is_set():
            raise ClientGone
        if self.hang and len(self._pieces) == 1:
            await self._gone.wait()
            raise ClientGone
        return self._pieces.popleft()

    def delivered(self, piece: Piece) -> None:
        self.delivered_tokens += piece.tokens

    def client_gone(self) -> None:
        self._gone.set()

    def free_node(self) -> None:
        pass

    async def finish(self, how: How) -> int:
        self.ended.append((how, self.delivered_tokens))
        return 1000 * self.delivered_tokens


def pieces(chat: Chat) -> list[Piece]:
    if chat.task == "embedding":
        vector = base64.b64encode(struct.pack("<2f", 0.6, 0.8)).decode()
        found = [Piece("", 3, choice=index, vector=vector) for index in range(len(chat.prompts))]
        return [*found, Piece("", 0, "stop", over=True)]
    said: list[Piece] = []
    finish = "stop"
    for choice in range(chat.n):
        if chat.max_tokens == 0:
            finish = "length"
        elif chat.tools and chat.tool_choice not in ("none", "auto"):
            tool = chat.tools[0]
            if isinstance(chat.tool_choice, NamedTool):
                tool = next(one for one in chat.tools if one.name == chat.tool_choice.name)
            arguments = json.dumps(sample(tool.parameters or {}))
            head = ToolDelta(index=0, id=f"call_{choice:024x}", name=tool.name)
            said.append(Piece("", 1, None, choice, (), (head,)))
            said.append(Piece("", 2, None, choice, (), (ToolDelta(index=0, arguments=arguments),)))
            finish = "tool_calls"
        elif chat.response_format is not None:
            form = chat.response_format
            value = sample(form.schema_) if isinstance(form, JsonSchema) else {"shark": 1}
            said.append(Piece(json.dumps(value), 3, None, choice))
        else:
            logprobs = chat.logprobs is not None
            said += [Piece(word, 1, None, choice, _logprobs(word, chat) if logprobs else ()) for word in WORDS]
        if chat.n > 1:
            said.append(Piece("", 0, finish, choice))
    return [*said, Piece("", 0, finish, over=True)]


def _logprobs(word: str, chat: Chat) -> tuple[TokenLogprob, ...]:
    one = Alternative(id=1, text=word, bytes=tuple(word.encode()), logprob=-0.1)
    return (TokenLogprob(**one.model_dump(), top=(one,) * (chat.logprobs or 0)),)


def sample(schema: Any) -> Any:
    """The smallest value that a plain schema takes."""
    if "enum" in schema:
        return schema["enum"][0]
    kind = schema.get("type", "object")
    if kind == "object":
        return {name: sample(one) for name, one in schema.get("properties", {}).items()}
    return {"string": "x", "integer": 1, "number": 1.5, "boolean": True, "array": [], "null": None}[kind]


class ScriptedCore:
    """Stands where the Ingress does. `requests` are all that were opened; `refuse` is raised instead of opening."""

    def __init__(self, *names: str) -> None:
        price = ModelPrice(model="m", in_nano=1, out_nano=1)
        models = {
            name: Model(name, "shiver", 7, "embedding" if "embed" in name else "chat", True, 1024, {"SHIVER": price})  # type: ignore[arg-type]
            for name in names or ("m", "embed")
        }
        self.offers = Offers(models, {}, {})
        self.requests: list[ScriptedRequest] = []
        self.refuse: ApiError | None = None
        self.hang = False
        self.dispatcher: Any = self
        self.placer: Any = self
        self.catalog: Any = SimpleNamespace(offers=self._offers)
        self.admission: Any = SimpleNamespace(check_key=self._check_key, month_tokens=self._month_tokens)
        self.router: Any = SimpleNamespace(context_tokens=lambda name: 1024, living=lambda name=None: [1])
        self.egress: Any = None

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def missing(self) -> list[str]:
        return []

    async def _offers(self) -> Offers:
        return self.offers

    async def _check_key(self, key: Any, *, session_may: bool = True) -> SimpleNamespace:
        return SimpleNamespace(wallet_id="w", owner_id="demo")

    async def _month_tokens(self, wallet_id: str) -> tuple[str, int]:
        return "2026-11", 7

    async def wish(self, chat: Chat) -> None:
        placing.wish(chat, self.offers)

    async def trace(self, chat: Chat) -> str:
        return "nodes online 1"

    async def open(self, request_id: str, key: Any, chat: Chat, *, counted: bool = True) -> ScriptedRequest:
        if self.refuse is not None:
            raise self.refuse
        request = ScriptedRequest(request_id, chat)
        request.counted = counted
        request.hang = self.hang
        self.requests.append(request)
        return request


def app(core: ScriptedCore) -> FastAPI:
    return create_app(core)  # type: ignore[arg-type]


def main() -> None:
    import uvicorn

    from ingress.egress import Egress

    core = ScriptedCore(*sys.argv[2:])
    core.egress = Egress()
    print(KEY, flush=True)
    uvicorn.run(app(core), host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")


if __name__ == "__main__":
    main()
