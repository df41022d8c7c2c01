"""The one place that wires a node: environment -> objects."""

from __future__ import annotations

import asyncio
import logging
import time
from importlib.metadata import PackageNotFoundError, version

from schemas.heartbeats import NodeHeartbeat, ServedModel
from workers import engines
from workers.agent import Agent
from workers.chat.template import ChatTemplate, ChatTemplateError
from workers.clocks import SkewMeter
from workers.config import BadConfig, ModelSetting, NodeConfig
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
    """The models of this node, loaded, by name. Raises BadConfig where one cannot be."""
    models: dict[str, Served] = {}
    for setting in config.models:
        try:
            models[setting.name] = await _load_one(config, setting)
        except (EngineError, ChatTemplateError) as error:
            for served in models.values():
                await served.engine.unload()
            raise BadConfig(f"model {setting.name} on engine {config.engine}: {error}") from error
    return models


async def _load_one(config: NodeConfig, setting: ModelSetting) -> Served:
    if config.engine not in engines.NAMES:
        raise BadConfig(f"SHRK_ENGINE must be one of {', '.join(engines.NAMES)}, not {config.engine!r}")
    path = setting.path or engines.default_model_path(config.engine)
    engine = engines.create(config.engine, path, slots=config.slots)
    await engine.load()
    facts = engine.facts
    for note in facts.notes:
        log.info("model %s: %s", setting.name, note)
    # The double has no model of its own: it is spoken to in shark-mini's template.
    template_beside = path or engines.default_model_path("llamacpp")
    if template_beside is None:
        raise BadConfig(f"model {setting.name} has no path, and engine {config.engine} brings no model")
    template = ChatTemplate.of_model(
        template_beside,
        special_tokens=facts.special_tokens,
        bos_text=facts.bos_text,
        eos_text=facts.eos_text,
    )
    return Served(setting.name, engine, template, Slots(facts.slots), facts.context_tokens)


def assemble(config: NodeConfig, models: dict[str, Served]) -> Agent:
    """A node of loaded models, not connected. Needs a running loop."""
    loop = asyncio.get_running_loop()
    ingresses, skew = Ingresses(), SkewMeter()
    outbox = Outbox(config.kafka, f"{config.node_id}-replies")
    release = _version()
    served = tuple(ServedModel(name=model.name, context_tokens=model.context_tokens) for model in models.values())

    def describe() -> NodeHeartbeat:
        return NodeHeartbeat(
            node_id=config.node_id,
            provider_id=config.provider_id,
            at_ms=time.time_ns() // 1_000_000,
            version=release,
            engine=config.engine,
            models=served,
            slots=runner.slots,
            busy_by_owner=runner.busy_by_owner,
            draining=runner.draining,
        )

    def edge() -> tuple[bool, bool]:
        return runner.busy >= runner.slots, runner.draining

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
