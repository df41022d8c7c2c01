"""One Apache Kafka broker on this machine: a single KRaft node that is broker and controller, bound to the loopback."""

import base64
import json
import signal
import subprocess
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from infra.errors import ChildFailed, Unreachable
from infra.kafka.java import Java
from infra.ports import LOOPBACK, free_port, is_free, listens
from infra.process import ChildSpec

MAX_MESSAGE_BYTES = 8 * 1024 * 1024
"""The largest record of any topic (jobs with images); topics, producers and consumers use the same number."""

# Measured: 5 s from nothing to the first answer and 160 MB; C1 only and the serial collector start fastest.
_JVM_FLAGS = (
    "-Xms64m",
    "-Xmx256m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-XX:+ExitOnOutOfMemoryError",  # a broker that limps is worse than one that is restarted
    "-Djava.awt.headless=true",
)
_FORMAT_TIMEOUT_S = 60
_CLIENT_TIMEOUT_S = 1.5

_LOG4J2 = """\
status = error
appender.file.type = RollingFile
appender.file.name = FILE
appender.file.fileName = {folder}/server.log
appender.file.filePattern = {folder}/server.log.%i
appender.file.layout.type = PatternLayout
appender.file.layout.pattern = [%d] %p %m (%c)%n
appender.file.policies.type = Policies
appender.file.policies.size.type = SizeBasedTriggeringPolicy
appender.file.policies.size.size = 10MB
appender.file.strategy.type = DefaultRolloverStrategy
appender.file.strategy.max = 3
appender.stdout.type = Console
appender.stdout.name = STDOUT
appender.stdout.layout.type = PatternLayout
appender.stdout.layout.pattern = [%d] %p %m (%c)%n
rootLogger.level = info
rootLogger.appenderRef.file.ref = FILE
rootLogger.appenderRef.stdout.ref = STDOUT
rootLogger.appenderRef.stdout.level = error
"""


@dataclass(frozen=True, slots=True)
class BrokerPorts:
    """Loopback ports: `broker` for clients, `controller` for the node itself."""

    broker: int
    controller: int


class Broker:
    """A broker whose whole state is in `folder` and outlives it: data, cluster id, ports, settings, logs.

    `prepare()` makes the folder ready; `spec()` is what to run; `probe()` asks a real client. Given no `ports`, it
    takes those of its last run where they are free, else new ones.
    """

    def __init__(self, folder: Path, jars: Sequence[Path], java: Java, ports: BrokerPorts | None = None) -> None:
        self.folder = folder.absolute()
        self._jars = tuple(jars)
        self._java = java
        self.ports = ports or self._choose_ports()

    @property
    def bootstrap(self) -> str:
        """`host:port` for clients."""
        return f"{LOOPBACK}:{self.ports.broker}"

    def prepare(self) -> None:
        """Writes the settings, and formats the storage on the first run. Blocks for 1 to 2 s then.

        Raises ChildFailed if the storage cannot be formatted.
        """
        for name in ("", "data", "tmp", "logs"):
            (self.folder / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        (self.folder / "ports.json").write_text(json.dumps(asdict(self.ports)))
        (self.folder / "log4j2.properties").write_text(_LOG4J2.format(folder=self.folder / "logs"))
        self._settings_path.write_text("".join(f"{key}={value}\n" for key, value in self.settings().items()))
        if not (self.folder / "data" / "meta.properties").exists():
            self._format()

    def settings(self) -> dict[str, str]:
        """server.properties, as a dict."""
        broker, controller = (f"{LOOPBACK}:{port}" for port in (self.ports.broker, self.ports.controller))
        return {
            "process.roles": "broker,controller",
            "node.id": "1",
            # The static form: it may change between runs, as the ports do where another process took them.
            "controller.quorum.voters": f"1@{controller}",
            "listeners": f"PLAINTEXT://{broker},CONTROLLER://{controller}",
            "advertised.listeners": f"PLAINTEXT://{broker}",
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "PLAINTEXT",
            "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
            "log.dirs": str(self.folder / "data"),
            # Every topic is created by whoever owns it, with the partitions and retention it must have.
            "auto.create.topics.enable": "false",
            "message.max.bytes": str(MAX_MESSAGE_BYTES),
            "replica.fetch.max.bytes": str(MAX_MESSAGE_BYTES),
            "replica.fetch.response.max.bytes": str(2 * MAX_MESSAGE_BYTES),
            # For topics that say nothing; the ledger's is kept for ever by its own setting.
            "log.retention.hours": "168",
            "log.retention.check.interval.ms": "60000",
            "default.replication.factor": "1",
            "min.insync.replicas": "1",
            "num.partitions": "1",
            "offsets.topic.replication.factor": "1",
            "offsets.topic.num.partitions": "5",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "transaction.state.log.num.partitions": "5",
            "share.coordinator.state.topic.replication.factor": "1",
            "share.coordinator.state.topic.min.isr": "1",
            "share.coordinator.state.topic.num.partitions": "5",
            "group.initial.rebalance.delay.ms": "0",
            # A killed broker may register again only when the session of the dead one has run out: 9 s by default,
            # which would be 9 s of 503 (measured: 11.6 s from SIGKILL to ready, 7.4 s with this).
            "broker.session.timeout.ms": "4000",
            "broker.heartbeat.interval.ms": "500",
            "num.network.threads": "2",
            "num.io.threads": "4",
            # Reply topics are many and small: the defaults map 10 MiB of index for each and 128 MiB for the cleaner.
            "log.index.size.max.bytes": str(1024 * 1024),
            "log.cleaner.threads": "1",
            "log.cleaner.dedupe.buffer.size": str(10 * 1024 * 1024),
        }

    def spec(self, name: str = "kafka") -> ChildSpec:
        """How to run it. On SIGTERM it closes its log files, which spares the next start a recovery."""
        return ChildSpec(
            name=name,
            argv=(*self._java_command(), "kafka.Kafka", str(self._settings_path)),
            cwd=self.folder,
            probe=self.probe,
            ready_timeout_s=90.0,
            stop_grace_s=20.0,
            death_signal=signal.SIGTERM,
        )

    def probe(self) -> str | None:
        """None once a client gets the broker's metadata; else what is missing."""
        # librdkafka reports each refused connection on stderr: knock first.
        if not listens(LOOPBACK, self.ports.broker):
            return f"{self.bootstrap} does not listen yet"
        from infra.kafka.topics import broker_count

        try:
            return None if broker_count(self.bootstrap, _CLIENT_TIMEOUT_S) >= 1 else "no broker has registered yet"
        except Unreachable as error:
            return str(error)

    @property
    def _settings_path(self) -> Path:
        return self.folder / "server.properties"

    def _choose_ports(self) -> BrokerPorts:
        remembered = self.folder / "ports.json"
        if remembered.exists():
            ports = BrokerPorts(**json.loads(remembered.read_text()))
            if is_free(ports.broker) and is_free(ports.controller):
                return ports
        broker = free_port()
        controller = free_port()
        while controller == broker:
            controller = free_port()
        return BrokerPorts(broker, controller)

    def _java_command(self) -> tuple[str, ...]:
        return (
            str(self._java.path),
            *_JVM_FLAGS,
            # Native compression libraries are unpacked there: in the state folder, not left in the machine's /tmp.
            f"-Djava.io.tmpdir={self.folder / 'tmp'}",
            f"-Dlog4j2.configurationFile={self.folder / 'log4j2.properties'}",
            "-cp",
            ":".join(str(jar) for jar in self._jars),
        )

    def _cluster_id(self) -> str:
        path = self.folder / "cluster.id"
        if not path.exists():
            # "A" first: an id that begins with "-" would be read as an option.
            path.write_text("A" + base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")[1:])
        return path.read_text().strip()

    def _format(self) -> None:
        command = [*self._java_command(), "kafka.tools.StorageTool", "format"]
        command += ["-t", self._cluster_id(), "-c", str(self._settings_path), "--ignore-formatted"]
        try:
            result = subprocess.run(
                command, cwd=self.folder, capture_output=True, text=True, timeout=_FORMAT_TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise ChildFailed(f"formatting Kafka's storage took more than {_FORMAT_TIMEOUT_S} s") from error
        if result.returncode != 0:
            lines = [line for line in (result.stdout + result.stderr).splitlines() if line.strip()]
            why = lines[-1].strip() if lines else "no output"
            raise ChildFailed(f"Kafka's storage in {self.folder} could not be formatted: {why[:300]}")
