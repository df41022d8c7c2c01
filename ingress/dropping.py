"""An alias may drop parameters: they are taken out before the request is read, and named as ignored.

For clients that send by themselves what their user never asked for. Which name a request asks for only its form knows,
so it is read first as it is, and only under such a name a second time, without them; others are spared all but a
look-up. A value that the form would refuse is no hindrance where it is dropped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ingress.chat import Asked, Dialect
from ingress.dialects import forms
from schemas.errors import ApiError


def parse(dialect: Dialect, body: bytes, headers: Mapping[str, str], drops: Mapping[str, frozenset[str]]) -> Asked:
    """As `dialect.parse`, whose errors it raises; `drops` has the parameters by alias, of those that drop any.

    Under x-shiver-strict a parameter that would be dropped is refused, as all that is ignored.
    """
    try:
        asked = dialect.parse(body, headers)
    except ApiError:
        data = _object(body) if drops else {}
        name = data.get("model")
        if not isinstance(name, str) or name not in drops:
            raise
    else:
        name = asked.chat.model
        if name not in drops:
            return asked
        data = _object(body)
    dropped = forms.ignored_names((one for one in sorted(drops[name]) if data.get(one) is not None), headers)
    kept = {key: value for key, value in data.items() if key not in drops[name]}
    asked = dialect.parse(json.dumps(kept).encode(), headers)
    return asked._replace(ignored=(*dropped, *asked.ignored))


def _object(body: bytes) -> dict[str, Any]:
    """With Python's own reader: whole numbers of any size stay what they are. Raises ApiError invalid_json."""
    try:
        data = json.loads(body.decode())
    except (ValueError, RecursionError):
        raise ApiError("invalid_json") from None
    return data if isinstance(data, dict) else {}
