"""Tables as text, and results as files: what was measured, on what, and whether the bars were met."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from infra.bench.cpu import ORDER
from infra.bench.load import Result
from infra.bench.machine import Machine

RESULTS = Path(__file__).with_name("results")


@dataclass(frozen=True)
class Bar:
    """One thing that was asked for. `met` None: not measured in this run."""

    asked: str
    measured: str
    met: bool | None

    def line(self) -> str:
        """As a list item."""
        verdict = {True: "met", False: "NOT met", None: "not measured"}[self.met]
        return f"- {self.asked}: {self.measured}, **{verdict}**"


def markdown(title: str, machine: Machine, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A title, the machine and a table with its numbers to the right."""
    rule = "|" + "|".join("---" if at == 0 else "--:" for at in range(len(header))) + "|"
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, *rows)]
    return "\n".join([f"# {title}", "", machine.line(), "", lines[0], rule, *lines[1:], ""])


def cpu_cells(cpu_ms: Mapping[str, float]) -> str:
    """`ingress 3.1, node 2.0`: milliseconds by process, in a fixed order."""
    return ", ".join(f"{name} {cpu_ms[name]:.1f}" for name in ORDER if name in cpu_ms)


def error_notes(results: Mapping[str, Result]) -> list[str]:
    """One item for each kind of error of each row; one that says so where there was none."""
    notes = [
        f"- {name}: {count} x {kind}"
        for name, result in results.items()
        for kind, count in sorted(result.errors.items())
    ]
    return notes or ["- no request failed, warm-ups included"]


def write(name: str, machine: Machine, text: str, data: Mapping[str, Any], folder: Path = RESULTS) -> list[Path]:
    """Writes `<name>-<date>.md` and `.json` to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}-{machine.date}{suffix}" for suffix in (".md", ".json")]
    paths[0].write_text(text)
    paths[1].write_text(json.dumps({"bench": name, "machine": asdict(machine), **data}, indent=1) + "\n")
    return paths
