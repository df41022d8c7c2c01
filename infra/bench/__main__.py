"""`make bench`: the two tables, and on request where the milliseconds go.

    python -m infra.bench                 both tables: engine (a), gateway (b); about a quarter of an hour
    python -m infra.bench gateway --only Shiver
    python -m infra.bench flame --streams 64
    python -m infra.bench --quick         a short smoke of both, its results in a temporary folder

load.py is the load, measure.py one measurement of it, gateway.py and engine.py the tables, stack.py Shiver itself.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from pathlib import Path

from infra.bench import engine, flame, gateway
from infra.bench.report import RESULTS
from infra.errors import ShrkError

_TABLES = ("engine", "gateway")


def _arguments(args: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m infra.bench", description="Measures Shiver on this machine.")
    parser.add_argument("what", nargs="*", metavar="what", help="engine, gateway, flame; both tables without one")
    parser.add_argument("--quick", action="store_true", help="a short smoke: the numbers mean little")
    parser.add_argument("--only", action="append", choices=gateway.GATEWAYS, help="of the gateways, this one")
    parser.add_argument("--levels", help="numbers of streams, such as 1,64")
    parser.add_argument("--streams", type=int, default=64, help="streams while profiling (flame)")
    parser.add_argument("--seconds", type=float, help="length of a row, or of each profile")
    parser.add_argument("--results", type=Path, help="folder of the results")
    chosen = parser.parse_args(args)
    chosen.what = chosen.what or list(_TABLES)
    if unknown := set(chosen.what) - {*_TABLES, "flame"}:
        parser.error(f"no such bench: {', '.join(sorted(unknown))}")
    try:
        chosen.levels = tuple(int(item) for item in chosen.levels.split(",")) if chosen.levels else None
    except ValueError:
        parser.error(f"--levels takes numbers split by commas, not {chosen.levels!r}")
    if chosen.levels and not all(1 <= level <= 200 for level in chosen.levels):
        parser.error("--levels must be 1 to 200: a pro key has 200 requests open at most")
    return chosen


def run(chosen: argparse.Namespace) -> None:
    """Runs what was chosen, prints the tables. Raises ShrkError."""
    length = gateway.QUICK if chosen.quick else gateway.Length()
    if chosen.seconds:
        length = gateway.Length(chosen.seconds, length.requests_min, max(chosen.seconds, length.seconds_max))
    # A smoke must not replace the results of a real run.
    results = chosen.results or (Path(tempfile.mkdtemp(prefix="shrk-bench-results-")) if chosen.quick else RESULTS)
    for what in chosen.what:
        if what == "engine":
            levels = chosen.levels or ((1, 4) if chosen.quick else engine.LEVELS)
            text = engine.run(levels, length, _say, results)
        elif what == "gateway":
            levels = chosen.levels or ((1, 16) if chosen.quick else gateway.LEVELS)
            text = gateway.run(levels, length, _say, chosen.only or gateway.GATEWAYS, results)
        else:
            text = flame.run(chosen.streams, chosen.seconds or (3.0 if chosen.quick else 10.0), _say, results)
        print(f"\n{text}", flush=True)


def main(args: list[str]) -> int:
    """Returns the exit code."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as an exception, so that everything started is stopped
    try:
        run(_arguments(args))
    except ShrkError as error:
        print(f"bench: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


def _say(line: str) -> None:
    print(f"bench: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
