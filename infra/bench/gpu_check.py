"""`make gpu-check`: the engine contract and a short bench of exllamav2 on this machine's GPU.

Writes results/gpu-check.json and results/gpu-check.md beside this file. Without a GPU it says why, writes nothing and
exits with 0. It exits with 1 when a contract test fails or the bench breaks.

    python -m infra.bench.gpu_check [--model FOLDER] [--new-tokens 256]
"""

import argparse
import asyncio
import datetime
import importlib.metadata
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from workers.engines import create
from workers.engines.base import Engine, EngineError, Generation, Sampling
from workers.engines.exllamav2 import why_unavailable

RESULTS = Path(__file__).resolve().parent / "results"
ROOT = RESULTS.parent.parent.parent
CONTRACT = ROOT / "tests" / "contract"
STREAMS = (1, 4, 16)
TESTS_LIMIT_S = 1800  # the first import compiles exllamav2's CUDA extension
BENCH_LIMIT_S = 600
PROMPT = "<|im_start|>user\nwhat is 7 plus 5?<|im_end|>\n<|im_start|>assistant\n"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the bench.

    Attributes:
        streams: generations started together.
        tokens_per_s: of all of them, prefill included.
        first_token_p50_ms, first_token_max_ms: from the start to the first id, waiting for a slot included.
    """

    streams: int
    tokens_per_s: float
    first_token_p50_ms: float
    first_token_max_ms: float


def run_contract() -> dict[str, int]:
    """Run the contract tests of exllamav2 in a process of their own; counts by outcome."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", str(CONTRACT), f"--junitxml={report}"]
        subprocess.run(command, cwd=ROOT, check=False, timeout=TESTS_LIMIT_S)
        if not report.is_file():
            return {"passed": 0, "failed": 1, "skipped": 0}
        suite = ElementTree.parse(report).getroot().find("testsuite")
    counts = {
        name: int(suite.get(name, 0)) if suite is not None else 0 for name in ("tests", "failures", "errors", "skipped")
    }
    failed = counts["failures"] + counts["errors"]
    return {"passed": counts["tests"] - failed - counts["skipped"], "failed": failed, "skipped": counts["skipped"]}


async def bench(engine: Engine, new_tokens: int, streams: tuple[int, ...] = STREAMS) -> list[Row]:
    """Measure a loaded engine; every generation runs to its budget. Raises EngineError, TimeoutError."""
    banned = {token_id: -100.0 for token in engine.facts.special_tokens for token_id in await engine.tokenize(token)}
    generation = Generation(
        tuple(await engine.tokenize(PROMPT)), new_tokens, sampling=Sampling(temperature=0, logit_bias=banned)
    )

    async def one() -> tuple[int, float]:
        began, first_s, tokens = time.perf_counter(), 0.0, 0
        async for piece in engine.generate(generation):
            if piece.ids and not tokens:
                first_s = time.perf_counter() - began
            tokens += len(piece.ids)
        return tokens, first_s

    rows = []
    async with asyncio.timeout(BENCH_LIMIT_S):
        await one()  # the first run pays for caches and kernels
        for count in streams:
            began = time.perf_counter()
            results = await asyncio.gather(*(one() for _ in range(count)))
            took_s = time.perf_counter() - began
            firsts_ms = [first_s * 1000 for _, first_s in results]
            tokens_per_s = sum(tokens for tokens, _ in results) / took_s
            rows.append(
                Row(count, round(tokens_per_s, 1), round(statistics.median(firsts_ms), 2), round(max(firsts_ms), 2))
            )
    return rows


def machine() -> dict[str, str]:
    """The GPU and the versions that a number depends on."""
    import torch

    versions = {}
    for name in ("torch", "exllamav2", "flash-attn"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "absent"
    return {"gpu": torch.cuda.get_device_name(0), "python": platform.python_version(), **versions}


def as_markdown(result: dict[str, Any]) -> str:
    """The result as the page that is committed beside the JSON."""
    tests = result["contract"]
    facts = result["facts"]
    lines = [
        f"# exllamav2 on {result['machine']['gpu']}",
        "",
        f"{result['date']}; "
        + ", ".join(f"{name} {value}" for name, value in result["machine"].items() if name != "gpu"),
        "",
        f"Contract tests: {tests['passed']} passed, {tests['failed']} failed, {tests['skipped']} skipped.",
        "",
        f"Model {facts['model']}, {facts['slots']} slots, {result['new_tokens']} new tokens a stream.",
        *(f"\nNote: {note}." for note in facts["notes"]),
        "",
        "| streams | tokens/s, all together | first token p50 | first token max |",
        "|---|---|---|---|",
        *(
            f"| {row['streams']} | {row['tokens_per_s']:,} "
            f"| {row['first_token_p50_ms']} ms | {row['first_token_max_ms']} ms |"
            for row in result["bench"]
        ),
    ]
    return "\n".join(lines) + "\n"


async def measure(model_path: Path | None, new_tokens: int) -> dict[str, Any]:
    """Load, measure, unload. Raises EngineError, TimeoutError."""
    engine = create("exllamav2", model_path)
    await engine.load()
    try:
        return {"facts": asdict(engine.facts), "bench": [asdict(row) for row in await bench(engine, new_tokens)]}
    finally:
        await engine.unload()


def main() -> int:
    """Run it all; the process's exit code."""
    parser = argparse.ArgumentParser(description="contract tests and a short bench of exllamav2 on this GPU")
    parser.add_argument("--model", type=Path, default=None, help="folder with FP16 or EXL2 weights; shark-mini without")
    parser.add_argument("--new-tokens", type=int, default=256)
    arguments = parser.parse_args()
    if why := why_unavailable():
        print(f"gpu-check skipped: {why}")
        return 0
    contract = run_contract()
    try:
        measured = asyncio.run(measure(arguments.model, arguments.new_tokens))
    except (EngineError, TimeoutError) as error:
        print(f"gpu-check: the bench broke: {error or type(error).__name__}", file=sys.stderr)
        return 1
    now = datetime.datetime.now(datetime.UTC)
    result = {
        "date": now.date().isoformat(),
        "machine": machine(),
        "contract": contract,
        "new_tokens": arguments.new_tokens,
        **measured,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "gpu-check.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    page = as_markdown(result)
    (RESULTS / "gpu-check.md").write_text(page, encoding="utf-8")
    print(page)
    return 1 if contract["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
