"""POST /v1/sessions: with a key that a server holds, a short-lived token that a browser may hold.

What a session may do, and until when, is decided in admission (`state.admit`); here it is only asked for and told.
"""

from __future__ import annotations

import re
import secrets
from typing import Annotated, Any

import orjson
from fastapi import FastAPI, Request
from pydantic import ConfigDict, Field
from starlette.responses import Response

from ingress.auth import key_of
from ingress.bootstrap import Ingress
from ingress.dialects.forms import INTEGRAL, Form, read_form
from ingress.serve import check_length, read_body
from schemas import keys
from schemas.errors import ApiError

EXPIRES_IN_S_MIN, EXPIRES_IN_S_MAX = 60, 86_400
EXPIRES_IN_S = 600
MODELS_MAX = 64
ORIGINS_MAX = 16
#: As a browser writes it into the header Origin: no path, nothing in capitals.
ORIGIN = r"^[a-z][a-z0-9+.\-]{0,30}://([a-z0-9._\-]{1,253}|\[[0-9a-f:.]{2,45}\])(:[0-9]{1,5})?$"

_PORT_OF_SCHEME = re.compile(r"^(http://.*):80$|^(https://.*):443$")

Origin = Annotated[str, Field(pattern=ORIGIN)]
ModelName = Annotated[str, Field(min_length=1, max_length=200)]


class SessionRequest(Form):
    """Nothing is taken and ignored here: whoever believes to have set a limit must have set it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    expires_in: Annotated[int, Field(ge=EXPIRES_IN_S_MIN, le=EXPIRES_IN_S_MAX), INTEGRAL] = EXPIRES_IN_S
    models: Annotated[list[ModelName], Field(min_length=1, max_length=MODELS_MAX)] | None = None
    origins: Annotated[list[Origin], Field(min_length=1, max_length=ORIGINS_MAX)] | None = None


def add(app: FastAPI, ingress: Ingress) -> None:
    """Adds the call to the application."""

    async def open_session(request: Request) -> Response:
        check_length(request)
        key = key_of(request.headers)
        body = await read_body(request)
        if key.is_session:
            await ingress.admission.check_key(key, session_may=False)
        try:
            form = read_form(SessionRequest, body or b"{}")
            models = None if form.models is None else await _own_names(ingress, form.models)
        except ApiError:
            await ingress.admission.check_key(key)  # a body is only judged for a caller with a key
            raise
        origins = None if form.origins is None else sorted({_plain(origin) for origin in form.origins})
        text = keys.mint(keys.SESSION, secrets.token_bytes(keys.ENTROPY_BYTES))
        token = keys.parse(text)
        assert token is not None  # what mint makes, parse reads
        session = await ingress.admission.open_session(key, token, form.expires_in, models, origins)
        answer: dict[str, Any] = {
            "id": f"ses_{token.key_id}",
            "object": "session",
            "token": text,
            "created_at": session.expires_s - form.expires_in,
            "expires_at": session.expires_s,
            "models": session.models,
            "origins": origins,
        }
        return Response(orjson.dumps(answer), headers={"cache-control": "no-store"}, media_type="application/json")

    app.add_route("/v1/sessions", open_session, methods=["POST"])


async def _own_names(ingress: Ingress, names: list[str]) -> list[str]:
    """Each once, by the models' own names. Raises ApiError model_not_found."""
    offers = await ingress.catalog.offers()
    return list(dict.fromkeys(offers.find(name, "models").name for name in names))


def _plain(origin: str) -> str:
    """Without the port that its scheme has anyway: browsers leave that out."""
    match = _PORT_OF_SCHEME.match(origin)
    return origin if match is None else match[1] or match[2]
