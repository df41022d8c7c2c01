"""Jobs in, records out: what this node does with a letter.

`take` decides without waiting: seen before, cancelled before, draining, unknown model, expired. What is left becomes a
task: a place, the prompt, the claim, the engine. Who ends an attempt from outside (cancel, deadline, drain, a dead
owner, a lost lane) writes its last record at once and then cancels the task, which only cleans up: the answer never
waits for an engine to let go.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping

from schemas.jobs import Cancel, Job, Letter
from schemas.replies import ALIVE_INTERVAL_S
from schemas.topics import lane_boot_id
from workers.attempt import Attempt, RejectCode
from workers.chat.schema_values import BadSchema
from workers.chat.template import ChatTemplateError
from workers.clocks import SkewMeter, due_at_s
from workers.engines.base import (
    EngineBusy,
    EngineCrashed,
    EngineError,
    GenerationInvalid,
    ImageInvalid,
    LibraryRefused,
    NotSupported,
    PromptTooLong,
)
from workers.gather import Gatherer
from workers.ingresses import Ingresses
from workers.outbox import Lane, Outbox
from workers.served import BadImage, BadMessages, Served, Unsupported
from workers.serving import Serving
from workers.slots import Busy

log = logging.getLogger(__name__)

#: Attempts, and cancels that came before their job, that are remembered. A mailbox keeps an hour, expiry is seconds.
RECENT_MAX = 20_000
EARLY_CANCELS_MAX = 4096
#: Attempts that are in this process at once, those that wait for a place included; more are told `busy`.
ATTEMPTS_MAX = 8192
#: How often silence, deadlines, stalls and owners are looked at.
TICK_S = 0.1
RELOADS_MAX = 3
#: How much the last job counts in the measured time to the first token.
_RECENT = 0.2
#: How long engines may take to let go of attempts whose last record is written.
LET_GO_S_MAX = 1.0

_Key = tuple[str, int]


#: What nobody can run as it is.
_REJECTED = (GenerationInvalid, BadMessages, BadImage, Unsupported, BadSchema, ChatTemplateError)


class EngineGone(Exception):
    """An engine broke and cannot be loaded again: the node has to end."""


class Runner:
    """Everything between a letter and its records.

    Args:
        models: by name, loaded.
        outbox: started.
        ingresses: who lives.
        skew: how long letters waited.
        on_load: called when a place was taken or given back.
    """

    def __init__(
        self,
        models: Mapping[str, Served],
        outbox: Outbox,
        ingresses: Ingresses,
        skew: SkewMeter,
        on_load: Callable[[], None] = lambda: None,
    ) -> None:
        loop = asyncio.get_running_loop()
        self._models = models
        self._engines = list({id(served): served for served in models.values()}.values())
        self._outbox = outbox
        self._ingresses = ingresses
        self._skew = skew
        self._on_load = on_load
        self._now = loop.time
        self._gatherer = Gatherer(loop.time, loop.call_at, lambda: (self._generating, outbox.latency_s))
        self._generating = 0
        self._running: dict[_Key, tuple[Attempt, Lane, asyncio.Task[None]]] = {}
        self._recent: OrderedDict[_Key, None] = OrderedDict()
        self._early: OrderedDict[_Key, None] = OrderedDict()
        self._boot = secrets.token_hex(5)
        self._count = 0
        self._broken: asyncio.Future[None] = loop.create_future()
        self._reloads: set[asyncio.Task[None]] = set()
        #: From a job's arrival to its first text or vector, recent ones counting most; None before any.
        self.first_token_ms: float | None = None
        self.draining = False

    @property
    def slots(self) -> int:
        """Jobs that may run at once, whatever their models: as many as every engine that runs has places."""
        return min((served.slots.total for served in self._engines if not served.reloading), default=0)

    @property
    def busy(self) -> int:
        """Places that are taken."""
        return sum(served.slots.busy for served in self._engines if not served.reloading)

    @property
    def busy_by_owner(self) -> dict[str, int]:
        """Places that attempts take or wait for, by the ingress that sent them."""
        places: Counter[str] = Counter()
        for attempt, _, _ in self._running.values():
            places[attempt.job.owner] += attempt.places
        return places

    @property
    def running(self) -> int:
        """Attempts without a last record, those that wait for a place included."""
        return len(self._running)

    def take(self, letter: Letter, timestamp_ms: int, read_at_s: float) -> None:
        """Acts on one letter. Never waits, and answers every job that it does not run, except one seen before.

        Args:
            letter: what arrived.
            timestamp_ms: its record's CreateTime, by the ingress's clock.
            read_at_s: monotonic clock when it was read.
        """
        key = (letter.request_id, letter.attempt)
        if isinstance(letter, Cancel):
            self._cancel(key)
            return
        if key in self._recent:
            log.info("request=%s attempt=%d came again: not run", *key)
            return
        _remember(self._recent, key, RECENT_MAX)
        try:
            lane_boot_id(letter.lane)
        except ValueError:
            log.warning("request=%s attempt=%d names a topic that is no lane: dropped", *key)
            return
        delay_s = self._skew.delay_s(letter.owner, timestamp_ms, read_at_s)
        self._ingresses.seen(letter.owner, read_at_s - delay_s)
        self._begin(
            key,
            letter,
            due_at_s(letter.expires_at_ms, timestamp_ms, read_at_s, delay_s),
            due_at_s(letter.deadline_at_ms, timestamp_ms, read_at_s, delay_s),
        )

    def _begin(self, key: _Key, job: Job, expires_at_s: float, deadline_at_s: float) -> None:
        lane = self._outbox.open(job.lane, job.request_id.encode(), lambda: self._stop(key, Attempt.abandon))
        self._count += 1
        nonce = f"{self._boot}{self._count:x}"
        attempt = Attempt(job, nonce, lane, self._gatherer, self._now, expires_at_s, deadline_at_s)
        served = self._models.get(job.model)
        if key in self._early:
            del self._early[key]
            attempt.cancelled()
        elif self.draining:
            attempt.fail("draining")
        elif served is None:
            attempt.fail("unknown_model")
        elif not self._in_time(attempt):
            pass
        elif served.reloading or len(self._running) >= ATTEMPTS_MAX:
            attempt.fail("busy")
        else:
            task = asyncio.create_task(self._run(attempt, served, lane))
            self._running[key] = (attempt, lane, task)
            task.add_done_callback(lambda _: self._ended(key, attempt))
            return
        _log_end(attempt, self._now())

    def _ended(self, key: _Key, attempt: Attempt) -> None:
        del self._running[key]
        if attempt.first_token_at_s is not None:
            took_ms = (attempt.first_token_at_s - attempt.started_at_s) * 1000
            before_ms = took_ms if self.first_token_ms is None else self.first_token_ms
            self.first_token_ms = before_ms + _RECENT * (took_ms - before_ms)
        _log_end(attempt, self._now())

    def _in_time(self, attempt: Attempt) -> bool:
        now_s = self._now()
        if now_s >= attempt.expires_at_s:
            attempt.fail("expired")
        elif now_s >= attempt.deadline_at_s:
            attempt.fail("deadline")
        return attempt.outcome is None

    def _cancel(self, key: _Key) -> None:
        if key in self._running:
            self._stop(key, Attempt.cancelled)
        elif key not in self._recent:
            _remember(self._early, key, EARLY_CANCELS_MAX)

    def _stop(self, key: _Key, how: Callable[[Attempt], None]) -> None:
        """Ends an attempt from outside: its last record now, its task after."""
        found = self._running.get(key)
        if found is not None and found[0].outcome is None:
            how(found[0])
            found[2].cancel()

    async def _run(self, attempt: Attempt, served: Served, lane: Lane) -> None:
        try:
            await served.slots.take()
        except Busy:
            attempt.fail("busy")
            return
        self._on_load()
        try:
            if self._in_time(attempt):
                await Serving(attempt, served, lane, self._count_generating).run()
        except asyncio.CancelledError:
            attempt.fail("draining")  # unless whoever cancelled wrote a last record before
            raise
        except EngineBusy:
            attempt.fail("busy")
        except _REJECTED as error:
            attempt.reject(*_rejection_of(error))
        except EngineError as error:
            attempt.fail("engine_error", type(error).__name__)
            if isinstance(error, EngineCrashed):
                self._revive(served)
        except Exception as error:  # noqa: BLE001 - an engine's bug costs one job, not the node
            # Not its text: an error may quote the prompt.
            where = _innermost(error)
            log.error("request=%s: %s at %s", attempt.job.request_id, type(error).__name__, where)
            attempt.fail("engine_error", type(error).__name__)
        finally:
            served.slots.give()
            self._on_load()

    def _count_generating(self, change: int) -> None:
        self._generating += change

    def _revive(self, served: Served) -> None:
        if served.reloading:
            return
        log.error("model %s: the engine crashed; loading it again", served.name)
        if served.reloads >= RELOADS_MAX:
            self._give_up(EngineGone(f"the engine of {served.name} crashed {RELOADS_MAX + 1} times"))
            return
        served.reloading = True
        self._on_load()
        task = asyncio.create_task(self._reload(served))
        self._reloads.add(task)
        task.add_done_callback(self._reloads.discard)

    async def _reload(self, served: Served) -> None:
        try:
            await served.reload()
        except Exception as error:  # noqa: BLE001 - whatever it is, it ends the node
            gone = EngineGone(f"the engine of {served.name} could not be loaded again ({type(error).__name__})")
            gone.__cause__ = error
            self._give_up(gone)
            return
        log.warning("model %s: the engine runs again", served.name)
        self._on_load()

    def _give_up(self, error: EngineGone) -> None:
        if not self._broken.done():
            self._broken.set_exception(error)

    async def watch(self) -> None:
        """Looks at every attempt each TICK_S: signs of life, deadlines, stalls, dead owners. Raises EngineGone."""
        while True:
            await asyncio.wait([self._broken], timeout=TICK_S)
            if self._broken.done():
                self._broken.result()
            now_s = self._now()
            for key, (attempt, lane, _) in list(self._running.items()):
                if attempt.outcome is None:
                    self._look_at(key, attempt, lane, now_s)

    def _look_at(self, key: _Key, attempt: Attempt, lane: Lane, now_s: float) -> None:
        if now_s >= attempt.deadline_at_s:
            self._stop(key, lambda a: a.fail("deadline"))
        elif not attempt.claimed and now_s >= attempt.expires_at_s:
            self._stop(key, lambda a: a.fail("expired"))
        elif lane.stalled(now_s):
            self._stop(key, lambda a: a.fail("engine_error", "Kafka took no replies for too long"))
        elif self._ingresses.dead(attempt.job.owner, now_s):
            log.warning("request=%s attempt=%d: its ingress is dead", *key)
            self._stop(key, Attempt.cancelled)
        elif now_s - attempt.last_record_at_s > ALIVE_INTERVAL_S - 2 * TICK_S and not lane.held_bytes:
            # With a record on its way another would only pile up behind it.
            attempt.alive()

    async def drain(self, grace_s: float, hurry: asyncio.Event) -> None:
        """No new jobs; what runs may finish within the grace or until `hurry`; the rest fails as draining."""
        self.draining = True
        tasks = [task for _, _, task in self._running.values()]
        if tasks:
            finished = asyncio.gather(*tasks, return_exceptions=True)
            hurried = asyncio.ensure_future(hurry.wait())
            await asyncio.wait([finished, hurried], timeout=max(0.0, grace_s), return_when=asyncio.FIRST_COMPLETED)
            hurried.cancel()
        for key in list(self._running):
            self._stop(key, lambda a: a.fail("draining"))
        if tasks:
            await asyncio.wait(tasks, timeout=LET_GO_S_MAX)  # engines let go; the records are written already


def _rejection_of(error: Exception) -> tuple[RejectCode, str]:
    """Code and detail; never what the job says, but for names of keywords in a schema."""
    match error:
        case PromptTooLong():
            return "context_too_long", str(error)
        case ImageInvalid():
            return "bad_image", "an image cannot be read"
        case BadImage():
            return "bad_image", str(error)
        case BadSchema():
            return "bad_schema", str(error)
        case NotSupported() | Unsupported():
            return "unsupported", str(error)
        case ChatTemplateError():
            return "bad_template", "the model's chat template cannot render these messages"
        case LibraryRefused():
            return "bad_job", "the model does not take this request"
        case _:
            return "bad_job", str(error)


def _remember(memory: OrderedDict[_Key, None], key: _Key, limit: int) -> None:
    memory[key] = None
    if len(memory) > limit:
        memory.popitem(last=False)


def _innermost(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_qualname}:{trace.tb_lineno}" if trace is not None else "?"


def _log_end(attempt: Attempt, now_s: float) -> None:
    first_at_s = attempt.first_token_at_s
    log.info(
        "request=%s attempt=%d model=%s end=%s prompt=%d tokens=%d first_ms=%s ms=%d",
        attempt.job.request_id,
        attempt.job.attempt,
        attempt.job.model,
        attempt.outcome,
        attempt.prompt_tokens,
        attempt.completion_tokens,
        "-" if first_at_s is None else round((first_at_s - attempt.started_at_s) * 1000),
        round((now_s - attempt.started_at_s) * 1000),
    )
