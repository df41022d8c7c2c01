"""The routes beside the OpenAI form's: the models on offer, and the paths of the other dialects."""

from __future__ import annotations

from typing import Any

import orjson
from fastapi import FastAPI, Request
from starlette.convertors import StringConvertor, register_url_convertor
from starlette.responses import Response

from ingress.auth import given, key_of
from ingress.bootstrap import Ingress
from ingress.catalog import Model, Offers
from ingress.dialects import shadow, shreyansh
from ingress.serve import endpoint
from ledger.money import format_amount
from schemas.errors import ApiError

_TOKENS = 10**6


class _Any(StringConvertor):
    """The rest of a path, whatever is in it: Starlette's own `path` stops at a line's end."""

    regex = r"[\s\S]*"


register_url_convertor("any", _Any())


def add(app: FastAPI, ingress: Ingress) -> None:
    """Adds them to the application."""
    _add_models(app, ingress)
    app.add_route("/v3/chat/completions", endpoint(ingress, shreyansh), methods=["POST"])
    app.add_route("/v1/inference", endpoint(ingress, shadow), methods=["POST"])
    _add_shadow(app, ingress)


def _add_models(app: FastAPI, ingress: Ingress) -> None:
    @app.get("/v1/models")
    async def models(request: Request) -> Response:
        """The models on offer and their other names, in OpenAI's form with what we add. Needs no key."""
        given(request.headers)
        return _json(_list(await ingress.catalog.offers(), ingress))

    @app.get("/v3/models")
    async def models_v3(request: Request) -> Response:
        """The same list, for a caller with a key."""
        await ingress.admission.check_key(key_of(request.headers))
        return _json(_list(await ingress.catalog.offers(), ingress))

    # One route for both methods: a 405 then names both.
    @app.api_route("/v1/models/{name:any}", methods=["GET", "DELETE"])
    async def model(request: Request, name: str) -> Response:
        """One of them, by name or alias. Nobody but the operator removes one."""
        if request.method == "DELETE":
            await ingress.admission.check_key(key_of(request.headers))
            raise ApiError("models_read_only")
        given(request.headers)
        offers = await ingress.catalog.offers()
        try:
            return _json(_entry(offers.find(name), ingress, name))
        except ApiError as error:
            raise ApiError(error.code, error.message, status=404) from None


def _add_shadow(app: FastAPI, ingress: Ingress) -> None:
    @app.get("/v1/usage")
    async def usage(request: Request) -> Response:
        """What the key's wallet used in this UTC month, as far as the projection has read."""
        holder = await ingress.admission.check_key(key_of(request.headers), session_may=False)
        month, tokens = await ingress.admission.month_tokens(holder.wallet_id)
        return _json(shadow.usage(holder.owner_id, month, tokens))

    @app.get("/v1/health")
    async def health(request: Request) -> Response:
        """The process answers, and which model is used where none is named. Needs no key."""
        given(request.headers)
        return _json(shadow.HEALTH)


def _list(offers: Offers, ingress: Ingress) -> dict[str, Any]:
    data = [_entry(model, ingress, model.name) for model in offers.models.values()]
    for alias, name in offers.aliases.items():
        if alias not in offers.models and name in offers.models:
            data.append(_entry(offers.models[name], ingress, alias))
    return {"object": "list", "data": data}


def _entry(model: Model, ingress: Ingress, name: str) -> dict[str, Any]:
    """A model under this name. Its context is that of the nodes that serve it now; without any, what is published."""
    entry: dict[str, Any] = {
        "id": name,
        "object": "model",
        "created": model.created_s,
        "owned_by": model.owned_by,
        "context_window": ingress.router.context_tokens(model.name) or model.context_tokens,
        "modalities": {
            "input": ["text", "image"] if model.takes_images else ["text"],
            "output": ["embedding"] if model.kind == "embedding" else ["text"],
        },
        "pricing": {
            asset: {
                "input": format_amount(price.in_nano * _TOKENS),
                "output": format_amount(price.out_nano * _TOKENS),
                "unit": "1M tokens",
            }
            for asset, price in model.prices.items()
        },
        "nodes_online": len(ingress.router.living(model.name)),
    }
    return entry if name == model.name else {**entry, "alias_of": model.name}


def _json(data: Any) -> Response:
    return Response(orjson.dumps(data), media_type="application/json")
