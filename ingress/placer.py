"""Finds a request's place: its wish, a reserved slot of a node that fits it, and what is held for it meanwhile."""

from __future__ import annotations

from ingress import placing
from ingress.admission import Admission, Ask
from ingress.catalog import Catalog, Model
from ingress.chat import Chat
from ingress.metering import hold_bound_nano
from ingress.placing import Wish
from ingress.router import Place, Router
from schemas.errors import ApiError
from schemas.event_base import Asset
from schemas.keys import ApiKey

#: How long a request may wait for a free slot of a living node before it is told 503.
NODE_WAIT_S = 10.0
#: Bounds the hold of a request that waits for the first node of its model.
CONTEXT_UNKNOWN_TOKENS = 4096


class Placer:
    """Of one ingress, whose boot id is `owner`."""

    def __init__(self, owner: str, admission: Admission, catalog: Catalog, router: Router) -> None:
        self._owner = owner
        self._admission = admission
        self._catalog = catalog
        self._router = router

    async def wish(self, chat: Chat) -> Wish:
        """What the request wishes of who serves it.

        Raises ApiError: model_not_found, model_cannot, invalid_request, database_unavailable.
        """
        return placing.wish(chat, await self._catalog.offers())

    async def trace(self, chat: Chat) -> str:
        """Which nodes its wish leaves now, in words. Raises as `wish`."""
        return (await self.wish(chat)).trace(self._router.living())

    async def place(self, request_id: str, key: ApiKey, chat: Chat, wish: Wish, *, counted: bool) -> Place:
        place = self._router.reserve(wish)
        if place is None:
            # Whoever would be refused anyway is told so at once, and does not stand in the queue.
            await self.would_admit(request_id, key, chat, wish, counted=counted)
            place = await self._router.wait(wish, NODE_WAIT_S)
        if place is None:
            raise self._nobody(wish)
        return place

    async def would_admit(self, request_id: str, key: ApiKey, chat: Chat, wish: Wish, *, counted: bool) -> None:
        """Raises ApiError where a request of this key would be refused whatever node took it."""
        models = wish.priced(wish.first)
        names = tuple(model.name for model in models)
        ask = Ask(request_id, key, self.holds_nano(chat, models), self._owner, "", names, "", 0, counted)
        await self._admission.admit(ask, dry_run=True)

    def holds_nano(self, chat: Chat, models: tuple[Model, ...], place: Place | None = None) -> dict[Asset, int]:
        """The most that the dearest of the models can cost, in each asset that a wallet may have."""
        contexts = {
            model.name: self._router.context_tokens(model.name) or model.context_tokens or CONTEXT_UNKNOWN_TOKENS
            for model in models
        }
        if place is not None:
            contexts[place.model.name] = place.context_tokens
        return {
            asset: max(hold_bound_nano(chat, model.prices[asset], contexts[model.name]) for model in models)
            for asset in placing.ASSETS
        }

    def _nobody(self, wish: Wish) -> ApiError:
        living = self._router.living()
        if wish.upstream_lacks_key(living):
            return ApiError("provider_upstream_not_configured")
        if wish.places(living):
            told, wait_s = "all slots are busy", self._router.wait_estimate_s()
        elif any(model.name in node.models for model in (*wish.auto, *wish.models) for node in living):
            told, wait_s = "no node is left", 0  # as long as the nodes and the wish are the same
        else:
            told, wait_s = "no node that serves it is online", None
        message = f"No node can take this request now: {told} ({wish.trace(living)})."
        return ApiError("no_provider_available", message, retry_after_s=wait_s)
