"""The projection's statements, by the name of their file."""

from __future__ import annotations

from pathlib import Path

SQL: dict[str, str] = {path.stem: path.read_text() for path in sorted(Path(__file__).parent.glob("*.sql"))}
