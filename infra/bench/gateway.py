"""Table b: what the gateway itself costs. Every gateway in front of an engine that is a clock, under the same load."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from infra.bench import litellm_proxy, servers, stack
from infra.bench.cpu import CpuMeter
from infra.bench.load import Plan, ask
from infra.bench.machine import this_machine
from infra.bench.measure import Measurement, measure
from infra.bench.report import RESULTS, Bar, cpu_cells, error_notes, markdown, write
from infra.bench.upstream_double import INTERVAL_S, TOKENS
from infra.errors import ShrkError

LEVELS = (1, 16, 64, 200)
SHIVER, DIRECT, PASSTHROUGH, LITELLM = "Shiver", "no gateway", "pass-through", "LiteLLM"
GATEWAYS = (SHIVER, DIRECT, PASSTHROUGH, LITELLM)
_FIRST_TOKEN_MS = INTERVAL_S * 1000
_PROMPTS = tuple(f"what is {number} plus 5?" for number in range(1, 13))
_NODE_SLOTS = 512


@dataclass(frozen=True)
class Length:
    """How long each row is measured: at least `seconds` and `requests_min` requests, at most `seconds_max`.

    At least `rounds_min` requests a stream, too: streams that start together end together, and a span of a few such
    waves counts one more or less. `rest_s` is how long the processes are watched without a load.
    """

    seconds: float = 20.0
    requests_min: int = 200
    seconds_max: float = 90.0
    warmup_s: float = 3.0
    rest_s: float = 10.0
    rounds_min: int = 10


QUICK = Length(seconds=3.0, requests_min=1, warmup_s=1.0, rest_s=2.0, rounds_min=1)


@dataclass(frozen=True)
class Row:
    """One gateway at one number of streams."""

    gateway: str
    streams: int
    measured: Measurement

    def added_ms(self, value_ms: float) -> float:
        """What came on top of the engine's own time to the first token."""
        return value_ms - _FIRST_TOKEN_MS

    def cells(self) -> list[str]:
        """The table's line."""
        result = self.measured.result
        return [
            self.gateway,
            str(self.streams),
            f"+{self.added_ms(result.ttft_p50_ms):.1f}",
            f"+{self.added_ms(result.ttft_p99_ms):.1f}",
            f"{result.requests_per_s:.0f}",
            f"{self.measured.cpu_all_ms():.1f}",
            cpu_cells(self.measured.cpu_ms),
            str(result.requests),
            str(sum(result.errors.values())),
        ]


_HEADER = (
    "gateway",
    "streams",
    "added TTFT p50 ms",
    "p99 ms",
    "requests/s",
    "CPU ms/request",
    "of which (with the load's own double and generator)",
    "requests",
    "failed",
)


def run(
    levels: Sequence[int],
    length: Length,
    say: Callable[[str], None],
    gateways: Sequence[str] = GATEWAYS,
    results: Path = RESULTS,
) -> str:
    """Measures, writes the results, returns the table. Raises ShrkError."""
    rows: list[Row] = []
    notes: list[str] = []
    for gateway in gateways:
        with contextlib.ExitStack() as running, tempfile.TemporaryDirectory(prefix="shrk-bench-") as folder:
            if gateway == SHIVER:
                rows += _measure_shiver(levels, length, say, notes)
                continue
            plan, pids = running.enter_context(_compared(gateway, Path(folder), say))
            rows += [_row(gateway, n, plan, pids, length, say) for n in levels]
    machine = this_machine()
    bars = judge([row for row in rows if row.gateway == SHIVER])
    text = markdown(
        f"The gateway alone: an engine double, {TOKENS} tokens {_FIRST_TOKEN_MS:.0f} ms apart",
        machine,
        _HEADER,
        [row.cells() for row in rows],
    )
    errors = error_notes({f"{row.gateway} at {row.streams}": row.measured.result for row in rows})
    text += "\n".join(["", "Bars of Shiver:", "", *(bar.line() for bar in bars), "", "Errors and books:", ""])
    text += "\n".join(["", *errors, *notes, ""])
    data = {"rows": [asdict(row) for row in rows], "bars": [asdict(bar) for bar in bars], "notes": notes}
    for path in write("gateway", machine, text, data, results):
        say(f"wrote {path}")
    return text


def judge(rows: Sequence[Row]) -> list[Bar]:
    """The bars of issue 3 against the rows of Shiver."""
    by_level = {row.streams: row for row in rows}
    costs = {row.streams: row.measured for row in rows if row.measured.cpu_ms}

    def at(level: int, what: Callable[[Row], float], asked: str, unit: str, good: Callable[[float], bool]) -> Bar:
        if level not in by_level:
            return Bar(asked, "no row", None)
        value = what(by_level[level])
        return Bar(asked, f"{value:.1f} {unit}", good(value))

    def cost(asked: str, limit_ms: float, what: Callable[[Measurement], float]) -> Bar:
        values = {streams: what(measured) for streams, measured in costs.items()}
        said = ", ".join(f"{value:.1f} at {streams}" for streams, value in values.items())
        return Bar(asked, said or "no row", all(v <= limit_ms for v in values.values()) if values else None)

    return [
        at(1, lambda r: r.added_ms(r.measured.result.ttft_p50_ms), "+8 ms p50 at 1 stream", "ms", lambda v: v <= 8),
        at(
            64, lambda r: r.added_ms(r.measured.result.ttft_p99_ms), "+60 ms p99 at 64 streams", "ms", lambda v: v <= 60
        ),
        at(
            200,
            lambda r: r.measured.result.requests_per_s,
            ">= 120 requests/s at 200 streams",
            "/s",
            lambda v: v >= 120,
        ),
        cost("ingress <= 5 ms CPU a request, at every number of streams", 5, lambda m: m.cpu_ms.get("ingress", 0.0)),
        cost("all processes <= 12 ms CPU a request, at every number of streams", 12, Measurement.cpu_all_ms),
    ]


def shiver_plan(base_url: str, key: str) -> tuple[Plan, int]:
    """The load for Shiver, and how many requests it took to find its prompt.

    What the engine double says follows from the prompt. Where that begins with a character of several bytes, the first
    text comes tokens later by right, so a prompt is chosen whose answer begins with ASCII.
    """
    plan = Plan(base_url, _PROMPTS[:1], model=stack.MODEL, api_key=key, max_tokens=TOKENS)
    for asked, prompt in enumerate(_PROMPTS, 1):
        candidate = replace(plan, prompts=(prompt,))
        answer = asyncio.run(ask(candidate))
        if answer.problem():
            raise ShrkError(f"Shiver does not answer the bench's first request: {answer.problem()}")
        if answer.said()[0].isascii():
            return candidate, asked
    raise ShrkError("the engine double begins none of its answers with ASCII; its first token cannot be timed")


def _measure_shiver(levels: Sequence[int], length: Length, say: Callable[[str], None], notes: list[str]) -> list[Row]:
    say("starting Shiver with the engine double")
    with stack.shiver({"SHRK_ENGINE": "double", "SHRK_SLOTS": str(_NODE_SLOTS)}) as running:
        plan, asked = shiver_plan(running.base_url, running.key)
        meter = CpuMeter(running.pids())
        before = meter.read()
        time.sleep(length.rest_s)
        rest_ms = {name: used_s * 1000 / length.rest_s for name, used_s in meter.read().since(before).items()}
        rows = [_row(SHIVER, streams, plan, running.pids(), length, say) for streams in levels]
        running.require_unharmed()
        books = running.settle()
    notes.append(f"- Shiver at rest uses, CPU ms a second: {cpu_cells(rest_ms)}. At 1 stream this is most of its cost")
    good = asked + sum(row.measured.result.all_requests for row in rows)
    notes.append(books.note(good))
    return rows


@contextlib.contextmanager
def _compared(gateway: str, folder: Path, say: Callable[[str], None]) -> Iterator[tuple[Plan, dict[str, list[int]]]]:
    """A gateway in front of the upstream double: the load for it, and the processes."""
    model, key = "double", litellm_proxy.new_key()
    with contextlib.ExitStack() as running:
        double = running.enter_context(servers.serving(servers.double_spec, folder))
        say(f"starting {gateway}")
        if gateway == PASSTHROUGH:
            front = running.enter_context(
                servers.serving(lambda port: servers.passthrough_spec(port, double.base_url, say), folder)
            )
        elif gateway == LITELLM:
            front = running.enter_context(
                servers.serving(lambda port: litellm_proxy.spec(port, model, double.base_url, key, folder, say), folder)
            )
        else:
            front = double
        plan = Plan(front.base_url, _PROMPTS[:1], model=model, api_key=key, max_tokens=TOKENS)
        pids = {"double": [double.pid]}
        yield plan, pids if front is double else {**pids, "gateway": [front.pid]}


def _row(
    gateway: str,
    streams: int,
    plan: Plan,
    pids: Mapping[str, list[int]],
    length: Length,
    say: Callable[[str], None],
) -> Row:
    plan = replace(
        plan,
        streams=streams,
        seconds=length.seconds,
        requests_min=max(length.requests_min, length.rounds_min * streams),
        seconds_max=length.seconds_max,
        warmup_s=length.warmup_s,
    )
    row = Row(gateway, streams, measure(plan, pids))
    cells = row.cells()
    say(
        f"{gateway}, {streams} streams: TTFT {cells[2]} / {cells[3]} ms, {cells[4]}/s, {cells[5]} ms CPU, "
        f"{cells[8]} failed"
    )
    return row
