"""What a node reads from its environment, once, at its start. It needs Kafka and no database."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from schemas.jobs import Job

DRAIN_S_DEFAULT = 20.0
DRAIN_S_MAX = 3600.0
SLOTS_MAX = 4096
MODELS_MAX = 64
MODEL_DEFAULT = "shark-mini"
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,79}")
# A node's id is part of a topic's name, and Kafka allows no colon there.
_NODE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,79}")
_NAME_CHARS_MAX = next(m.max_length for m in Job.model_fields["model"].metadata if hasattr(m, "max_length"))


class BadConfig(ValueError):
    """A setting is missing or wrong; the text is one line that says which and what it should be."""


class ModelSetting(NamedTuple):
    """A model under the name that jobs ask for; without a path it is the engine's own default."""

    name: str
    path: Path | None


class NodeConfig(NamedTuple):
    """`SHRK_KAFKA`, `SHRK_NODE_ID`, `SHRK_PROVIDER_ID`, `SHRK_ENGINE`, `SHRK_MODELS`, `SHRK_SLOTS`, `SHRK_DRAIN_S`."""

    kafka: str
    node_id: str
    provider_id: str
    engine: str
    models: tuple[ModelSetting, ...]
    slots: int | None
    drain_s: float

    @staticmethod
    def from_environment(env: Mapping[str, str]) -> NodeConfig:
        """Raises BadConfig."""
        kafka = env.get("SHRK_KAFKA", "")
        if not kafka:
            raise BadConfig("set SHRK_KAFKA to host:port of a Kafka broker")
        return NodeConfig(
            kafka=kafka,
            node_id=_matching(env, "SHRK_NODE_ID", _NODE_ID),
            provider_id=_matching(env, "SHRK_PROVIDER_ID", _ID),
            engine=env.get("SHRK_ENGINE", "") or "llamacpp",
            models=_models(env.get("SHRK_MODELS", "") or MODEL_DEFAULT),
            slots=_slots(env.get("SHRK_SLOTS", "")),
            drain_s=_drain_s(env.get("SHRK_DRAIN_S", "")),
        )


def _matching(env: Mapping[str, str], name: str, pattern: re.Pattern[str]) -> str:
    value = env.get(name, "")
    if not pattern.fullmatch(value):
        raise BadConfig(f"{name} must be 1 to 80 letters, digits, '_', '.' or '-', not {value!r}")
    return value


def _models(text: str) -> tuple[ModelSetting, ...]:
    models: dict[str, ModelSetting] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, has_path, path = item.partition("=")
        if not name or len(name) > _NAME_CHARS_MAX or (has_path and not path) or name in models:
            raise BadConfig(
                f"SHRK_MODELS is a list of different names or name=path, split by commas: {item!r} is wrong"
            )
        models[name] = ModelSetting(name, Path(path) if path else None)
    if not 1 <= len(models) <= MODELS_MAX:
        raise BadConfig(f"SHRK_MODELS must name 1 to {MODELS_MAX} models")
    return tuple(models.values())


def _slots(text: str) -> int | None:
    if not text:
        return None
    if not (text.isascii() and text.isdigit()) or not 1 <= int(text) <= SLOTS_MAX:
        raise BadConfig(f"SHRK_SLOTS must be 1 to {SLOTS_MAX}, not {text!r}")
    return int(text)


def _drain_s(text: str) -> float:
    try:
        value = float(text or DRAIN_S_DEFAULT)
    except ValueError:
        value = -1.0
    if not 0 <= value <= DRAIN_S_MAX:
        raise BadConfig(f"SHRK_DRAIN_S must be 0 to {DRAIN_S_MAX:.0f} seconds, not {text!r}")
    return value
