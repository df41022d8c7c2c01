"""What each wish leaves of nodes and models, in which order, and what is said where nobody is left."""

from __future__ import annotations

from typing import Any

import pytest

from ingress import router as routing
from ingress.catalog import Model, Offers
from ingress.chat import Chat, Routing
from ingress.placing import Wish, wish
from ingress.router import Router
from schemas.errors import ApiError
from schemas.event_base import Asset
from schemas.events import ModelPrice
from schemas.heartbeats import NodeHeartbeat, ServedModel
from schemas.ids import hoster_id
from schemas.jobs import Tool

HELLO = [{"role": "user", "content": "hello"}]
TOOL = Tool(name="get_weather")
#: One provider that is a UUID by itself, one that is not.
UUID = "0b8f3a52-6f0c-4a55-9d0f-3c1c1f3f7a10"


def _model(name: str, price: int = 100, **more: Any) -> Model:
    prices: dict[Asset, ModelPrice] = {
        "SHIVER": ModelPrice(model=name, in_nano=price, out_nano=2 * price),
        "USDC": ModelPrice(model=name, in_nano=1, out_nano=2),
    }
    facts = {"kind": "chat", "takes_images": False, "context_tokens": 1000} | more
    return Model(name, "shiver", 0, prices=prices, **facts)  # type: ignore[arg-type]


OFFERS = Offers(
    {
        model.name: model
        for model in (
            _model("big", 3000),
            _model("mid", 1000),
            _model("small", 100),
            _model("eyes", 200, takes_images=True),
            _model("embed", 10, kind="embedding"),
        )
    },
    {"gpt-x": "small", "eyes": "big", "dangling": "gone"},
    {"trusted": 0.81, "half": 0.8},
)


def _beat(node: str, *models: str | ServedModel, provider: str = "p", **more: Any) -> NodeHeartbeat:
    served = tuple(
        model if isinstance(model, ServedModel) else ServedModel(name=model, context_tokens=1000) for model in models
    )
    facts = {"engine": "llamacpp", "slots": 1, "busy_by_owner": {}} | more
    return NodeHeartbeat(node_id=node, provider_id=provider, at_ms=0, version="1", models=served, **facts)


def _chat(model: str = "small", content: str = "hello", **more: Any) -> Chat:
    own = {name: more.pop(name) for name in ("tools", "image_urls", "task", "prompts") if name in more}
    messages = [] if own.get("prompts") else [{"role": "user", "content": content}]
    return Chat(model, messages, routing=Routing(**more), **own)


@pytest.fixture
def router(monkeypatch: pytest.MonkeyPatch) -> Router:
    """Each heartbeat is heard a little later than the one before."""
    clock = iter(range(1000, 2000))
    now = [1000.0]
    monkeypatch.setattr(routing.time, "monotonic", lambda: now[0] + next(clock) / 10**6)
    return Router("me")


def _left(router: Router, chat: Chat) -> list[str]:
    return [f"{p.node.beat.node_id}/{p.model.name}" for p in wish(chat, OFFERS).places(router.living())]


NODES = {
    "home": _beat("home", "small", provider="half", first_token_ms=300),
    "uuid": _beat("uuid", "small", provider=UUID, first_token_ms=100),
    "cloud": _beat("cloud", "small", provider="trusted", engine="upstream", first_token_ms=200),
    "new": _beat("new", "small", provider="trusted"),
}


@pytest.mark.parametrize(
    ("wishes", "left", "excluded"),
    [
        ({}, "home uuid cloud new", ""),
        ({"privacy_mode": True}, "home uuid new", "privacy_mode excluded 1"),
        ({"trusted_only": True}, "cloud new", "trusted_only excluded 2"),
        ({"allow_hosters": (UUID.upper(),)}, "uuid", "allow_hosters excluded 3"),
        ({"allow_hosters": (UUID, hoster_id("half"))}, "home uuid", "allow_hosters excluded 2"),
        ({"deny_hosters": (hoster_id("trusted"),)}, "home uuid", "deny_hosters excluded 2"),
        # A node that has measured nothing passes, or none would ever begin.
        ({"max_latency_ms": 200}, "uuid cloud new", "max_latency_ms excluded 1"),
        ({"max_latency_ms": 99}, "new", "max_latency_ms excluded 3"),
        ({"privacy_mode": True, "trusted_only": True}, "new", "privacy_mode excluded 1, trusted_only excluded 2"),
        ({"trusted_only": True, "deny_hosters": (hoster_id("trusted"),)}, "",
         "deny_hosters excluded 2, trusted_only excluded 2"),
        ({"allow_hosters": ("00000000-0000-0000-0000-000000000000",)}, "", "allow_hosters excluded 4"),
    ],
)  # fmt: skip
def test_constraints_filter(router: Router, wishes: dict[str, Any], left: str, excluded: str) -> None:
    for beat in reversed(NODES.values()):
        router.hear(beat)
    assert _left(router, _chat(**wishes)) == [f"{name}/small" for name in left.split()]
    told = wish(_chat(**wishes), OFFERS).trace(router.living())
    comma = f", {excluded}" if excluded else ""
    assert told == f"nodes online 4; small: 4 serve it{comma}, {len(left.split())} left"


@pytest.mark.parametrize(
    ("tier", "order"),
    [
        (None, "small/fresh small/slow small/quick"),
        ("cheapest", "small/quick small/slow small/fresh"),
        ("fastest", "small/quick small/slow small/fresh"),
        ("balanced", "small/quick small/slow small/fresh"),
    ],
)
def test_tier_ranks_the_nodes_of_a_model(router: Router, tier: Any, order: str) -> None:
    router.hear(_beat("quick", "small", first_token_ms=10))
    router.hear(_beat("slow", "small", first_token_ms=900))
    router.hear(_beat("fresh", "small"))
    assert _left(router, _chat(tier=tier)) == ["/".join(reversed(step.split("/"))) for step in order.split()]


@pytest.mark.parametrize(
    ("tier", "first"),
    [(None, "small"), ("cheapest", "small"), ("fastest", "big"), ("balanced", "eyes")],
)
def test_tier_ranks_the_models_of_auto(router: Router, tier: Any, first: str) -> None:
    """balanced takes what is second in both before what is first in one and last in the other."""
    for model, wait_ms in (("small", 900), ("eyes", 200), ("mid", 400), ("big", 10)):
        router.hear(_beat(f"n-{model}", model, first_token_ms=wait_ms))
    assert _left(router, _chat("auto", tier=tier))[0] == f"n-{first}/{first}"


def test_what_this_ingress_saw_counts_where_a_node_says_nothing(router: Router) -> None:
    router.hear(_beat("silent", "small"))
    chat = _chat(max_latency_ms=100)
    assert _left(router, chat) == ["silent/small"]
    router.living()[0].saw_first_token(101)
    assert _left(router, chat) == []


def test_auto_takes_what_can_do_it(router: Router) -> None:
    router.hear(_beat("plain", "small", "big"))
    router.hear(_beat("tools", ServedModel(name="big", context_tokens=1000, tools=True)))
    router.hear(_beat("eyes", ServedModel(name="eyes", context_tokens=1000, modalities=("text", "image"))))
    router.hear(_beat("vectors", ServedModel(name="embed", context_tokens=1000, modalities=("embedding",))))
    assert _left(router, _chat("auto")) == ["plain/small", "eyes/eyes", "tools/big", "plain/big"]
    assert _left(router, _chat("auto", tools=(TOOL,))) == ["tools/big"]
    assert _left(router, _chat("auto", image_urls=("https://x.test/a.png",))) == ["eyes/eyes"]
    assert _left(router, _chat("auto", task="embedding", prompts=("x",))) == ["vectors/embed"]
    told = wish(_chat("auto", tools=(TOOL,)), OFFERS).trace(router.living())
    assert "small: 1 serve it, tools excluded 1, 0 left" in told
    assert "big: 2 serve it, tools excluded 1, 1 left" in told


def test_auto_goes_by_length(router: Router) -> None:
    """What surely fits goes before what is cheaper and maybe does not; what cannot fit is out."""
    router.hear(_beat("n", ServedModel(name="small", context_tokens=300), ServedModel(name="big", context_tokens=5000)))
    assert _left(router, _chat("auto", "x" * 100)) == ["n/small", "n/big"]
    assert _left(router, _chat("auto", "x" * 1000)) == ["n/big", "n/small"]
    assert _left(router, _chat("auto", "x" * 2000)) == ["n/big"]
    assert _left(router, _chat("small", "x" * 2000)) == ["n/small"]  # the caller's own choice: the node says if it fits


def test_fallbacks_come_in_their_order_behind_the_model(router: Router) -> None:
    router.hear(_beat("n", "big", "eyes", "small"))
    router.hear(_beat("m", "eyes"))
    chat = _chat("big", fallback_models=("eyes", "gpt-x", "big"))
    assert _left(router, chat) == ["n/big", "m/eyes", "n/eyes", "n/small"]
    wanted = wish(chat, OFFERS)
    assert [model.name for model in wanted.priced(OFFERS.models["eyes"])] == ["big", "eyes", "small"]
    # Who has failed the request is not asked again.
    assert [f"{p.node.beat.node_id}/{p.model.name}" for p in wanted.without("n").places(router.living())] == ["m/eyes"]
    assert "tried in vain 1" in wanted.without("n").trace(router.living())


def test_auto_with_fallbacks_prices_what_was_chosen_and_them(router: Router) -> None:
    router.hear(_beat("n", "big", "small"))
    wanted = wish(_chat("auto", fallback_models=("big",)), OFFERS)
    assert wanted.first.name == "small"
    chosen = wanted.places(router.living())[0].model
    assert [model.name for model in wanted.priced(chosen)] == ["small", "big"]


def test_a_second_attempt_stays_among_the_accepted_prices(router: Router) -> None:
    """mid is on no accept, though "auto" could have chosen it."""
    router.hear(_beat("n", "small"))
    router.hear(_beat("m", "small", "mid"))
    router.hear(_beat("o", "mid", "big"))
    wanted = wish(_chat("auto", fallback_models=("big",)), OFFERS)
    settled = wanted.settled(OFFERS.models["small"]).without("n")
    assert [f"{p.node.beat.node_id}/{p.model.name}" for p in settled.places(router.living())] == ["m/small", "o/big"]


def test_a_busy_model_falls_over_at_once(router: Router) -> None:
    router.hear(_beat("n", "big"))
    router.hear(_beat("m", "small"))
    wanted = wish(_chat("big", fallback_models=("small",)), OFFERS)
    taken = [router.reserve(wanted) for _ in range(3)]
    assert [place and place.node.beat.node_id for place in taken] == ["n", "m", None]


def test_an_alias_is_its_model_and_a_name_goes_before_an_alias() -> None:
    assert OFFERS.find("gpt-x").name == "small"
    assert OFFERS.find("eyes").name == "eyes"


@pytest.mark.parametrize(
    ("chat", "code", "param"),
    [
        (_chat("nothing"), "model_not_found", "model"),
        (_chat("dangling"), "model_not_found", "model"),
        (_chat(fallback_models=("nothing",)), "model_not_found", "fallback_models"),
        (_chat(fallback_models=("big",) * 9), "invalid_request", "fallback_models"),
        (_chat("embed"), "model_cannot", "model"),
        (_chat("small", task="embedding", prompts=("x",)), "model_cannot", "model"),
        (_chat("small", image_urls=("https://x.test/a.png",)), "model_cannot", "model"),
        (_chat("small", fallback_models=("embed",)), "model_cannot", "fallback_models"),
        (_chat(allow_hosters=("home",)), "invalid_request", "allow_hosters"),
        (_chat(deny_hosters=("1234",)), "invalid_request", "deny_hosters"),
    ],
)
def test_wrong_wishes_are_refused_by_name(chat: Chat, code: str, param: str) -> None:
    with pytest.raises(ApiError) as caught:
        wish(chat, OFFERS)
    assert (caught.value.code, caught.value.param) == (code, param)


def test_an_upstream_without_its_key_gets_nothing_and_is_told_apart(router: Router) -> None:
    router.hear(_beat("u", ServedModel(name="small", context_tokens=1000, configured=False), engine="upstream"))
    wanted: Wish = wish(_chat(), OFFERS)
    assert wanted.places(router.living()) == []
    assert wanted.upstream_lacks_key(router.living())
    router.hear(_beat("n", "small"))
    assert not wanted.upstream_lacks_key(router.living())
    assert not wish(_chat("big"), OFFERS).upstream_lacks_key(router.living())


def test_a_hoster_id_is_a_uuid_and_always_the_same() -> None:
    assert hoster_id(UUID.upper()) == UUID
    assert hoster_id("home") == hoster_id("home") != hoster_id("homf")
    assert hoster_id(hoster_id("home")) == hoster_id("home")
