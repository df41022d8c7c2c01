"""The one place that wires a node: environment -> objects."""

from __future__ import annotations

import asyncio
import logging
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from schemas.heartbeats import NodeHeartbeat, ServedModel
from workers import engines
from workers.agent import Agent
from workers.chat.template import ChatTemplate, ChatTemplateError
from workers.chat.tools import form_of
from workers.clocks import SkewMeter
from workers.config import BadConfig, NodeConfig
from workers.engines.base import EngineError
from workers.heart import Heart
from workers.ingresses import Ingresses
from workers.mailbox import Mailbox
from workers.outbox import Outbox
from workers.run import Runner
from workers.served import Served
from workers.slots import Slots
from workers.warm import Warmer

log = logging.getLogger(__name__)


async def load(config: NodeConfig) -> dict[str, Served]:
    """The models of this node by name, loaded; names of one path share it. Raises BadConfig where one cannot be."""
    if config.engine not in engines.NAMES:
        raise BadConfig(f"SHRK_ENGINE must be one of {', '.join(engines.NAMES)}, not {config.engine!r}")
    models: dict[str, Served] = {}
    by_path: dict[Path | None, Served] = {}
    for setting in config.models:
        path = setting.path or engines.default_model_path(config.engine)
        weights = await asyncio.to_thread(path.resolve) if path is not None else None
        try:
            if weights not in by_path:
                by_path[weights] = await _load_one(config, setting.name, path)
        except (EngineError, ChatTemplateError) as error:
            for served in by_path.values():
                await served.engine.unload()
            raise BadConfig(f"model {setting.name} on engine {config.engine}: {error}") from error
        models[setting.name] = by_path[weights]
    _share_places(list(by_path.values()))
    return models


async def _load_one(config: NodeConfig, name: str, path: Path | None) -> Served:
    engine = engines.create(config.engine, path, slots=config.slots)
    await engine.load()
    facts = engine.facts
    for note in facts.notes:
        log.info("model %s: %s", name, note)
    template = form = None
    if facts.makes_text:
        # The double has no model of its own: it is spoken to in shark-mini's template.
        beside = engines.default_model_path("llamacpp") if config.engine == "double" else path
        assert beside is not None
        try:
            template = ChatTemplate.of_model(
                beside,
                special_tokens=facts.special_tokens,
                bos_text=facts.bos_text,
                eos_text=facts.eos_text,
            )
        except ChatTemplateError:
            await engine.unload()
            raise
        form = form_of(template.source)
    return Served(name, engine, template, Slots(facts.slots), facts.context_tokens, form)


def _share_places(models: list[Served]) -> None:
    """A model for vectors works through its inputs one by one, whatever it is given: its places must not be those that
    bound what a router may send to the other models of this node."""
    of_text = [served.slots.total for served in models if served.engine.facts.makes_text]
    for served in models:
        if not served.engine.facts.makes_text and of_text:
            served.slots = Slots(max(served.slots.total, *of_text))


def assemble(config: NodeConfig, models: dict[str, Served]) -> Agent:
    """A node of loaded models, not connected. Needs a running loop."""
    loop = asyncio.get_running_loop()
    ingresses, skew = Ingresses(), SkewMeter()
    outbox = Outbox(config.kafka, f"{config.node_id}-replies")
    release = _version()
    told = {
        name: ServedModel(
            name=name,
            context_tokens=served.context_tokens,
            modalities=served.modalities,
            tools=served.form is not None,
        )
        for name, served in models.items()
    }

    def describe() -> NodeHeartbeat:
        return NodeHeartbeat(
            node_id=config.node_id,
            provider_id=config.provider_id,
            at_ms=time.time_ns() // 1_000_000,
            version=release,
            engine=config.engine,
            models=tuple(told[name] for name, served in models.items() if not served.reloading),
            slots=runner.slots,
            busy_by_owner=runner.busy_by_owner,
            first_token_ms=None if runner.first_token_ms is None else round(runner.first_token_ms),
            draining=runner.draining,
        )

    def edge() -> tuple[object, ...]:
        away = tuple(name for name, served in models.items() if served.reloading)
        return runner.busy >= runner.slots, runner.draining, away

    heart = Heart(config.kafka, config.node_id, describe, edge, lambda answers: ingresses.broker(answers, loop.time()))
    runner = Runner(models, outbox, ingresses, skew, heart.changed)
    mailbox = Mailbox(config.kafka, config.node_id, runner.take)
    warmer = Warmer(config.kafka, config.node_id, ingresses, skew, outbox)
    return Agent(models, runner, outbox, mailbox, warmer, heart, config.drain_s)


async def run(config: NodeConfig) -> int:
    """A node's whole life; its exit status. Raises BadConfig."""
    # Engines before Kafka: loading may hold the interpreter for seconds, which no connection survives.
    models = await load(config)
    return await assemble(config, models).run()


def _version() -> str:
    try:
        return version("shiver")
    except PackageNotFoundError:
        return "0"  # run from a checkout
