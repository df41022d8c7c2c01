"""Table a: the same prompts straight against llama.cpp's own server, and through Shiver with the same model."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from infra.bench import servers, stack
from infra.bench.answers import Answer
from infra.bench.gateway import Length
from infra.bench.load import Plan, ask
from infra.bench.machine import this_machine
from infra.bench.measure import Measurement, measure
from infra.bench.report import RESULTS, cpu_cells, error_notes, markdown, write
from infra.errors import ShrkError

LEVELS = (1, 4, 16)
SLOTS = 16
MAX_TOKENS = 64
PROMPTS = (
    "what is 7 plus 5?",
    "what is the capital of France?",
    "count to 20",
    "what is the opposite of hot?",
    "what colour is grass?",
    "add 3 and 4, answer in JSON",
    "describe yourself as JSON",
    "count from 1 to 15",
)


@dataclass(frozen=True)
class Row:
    """One number of streams, both ways."""

    streams: int
    straight: Measurement
    shiver: Measurement

    def cells(self) -> list[str]:
        """The table's line."""
        ours, theirs = self.shiver.result, self.straight.result
        return [
            str(self.streams),
            f"{theirs.ttft_p50_ms:.1f} / {theirs.ttft_p99_ms:.1f}",
            f"{ours.ttft_p50_ms:.1f} / {ours.ttft_p99_ms:.1f}",
            f"{ours.ttft_p50_ms - theirs.ttft_p50_ms:+.1f}",
            f"{ours.ttft_p99_ms - theirs.ttft_p99_ms:+.1f}",
            f"{theirs.tokens_per_s:.0f}",
            f"{ours.tokens_per_s:.0f}",
            f"{sum(theirs.errors.values())} / {sum(ours.errors.values())}",
        ]


_HEADER = (
    "streams",
    "TTFT p50 / p99 ms straight",
    "through Shiver",
    "added p50 ms",
    "added p99 ms",
    "tokens/s straight",
    "tokens/s through Shiver",
    "failed",
)


def run(levels: Sequence[int], length: Length, say: Callable[[str], None], results: Path = RESULTS) -> str:
    """Measures, writes the results, returns the table. Raises ShrkError."""
    straight, said_straight = _straight(levels, length, say)
    ours, said_ours, books = _through_shiver(levels, length, say)
    rows = [Row(streams, a, b) for streams, a, b in zip(levels, straight, ours, strict=True)]
    same = sum(a.said() == b.said() for a, b in zip(said_straight, said_ours, strict=True))
    machine = this_machine()
    text = markdown(
        f"The real engine: shark-mini in llama.cpp, {SLOTS} slots, straight and through Shiver",
        machine,
        _HEADER,
        [row.cells() for row in rows],
    )
    notes = [
        f"- {same} of {len(PROMPTS)} prompts were answered with the same text both ways; tokens of these answers: "
        f"{sum(a.tokens for a in said_straight)} straight, {sum(a.tokens for a in said_ours)} through Shiver",
        *(f"- CPU ms a request at {row.streams}: straight {cpu_cells(row.straight.cpu_ms)}" for row in rows),
        *(f"- CPU ms a request at {row.streams}: Shiver {cpu_cells(row.shiver.cpu_ms)}" for row in rows),
        books.note(len(PROMPTS) + sum(one.result.all_requests for one in ours)),
    ]
    named = {f"straight at {row.streams}": row.straight.result for row in rows}
    named |= {f"Shiver at {row.streams}": row.shiver.result for row in rows}
    text += "\n".join(["", *error_notes(named), *notes, ""])
    for path in write("engine", machine, text, {"rows": [asdict(row) for row in rows], "notes": notes}, results):
        say(f"wrote {path}")
    return text


def _straight(
    levels: Sequence[int], length: Length, say: Callable[[str], None]
) -> tuple[list[Measurement], list[Answer]]:
    say("starting llama.cpp's own server")
    with (
        tempfile.TemporaryDirectory(prefix="shrk-bench-") as folder,
        servers.serving(lambda port: servers.engine_spec(port, SLOTS), Path(folder)) as engine,
    ):
        # llama.cpp's own count has the end-of-turn token in it; its events are one for each token of the text.
        plan = replace(_plan(engine.base_url, "", length), ask_usage=False)
        said = _answers(plan)
        return _levels("straight", plan, {"engine": [engine.pid]}, levels, say), said


def _through_shiver(
    levels: Sequence[int], length: Length, say: Callable[[str], None]
) -> tuple[list[Measurement], list[Answer], stack.Books]:
    say("starting Shiver with llama.cpp")
    with contextlib.ExitStack() as running:
        shiver = running.enter_context(stack.shiver({"SHRK_ENGINE": "llamacpp", "SHRK_SLOTS": str(SLOTS)}))
        plan = _plan(shiver.base_url, shiver.key, length)
        said = _answers(plan)
        measured = _levels("Shiver", plan, shiver.pids(), levels, say)
        shiver.require_unharmed()
        return measured, said, shiver.settle()


def _plan(base_url: str, key: str, length: Length) -> Plan:
    return Plan(
        base_url,
        PROMPTS,
        model=stack.MODEL,
        api_key=key,
        max_tokens=MAX_TOKENS,
        ask_usage=True,
        seconds=length.seconds,
        requests_min=length.requests_min,
        seconds_max=length.seconds_max,
        warmup_s=length.warmup_s,
    )


def _levels(
    name: str, plan: Plan, pids: dict[str, list[int]], levels: Sequence[int], say: Callable[[str], None]
) -> list[Measurement]:
    measured = []
    for streams in levels:
        one = measure(replace(plan, streams=streams), pids)
        measured.append(one)
        result = one.result
        say(
            f"{name}, {streams} streams: TTFT {result.ttft_p50_ms:.1f} / {result.ttft_p99_ms:.1f} ms, "
            f"{result.tokens_per_s:.0f} tokens/s, {sum(result.errors.values())} failed"
        )
    return measured


def _answers(plan: Plan) -> list[Answer]:
    """What each prompt is answered with."""

    async def all_of_them() -> list[Answer]:
        answers = []
        for prompt in plan.prompts:
            answer = await ask(replace(plan, prompts=(prompt,)))
            if answer.problem():
                raise ShrkError(f"{prompt!r} was not answered: {answer.problem()}")
            answers.append(answer)
        return answers

    return asyncio.run(all_of_them())
