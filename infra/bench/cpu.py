"""How much CPU time processes used between two moments: user and system, all threads, children, dead children too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import psutil

from infra.errors import ChildFailed

# As the tables show them. All but the generator belong to Shiver.
ORDER = ("ingress", "node", "streams", "kafka", "postgres", "supervisor", "gateway", "double", "engine", "generator")


@dataclass(frozen=True)
class Reading:
    """CPU seconds used so far, by name."""

    seconds: Mapping[str, float]

    def since(self, earlier: Reading) -> dict[str, float]:
        """CPU seconds used between `earlier` and this reading."""
        return {
            name: used_s - earlier.seconds[name] for name, used_s in self.seconds.items() if name in earlier.seconds
        }


class CpuMeter:
    """Reads the CPU times of named processes.

    Args:
        pids: by name, one or more processes each. Their descendants count with them (PostgreSQL's backends), unless
            they are named themselves (the supervisor's children).
    """

    def __init__(self, pids: Mapping[str, list[int]]) -> None:
        self._named = {pid for group in pids.values() for pid in group}
        try:
            self._processes = {name: [psutil.Process(pid) for pid in group] for name, group in pids.items()}
        except psutil.NoSuchProcess as error:
            raise ChildFailed(f"process {error.pid} ended before its CPU time could be read") from error

    def read(self) -> Reading:
        """Raises ChildFailed if one of the named processes is gone: its time is lost then."""
        seconds = {}
        for name, processes in self._processes.items():
            try:
                seconds[name] = sum(self._tree_s(process) for process in processes)
            except psutil.NoSuchProcess as error:
                raise ChildFailed(f"{name} (pid {error.pid}) ended while its CPU time was measured") from error
        return Reading(seconds)

    def _tree_s(self, process: psutil.Process) -> float:
        total_s = _own_s(process)
        for child in process.children():
            if child.pid in self._named:
                continue
            try:
                total_s += self._tree_s(child)
            except psutil.NoSuchProcess:
                continue  # ended since it was listed; its parent's children_* have it from now on
        return total_s


def per_request_ms(used_s: Mapping[str, float], requests: int) -> dict[str, float]:
    """CPU milliseconds a request, by name; empty without requests."""
    return {name: value_s * 1000 / requests for name, value_s in used_s.items()} if requests else {}


def _own_s(process: psutil.Process) -> float:
    """Its own time and that of its descendants that ended and were waited for."""
    times = process.cpu_times()
    return times.user + times.system + getattr(times, "children_user", 0.0) + getattr(times, "children_system", 0.0)
