"""gpu-check without a GPU: it says why and passes; its bench and its page work on any engine."""

import subprocess
import sys
from dataclasses import asdict

import pytest

from infra.bench import gpu_check
from workers.engines.double import DoubleEngine
from workers.engines.exllamav2 import why_unavailable


def test_without_a_gpu_it_says_why_and_passes() -> None:
    if why_unavailable() is None:
        pytest.skip("a GPU is here: gpu-check itself is the test")
    command = [sys.executable, "-m", "infra.bench.gpu_check"]
    done = subprocess.run(command, cwd=gpu_check.ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("gpu-check skipped: ")


async def test_the_bench_and_its_page() -> None:
    engine = DoubleEngine(tokens=64, interval_ms=1, slots=4)
    await engine.load()
    rows = await gpu_check.bench(engine, 8)
    assert [row.streams for row in rows] == [1, 4, 16]
    assert rows[1].tokens_per_s > rows[0].tokens_per_s
    result = {
        "date": "2026-01-01",
        "machine": {"gpu": "a GPU", "torch": "2"},
        "contract": {"passed": 1, "failed": 0, "skipped": 0},
        "new_tokens": 8,
        "facts": asdict(engine.facts),
        "bench": [asdict(row) for row in rows],
    }
    page = gpu_check.as_markdown(result)
    assert "# exllamav2 on a GPU" in page
    assert page.count("\n| ") == 4
    await engine.unload()
