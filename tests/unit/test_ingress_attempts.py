"""An open request whose node fails: before the first token another has it, after it nobody; what is booked is whoever
brought the answer."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import replace
from typing import Any

import pytest

from ingress import dispatch, letters
from ingress.admission import Admitted, Ask
from ingress.catalog import Model, Offers
from ingress.chat import Chat, Routing
from ingress.dispatch import ATTEMPTS_MAX, Request
from ingress.failures import AttemptFailed, ClientGone
from ingress.mailer import MailFailed
from ingress.placing import wish
from ingress.router import Router
from schemas import replies
from schemas.errors import ApiError
from schemas.event_base import Asset
from schemas.events import How, ModelPrice, RequestAccepted, RequestFailed, UsageRecorded
from schemas.heartbeats import NodeHeartbeat, ServedModel
from schemas.jobs import Cancel, Image, Job
from schemas.keys import ApiKey
from schemas.replies import ChoiceEnd, Claimed, End, Failed, Tokens

RID = "01a3185c-5000-7c49-a1dd-273e4d8f5bdb"


def _model(name: str, price: int) -> Model:
    prices: dict[Asset, ModelPrice] = {
        "SHIVER": ModelPrice(model=name, in_nano=price, out_nano=2 * price),
        "USDC": ModelPrice(model=name, in_nano=1, out_nano=2),
    }
    return Model(name, "shiver", 0, "chat", False, None, prices)


OFFERS = Offers({"big": _model("big", 30), "small": _model("small", 1)}, {}, {})


def _beat(node: str, model: str, slots: int = 1) -> NodeHeartbeat:
    served = (ServedModel(name=model, context_tokens=1000),)
    return NodeHeartbeat(
        node_id=node, provider_id=f"p-{node}", at_ms=0, version="1", engine="double", models=served,
        slots=slots, busy_by_owner={},
    )  # fmt: skip


class World:
    """What a Request shares with others: a real router, and doubles of the rest that keep what they were told."""

    def __init__(
        self,
        *nodes: tuple[str, str],
        asset: Asset = "SHIVER",
        fallbacks: tuple[str, ...] = ("small",),
        n: int = 1,
        slots: int = 1,
    ) -> None:
        self.boot_id = "me"
        self.router = Router("me")
        for node, model in nodes:
            self.router.hear(_beat(node, model, slots))
        self.admission = self.writer = self.mailer = self.lanes = self
        self.moves: list[tuple[Any, ...]] = []
        self.refuse_moves = False
        self.letters: list[tuple[str, Job | Cancel]] = []
        self.unreachable: set[str] = set()
        self.answers: dict[int, list[Any]] = {}  # by attempt: what a node says when the job reaches it
        self.events: list[Any] = []
        self.freed: list[Any] = []
        self.topic = "replies.me.0"
        self.values: deque[bytes] = deque()
        self._tasks: set[asyncio.Task[Any]] = set()
        routing = Routing(fallback_models=fallbacks)
        chat = Chat("big", [{"role": "user", "content": "hi"}], max_tokens=50, n=n, routing=routing)
        wanted = wish(chat, OFFERS)
        place = self.router.reserve(wanted)
        assert place is not None
        admitted = Admitted("k", "w", "pro", "wallet:w", asset, 1, None, 0, 10**9)
        ask = Ask(RID, ApiKey("pro", "k", b""), {"SHIVER": 10**9, "USDC": 10**9}, "me", "", ("big",), self.topic, 0)
        self.request = Request(self, ask, chat, wanted, place, self, admitted)  # type: ignore[arg-type]

    # The dispatcher.
    def run(self, work: Any, name: str) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        return task

    def pseudonym(self, node_id: str, provider_id: str) -> str:
        return node_id

    # Admission.
    async def move(self, *told: Any) -> None:
        if self.refuse_moves:
            raise ApiError("database_unavailable")
        self.moves.append(told)

    async def settle(self, request_id: str, charge_nano: int) -> None:
        self.charge_nano = charge_nano

    # The mailer and the log.
    async def post(self, node_id: str, letter: Job | Cancel) -> None:
        if node_id in self.unreachable and isinstance(letter, Job):
            raise MailFailed("no such topic")
        self.letters.append((node_id, letter))
        if isinstance(letter, Job):
            self.say(letter.attempt, *self.answers.get(letter.attempt, ()))

    def append(self, event: Any) -> asyncio.Future[None]:
        self.events.append(event)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done

    # The lane.
    async def read(self, timeout_s: float) -> list[bytes]:
        await asyncio.sleep(0)
        values, self.values = list(self.values), deque()
        return values

    def wake(self) -> None: ...

    def fetched_since(self, at_s: float) -> bool:
        return True

    def release(self, lane: Any) -> None:
        self.freed.append(lane)

    def say(self, attempt: int, *parts: Any) -> None:
        """A node's records in the lane, from seq 0."""
        for seq, (kind, more) in enumerate(parts):
            reply = kind(request_id=RID, attempt=attempt, nonce=f"nonce-of-{attempt}", seq=seq, **more)
            self.values.append(replies.dump(reply))

    def jobs(self) -> list[tuple[str, int, str]]:
        return [(node, one.attempt, one.model) for node, one in self.letters if isinstance(one, Job)]

    def slots_taken(self) -> dict[str, int]:
        return {node.beat.node_id: node.ours for node in self.router.living() if node.ours}


CLAIM: tuple[Any, dict[str, Any]] = (Claimed, {"prompt_tokens": 7})
BUSY: tuple[Any, dict[str, Any]] = (Failed, {"code": "busy"})
HELLO: list[Any] = [
    CLAIM,
    (Tokens, {"ids": (1, 2), "text": "Hello", "text_bytes": 5}),
    (End, {"finish": "stop", "completion_tokens": 2}),
]


async def test_a_fallback_answers_and_is_what_is_paid() -> None:
    world = World(("a", "big"), ("b", "small"))
    world.say(1, BUSY)
    world.answers = {2: HELLO}
    piece = await world.request.read(1)
    assert piece is not None
    assert piece.text == "Hello"
    world.say(1, *HELLO)  # the first node after all: too late
    world.request.meter.delivered += piece.tokens
    last = await world.request.read(1)
    assert last is not None
    assert last.over
    assert world.moves == [(RID, "me", "b", "small", 2)]
    assert world.request.place.node.seen_ms is not None  # its time to the first token; who brought none has none
    assert [node.beat.node_id for node in world.router.living() if node.seen_ms is None] == ["a"]
    assert world.jobs() == [("b", 2, "small")]
    assert world.slots_taken() == {"b": 1}
    assert dict(world.request.headers) == {b"x-shiver-node": b"b", b"x-shiver-model": b"small"}
    assert await world.request.finish(How.STOP) == 7 * 1 + 2 * 2
    (end,) = world.events
    assert isinstance(end, UsageRecorded)
    assert (end.model, end.segments[0].node, end.segments[0].provider, end.segments[0].attempt) == (
        "small", "b", "p-b", 2,
    )  # fmt: skip
    assert (world.slots_taken(), world.freed) == ({}, [world])


async def accepted_by(world: World) -> RequestAccepted:
    await world.request.start()
    (accepted,) = world.events
    assert isinstance(accepted, RequestAccepted)
    return accepted


async def test_the_accept_has_the_prices_of_all_in_the_wallet_s_asset() -> None:
    prices = (await accepted_by(World(("a", "big"), asset="USDC"))).prices
    assert [(price.model, price.in_nano, price.out_nano) for price in prices] == [("big", 1, 2), ("small", 1, 2)]
    prices = (await accepted_by(World(("a", "big")))).prices
    assert [(price.model, price.in_nano) for price in prices] == [("big", 30), ("small", 1)]


async def test_after_the_first_token_nobody_else_is_asked() -> None:
    world = World(("a", "big"), ("b", "small"))
    world.say(1, *HELLO[:2], BUSY)
    assert (await world.request.read(1)) is not None
    with pytest.raises(AttemptFailed):
        await world.request.read(1)
    assert (world.moves, world.jobs()) == ([], [])


async def test_a_deadline_and_a_client_that_left_move_nothing() -> None:
    world = World(("a", "big"), ("b", "small"))
    world.say(1, (Failed, {"code": "deadline"}))
    with pytest.raises(AttemptFailed):
        await world.request.read(1)
    world = World(("a", "big"), ("b", "small"))
    world.say(1, BUSY)
    world.request.client_gone()
    with pytest.raises(ClientGone):
        await world.request.read(1)
    assert world.moves == []


async def test_choices_that_have_ended_free_their_slots_and_the_next_node_has_all_of_them() -> None:
    world = World(("b", "small"), ("a", "big"), n=3, slots=4)
    assert world.slots_taken() == {"a": 3}
    ended = (ChoiceEnd, {"choice": 1, "finish": "stop"})
    world.say(1, CLAIM, ended, ended, (ChoiceEnd, {"choice": 7, "finish": "stop"}))
    for _ in range(2):  # told twice, it has ended once; a seventh was never asked for
        assert await world.request.read(1) is not None
    assert world.slots_taken() == {"a": 2}
    world.values.append(replies.dump(Failed(request_id=RID, attempt=1, nonce="nonce-of-1", seq=4, code="engine_error")))
    world.answers = {2: [CLAIM, (ChoiceEnd, {"choice": 0, "finish": "stop"})]}
    assert await world.request.read(1) is not None
    assert world.slots_taken() == {"b": 2}
    for seq, choice in enumerate((1, 2), 2):
        end = ChoiceEnd(request_id=RID, attempt=2, nonce="nonce-of-2", seq=seq, choice=choice, finish="stop")
        world.values.append(replies.dump(end))
        assert await world.request.read(1) is not None
        assert world.slots_taken() == {"b": 1}  # the last slot stays until the attempt is over
    await world.request.finish(How.STOP)
    assert world.slots_taken() == {}


async def test_without_another_node_the_first_failure_stands() -> None:
    world = World(("a", "big"), fallbacks=())
    world.say(1, BUSY)
    with pytest.raises(AttemptFailed, match="busy"):
        await world.request.read(1)
    await world.request.finish(How.NODE_DIED)
    assert [type(event) for event in world.events] == [RequestFailed]
    assert world.slots_taken() == {}


async def test_where_the_move_is_not_committed_nothing_is_sent() -> None:
    """Else the expiry would not count what the second node delivers."""
    world = World(("a", "big"), ("b", "small"))
    world.refuse_moves = True
    world.say(1, BUSY)
    with pytest.raises(AttemptFailed, match="busy"):
        await world.request.read(1)
    assert world.jobs() == []
    assert world.slots_taken() == {"a": 1}


async def test_a_silent_node_is_told_to_stop_and_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch.replies, "CLAIM_TIMEOUT_S", 0.01)
    world = World(("a", "big"), ("b", "big"))
    first = world.request.place.node.beat.node_id
    world.answers = {2: HELLO}
    assert await world.request.read(1) is not None
    second = world.request.place.node.beat.node_id
    await asyncio.sleep(0)
    assert {first, second} == {"a", "b"}
    assert [(node, type(one), one.attempt) for node, one in world.letters[:2]] == [
        (second, Job, 2),
        (first, Cancel, 1),
    ]


async def test_a_node_may_look_at_images_before_it_claims(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch.replies, "CLAIM_TIMEOUT_S", 0.01)
    world = World(("a", "big"), ("b", "big"))
    world.request.chat = replace(world.request.chat, images=(Image(media_type="image/png", data="aGk="),))
    assert await world.request.read(0.1) is None  # nothing has come, and nobody else was asked
    assert world.moves == []
    late = letters.job(
        world.request.chat, "big", request_id=RID, attempt=1, owner="o", lane="l", max_tokens=1, deadline_s=600
    )
    assert late.expires_at_ms - int(time.time() * 1000) > 20_000


async def test_it_ends_after_so_many_attempts_each_on_another_node() -> None:
    world = World(*((name, "big") for name in "abcde"))
    world.unreachable = {"b"}
    world.answers = {attempt: [BUSY] for attempt in range(2, 6)}
    world.say(1, BUSY)
    with pytest.raises(AttemptFailed):
        await world.request.read(1)
    assert len(world.moves) == ATTEMPTS_MAX - 1
    assert len({"e", *(node for _, _, node, *_ in world.moves)}) == ATTEMPTS_MAX  # e was heard of last, so asked first
    await world.request.finish(How.NODE_DIED)
    assert world.slots_taken() == {}
