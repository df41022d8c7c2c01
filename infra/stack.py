"""The stack: its processes, in what order they start, what each is told. Wires every other module of this package."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from infra.catalog import shipped_models
from infra.errors import ChildFailed, MachineUnfit
from infra.http import http_get
from infra.ports import LOOPBACK, require_free
from infra.process import ChildSpec
from infra.state import StateFolder
from infra.supervisor import Supervisor

if TYPE_CHECKING:
    from infra.demo import DemoKeys  # at run time only when needed: it imports pydantic, 0.3 s

T = TypeVar("T")

DEFAULT_PORT = 8080
NODE_ID = "node-1"
_READY_TIMEOUT_S = 60.0
_POLL_S = 0.05
_STOP_GRACE_S = 30.0  # a node drains for up to 20 s, an ingress for 10 s
_ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Options:
    """What the operator chose. `kafka` and `database_url` None: start our own. `engine` and `models` (each `name` or
    `name=path`) are the node's. `node_ids` has each node's provider, None for the one that the database knows."""

    port: int = DEFAULT_PORT
    host: str = LOOPBACK
    kafka: str | None = None
    database_url: str | None = None
    models: tuple[str, ...] = field(default_factory=shipped_models)
    engine: str = "llamacpp"
    ledger_partitions: int = 8
    node_ids: dict[str, str | None] = field(default_factory=lambda: {NODE_ID: None})

    @staticmethod
    def from_environment(port: int, host: str, env: dict[str, str] | None = None) -> Options:
        """Raises MachineUnfit for a SHRK_LEDGER_PARTITIONS that is no number."""
        env = dict(os.environ) if env is None else env
        partitions = env.get("SHRK_LEDGER_PARTITIONS", "8")
        if not partitions.isdigit() or not 1 <= int(partitions) <= 1024:
            raise MachineUnfit(f"SHRK_LEDGER_PARTITIONS must be 1 to 1024, not {partitions!r}")
        return Options(
            port=port,
            host=host,
            kafka=env.get("SHRK_KAFKA") or None,
            database_url=env.get("SHRK_DATABASE_URL") or None,
            models=_listed(env.get("SHRK_MODELS", "")) or shipped_models(),
            engine=env.get("SHRK_ENGINE", "llamacpp"),
            ledger_partitions=int(partitions),
        )


class Stack:
    """Starts everything, keeps `stack.json` up to date, and knows what was started where."""

    def __init__(self, state: StateFolder, options: Options, say: Callable[[str], None]) -> None:
        self.state = state
        self.options = options
        self.kafka = options.kafka or ""
        self.database_url = options.database_url or ""
        self.base_url = f"http://{options.host}:{options.port}"
        self.keys: DemoKeys | None = None
        self.providers: dict[str, str] = {}
        self.supervisor = Supervisor(state.logs, say, on_change=self._write)
        self._started_at = time.time()
        self._cancelled = threading.Event()

    async def start(self) -> None:
        """Brings all up, in order, side by side where nothing forbids it. Raises ShrkError with one line."""
        require_free(self.options.port, self.options.host, "choose another with `shrk up --port`")
        await _together(self._start_kafka(), self._start_database())
        await self._prepare_network()
        await _together(*(self.supervisor.start(spec) for spec in self._services()))
        await self._wait_ready()

    async def stop(self) -> None:
        """Stops what was started, the last first."""
        self._cancelled.set()
        await self.supervisor.stop_all()

    async def _start_kafka(self) -> None:
        from infra.kafka.topics import broker_count, create_topics
        from schemas.topics import mailbox_topic, standing_topics

        if self.options.kafka:
            await asyncio.to_thread(broker_count, self.kafka)
        else:
            from infra.kafka.broker import Broker

            java, jars = await _together(asyncio.to_thread(_java), asyncio.to_thread(_jars, self._cancelled))
            broker = Broker(self.state.kafka, jars, java)
            await asyncio.to_thread(broker.prepare)
            await self.supervisor.start(broker.spec())
            self.kafka = broker.bootstrap
        mailboxes = [mailbox_topic(node_id) for node_id in self.options.node_ids]
        topics = [*standing_topics(self.options.ledger_partitions), *mailboxes]
        await asyncio.to_thread(create_topics, self.kafka, topics)

    async def _start_database(self) -> None:
        from infra.migrate import migrate

        if not self.options.database_url:
            from infra.postgres import Postgres

            postgres = await asyncio.to_thread(Postgres, self.state.postgres)
            for folder in postgres.outside():
                self.state.add_outside(folder)
            await asyncio.to_thread(postgres.prepare)
            await self.supervisor.start(postgres.spec())
            self.database_url = postgres.url
        await migrate(self.database_url)

    async def _prepare_network(self) -> None:
        from infra import demo
        from infra.accounts import connected
        from infra.append import appending

        async with connected(self.database_url) as db:
            names = [model.partition("=")[0] for model in self.options.models]
            self.providers = await demo.register(db, self.options.node_ids, names)
            self.keys = await demo.ensure_keys(db, self.state, self.options.ledger_partitions)
            await demo.ensure_credit(db, appending(self.kafka, self.options.ledger_partitions))

    def _services(self) -> list[ChildSpec]:
        common = {
            "SHRK_KAFKA": self.kafka,
            "SHRK_DATABASE_URL": self.database_url,
            "SHRK_LEDGER_PARTITIONS": str(self.options.ledger_partitions),
            "PYTHONPATH": os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")])),
            "PYTHONUNBUFFERED": "1",
            "SHRK_DRAIN_S": os.environ.get("SHRK_DRAIN_S", "8"),  # within the grace of a stop
        }
        services = [self._service("streams", "streams", common)]
        for node_id, provider_id in self.providers.items():
            settings = {
                "SHRK_NODE_ID": node_id,
                "SHRK_PROVIDER_ID": provider_id,
                "SHRK_ENGINE": self.options.engine,
                "SHRK_MODELS": ",".join(self.options.models),
            }
            services.append(self._service(node_id, "workers", common | settings))
        ingress = {"SHRK_HOST": self.options.host, "SHRK_PORT": str(self.options.port)}
        services.append(self._service("ingress", "ingress", common | ingress, probe=self._ingress_lives))
        return services

    def _service(
        self, name: str, module: str, env: dict[str, str], probe: Callable[[], str | None] | None = None
    ) -> ChildSpec:
        # -P: a folder named "streams" where the operator stands must not be taken for ours.
        argv = (sys.executable, "-P", "-m", module)
        return ChildSpec(name, argv, env, probe=probe, ready_timeout_s=_READY_TIMEOUT_S, stop_grace_s=_STOP_GRACE_S)

    def _ingress_lives(self) -> str | None:
        """Lives, not ready: a missing node or database must not get the ingress restarted."""
        status, _ = http_get(f"{self.base_url}/healthz")
        return None if status == 200 else "/healthz does not answer yet"

    async def _wait_ready(self) -> None:
        deadline = time.monotonic() + _READY_TIMEOUT_S
        while True:
            status, body = await asyncio.to_thread(http_get, f"{self.base_url}/readyz")
            if status == 200:
                return
            if time.monotonic() > deadline:
                raise ChildFailed(
                    f"the stack was not ready after {_READY_TIMEOUT_S:g} s (/readyz: {status} {body[:300]}); "
                    f"see {self.state.logs}"
                )
            await asyncio.sleep(_POLL_S)

    def _write(self) -> None:
        self.state.write_stack(
            {
                "pid": os.getpid(),
                "started_at": self._started_at,
                "base_url": self.base_url,
                "kafka": self.kafka,
                "database_url": self.database_url,
                "ledger_partitions": self.options.ledger_partitions,
                "children": [asdict(child) for child in self.supervisor.children()],
            }
        )


def end_leftovers(state: StateFolder, say: Callable[[str], None], grace_s: float = 20.0) -> None:
    """Ends processes of a stack whose supervisor was killed. Only where Linux did not do so already (it mostly has).

    A process counts as ours if its pid and its time of birth are those that were written down.
    """
    children = [child for child in state.read_stack().get("children", []) if child.get("pid")]
    if not children:
        return
    import psutil

    left = []
    for child in reversed(children):
        try:
            process = psutil.Process(child["pid"])
            if abs(process.create_time() - child["started_at"]) < 2.0:
                process.terminate()
                left.append(process)
                say(f"ended {child['name']} (pid {process.pid}), left over from a stack that was killed")
        except psutil.NoSuchProcess:
            continue
        except psutil.AccessDenied as error:
            raise MachineUnfit(
                f"{child['name']} (pid {child['pid']}) is left from an earlier stack of another user"
            ) from error
    for process in psutil.wait_procs(left, timeout=grace_s)[1]:
        process.kill()
    psutil.wait_procs(left, timeout=grace_s)


def _listed(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _java() -> Any:
    from infra.kafka.java import find_java

    return find_java()


def _jars(cancelled: threading.Event) -> list[Path]:
    from infra.kafka.jars import ensure_jars

    return ensure_jars(cancelled=cancelled)


async def _together(*coroutines: Coroutine[Any, Any, T]) -> list[T]:
    """Runs them side by side. The first failure cancels the others and is raised itself, not as a group."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
