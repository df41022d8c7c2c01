"""What a request is charged for: the tokens that were delivered to its client, counted here and not by the node."""

from __future__ import annotations

import json
from typing import Any

from ingress.admission import Admitted, Ask
from ingress.chat import Chat
from ledger import rules
from schemas.events import How, ModelPrice, RequestFailed, Segment, UsageRecorded
from schemas.heartbeats import NodeHeartbeat
from schemas.jobs import Prompt

#: Upper bounds of what a chat template adds, in tokens: once, for each message, for tools as such and for each, for an
#: answer in JSON.
TEMPLATE_TOKENS = 32
MESSAGE_TOKENS = 16
TOOLS_TOKENS = 512
TOOL_TOKENS = 32
FORMAT_TOKENS = 256
MAX_TOKENS_DEFAULT = 4096


def prompt_bound_tokens(chat: Chat) -> int:
    """No fewer tokens than any tokeniser can make of the text: one for each UTF-8 byte, and the template's own."""
    if chat.prompts:
        return sum(_prompt_bound_tokens(prompt) for prompt in chat.prompts)
    total = TEMPLATE_TOKENS
    for message in chat.messages:
        total += MESSAGE_TOKENS + sum(len(text.encode()) for text in _texts(message))
    if chat.tools:
        total += TOOLS_TOKENS + sum(TOOL_TOKENS + _json_bytes(tool.model_dump()) for tool in chat.tools)
    if chat.response_format is not None:
        total += FORMAT_TOKENS + _json_bytes(chat.response_format.model_dump())
    return total


def budget_tokens(chat: Chat, context_tokens: int) -> int:
    """The most tokens of one choice; an embedding has its input's."""
    if chat.task == "embedding":
        return max(1, prompt_bound_tokens(chat))
    return min(MAX_TOKENS_DEFAULT if chat.max_tokens is None else chat.max_tokens, context_tokens)


def hold_bound_nano(chat: Chat, price: ModelPrice, context_tokens: int) -> int:
    """The most that the request can cost: prompt, images and budget, each capped by the context."""
    prompts = chat.prompts or ("",)
    if len(prompts) > 1:
        prompt = sum(min(_prompt_bound_tokens(one), context_tokens) for one in prompts)
    else:
        prompt = min(prompt_bound_tokens(chat), context_tokens)
    image = price.image_factor * min(chat.image_bound_tokens, context_tokens)
    out = prompt if chat.task == "embedding" else budget_tokens(chat, context_tokens) * chat.n
    return price.in_nano * (prompt + image) + price.out_nano * out


def _prompt_bound_tokens(prompt: Prompt) -> int:
    return TEMPLATE_TOKENS + (len(prompt.encode()) if isinstance(prompt, str) else len(prompt))


def _json_bytes(value: Any) -> int:
    """As the most wasteful template writes it: indented, and with escapes for what is not ASCII."""
    return len(json.dumps(value, indent=4))


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for item in value.values() for text in _texts(item)]
    if isinstance(value, list):
        return [text for item in value for text in _texts(item)]
    return []


class Meter:
    """Counts one request's delivered tokens and writes its last event."""

    def __init__(self, ask: Ask, admitted: Admitted, price: ModelPrice, node: NodeHeartbeat) -> None:
        self.key_id = admitted.key_id
        self.hold_nano = admitted.hold_nano
        self.price = price
        self.delivered = 0
        self._request_id = ask.request_id
        self._admitted = admitted
        self._node = node
        self._attempt = 1

    def move(self, price: ModelPrice, node: NodeHeartbeat, attempt: int) -> None:
        """Another node serves it now, before the first token."""
        self.price, self._node, self._attempt = price, node, attempt

    def charge_nano(self, prompt_tokens: int, image_tokens: int, how: How) -> int:
        """What the accepted payer will be booked for, by the same rules as the ledger."""
        event = self.end_event(how, prompt_tokens, image_tokens, 0)
        if isinstance(event, RequestFailed):
            return 0
        return rules.charge_nano(self.price, event, self.hold_nano)

    def end_event(self, how: How, prompt_tokens: int, image_tokens: int, at_ms: int) -> UsageRecorded | RequestFailed:
        """`usage.recorded` where any token was delivered, else `request.failed`."""
        if not self.delivered:
            failed = How.ZERO_TOKENS if how in (How.STOP, How.LENGTH, How.TOOL_CALLS) else how
            return RequestFailed(
                wallet=self._admitted.wallet_id, at_ms=at_ms, request_id=self._request_id, epoch=1, how=failed
            )
        return UsageRecorded(
            wallet=self._admitted.wallet_id,
            at_ms=at_ms,
            request_id=self._request_id,
            epoch=1,
            how=how,
            model=self.price.model,
            prompt_tokens=prompt_tokens,
            image_tokens=image_tokens,
            segments=(
                Segment(
                    node=self._node.node_id,
                    provider=self._node.provider_id,
                    attempt=self._attempt,
                    tokens=self.delivered,
                ),
            ),
        )
