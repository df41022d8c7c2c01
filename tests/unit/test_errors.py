"""The one table of errors: that it is sound, that the docs show it as it is, and how each surface writes it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from ingress.surfaces import refusal
from schemas.errors import TABLE, ApiError

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "infra" / "docs" / "errors.md"
_ROW = re.compile(r"\| `(\w+)` \| (\d+) \| (\d+) \| (\d+) \| (yes|no) \| (.+) \|")


def test_every_error_has_a_status_and_a_sentence() -> None:
    for code, row in TABLE.items():
        assert 400 <= row.status < 600, code
        assert row.message.endswith("."), code
        assert ApiError(code).body()["error"]["code"] == code
        assert row.retryable or row.retry_after_s is None, code
    # Waiting is what helps against every 503 but one.
    without = {code for code, row in TABLE.items() if row.status == 503 and row.retry_after_s is None}
    assert without == {"provider_upstream_not_configured"}


def test_the_docs_show_the_table_as_it_is() -> None:
    shown = [match.groups() for match in map(_ROW.fullmatch, DOCS.read_text().splitlines()) if match]
    assert shown == [
        (
            code,
            *(str(row.status_on(surface)) for surface in ("v1", "v3", "inference")),
            "yes" if row.retryable else "no",
            row.message,
        )
        for code, row in TABLE.items()
    ]


def test_every_code_is_raised_somewhere() -> None:
    """A row that nobody raises is a promise that nobody keeps."""
    told = ("surfaces.py", "openapi")  # what only tells of codes
    sources = [path.read_text() for path in (ROOT / "ingress").rglob("*.py") if not path.name.startswith(told)]
    raised = {code for code in TABLE if any(f'"{code}"' in source for source in sources)}
    assert set(TABLE) == raised


def test_dialects_decide_as_agreed() -> None:
    """dialects.md, "Where they disagree: decided"."""
    decided = {
        "model_not_found": (400, 404, 422),
        "open_request_cap": (409, 429, 429),
        "rate_limit_exceeded": (429, 429, 429),
        "monthly_tokens_exceeded": (429, 429, 429),
        "daily_cap_exceeded": (402, 402, 402),
        "insufficient_balance": (402, 402, 402),
        "no_provider_available": (503, 503, 503),
        "all_providers_failed": (500, 500, 502),
        "invalid_request": (400, 400, 422),
        "conflicting_api_keys": (400, 400, 400),
        "request_too_large": (413, 413, 413),
        "model_not_allowed": (403, 403, 403),
        "internal_error": (500, 500, 500),
    }
    for code, statuses in decided.items():
        assert tuple(TABLE[code].status_on(surface) for surface in ("v1", "v3", "inference")) == statuses, code


@pytest.mark.parametrize("code", sorted(TABLE))
def test_each_surface_writes_each_error(code: str) -> None:
    error = ApiError(code, param="p", retry_after_s=7, headers={"x-shiver-route": "r"})
    v1, v3, inference = (refusal(path, error) for path in ("/v1/chat", "/v3/chat/completions", "/v1/inference"))
    assert json.loads(v1.body) == error.body()
    own = json.loads(v3.body)["error"]
    assert set(own) == {"message", "type", "code"}
    assert own["code"] == v3.status == TABLE[code].status_on("v3")
    if v3.status == 429:
        assert own == {"message": "Rate limit exceeded", "type": "rate_limit_exceeded", "code": 429}
    assert json.loads(inference.body) == {"detail": TABLE[code].message, "code": code}
    for written in (v1, v3, inference):
        assert written.headers == {"retry-after": "7", "x-shiver-route": "r"}


def test_a_path_may_have_its_own_status_and_no_wait() -> None:
    assert refusal("/v1/models/x", ApiError("model_not_found", status=404)).status == 404
    assert refusal("/v1/chat", ApiError("no_provider_available", retry_after_s=0)).headers == {}
    assert refusal("/v1/chat", ApiError("no_provider_available")).headers == {"retry-after": "2"}
    # Siblings of the adapters' paths are OpenAI's.
    assert "error" in json.loads(refusal("/v1/models", ApiError("not_found")).body)
    assert "detail" in json.loads(refusal("/v1/usage", ApiError("not_found")).body)
