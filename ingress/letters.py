"""The job that a node is sent for a chat."""

from __future__ import annotations

import time

from ingress.chat import Chat
from schemas import replies
from schemas.jobs import Job


def job(
    chat: Chat,
    model: str,
    *,
    request_id: str,
    attempt: int,
    owner: str,
    lane: str,
    max_tokens: int,
    deadline_s: float,
) -> Job:
    """To be claimed from now on, and done `deadline_s` from now; `model` is what serves it, by its own name."""
    now_ms = int(time.time() * 1000)
    return Job(
        request_id=request_id,
        attempt=attempt,
        owner=owner,
        lane=lane,
        model=model,
        task=chat.task,
        messages=chat.messages,
        prompts=chat.prompts,
        images=chat.images,
        tools=chat.tools,
        tool_choice=chat.tool_choice,
        parallel_tool_calls=chat.parallel_tool_calls,
        response_format=chat.response_format,
        sampling=chat.sampling,
        stop=chat.stop,
        max_tokens=max_tokens,
        n=chat.n,
        logprobs=chat.logprobs,
        echo=chat.echo,
        dimensions=chat.dimensions,
        expires_at_ms=now_ms + int(replies.claim_timeout_s(len(chat.images)) * 1000),
        deadline_at_ms=now_ms + int(deadline_s * 1000),
    )
