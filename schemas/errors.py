"""The one table of what an API call can be refused with: code, HTTP status, OpenAI's error type, and
whether a retry can help.

Checks are made in the table's order where more than one would apply: size, key, form, model, limits, money, node.
"""

from __future__ import annotations

from typing import NamedTuple


class ErrorRow(NamedTuple):
    """`retry_after_s` is the default wait to suggest; None where waiting does not help."""

    status: int
    type: str
    message: str
    retry_after_s: int | None = None


TABLE: dict[str, ErrorRow] = {
    "request_too_large": ErrorRow(413, "invalid_request_error", "The request body is larger than 1 MiB."),
    "missing_api_key": ErrorRow(401, "authentication_error", "No API key: send Authorization: Bearer shvr_..."),
    "conflicting_api_keys": ErrorRow(
        400, "invalid_request_error", "Authorization and X-API-Key hold two different keys: send one."
    ),
    "invalid_api_key": ErrorRow(401, "authentication_error", "This API key is not known."),
    "revoked_api_key": ErrorRow(401, "authentication_error", "This API key was revoked."),
    "invalid_json": ErrorRow(400, "invalid_request_error", "The body is not valid JSON."),
    "invalid_request": ErrorRow(400, "invalid_request_error", "The request is malformed."),
    "unsupported_parameter": ErrorRow(400, "invalid_request_error", "A parameter is not supported here."),
    "invalid_schema": ErrorRow(400, "invalid_request_error", "A JSON schema is malformed or not supported."),
    "invalid_image": ErrorRow(400, "invalid_request_error", "An image cannot be read."),
    "invalid_image_url": ErrorRow(400, "invalid_request_error", "An image cannot be fetched from its URL."),
    "model_cannot": ErrorRow(400, "invalid_request_error", "This model cannot do what is asked for."),
    "model_not_found": ErrorRow(400, "invalid_request_error", "No such model: GET /v1/models lists them."),
    "context_length_exceeded": ErrorRow(400, "invalid_request_error", "The prompt is longer than the model's context."),
    "open_request_cap": ErrorRow(409, "rate_limit_error", "This key has its greatest number of requests open.", 1),
    "insufficient_balance": ErrorRow(402, "insufficient_quota", "The wallet's balance does not cover this request."),
    "daily_cap_exceeded": ErrorRow(402, "insufficient_quota", "The sandbox's daily cap is used up until 00:00 UTC."),
    "no_provider_available": ErrorRow(503, "api_error", "No node can serve this model now.", 2),
    "provider_failed": ErrorRow(503, "api_error", "The node failed before the first token.", 1),
    "provider_lost": ErrorRow(503, "api_error", "The node failed while it was answering; the answer is incomplete."),
    "deadline_exceeded": ErrorRow(503, "api_error", "The request ran into its deadline.", 5),
    "ledger_unavailable": ErrorRow(503, "api_error", "The ledger cannot take the request now.", 5),
    "database_unavailable": ErrorRow(503, "api_error", "Admission cannot be decided now.", 5),
    "catching_up": ErrorRow(503, "api_error", "The books are catching up after a restart.", 2),
    "not_found": ErrorRow(404, "invalid_request_error", "No such path."),
    "method_not_allowed": ErrorRow(405, "invalid_request_error", "This path does not take that method."),
    "internal_error": ErrorRow(500, "api_error", "Something went wrong here; the request id finds it in the logs."),
}


class ApiError(Exception):
    """A refusal that the client is told, by its code in TABLE. `param` names the field at fault."""

    def __init__(
        self, code: str, message: str | None = None, *, param: str | None = None, retry_after_s: int | None = None
    ) -> None:
        self.code = code
        self.row = TABLE[code]
        self.message = message or self.row.message
        self.param = param
        self.retry_after_s = self.row.retry_after_s if retry_after_s is None else retry_after_s
        super().__init__(f"{code}: {self.message}")

    def body(self) -> dict[str, dict[str, str | None]]:
        """OpenAI's error object."""
        return {"error": {"message": self.message, "type": self.row.type, "param": self.param, "code": self.code}}
