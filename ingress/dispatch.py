"""One request's life: a node, a lane, admission, the accepted event and the job, the answer, the end in the log.

    open()    reserve a node -> lease a lane -> admit -> append request.accepted and post the job together
    read()    the next piece of the answer, or what went wrong
    finish()  append the end -> wait for its ack -> settle; then the lane and the node's slot are free

What if the process dies? Before admit() nothing is held. After it the admission row names us and our lease runs out:
the expiry closes the request from the log and the lane. So every path here that has been admitted ends in finish(), and
where it cannot, the expiry does the same.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import deque
from typing import Any

from ingress.admission import Admission, Admitted, Ask
from ingress.catalog import Catalog
from ingress.chat import Chat, Piece
from ingress.lanes import Lane, LanePool
from ingress.mailer import Mailer, MailFailed
from ingress.metering import Meter, budget_tokens, hold_bound_nano
from ingress.router import Node, Router
from ledger.log import LedgerUnavailable, LedgerWriter
from ledger.rules import RULES_VERSION
from schemas import ids, replies
from schemas.errors import ApiError
from schemas.events import How, ModelPrice, RequestAccepted
from schemas.jobs import Cancel, Job
from schemas.keys import ApiKey
from schemas.replies import Tally, Tokens, Verdict

log = logging.getLogger(__name__)

#: How long a request may wait for a free slot of a living node before it is told 503.
NODE_WAIT_S = 10.0
LANE_WAIT_S = 5.0
#: T of the design: an accept without an ack for this long is followed by request.failed, and nothing is delivered (C1).
ACCEPT_ACK_S = 5.0
END_ACK_S = 5.0
REQUEST_DEADLINE_S = 600.0
#: Bounds the hold of a request that waits for the first node of its model.
CONTEXT_UNKNOWN_TOKENS = 4096
ATTEMPT = 1  # the first and only one, until failover continues a stream on another node


class ClientGone(Exception):
    """The client closed its connection; nobody reads the answer any more."""


class Dispatcher:
    """The parts that requests share; `ingress.bootstrap` wires it."""

    def __init__(
        self,
        boot_id: str,
        admission: Admission,
        catalog: Catalog,
        router: Router,
        lanes: LanePool,
        writer: LedgerWriter,
        mailer: Mailer,
    ) -> None:
        self.boot_id = boot_id
        self.admission = admission
        self.catalog = catalog
        self.router = router
        self.lanes = lanes
        self.writer = writer
        self.mailer = mailer
        self.background: set[asyncio.Task[Any]] = set()

    async def price_of(self, model: str) -> ModelPrice:
        """Raises ApiError: model_not_found, database_unavailable."""
        try:
            models = await self.catalog.models()
        except Exception as error:  # the catalog names what it raises; none of it is the client's fault
            raise ApiError("database_unavailable") from error
        if model not in models:
            raise ApiError("model_not_found", f"No model {model[:80]!r}: GET /v1/models lists them.", param="model")
        return models[model].price

    async def open(self, request_id: str, key: ApiKey, chat: Chat) -> Request:
        """Start a request. Raises ApiError, and then holds nothing (or has left its end to the log)."""
        price = await self.price_of(chat.model)
        if not self.writer.healthy:
            raise ApiError("ledger_unavailable")
        node = await self._node(request_id, key, chat, price)
        lane: Lane | None = None
        try:
            lane = await self.lanes.lease(LANE_WAIT_S)
            if lane is None:
                raise ApiError("no_provider_available", "Too many requests are open here.", retry_after_s=2)
            ask = self._ask(request_id, key, chat, price, node, lane)
            request = Request(self, ask, chat, price, node, lane, await self.admission.admit(ask))
        except BaseException:
            if lane is not None:
                self.lanes.release(lane)
            self.router.release(node)
            raise
        await request.start()
        return request

    async def _node(self, request_id: str, key: ApiKey, chat: Chat, price: ModelPrice) -> Node:
        node = self.router.reserve(chat.model)
        if node is not None:
            return node
        # Whoever would be refused anyway is told so at once, and does not stand in the queue.
        context = self.router.context_tokens(chat.model) or CONTEXT_UNKNOWN_TOKENS
        hold_nano = hold_bound_nano(chat, price, context)
        await self.admission.admit(Ask(request_id, key, hold_nano, self.boot_id, "", "", "", 0), dry_run=True)
        node = await self.router.wait(chat.model, NODE_WAIT_S)
        if node is None:
            living = len(self.router.living(chat.model))
            why = f"all slots of its {living} nodes are busy" if living else "no node that serves it is online"
            raise ApiError("no_provider_available", f"No node can take a request for {chat.model} now: {why}.")
        return node

    def _ask(self, request_id: str, key: ApiKey, chat: Chat, price: ModelPrice, node: Node, lane: Lane) -> Ask:
        hold_nano = hold_bound_nano(chat, price, node.models[chat.model])
        return Ask(
            request_id, key, hold_nano, self.boot_id, node.beat.node_id, chat.model, lane.topic, lane.first_offset
        )

    def run(self, work: Any, name: str) -> asyncio.Task[Any]:
        """Run to the end even where the caller is cancelled; `drain` waits for it."""
        task = asyncio.create_task(work, name=name)
        self.background.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self.background.discard(task)
        if not task.cancelled() and (error := task.exception()) and not isinstance(error, MailFailed):
            log.error("%s failed", task.get_name(), exc_info=error)

    async def drain(self, timeout_s: float) -> None:
        if self.background:
            await asyncio.wait(self.background, timeout=timeout_s)


class Request:
    """An admitted request. `delivered` is counted up by whoever writes to the client."""

    def __init__(
        self, shared: Dispatcher, ask: Ask, chat: Chat, price: ModelPrice, node: Node, lane: Lane, admitted: Admitted
    ) -> None:
        self._shared = shared
        self.id = ask.request_id
        self.chat = chat
        self.admitted = admitted
        self.node = node
        self._lane = lane
        self.meter = Meter(ask, admitted, price, node.beat, ATTEMPT)
        self._tally = Tally(self.id, ATTEMPT)
        self._max_tokens = budget_tokens(chat, node.models[chat.model])
        self._ready: deque[Piece] = deque()
        self._failure: Exception | None = None  # raised once what came before it is read
        self._began_s = self._heard_s = time.monotonic()
        self._gone = False
        self._over = False
        self._vectors: set[int] = set()

    @property
    def prompt_tokens(self) -> int:
        return self._tally.prompt_tokens or 0

    @property
    def image_tokens(self) -> int:
        return self._tally.image_tokens

    async def start(self) -> None:
        """Append request.accepted and post the job, at once; wait for both acks: without them nothing is delivered."""
        try:
            accepted = self._shared.writer.append(self._accepted_event())
            posted = self._shared.run(self._shared.mailer.post(self.node.beat.node_id, self._job()), f"post {self.id}")
            try:
                async with asyncio.timeout(ACCEPT_ACK_S):
                    await asyncio.shield(accepted)
                    await posted
            except (LedgerUnavailable, TimeoutError) as error:
                posted.cancel()
                raise self._failed(How.NOT_ACKED, "ledger_unavailable") from error
            except MailFailed as error:
                raise self._failed(How.NO_NODE, "provider_failed", "The job did not reach the node.") from error
        except LedgerUnavailable as error:  # the backlog is full: not even the accept was taken
            raise self._failed(How.NOT_ACKED, "ledger_unavailable") from error
        except asyncio.CancelledError:
            self._end_in_background(How.CLIENT_GONE)
            raise
        self._heard_s = time.monotonic()

    async def read(self, timeout_s: float) -> Piece | None:
        """The next piece, or None after `timeout_s`. After the piece that is `over` there is none.

        Raises ClientGone, AttemptFailed or JobRejected; the request then still wants its finish().
        """
        until_s = time.monotonic() + timeout_s
        while not self._ready:
            if self._gone:
                raise ClientGone
            if self._failure is not None:
                raise self._failure
            now_s = time.monotonic()
            if now_s >= until_s:
                return None
            judged_s = self._heard_s + (replies.CLAIM_TIMEOUT_S if self._tally.seq == 0 else replies.SILENCE_TIMEOUT_S)
            values = await self._lane.read(min(until_s, max(judged_s, now_s + 0.05)) - now_s)
            if values:
                self._heard_s = time.monotonic()
                for value in values:
                    self._take(value)
            elif not self._gone:
                self._judge_silence(judged_s)
        return self._ready.popleft()

    def client_gone(self) -> None:
        """The connection is closed: wake `read`."""
        self._gone = True
        self._lane.wake()

    async def finish(self, how: How) -> int:
        """Put the end into the log and settle; gives back node and lane. Returns the charge in nano units.

        Runs to its end even where the caller is cancelled. The end stays queued where the log does not ack it in time.
        """
        return await asyncio.shield(self._end_in_background(how))

    def _end_in_background(self, how: How) -> asyncio.Task[int]:
        return self._shared.run(self._end(how), f"end {self.id}")

    async def _end(self, how: How) -> int:
        if self._over:
            return self.meter.charge_nano(self.prompt_tokens, self.image_tokens, how)
        self._over = True
        charge_nano = self.meter.charge_nano(self.prompt_tokens, self.image_tokens, how)
        try:
            acked = self._shared.writer.append(
                self.meter.end_event(how, self.prompt_tokens, self.image_tokens, self.now_ms())
            )
        except LedgerUnavailable as error:  # only where the backlog is full: our lease will end before it is read
            log.error("request %s: its end could not be queued: %s", self.id, error)
            acked = None
        if self._tally.terminal is None:
            await self._cancel()
        self._shared.lanes.release(self._lane)
        self._shared.router.release(self.node)
        try:
            if acked is not None:
                async with asyncio.timeout(END_ACK_S):
                    await asyncio.shield(acked)
                await self._shared.admission.settle(self.id, charge_nano)
        except (TimeoutError, LedgerUnavailable) as error:
            log.warning("request %s: its end is queued and not acked yet: %r", self.id, error)
        except ApiError as error:
            log.warning("request %s: not settled, the projection will release it: %s", self.id, error)
        return charge_nano

    async def _cancel(self) -> None:
        try:
            await self._shared.mailer.post(self.node.beat.node_id, Cancel(request_id=self.id, attempt=ATTEMPT))
        except MailFailed as error:
            log.warning("request %s: no cancel sent (%s); the node stops at its budget", self.id, error)

    def _failed(self, how: How, code: str, message: str | None = None) -> ApiError:
        self._end_in_background(how)
        return ApiError(code, message)

    def _take(self, value: bytes) -> None:
        try:
            reply = replies.parse(value)
        except replies.UnreadableReply as error:
            log.warning("request %s: a stray record in lane %s: %s", self.id, self._lane.topic, error)
            return
        verdict = self._tally.add(reply)
        if verdict is Verdict.STRAY or self._failure is not None:
            return
        if verdict is Verdict.GAP:
            self._failure = AttemptFailed(How.NODE_DIED, f"records of the node are missing before {reply.seq}")
        elif isinstance(reply, Tokens):
            if self._tally.completion_tokens > self._max_tokens * self.chat.n or reply.choice >= self.chat.n:
                self._failure = AttemptFailed(How.ERROR, "the node went over its budget")
            else:
                self._ready.append(
                    Piece(reply.text, len(reply.ids), None, reply.choice, reply.logprobs, reply.tool_calls)
                )
        elif isinstance(reply, replies.ChoiceEnd | replies.Embedded):
            self._take_part(reply)
        elif isinstance(reply, replies.End) and reply.finish != "cancelled":
            if self.chat.task == "embedding" and len(self._vectors) < len(self.chat.prompts):
                self._failure = AttemptFailed(How.ERROR, "the node left inputs out")
            else:
                self._ready.append(Piece("", 0, reply.finish, over=True))
        elif isinstance(reply, replies.End | replies.Rejected | replies.Failed):
            self._failure = _failure_of(reply)

    def _take_part(self, reply: replies.ChoiceEnd | replies.Embedded) -> None:
        """A choice's end, or a vector: one for each input."""
        if isinstance(reply, replies.ChoiceEnd):
            if reply.choice < self.chat.n and reply.finish != "cancelled":
                self._ready.append(Piece("", 0, reply.finish, reply.choice))
        elif reply.index in self._vectors or reply.index >= len(self.chat.prompts):
            self._failure = AttemptFailed(How.ERROR, "the node sent a vector that nobody waits for")
        else:
            self._vectors.add(reply.index)
            self._ready.append(Piece("", reply.tokens, choice=reply.index, vector=reply.vector))

    def _judge_silence(self, judged_s: float) -> None:
        now_s = time.monotonic()
        if now_s - self._began_s > REQUEST_DEADLINE_S:
            self._failure = AttemptFailed(How.DEADLINE, "the deadline has passed")
        elif now_s >= judged_s and self._lane.fetched_since(time.time() - (now_s - judged_s)):
            said = "did not claim the job" if self._tally.seq == 0 else "fell silent"
            self._failure = AttemptFailed(How.NODE_DIED, f"the node {said}")

    def now_ms(self) -> int:
        """The database's clock, carried on by our monotonic one: event times of one request never run backwards."""
        return self.admitted.now_ms + int((time.monotonic() - self._began_s) * 1000)

    def _accepted_event(self) -> RequestAccepted:
        admitted, meter = self.admitted, self.meter
        return RequestAccepted(
            wallet=admitted.wallet_id,
            at_ms=admitted.now_ms,
            request_id=self.id,
            key_id=meter.key_id,
            owner=self._shared.boot_id,
            rules_version=RULES_VERSION,
            asset=admitted.asset,  # pyright: ignore[reportArgumentType]  # the table's CHECK has the same two
            prices=(meter.price,),
            rate_nano_usd=admitted.rate_nano_usd,
            cap_day=admitted.cap_day,
            hold_nano=meter.hold_nano,
            payer=admitted.payer,
        )

    def _job(self) -> Job:
        now_ms, chat = int(time.time() * 1000), self.chat
        return Job(
            request_id=self.id,
            attempt=ATTEMPT,
            owner=self._shared.boot_id,
            lane=self._lane.topic,
            model=chat.model,
            task=chat.task,
            messages=chat.messages,
            prompts=chat.prompts,
            images=chat.images,
            tools=chat.tools,
            tool_choice=chat.tool_choice,
            parallel_tool_calls=chat.parallel_tool_calls,
            response_format=chat.response_format,
            sampling=chat.sampling,
            stop=chat.stop,
            max_tokens=self._max_tokens,
            n=chat.n,
            logprobs=chat.logprobs,
            echo=chat.echo,
            dimensions=chat.dimensions,
            expires_at_ms=now_ms + int(replies.CLAIM_TIMEOUT_S * 1000),
            deadline_at_ms=now_ms + int(REQUEST_DEADLINE_S * 1000),
        )


class AttemptFailed(Exception):
    """The node did not bring the answer to its end; `how` is how the request ends if nobody else does."""

    def __init__(self, how: How, detail: str) -> None:
        self.how = how
        super().__init__(detail)


class JobRejected(Exception):
    """The job cannot be run by any node; `error` is what the client is told."""

    def __init__(self, error: ApiError) -> None:
        self.error = error
        super().__init__(error.message)


def _failure_of(reply: replies.End | replies.Rejected | replies.Failed) -> Exception:
    if isinstance(reply, replies.Rejected):
        code, param = _REJECTIONS[reply.code]
        return JobRejected(ApiError(code, reply.detail or None, param=param))
    if isinstance(reply, replies.Failed) and reply.code == "deadline":
        return AttemptFailed(How.DEADLINE, "the deadline has passed")
    return AttemptFailed(How.NODE_DIED, f"the node answered {getattr(reply, 'code', 'cancelled')}")


_REJECTIONS: dict[str, tuple[str, str | None]] = {
    "context_too_long": ("context_length_exceeded", "messages"),
    "bad_template": ("invalid_request", "messages"),
    "bad_job": ("invalid_request", None),
    "bad_schema": ("invalid_schema", None),
    "bad_image": ("invalid_image", "messages"),
    "unsupported": ("model_cannot", "model"),
}


def new_request_id() -> str:
    return ids.uuid7(int(time.time() * 1000), os.urandom(10))
