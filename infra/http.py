"""Asks the ingress about itself, with the standard library alone."""

import json
import urllib.error
import urllib.request
from typing import Any

from infra.errors import Unreachable

_TIMEOUT_S = 1.5
_BODY_BYTES_MAX = 65_536


def http_get(url: str) -> tuple[int, str]:
    """Status and body; status 0 and the reason where nothing answers in time."""
    # No proxy from the environment: this is our own loopback.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=_TIMEOUT_S) as answer:
            return answer.status, answer.read(_BODY_BYTES_MAX).decode(errors="replace")
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(_BODY_BYTES_MAX).decode(errors="replace")
    except OSError as error:
        return 0, str(getattr(error, "reason", error))


def readiness(base_url: str) -> dict[str, Any]:
    """What /readyz says, as a dict, with its HTTP `status`. Raises Unreachable if the ingress does not answer."""
    status, body = http_get(f"{base_url}/readyz")
    if status == 0:
        raise Unreachable(f"the ingress at {base_url} does not answer: {body}")
    try:
        told = json.loads(body)
    except ValueError:
        told = {"answer": body[:200]}
    return {"status": status, **(told if isinstance(told, dict) else {"answer": told})}
