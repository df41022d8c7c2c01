"""What a request wishes of the node and the model that serve it, and why nobody was left.

Constraints are hard and filter; `tier` only ranks. `model: "auto"` means any model that can do what the request needs,
and `fallback_models` are tried in their order after the model itself.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from ingress.catalog import Model, Offers
from ingress.chat import Chat, Routing
from ingress.metering import prompt_bound_tokens
from ingress.router import Node, Place
from schemas.errors import ApiError
from schemas.event_base import Asset
from schemas.heartbeats import Modality, ServedModel
from schemas.ids import hoster_id

AUTO = "auto"
FALLBACKS_MAX = 8  # request.accepted has room for nine prices
TRUST_DEFAULT = 0.5
TRUST_ABOVE = 0.8
#: The engine of a node that asks somebody else's API.
UPSTREAM = "upstream"
#: Fewest UTF-8 bytes that a token usually has: a prompt shorter than its bound by this much most likely fits.
BYTES_A_TOKEN = 4
ASSETS: tuple[Asset, ...] = ("SHIVER", "USDC")

_NEVER_MS = 10**9


class Constraint(NamedTuple):
    """Keeps a node for a model. Its name is the field that the caller set, or what the request needs."""

    name: str
    keeps: Callable[[Place], bool]


@dataclass(frozen=True, slots=True)
class Wish:
    """`models` in order; of `auto` any, by tier, and before those. `tried` are nodes that have failed the request.
    `choices` is how many answers a node would make at once."""

    models: tuple[Model, ...]
    auto: tuple[Model, ...]
    tier: str | None
    constraints: tuple[Constraint, ...]
    needs: tuple[Constraint, ...]  # of a model that the caller did not choose
    bound_tokens: int
    choices: int = 1
    tried: frozenset[str] = frozenset()

    def places(self, nodes: Iterable[Node]) -> Sequence[Place]:
        """Those that may serve, the best first; see `ingress.router.Wish`."""
        nodes = [node for node in nodes if node.beat.node_id not in self.tried]
        found = self._kept(self.auto, nodes, (*self.needs, *self.constraints))
        found = self._ranked(found, lambda place: place.context_tokens < self.bound_tokens)
        for model in self.models:
            kept = self._kept((model,), nodes, self.constraints)
            found += kept if self.tier is None else self._ranked(kept, lambda _: False)
        return found

    @property
    def first(self) -> Model:
        """What would serve if all were free and alike; of "auto" the cheapest."""
        return min(self.auto, key=lambda model: model.cheapness) if self.auto else self.models[0]

    def priced(self, chosen: Model) -> tuple[Model, ...]:
        """All that may serve the request once `chosen` does: for the hold, and for the prices of its accept."""
        return self.models if chosen in self.models else (chosen, *self.models)

    def settled(self, chosen: Model) -> Wish:
        """The wish for another node once `chosen` was accepted: no model whose price the accept does not have."""
        return replace(self, auto=(chosen,) if chosen in self.auto else ())

    def upstream_lacks_key(self, nodes: Sequence[Node]) -> bool:
        """True where somebody serves it, and all who do are upstreams without a key."""
        served = [_served(place) for model in (*self.auto, *self.models) for place in _serving(model, nodes)]
        return bool(served) and not any(one.configured for one in served)

    def without(self, node_id: str) -> Wish:
        return replace(self, tried=self.tried | {node_id})

    def trace(self, nodes: Sequence[Node]) -> str:
        """For each model, how many nodes serve it and how many each constraint took away, in the constraints' order."""
        nodes = [node for node in nodes if node.beat.node_id not in self.tried]
        lines = [_trace(model, nodes, (*self.needs, *self.constraints)) for model in self.auto]
        lines += [_trace(model, nodes, self.constraints) for model in self.models]
        failed = f"; tried in vain {len(self.tried)}" if self.tried else ""
        return f"nodes online {len(nodes)}{failed}; " + "; ".join(lines)

    def _kept(self, models: Iterable[Model], nodes: list[Node], constraints: Sequence[Constraint]) -> list[Place]:
        places = [place for model in models for place in _serving(model, nodes) if _served(place).configured]
        if not constraints:
            return places
        return [place for place in places if all(constraint.keeps(place) for constraint in constraints)]

    def _ranked(self, places: list[Place], last: Callable[[Place], bool]) -> list[Place]:
        """By tier; `last` are behind all others. Where nothing decides, the node that was heard of last."""
        prices = {price: rank for rank, price in enumerate(sorted({place.model.cheapness for place in places}))}
        waits = {wait: rank for rank, wait in enumerate(sorted({_wait_ms(place) for place in places}))}

        def key(place: Place) -> tuple[bool, int, int]:
            price, wait = prices[place.model.cheapness], waits[_wait_ms(place)]
            by_tier = {"cheapest": (price, wait), "fastest": (wait, price), "balanced": (price + wait, price)}
            return last(place), *by_tier.get(self.tier or "", (price, 0))

        return sorted(places, key=key)


def wish(chat: Chat, offers: Offers) -> Wish:
    """What `chat` wishes. Raises ApiError: model_not_found, model_cannot, invalid_request."""
    routing = chat.routing
    if len(routing.fallback_models) > FALLBACKS_MAX:
        raise ApiError("invalid_request", f"fallback_models has at most {FALLBACKS_MAX}.", param="fallback_models")
    named = [] if chat.model == AUTO else [_able(chat, offers.find(chat.model), "model")]
    for name in routing.fallback_models:
        model = _able(chat, offers.find(name, "fallback_models"), "fallback_models")
        if model not in named:
            named.append(model)
    auto = [model for model in offers.models.values() if _why_not(chat, model) is None] if chat.model == AUTO else []
    if chat.model == AUTO and not auto:
        raise ApiError("model_cannot", "No model on offer can do what this request needs.", param="model")
    bound_tokens = prompt_bound_tokens(chat)
    return Wish(
        tuple(named), tuple(auto), routing.tier, _constraints(routing, offers.trust), _needs(chat, bound_tokens),
        bound_tokens, chat.n,
    )  # fmt: skip


def _able(chat: Chat, model: Model, param: str) -> Model:
    if why := _why_not(chat, model):
        raise ApiError("model_cannot", why, param=param)
    return model


def _why_not(chat: Chat, model: Model) -> str | None:
    if model.kind == "embedding" and chat.task != "embedding":
        return f"{model.name} makes vectors and no text: POST /v1/embeddings."
    if model.kind != "embedding" and chat.task == "embedding":
        return f"{model.name} makes text and no vectors."
    if (chat.image_urls or chat.images) and not model.takes_images:
        return f"{model.name} takes no images."
    return None


def _needs(chat: Chat, bound_tokens: int) -> tuple[Constraint, ...]:
    """What the request needs of a model that "auto" may choose. The node is asked, which knows what it loaded."""
    modality: Modality = "embedding" if chat.task == "embedding" else "text"
    needs = [Constraint(modality, lambda place: modality in _served(place).modalities)]
    if chat.image_urls or chat.images:
        needs.append(Constraint("vision", lambda place: "image" in _served(place).modalities))
    if chat.tools:
        needs.append(Constraint("tools", lambda place: _served(place).tools))
    needs.append(Constraint("length", lambda place: bound_tokens // BYTES_A_TOKEN <= place.context_tokens))
    return tuple(needs)


def _constraints(routing: Routing, trust: Mapping[str, float]) -> tuple[Constraint, ...]:
    found: list[Constraint] = []
    if routing.allow_hosters:
        allowed = _uuids(routing.allow_hosters, "allow_hosters")
        found.append(Constraint("allow_hosters", lambda place: _hoster(place) in allowed))
    if routing.deny_hosters:
        denied = _uuids(routing.deny_hosters, "deny_hosters")
        found.append(Constraint("deny_hosters", lambda place: _hoster(place) not in denied))
    if routing.privacy_mode:
        found.append(Constraint("privacy_mode", lambda place: place.node.beat.engine != UPSTREAM))
    if routing.trusted_only:
        found.append(Constraint("trusted_only", lambda place: _trust(place, trust) > TRUST_ABOVE))
    if routing.max_latency_ms is not None:
        most_ms = routing.max_latency_ms
        found.append(Constraint("max_latency_ms", lambda place: (place.node.first_token_ms or 0) <= most_ms))
    return tuple(found)


def _uuids(hosters: Iterable[str], param: str) -> set[str]:
    try:
        return {str(uuid.UUID(hoster)) for hoster in hosters}
    except ValueError:
        raise ApiError("invalid_request", f"{param}: hosters are named by their UUIDs.", param=param) from None


def _serving(model: Model, nodes: Iterable[Node]) -> list[Place]:
    return [Place(node, model) for node in nodes if model.name in node.models]


def _served(place: Place) -> ServedModel:
    return place.node.models[place.model.name]


def _hoster(place: Place) -> str:
    return hoster_id(place.node.beat.provider_id)


def _trust(place: Place, trust: Mapping[str, float]) -> float:
    return trust.get(place.node.beat.provider_id, TRUST_DEFAULT)


def _wait_ms(place: Place) -> float:
    """A node that has not measured anything yet ranks last, and yet passes `max_latency_ms`: else none would begin."""
    measured = place.node.first_token_ms
    return _NEVER_MS if measured is None else measured


def _trace(model: Model, nodes: Sequence[Node], constraints: Sequence[Constraint]) -> str:
    left = _serving(model, nodes)
    told = f"{model.name}: {len(left)} serve it"
    for constraint in constraints:
        kept = [place for place in left if constraint.keeps(place)]
        if len(kept) < len(left):
            told += f", {constraint.name} excluded {len(left) - len(kept)}"
        left = kept
    return f"{told}, {len(left)} left"
