"""Asks the ingress about itself, with the standard library alone."""

import json
import urllib.error
import urllib.request

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


def not_ready(base_url: str) -> list[str]:
    """What keeps the ingress from serving, in its own words; empty when it is ready.

    Raises Unreachable if it does not answer.
    """
    status, body = http_get(f"{base_url}/readyz")
    if status == 0:
        raise Unreachable(f"the ingress at {base_url} does not answer: {body}")
    if status == 200:
        return []
    try:
        return list(map(str, json.loads(body)["missing"]))
    except (ValueError, KeyError, TypeError):
        return [f"/readyz answers {status}: {body[:200]}"]
