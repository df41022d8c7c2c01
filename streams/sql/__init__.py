"""The projection's statements, by the name of their file."""

from __future__ import annotations

import re
from pathlib import Path

#: The live books.
DERIVED = "derived"
_SCHEMA = re.compile(r"[a-z_][a-z0-9_]{0,62}")
_TEXTS = {path.stem: path.read_text() for path in sorted(Path(__file__).parent.glob("*.sql"))}


def statements(schema: str = DERIVED) -> dict[str, str]:
    """Every statement, on the tables of `schema`. Raises ValueError where that is no plain lower-case name."""
    if not _SCHEMA.fullmatch(schema):
        raise ValueError(f"{schema!r} cannot be the name of a schema")
    return {name: text.replace(f"{DERIVED}.", f"{schema}.") for name, text in _TEXTS.items()}
