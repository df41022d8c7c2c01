"""The arithmetic of the benches: percentiles, streams that come in pieces, CPU times of processes that come and go."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import orjson
import psutil
import pytest

from infra.bench import environments, litellm_proxy, upstream_double
from infra.bench.answers import Answer, percentile
from infra.bench.cpu import CpuMeter, Reading, per_request_ms
from infra.bench.flame import parse_folded
from infra.bench.gateway import SHIVER, Row, judge
from infra.bench.http_client import BadAnswer, Connection, Dechunker, Target
from infra.bench.load import Load, Plan, Result, ask
from infra.bench.measure import Measurement
from infra.errors import ChildFailed, MachineUnfit


@pytest.mark.parametrize(("percent", "expected"), [(50, 50), (99, 99), (99.1, 100), (100, 100), (1, 1), (0.5, 1)])
def test_percentiles_are_samples(percent: float, expected: float) -> None:
    samples = [float(n) for n in range(100, 0, -1)]
    assert percentile(samples, percent) == expected


def test_a_percentile_of_few_samples_is_the_largest() -> None:
    assert percentile([3.0, 1.0], 99) == 3.0
    with pytest.raises(ValueError, match="0 samples"):
        percentile([], 50)


def chunk(content: str | None = None, **more: object) -> bytes:
    delta = {} if content is None else {"content": content}
    choice = {"index": 0, "delta": delta, "finish_reason": more.pop("finish_reason", None)}
    return b"data: " + orjson.dumps({"choices": [choice], **more}) + b"\n\n"


WHOLE = chunk("") + chunk("he") + chunk("llo") + chunk(finish_reason="stop") + b"data: [DONE]\n\n"


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_an_answer_reads_the_same_in_pieces_of_any_size(size: int) -> None:
    answer = Answer(keep_text=True)
    for at in range(0, len(WHOLE), size):
        answer.feed(WHOLE[at : at + size], float(at))
    assert answer.problem() is None
    assert (answer.said(), answer.chunks, answer.chars, answer.tokens) == ("hello", 2, 5, 2)


def test_the_first_content_is_the_first_that_is_not_empty() -> None:
    answer = Answer()
    answer.feed(chunk("") + b": a comment\n\nid: 1\n", 1.0)
    assert answer.first_content_s is None
    answer.feed(chunk("x"), 2.0)
    answer.feed(chunk("y"), 3.0)
    assert answer.first_content_s == 2.0


def test_tokens_are_the_servers_count_where_it_gives_one() -> None:
    answer = Answer()
    answer.feed(chunk("a b c") + b'data: {"choices":[],"usage":{"completion_tokens":3}}\r\n\r\n', 1.0)
    assert answer.tokens == 3


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (chunk("a", finish_reason="stop"), "the stream ended without [DONE]"),
        (chunk(finish_reason="stop") + b"data: [DONE]\n\n", "an answer without content"),
        (chunk("a") + b"data: [DONE]\n\n", "no finish_reason"),
        (b"data: {oops\n\n" + WHOLE, "an event that is not JSON"),
        (b"data: 7\n\n" + WHOLE, "an event that is not an object"),
        (b'data: {"error":{"code":"node_died","message":"gone"}}\n\n' + WHOLE, "error event: node_died gone"),
        (b"event: error\ndata: {}\n\n" + WHOLE, "an error event"),
    ],
)
def test_what_is_wrong_with_an_answer_is_said(body: bytes, problem: str) -> None:
    answer = Answer()
    answer.feed(body, 1.0)
    assert answer.problem() == problem


@pytest.mark.parametrize("size", [1, 2, 3, 5, 1000])
def test_chunks_are_undone_in_pieces_of_any_size(size: int) -> None:
    body = b"5\r\nhello\r\n6;name=value\r\n\r\n wor\r\n2\r\nld\r\n0\r\nTrailer: x\r\n\r\n"
    dechunker = Dechunker()
    read = b"".join(dechunker.feed(body[at : at + size]) for at in range(0, len(body), size))
    assert read == b"hello\r\n world"
    assert dechunker.ended


def test_what_is_not_chunked_is_refused() -> None:
    with pytest.raises(BadAnswer, match="not properly chunked"):
        Dechunker().feed(b"hello\r\n")


def test_a_target_is_plain_http() -> None:
    with pytest.raises(ValueError, match="http://"):
        Target("https://example.org", "/")


async def double() -> tuple[asyncio.Server, str]:
    server = await asyncio.get_running_loop().create_server(upstream_double.Double, "127.0.0.1", 0)
    return server, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_the_load_against_the_double(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    server, base_url = await double()
    plan = Plan(base_url, ("hello",), streams=3, seconds=0.1, requests_min=6, warmup_s=0.0)
    result = await Load(plan).run()
    server.close()
    assert result.requests >= 6
    assert result.errors == {}
    assert result.tokens == 16 * result.requests
    assert result.chars_min == result.chars_max == 64
    assert result.all_requests >= result.requests + 3  # the warm-up's are not measured
    assert 20 <= result.ttft_p50_ms < 200
    assert result.total_p50_ms >= 320
    assert [orjson.loads(line)["event"] for line in capfdbinary.readouterr().out.splitlines()] == ["begin", "measured"]


async def test_refusals_are_counted_by_what_they_say() -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        body = b'{"error":{"code":"insufficient_balance","message":"no credit"}}'
        writer.write(b"HTTP/1.1 402 X\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    base_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    result = await Load(Plan(base_url, ("hello",), seconds=0.2, warmup_s=0.0)).run()
    answer = await ask(Plan(base_url, ("hello",)))
    server.close()
    assert result.requests == 0
    assert result.failed >= 1
    assert set(result.errors) == {"HTTP 402: insufficient_balance no credit"}
    assert answer.problem() == "HTTP 402: insufficient_balance no credit"


async def test_a_stream_that_breaks_off_is_an_error() -> None:
    async def break_off(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        part = chunk("a")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n" % (len(part), part))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(break_off, "127.0.0.1", 0)
    plan = Plan(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", ("hello",))
    answer = await ask(plan)
    server.close()
    assert answer.problem() == "the connection broke in the middle of the answer"


async def test_an_answer_that_never_ends_is_an_error() -> None:
    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(hang, "127.0.0.1", 0)
    target = Target(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", "/")
    connection = await Connection.open(target)
    with pytest.raises(BadAnswer, match=r"no complete answer in 0.05 s"):
        await connection.call(target.request(b"{}", {}), Answer(), 0.05)
    assert connection.closed
    server.close()


_BURN = "import time\nwhile time.process_time() < 0.3: pass\n"
_PARENT = f"""
import subprocess, sys
subprocess.run([sys.executable, "-c", {_BURN!r}])
print("reaped", flush=True)
live = subprocess.Popen([sys.executable, "-c", {_BURN + "print('burnt', flush=True); time.sleep(60)"!r}])
sys.stdin.readline()
live.kill()
live.wait()
"""


def test_cpu_times_have_children_dead_and_alive() -> None:
    process = subprocess.Popen([sys.executable, "-c", _PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        meter = CpuMeter({"parent": [process.pid]})
        before = meter.read()
        assert process.stdout.readline() == b"reaped\n"
        assert meter.read().since(before)["parent"] >= 0.25
        assert process.stdout.readline() == b"burnt\n"
        used_s = meter.read().since(before)["parent"]
        assert used_s >= 0.5
        [child] = psutil.Process(process.pid).children()
        apart = CpuMeter({"parent": [process.pid], "child": [child.pid]}).read().seconds
        assert apart["child"] >= 0.25  # named itself, so not with its parent
        assert apart["parent"] <= used_s
        process.communicate(b"\n", timeout=30)
        with pytest.raises(ChildFailed, match=r"parent .* ended while"):
            meter.read()
    finally:
        process.kill()
        process.communicate()


def test_cpu_a_request() -> None:
    used_s = Reading({"node": 3.0, "late": 1.0}).since(Reading({"node": 1.0}))
    assert used_s == {"node": 2.0}
    assert per_request_ms(used_s, 100) == {"node": 20.0}
    assert per_request_ms(used_s, 0) == {}


def row(streams: int, ttft_ms: float, per_s: float, **cpu_ms: float) -> Row:
    result = Result(streams, 1.0, round(per_s), 0, 0, ttft_ms, ttft_ms, 320, 320, 1, 1, 0, 0, {})
    return Row(SHIVER, streams, Measurement(result, cpu_ms))


def test_the_bars() -> None:
    rows = [row(1, 27.9, 3, ingress=4, node=7.9, double=9, generator=9), row(64, 81, 180, ingress=5.1, kafka=1)]
    bars = judge([*rows, row(200, 100, 120, ingress=1)])
    assert [bar.met for bar in bars] == [True, False, True, False, True]
    assert [bar.met for bar in judge([])] == [None] * 5


def test_folded_stacks() -> None:
    profile = parse_folded("node", ["main (a.py);run (a.py);send (b.py) 3", "main (a.py);run (a.py) 2"])
    assert profile.self_time() == {"send (b.py)": 3, "run (a.py)": 2}
    assert profile.with_callees() == {"main (a.py)": 5, "run (a.py)": 5, "send (b.py)": 3}
    with pytest.raises(ChildFailed, match="no folded stack"):
        parse_folded("node", ["nonsense"])


def test_the_lock_of_litellm_is_not_a_poisoned_release() -> None:
    lock = (environments._LOCKS / "bench-litellm.txt").read_text()
    [pin] = [line for line in lock.splitlines() if line.startswith("litellm==")]
    assert pin.split()[0] not in ("litellm==1.82.7", "litellm==1.82.8")
    assert "://" not in lock


def test_the_configuration_of_litellm() -> None:
    told = litellm_proxy.config("double", "http://127.0.0.1:1", "sk-key")
    assert told["general_settings"] == {"master_key": "sk-key"}
    assert "http://127.0.0.1:1/v1" in str(told["model_list"])


def test_no_room_for_an_environment_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHRK_CACHE", "/proc/nowhere")
    with pytest.raises(MachineUnfit, match="set SHRK_CACHE"):
        environments.ensure("passthrough", lambda _: None)
