"""The one table of what an API call can be refused with. `infra/docs/errors.md` shows it; a test compares the two.

Checks are made in the table's order where more than one would apply: size, key, form, model, limits, money, node.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

#: The surfaces that errors are written on: OpenAI's body on /v1, and those of the adapters.
Surface = Literal["v1", "v3", "inference"]


class ErrorRow(NamedTuple):
    """`status` is that of /v1; `v3` and `inference` only where theirs differs.

    `retryable`: the same request may succeed when it is sent again. `retry_after_s` is the wait that is suggested where
    whoever raises the error has no better estimate; None where waiting is not what helps.
    """

    status: int
    type: str
    message: str
    retryable: bool = False
    retry_after_s: int | None = None
    v3: int | None = None
    inference: int | None = None

    def status_on(self, surface: Surface) -> int:
        own = {"v1": None, "v3": self.v3, "inference": self.inference}[surface]
        return self.status if own is None else own


_FORM = "invalid_request_error"
_KEY = "authentication_error"
_LIMIT = "rate_limit_error"
_MONEY = "insufficient_quota"
_OURS = "api_error"
_BARRED = "permission_error"

TABLE: dict[str, ErrorRow] = {
    "head_too_large": ErrorRow(431, _FORM, "The request's head is larger than 64 KiB."),
    "request_timeout": ErrorRow(408, _FORM, "The request body did not come in time.", retryable=True, retry_after_s=1),
    "request_too_large": ErrorRow(413, _FORM, "The request body is larger than 1 MiB."),
    "missing_api_key": ErrorRow(401, _KEY, "No API key: send Authorization: Bearer shvr_..., or X-API-Key."),
    "conflicting_api_keys": ErrorRow(400, _FORM, "Authorization and X-API-Key hold two different keys: send one."),
    "invalid_api_key": ErrorRow(401, _KEY, "This API key is not known."),
    "revoked_api_key": ErrorRow(401, _KEY, "This API key was revoked."),
    "session_expired": ErrorRow(401, _KEY, "This session is over, or was never opened: POST /v1/sessions opens one."),
    "session_not_allowed": ErrorRow(403, _BARRED, "A session may not do this: it takes the API key itself."),
    "origin_not_allowed": ErrorRow(403, _BARRED, "This session is not for the page that sent it."),
    "not_found": ErrorRow(404, _FORM, "No such path."),
    "method_not_allowed": ErrorRow(405, _FORM, "This path does not take that method."),
    "invalid_json": ErrorRow(400, _FORM, "The body is not valid JSON.", inference=422),
    "invalid_request": ErrorRow(400, _FORM, "The request is malformed.", inference=422),
    "unsupported_parameter": ErrorRow(400, _FORM, "A parameter is not supported here.", inference=422),
    "model_not_found": ErrorRow(400, _FORM, "No such model: GET /v1/models lists them.", v3=404, inference=422),
    "context_length_exceeded": ErrorRow(
        400, _FORM, "The prompt is longer than the model's context.", inference=422
    ),
    "invalid_schema": ErrorRow(400, _FORM, "A JSON schema is malformed or not supported.", inference=422),
    "invalid_image": ErrorRow(400, _FORM, "An image cannot be read.", inference=422),
    "invalid_image_url": ErrorRow(400, _FORM, "An image cannot be fetched from its URL.", inference=422),
    "model_cannot": ErrorRow(400, _FORM, "This model cannot do what is asked for.", inference=422),
    "model_not_allowed": ErrorRow(403, _BARRED, "This key may not use that model."),
    "models_read_only": ErrorRow(403, _BARRED, "Models are set by the operator; the API cannot remove one."),
    "rate_limit_exceeded": ErrorRow(429, _LIMIT, "Too many requests a minute.", retryable=True, retry_after_s=10),
    "monthly_tokens_exceeded": ErrorRow(429, _LIMIT, "The month's tokens are used up.", retryable=True),
    "session_cap": ErrorRow(
        429, _LIMIT, "This key has its greatest number of sessions.", retryable=True, retry_after_s=60
    ),
    "open_request_cap": ErrorRow(
        409, _LIMIT, "This key has its greatest number of requests open.", retryable=True, retry_after_s=1, v3=429,
        inference=429,
    ),
    "daily_cap_exceeded": ErrorRow(
        402, _MONEY, "The sandbox's daily cap is used up until 00:00 UTC.", retryable=True
    ),
    "insufficient_balance": ErrorRow(402, _MONEY, "The wallet's balance does not cover this request."),
    "no_provider_available": ErrorRow(503, _OURS, "No node can serve this now.", retryable=True, retry_after_s=2),
    "provider_upstream_not_configured": ErrorRow(
        503, _OURS, "The only engine of this model is an upstream that has no key."
    ),
    "all_providers_failed": ErrorRow(
        500, _OURS, "Every node that was tried failed before the first token.", retryable=True, retry_after_s=1,
        inference=502,
    ),
    "provider_lost": ErrorRow(
        500, _OURS, "The node failed while it was answering; the answer is incomplete.", retryable=True, inference=502
    ),
    "deadline_exceeded": ErrorRow(503, _OURS, "The request ran into its deadline.", retryable=True, retry_after_s=5),
    "ledger_unavailable": ErrorRow(503, _OURS, "The ledger cannot take it now.", retryable=True, retry_after_s=5),
    "database_unavailable": ErrorRow(503, _OURS, "Admission cannot be decided now.", retryable=True, retry_after_s=5),
    "catching_up": ErrorRow(
        503, _OURS, "The books are catching up after a restart.", retryable=True, retry_after_s=2
    ),
    "internal_error": ErrorRow(500, _OURS, "Something went wrong here; the request id finds it in the logs."),
}  # fmt: skip


class ApiError(Exception):
    """A refusal that the client is told, by its code in TABLE.

    `param` names the field at fault; `retry_after_s` stands in for the table's wait, 0 for none; `status` stands in for
    the table's where a path has its own; `headers` go out with it.
    """

    def __init__(
        self,
        code: str,
        message: str | None = None,
        *,
        param: str | None = None,
        retry_after_s: int | None = None,
        status: int | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        self.code = code
        self.row = TABLE[code]
        self.message = message or self.row.message
        self.param = param
        wait_s = self.row.retry_after_s if retry_after_s is None else retry_after_s
        self.retry_after_s = wait_s or None
        self.headers = headers or {}
        self._status = status
        super().__init__(f"{code}: {self.message}")

    def status_on(self, surface: Surface) -> int:
        return self.row.status_on(surface) if self._status is None else self._status

    def body(self) -> dict[str, dict[str, str | None]]:
        """OpenAI's error object."""
        return {"error": {"message": self.message, "type": self.row.type, "param": self.param, "code": self.code}}
