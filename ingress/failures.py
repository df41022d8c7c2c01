"""How an open request comes to grief, and what its client is told of it.

AttemptFailed    this node did not bring it to its end; before the first token another may
JobRejected      no node can run it
ClientGone       nobody reads the answer any more
"""

from __future__ import annotations

from schemas import replies
from schemas.errors import ApiError
from schemas.events import How


class AttemptFailed(Exception):
    """The node did not bring the answer to its end; `how` is how the request ends if nobody else does."""

    def __init__(self, how: How, detail: str) -> None:
        self.how = how
        super().__init__(detail)


class JobRejected(Exception):
    """The job cannot be run by any node; `error` is what the client is told."""

    def __init__(self, error: ApiError) -> None:
        self.error = error
        super().__init__(error.message)


def failure_of(reply: replies.End | replies.Rejected | replies.Failed) -> Exception:
    if isinstance(reply, replies.Rejected):
        code, param = _REJECTIONS[reply.code]
        return JobRejected(ApiError(code, reply.detail or "The model does not take this request.", param=param))
    if isinstance(reply, replies.Failed) and reply.code == "deadline":
        return AttemptFailed(How.DEADLINE, "the deadline has passed")
    return AttemptFailed(How.NODE_DIED, f"the node answered {getattr(reply, 'code', 'cancelled')}")


_REJECTIONS: dict[str, tuple[str, str | None]] = {
    "context_too_long": ("context_length_exceeded", "messages"),
    "bad_template": ("invalid_request", "messages"),
    "bad_job": ("invalid_request", None),
    "bad_schema": ("invalid_schema", None),
    "bad_image": ("invalid_image", "messages"),
    "unsupported": ("model_cannot", "model"),
}


class ClientGone(Exception):
    """The client closed its connection; nobody reads the answer any more."""
