"""One request's life: a node, a lane, admission, the accepted event and the job, the answer, the end in the log.

    open()    reserve a node -> lease a lane -> admit -> append request.accepted and post the job together
    read()    the next piece of the answer, or what went wrong
    finish()  append the end -> wait for its ack -> settle; then the lane and the node's slot are free

A node that fails before its first token is followed by another, of the same model or of a fallback, in the same lane.

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
from collections.abc import Callable
from typing import Any

from ingress import letters
from ingress.admission import Admission, Admitted, Ask
from ingress.catalog import Catalog
from ingress.chat import Chat, Piece
from ingress.failures import AttemptFailed, ClientGone, failure_of
from ingress.lanes import Lane, LanePool
from ingress.mailer import Mailer, MailFailed
from ingress.metering import Meter, budget_tokens
from ingress.placer import Placer
from ingress.placing import Wish
from ingress.router import Place, Router
from ledger.log import LedgerUnavailable, LedgerWriter
from schemas import ids, replies
from schemas.errors import ApiError
from schemas.events import How
from schemas.jobs import Cancel
from schemas.keys import ApiKey
from schemas.replies import Tally, Tokens, Verdict

log = logging.getLogger(__name__)

LANE_WAIT_S = 5.0
#: T of the design: an accept without an ack for this long is followed by request.failed, and nothing is delivered (C1).
ACCEPT_ACK_S = 5.0
END_ACK_S = 5.0
REQUEST_DEADLINE_S = 600.0
#: A request is tried on so many nodes at most, and after its first token on no other.
ATTEMPTS_MAX = 3


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
        pseudonym: Callable[[str, str], str],
    ) -> None:
        self.boot_id = boot_id
        self.pseudonym = pseudonym
        self.admission = admission
        self.router = router
        self.placer = Placer(boot_id, admission, catalog, router)
        self.lanes = lanes
        self.writer = writer
        self.mailer = mailer
        self.background: set[asyncio.Task[Any]] = set()

    async def open(self, request_id: str, key: ApiKey, chat: Chat, *, counted: bool = True) -> Request:
        """Start a request. Raises ApiError, and then holds nothing (or has left its end to the log).

        What is not `counted` is a further part of what the client sent once.
        """
        wish = await self.placer.wish(chat)
        if not self.writer.healthy:
            await self.placer.would_admit(request_id, key, chat, wish, counted=counted)
            raise ApiError("ledger_unavailable")
        place = await self.placer.place(request_id, key, chat, wish, counted=counted)
        lane: Lane | None = None
        try:
            lane = await self.lanes.lease(LANE_WAIT_S)
            if lane is None:
                raise ApiError("no_provider_available", "Too many requests are open here.", retry_after_s=2)
            models = wish.priced(place.model)
            holds_nano = self.placer.holds_nano(chat, models, place)
            names = (place.model.name, *(model.name for model in models if model != place.model))
            node_id = place.node.beat.node_id
            ask = Ask(request_id, key, holds_nano, self.boot_id, node_id, names, lane.topic, lane.first_offset, counted)
            request = Request(self, ask, chat, wish, place, lane, await self.admission.admit(ask))
        except BaseException:
            if lane is not None:
                self.lanes.release(lane)
            self.router.release(place)
            raise
        await request.start()
        return request

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
    """An admitted request. Whoever writes to the client says what was `delivered`."""

    def __init__(
        self, shared: Dispatcher, ask: Ask, chat: Chat, wish: Wish, place: Place, lane: Lane, admitted: Admitted
    ) -> None:
        self._shared = shared
        self.id = ask.request_id
        self.chat = chat
        self.admitted = admitted
        self.place = place
        self._wish = wish.settled(place.model)
        self._lane = lane
        self._attempt = 1
        self._prices = tuple(model.prices[admitted.asset] for model in wish.priced(place.model))
        self.meter = Meter(ask, admitted, place.model.prices[admitted.asset], place.node.beat)
        self._tally = Tally(self.id, self._attempt)
        self._max_tokens = budget_tokens(chat, place.context_tokens)
        self._ready: deque[Piece] = deque()
        self._failure: Exception | None = None  # raised once what came before it is read
        self._began_s = self._heard_s = self._posted_s = time.monotonic()
        self._gone = False
        self._over = False
        self._freed = False
        self._ended: set[int] = set()  # choices
        self._vectors: set[int] = set()

    @property
    def prompt_tokens(self) -> int:
        return self._tally.prompt_tokens or 0

    @property
    def image_tokens(self) -> int:
        return self._tally.image_tokens

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """Who serves it; settled with the first token."""
        beat = self.place.node.beat
        return [
            (b"x-shiver-node", self._shared.pseudonym(beat.node_id, beat.provider_id).encode()),
            (b"x-shiver-model", self.place.model.name.encode("latin-1", "replace")),
        ]

    async def start(self) -> None:
        """Append request.accepted and post the job, at once; wait for both acks: without them nothing is delivered."""
        try:
            accepted = self._shared.writer.append(self.meter.accepted_event(self._prices))
            posted = self._shared.run(self._post(), f"post {self.id}")
            try:
                async with asyncio.timeout(ACCEPT_ACK_S):
                    await asyncio.shield(accepted)
                    await posted
            except (LedgerUnavailable, TimeoutError) as error:
                posted.cancel()
                raise self._failed(How.NOT_ACKED, "ledger_unavailable") from error
            except MailFailed as error:
                raise self._failed(How.NO_NODE, "all_providers_failed", "The job did not reach the node.") from error
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
                if await self._moved():
                    continue
                raise self._failure
            now_s = time.monotonic()
            if now_s >= until_s:
                return None
            claim_s = replies.claim_timeout_s(len(self.chat.images))
            judged_s = self._heard_s + (claim_s if self._tally.seq == 0 else replies.SILENCE_TIMEOUT_S)
            values = await self._lane.read(min(until_s, max(judged_s, now_s + 0.05)) - now_s)
            if values:
                self._heard_s = time.monotonic()
                for value in values:
                    self._take(value)
            elif not self._gone:
                self._judge_silence(judged_s)
        return self._ready.popleft()

    async def _moved(self) -> bool:
        """After a failed attempt that delivered nothing: the next node has the job. False where the failure stands."""
        failure = self._failure
        if not isinstance(failure, AttemptFailed) or failure.how is How.DEADLINE or self._gone or self._over:
            return False
        if self._tally.completion_tokens or self._attempt >= ATTEMPTS_MAX:
            return False
        wish = self._wish.without(self.place.node.beat.node_id)
        place = self._shared.router.reserve(wish)
        if place is None:
            return False
        attempt, beat = self._attempt + 1, place.node.beat
        try:
            # First, and committed: from then on the expiry counts the new attempt, so no token of it is ever lost.
            await self._shared.admission.move(self.id, self._shared.boot_id, beat.node_id, place.model.name, attempt)
        except BaseException as error:
            self._shared.router.release(place)
            if not isinstance(error, ApiError):
                raise
            log.warning("request %s: not tried again: %s", self.id, error)
            return False
        log.info("request %s: attempt %d failed (%s), trying another node", self.id, self._attempt, failure)
        if self._tally.terminal is None:
            self._shared.run(self._cancel(self.place, self._attempt), f"cancel {self.id}")
        self._shared.router.release(self.place)
        self._wish, self.place, self._attempt = wish, place, attempt
        self._ended.clear()
        self._tally = Tally(self.id, attempt)
        self._max_tokens = min(self._max_tokens, budget_tokens(self.chat, place.context_tokens))
        self.meter.move(place.model.prices[self.admitted.asset], beat, attempt)
        self._failure = None
        try:
            await self._post()
        except MailFailed as error:
            self._failure = AttemptFailed(How.NO_NODE, f"the job did not reach the node: {error}")
        self._heard_s = time.monotonic()
        return True

    async def _post(self) -> None:
        self._posted_s = time.monotonic()
        job = letters.job(
            self.chat,
            self.place.model.name,
            request_id=self.id,
            attempt=self._attempt,
            owner=self._shared.boot_id,
            lane=self._lane.topic,
            max_tokens=self._max_tokens,
            deadline_s=REQUEST_DEADLINE_S,
        )
        await self._shared.mailer.post(self.place.node.beat.node_id, job)

    def free_node(self) -> None:
        """Give the node's slot back, once: `finish` does, or whoever knows before that the node is done."""
        if not self._freed:
            self._freed = True
            self._shared.router.release(self.place)

    def delivered(self, piece: Piece) -> None:
        """The client has this piece: it is paid for."""
        self.meter.delivered += piece.tokens

    @property
    def delivered_tokens(self) -> int:
        return self.meter.delivered

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
            await self._cancel(self.place, self._attempt)
        self._shared.lanes.release(self._lane)
        self.free_node()
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

    async def _cancel(self, place: Place, attempt: int) -> None:
        try:
            await self._shared.mailer.post(place.node.beat.node_id, Cancel(request_id=self.id, attempt=attempt))
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
            if self._tally.completion_tokens == len(reply.ids):
                self.place.node.saw_first_token((time.monotonic() - self._posted_s) * 1000)
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
            self._failure = failure_of(reply)

    def _take_part(self, reply: replies.ChoiceEnd | replies.Embedded) -> None:
        """A choice's end, or a vector: one for each input."""
        if isinstance(reply, replies.ChoiceEnd):
            if reply.choice >= self.chat.n:
                return
            self._ended.add(reply.choice)
            if not self._freed:  # the last one's slot is free when the attempt is over
                self.place = self._shared.router.keep(self.place, max(1, self.chat.n - len(self._ended)))
            if reply.finish != "cancelled":
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


def new_request_id() -> str:
    return ids.uuid7(int(time.time() * 1000), os.urandom(10))
