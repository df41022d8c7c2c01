"""The load: N streams, each sending its next chat completion when the last one is done. One process, little CPU.

Run by infra/bench/measure.py as `python -m infra.bench.load`, a plan as one line of JSON on its stdin. It writes
`{"event": "begin"}` when the warm-up is over and `{"event": "end", ...}` with the result when the measurement is: what
was finished between the two is what counts, and whoever reads them can take the CPU times of the same span.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import orjson
import uvloop

from infra.bench.answers import Answer, percentile
from infra.bench.http_client import BadAnswer, Connection, StaleConnection, Target

CHAT_PATH = "/v1/chat/completions"
_AFTER_ERROR_S = 0.1  # a server that refuses at once would otherwise be hammered
_WARMUP_S_MAX = 60.0
_ERROR_KINDS_MAX = 20


@dataclass(frozen=True)
class Plan:
    """What to send and for how long.

    Attributes:
        base_url: the server, without `/v1`.
        prompts: user messages, sent in turn.
        streams: requests in flight at any time.
        seconds: length of the measurement; it goes on until `requests_min` are done too, at most `seconds_max`.
        warmup_s: not measured; lasts until each stream has finished one request, too (at most a minute).
        ask_usage: ask for the token counts (`stream_options.include_usage`).
    """

    base_url: str
    prompts: tuple[str, ...]
    streams: int = 1
    model: str = "shark-mini"
    api_key: str = ""
    max_tokens: int = 16
    temperature: float = 0.0
    seconds: float = 10.0
    seconds_max: float = 120.0
    requests_min: int = 1
    warmup_s: float = 2.0
    timeout_s: float = 60.0
    ask_usage: bool = False

    def requests(self) -> list[bytes]:
        """The bytes of each call."""
        target = Target(self.base_url, CHAT_PATH)
        headers = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        options = {"stream_options": {"include_usage": True}} if self.ask_usage else {}
        return [
            target.request(
                orjson.dumps(
                    {
                        "model": self.model,
                        "messages": [{"role": "user", "content": prompt}],
                        "stream": True,
                        "max_tokens": self.max_tokens,
                        "temperature": self.temperature,
                        **options,
                    }
                ),
                headers,
            )
            for prompt in self.prompts
        ]


@dataclass(frozen=True)
class Result:
    """What was measured. Times are of the requests that ended within the measurement.

    `requests` are the good ones, `failed` the others. `all_requests` and `errors` (by what was wrong) count the warm-up
    and what ended after the measurement, too. `chars_min` and `chars_max` are of the answers: where every prompt
    has one answer of one length, they show a truncated one.
    """

    streams: int
    seconds: float
    requests: int
    failed: int
    tokens: int
    ttft_p50_ms: float
    ttft_p99_ms: float
    total_p50_ms: float
    total_p99_ms: float
    chars_min: int
    chars_max: int
    reconnects: int
    all_requests: int
    errors: dict[str, int]

    @property
    def requests_per_s(self) -> float:
        """Good answers a second."""
        return self.requests / self.seconds

    @property
    def tokens_per_s(self) -> float:
        """Tokens of good answers a second."""
        return self.tokens / self.seconds


class Load:
    """One run of a plan."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._target = Target(plan.base_url, CHAT_PATH)
        self._calls = itertools.cycle(plan.requests())
        self._measuring = self._stopping = False
        self._ttft_s: list[float] = []
        self._total_s: list[float] = []
        self._chars: list[int] = []
        self._tokens = self._reconnects = self._all_requests = self._failed = 0
        self._errors: Counter[str] = Counter()
        self._cold = plan.streams  # streams that have not finished one request yet
        self._warm = asyncio.Event()
        self._progress = asyncio.Event()

    async def run(self) -> Result:
        """Warm-up, measurement, and the end of what is still in flight."""
        plan = self._plan
        streams = [asyncio.create_task(self._stream(), name=f"stream {n}") for n in range(plan.streams)]
        try:
            await self._warm_up()
            gc.collect()
            gc.freeze()
            self._measuring = True
            _tell({"event": "begin"})
            began_s = time.perf_counter()
            await self._measure(began_s)
            took_s = time.perf_counter() - began_s
            self._measuring = False
            _tell({"event": "measured"})
            self._stopping = True
            await asyncio.gather(*streams)
        finally:
            for task in streams:
                task.cancel()
            await asyncio.gather(*streams, return_exceptions=True)
        return self._result(took_s)

    async def _warm_up(self) -> None:
        plan = self._plan
        began_s = time.perf_counter()
        try:
            await asyncio.wait_for(self._warm.wait(), _WARMUP_S_MAX)
        except TimeoutError:
            pass  # measured all the same: what is this slow shows in the table
        await asyncio.sleep(max(0.0, plan.warmup_s - (time.perf_counter() - began_s)))

    async def _measure(self, began_s: float) -> None:
        plan = self._plan
        while True:
            elapsed_s = time.perf_counter() - began_s
            enough = len(self._total_s) + self._failed >= plan.requests_min
            left_s = (plan.seconds if enough else plan.seconds_max) - elapsed_s
            if left_s <= 0:
                return
            if enough:
                await asyncio.sleep(left_s)
                continue
            self._progress.clear()
            try:
                await asyncio.wait_for(self._progress.wait(), left_s)
            except TimeoutError:
                return

    async def _stream(self) -> None:
        connection: Connection | None = None
        first = True
        try:
            while not self._stopping:
                request = next(self._calls)
                if connection is None or connection.closed:
                    connection = await self._open()
                if connection is not None:
                    connection = await self._one(connection, request)
                if first:
                    first, self._cold = False, self._cold - 1
                    if not self._cold:
                        self._warm.set()
                if connection is None:
                    await asyncio.sleep(_AFTER_ERROR_S)
        finally:
            if connection is not None:
                connection.close()

    async def _open(self) -> Connection | None:
        try:
            return await Connection.open(self._target)
        except OSError as error:
            self._note_error(f"no connection: {error.strerror or error}")
            return None

    async def _one(self, connection: Connection, request: bytes) -> Connection | None:
        """One call; the connection to go on with, None after an error. The clock starts on an open connection."""
        answer = Answer()
        began_s = time.perf_counter()
        try:
            try:
                await connection.call(request, answer, self._plan.timeout_s)
            except StaleConnection:
                # The server closed a connection that it had kept: as any client would, once more on a new one.
                self._reconnects += 1
                connection = await Connection.open(self._target)
                await connection.call(request, answer, self._plan.timeout_s)
            problem = answer.problem()
        except (BadAnswer, StaleConnection, OSError) as error:
            problem = str(error) or type(error).__name__
        if problem:
            self._note_error(problem)
            connection.close()
            return None
        self._note(answer, began_s, time.perf_counter())
        return connection

    def _note(self, answer: Answer, began_s: float, ended_s: float) -> None:
        self._all_requests += 1
        if not self._measuring:
            return
        assert answer.first_content_s is not None
        self._ttft_s.append(answer.first_content_s - began_s)
        self._total_s.append(ended_s - began_s)
        self._chars.append(answer.chars)
        self._tokens += answer.tokens
        self._progress.set()

    def _note_error(self, problem: str) -> None:
        kind = problem if problem in self._errors or len(self._errors) < _ERROR_KINDS_MAX else "others"
        self._errors[kind] += 1
        if self._measuring:
            self._failed += 1
            self._progress.set()

    def _result(self, took_s: float) -> Result:
        def at_ms(samples_s: list[float], percent: float) -> float:
            return percentile(samples_s, percent) * 1000 if samples_s else float("nan")

        return Result(
            streams=self._plan.streams,
            seconds=took_s,
            requests=len(self._total_s),
            failed=self._failed,
            tokens=self._tokens,
            ttft_p50_ms=at_ms(self._ttft_s, 50),
            ttft_p99_ms=at_ms(self._ttft_s, 99),
            total_p50_ms=at_ms(self._total_s, 50),
            total_p99_ms=at_ms(self._total_s, 99),
            chars_min=min(self._chars, default=0),
            chars_max=max(self._chars, default=0),
            reconnects=self._reconnects,
            all_requests=self._all_requests,
            errors=dict(self._errors),
        )


async def ask(plan: Plan) -> Answer:
    """The plan's first call alone; what failed is in the answer's `problem()`."""
    answer = Answer(keep_text=True)
    connection: Connection | None = None
    try:
        connection = await Connection.open(Target(plan.base_url, CHAT_PATH))
        await connection.call(plan.requests()[0], answer, plan.timeout_s)
    except (BadAnswer, StaleConnection, OSError) as error:
        answer.fail(str(error) or type(error).__name__)
    finally:
        if connection is not None:
            connection.close()
    return answer


def _tell(event: dict[str, Any]) -> None:
    sys.stdout.buffer.write(orjson.dumps(event) + b"\n")
    sys.stdout.buffer.flush()


def main() -> None:
    """Runs the plan that is on stdin."""
    plan = Plan(**orjson.loads(sys.stdin.buffer.readline()))
    result = uvloop.run(Load(plan).run())
    _tell({"event": "end", "result": asdict(result)})


if __name__ == "__main__":
    main()
