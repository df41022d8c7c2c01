"""What the double says to which prompts, where a test needs a model that knows the answer. A JSON file: a list of
`{"when": REGEX, "say": TEXT}`; the first rule whose regex is found in the prompt decides.

`when` is searched in the prompt's text as the template made it, control tokens included (`(?s)` lets a dot pass line
ends, `\\Z` is the prompt's end). `say` is a whole turn in the model's own words: text, JSON, or a call in the form that
its template teaches. The regexes are the operator's own: nothing bounds how long a bad one searches.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from workers.engines.base import EngineUnavailable

FILE_BYTES_MAX = 1 << 20
RULES_MAX = 1000


class Rule(NamedTuple):
    """To a prompt in which `when` is found, these bytes are said."""

    when: re.Pattern[str]
    say: bytes


def read_script(path: Path) -> tuple[Rule, ...]:
    """Raises EngineUnavailable, in one line, for a file that cannot be read or is no script."""
    try:
        with path.open("rb") as file:
            content = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise EngineUnavailable(f"SHRK_DOUBLE_SCRIPT {path} cannot be read: {error.strerror}") from error
    if len(content) > FILE_BYTES_MAX:
        raise EngineUnavailable(f"SHRK_DOUBLE_SCRIPT {path} has more than {FILE_BYTES_MAX} bytes")
    try:
        entries: Any = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise EngineUnavailable(f"SHRK_DOUBLE_SCRIPT {path} is no JSON: {error}") from error
    if not isinstance(entries, list) or not 1 <= len(entries) <= RULES_MAX:
        raise EngineUnavailable(f"SHRK_DOUBLE_SCRIPT {path} has to be a list of 1 to {RULES_MAX} rules")
    rules: list[Rule] = []
    for at, entry in enumerate(entries):
        try:
            rules.append(_rule(entry))
        except (ValueError, OverflowError, RecursionError, re.error) as error:
            raise EngineUnavailable(f"SHRK_DOUBLE_SCRIPT {path}, rule {at + 1}: {error}") from error
    return tuple(rules)


def _rule(entry: Any) -> Rule:
    """Raises ValueError and what re.compile raises."""
    if not isinstance(entry, dict) or entry.keys() != {"when", "say"}:
        raise ValueError('a rule is {"when": REGEX, "say": TEXT}')
    when, say = entry["when"], entry["say"]
    if not isinstance(when, str) or not isinstance(say, str):
        raise ValueError("when and say have to be strings")
    return Rule(re.compile(when), say.encode())


def scripted(rules: Sequence[Rule], prompt: str) -> bytes | None:
    """What the first rule that this prompt meets says; None where it meets none."""
    return next((rule.say for rule in rules if rule.when.search(prompt)), None)
