"""What a request is charged for: the tokens that were delivered to its client, counted here and not by the node."""

from __future__ import annotations

from typing import Any

from ingress.admission import Admitted, Ask
from ledger import rules
from schemas.events import How, ModelPrice, RequestFailed, Segment, UsageRecorded
from schemas.heartbeats import NodeHeartbeat

#: Upper bounds of what a chat template adds, in tokens: once, and for each message.
TEMPLATE_TOKENS = 32
MESSAGE_TOKENS = 16


def prompt_bound_tokens(messages: list[dict[str, Any]]) -> int:
    """No fewer tokens than any tokeniser can make of the messages: one for each UTF-8 byte, and the template's own."""
    total = TEMPLATE_TOKENS
    for message in messages:
        total += MESSAGE_TOKENS + sum(len(text.encode()) for text in _texts(message))
    return total


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
        self.key_id = ask.key.key_id
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

    def charge_nano(self, prompt_tokens: int, how: How) -> int:
        """What the accepted payer will be booked for, by the same rules as the ledger."""
        event = self.end_event(how, prompt_tokens, 0)
        if isinstance(event, RequestFailed):
            return 0
        return rules.charge_nano(self.price, event, self.hold_nano)

    def end_event(self, how: How, prompt_tokens: int, at_ms: int) -> UsageRecorded | RequestFailed:
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
            segments=(
                Segment(
                    node=self._node.node_id,
                    provider=self._node.provider_id,
                    attempt=self._attempt,
                    tokens=self.delivered,
                ),
            ),
        )
