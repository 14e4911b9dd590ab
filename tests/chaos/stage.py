"""What chaos is made of: two edges, a policy service and two audit consumers over one ClickHouse engine, on a Kafka and
a Valkey of their own, with a link between each two that can be harmed.

    edge-0, edge-1 ── link ── Kafka (a listener for each, which advertises the link)
                   ── link ── Valkey
    audit-0 (owns the engine) ── link ── Kafka
    audit-1 ── link ── Kafka, ── link ── the engine's HTTP interface in audit-0

Counterparts: `faults.py` harms it, `load.py` calls through it, `balance.py` reads what became of the calls.
"""

import base64
import contextlib
import os
import secrets
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import yaml
from bench.processes import listening
from confluent_kafka.admin import AdminClient
from tests.chaos.clocks import Clock, compiled
from tests.chaos.links import Links, running_links
from tests.chaos.upstream import sightings
from tests.parts.cluster import Cluster, Service, logs
from tests.parts.kafka import Kafka, _answers
from tests.parts.processes import free_port, spawn
from tests.parts.valkey import Valkey, running_valkey_server

from tidegate.policy.bundle import Bundle, bundle_of
from tidegate.policy.signing import ensure_signing_key

EDGES: Final = ("edge-0", "edge-1")
AUDITS: Final = ("audit-consumer", "audit-1")  # the first owns the engine
MODES: Final = {"spool": "spool", "strict": "strict", "either": "strict-or-spool", "old": "spool"}
"""Server → durability of its calls. `either` and `old` speak the older era, with sessions."""
LEGACY: Final = frozenset({"either", "old"})
CALL_TIMEOUT_S: Final = 8.0
DISK_MIB: Final = 64
SPOOL_BYTES_MAX: Final = 2 * 1024 * 1024  # small: its files are, too, and a full disk is felt soon
TOKEN_S: Final = 48 * 3600
READY_DEADLINE_S: Final = 90.0
POLICY: Final = """
@id("eng-all") permit (principal in Group::"eng", action in Action::"call", resource);
@id("not-etc") @reason("Nothing below /etc may be read.")
forbid (principal, action in Action::"call", resource) when { context.args has path && context.args.path like "/etc*" };
"""


class ListeningKafka(Kafka):
    """A broker with a further listener for each client, which tells that client a port of somebody else's: a link."""

    def __init__(self, directory: Path, links: Links, clients: tuple[str, ...]) -> None:
        self._own = {client: free_port() for client in clients}
        self.links = {
            client: links.open(f"{client} to Kafka", lambda port=port: ("127.0.0.1", port))  # type: ignore[misc]
            for client, port in self._own.items()
        }
        super().__init__(directory)

    def launch(self) -> None:
        """Start on the data that is there, and do not wait."""
        command = ["java", "-Xms192m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto"]
        command += ["-Dlog4j2.configurationFile=log4j2.properties", "-cp", self._classpath]
        self._process = spawn([*command, "kafka.Kafka", "server.properties"], cwd=self.directory, log=self._log)

    def answers(self) -> bool:
        return _answers(AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0}))

    def _configure(self) -> None:
        super()._configure()
        file = self.directory / "server.properties"
        names = {client: client.upper().replace("-", "") for client in self._own}
        further = {
            "listeners=": [f"{names[client]}://127.0.0.1:{port}" for client, port in self._own.items()],
            "advertised.listeners=": [f"{names[one]}://127.0.0.1:{link.port}" for one, link in self.links.items()],
            "listener.security.protocol.map=": [f"{name}:PLAINTEXT" for name in names.values()],
        }
        lines = []
        for line in file.read_text().splitlines():
            more = next((given for key, given in further.items() if line.startswith(key)), [])
            lines.append(",".join([line, *more]))
        file.write_text("\n".join(lines) + "\n")


class ClockedService(Service):
    """A service under a clock of its own, where there are such clocks."""

    clock: Clock | None = None

    def launch(self) -> None:
        if self.clock is None:
            super().launch()
        else:
            self._process = spawn(
                self._command, cwd=self.config.parent, log=self.log, environment=self.clock.environment
            )

    def send(self, number: int) -> None:
        os.kill(self.pid, number)


class ChaosCluster(Cluster):
    """As `Cluster`, each service reaching the others over links."""

    def __init__(self, directory: Path, kafka: ListeningKafka, own: Mapping[str, Mapping[str, Any]], **shared: Any):
        self._own_settings = own
        super().__init__(directory, kafka.bootstrap, shared, len(EDGES))
        second = self._service(AUDITS[1], "audit-consumer", f"127.0.0.1:{free_port()}")
        self.audits = [self.audit, second]

    @property
    def services(self) -> list[Service]:
        return [self.policy, *self.edges, *reversed(self.audits), self.detector]

    def token_for(self, user: str) -> str:
        """Good for a day before and after now, whatever a clock says."""
        now_s = int(time.time())
        return self.issuer.mint(user, "chaos", ("eng",), TOKEN_S, [f"{self.public_url}/mcp"], now_s - TOKEN_S // 2)

    def _service(self, name: str, command: str, listen: str) -> ClockedService:
        config = self.directory / f"{name}.yaml"
        config.write_text(yaml.safe_dump(self._config(name, listen)))
        return ClockedService(name, command, config, f"http://{listen}")

    def _config(self, name: str, listen: str) -> dict[str, Any]:
        found = {**super()._config(name, listen), **self._own_settings.get(name, {})}
        if name == AUDITS[1]:
            found["services"] = {**found["services"], "audit-consumer": {"listen": listen}}
        return found


@dataclass
class Stage:
    """All parts, ready."""

    cluster: ChaosCluster
    kafka: ListeningKafka
    valkey: Valkey
    links: Links
    clocks: dict[str, Clock]
    disks: dict[str, str]  # edge → how its disk can be filled: "tmpfs", or "limit" of the size of its files
    upstreams: list[Path]

    def service(self, name: str) -> ClockedService:
        found = next(one for one in (*self.cluster.edges, *self.cluster.audits) if one.name == name)
        assert isinstance(found, ClockedService)
        return found

    def sightings(self) -> dict[str, int]:
        """Nonces that the upstreams saw, by their own record, and how often."""
        return dict(sightings(*self.upstreams))

    def query(self, sql: str) -> list[dict[str, Any]]:
        return self.cluster.query(sql)


def policy() -> Bundle:
    files = {
        "manifest.json": '{"v": 1, "name": "chaos"}',
        "policies/p.cedar": POLICY,
        "inspection.yaml": "packs: [secrets]\n",
    }
    return bundle_of({path: content.encode() for path, content in files.items()})


@contextlib.contextmanager
def running_stage(directory: Path, *, sealed: bool = True) -> Iterator[Stage]:
    """Ready on entry, gone on exit. `sealed`: personal fields, the nonces among them. Raises PartMissing."""
    directory.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        links = stack.enter_context(running_links())
        valkey = stack.enter_context(running_valkey_server())
        kafka = stack.enter_context(_kafka(directory / "kafka", links))
        upstreams = {era: stack.enter_context(_upstream(directory / era, era)) for era in ("modern", "sessions")}
        cluster = _cluster(directory / "cluster", kafka, links, valkey, upstreams, sealed=sealed)
        library = compiled(directory)
        clocks: dict[str, Clock] = {}
        if library is not None:  # the engine's own library waits by the wall clock, which a preloaded one cannot move
            clocks = {name: Clock(library, directory / f"{name}.clock") for name in (*EDGES, AUDITS[1])}
        stage = Stage(cluster, kafka, valkey, links, clocks, {}, [directory / era for era in upstreams])
        for edge in cluster.edges:
            stage.disks[edge.name] = stack.enter_context(_small_disk(edge.data))
        for name, clock in clocks.items():
            stage.service(name).clock = clock
        stack.enter_context(_running(cluster))
        yield stage


@contextlib.contextmanager
def _kafka(directory: Path, links: Links) -> Iterator[ListeningKafka]:
    directory.mkdir()
    kafka = ListeningKafka(directory, links, (*EDGES, *AUDITS))
    try:
        kafka.start()
        yield kafka
    finally:
        kafka.stop()


@contextlib.contextmanager
def _upstream(directory: Path, era: str) -> Iterator[str]:
    directory.mkdir()
    with listening("tests.chaos.upstream", era, str(directory), directory=directory) as (_, told):
        yield str(told["url"])


def _cluster(
    directory: Path,
    kafka: ListeningKafka,
    links: Links,
    valkey: Valkey,
    upstreams: Mapping[str, str],
    *,
    sealed: bool,
) -> ChaosCluster:
    directory.mkdir()
    engine = directory / AUDITS[0]
    engine.mkdir()
    password = secrets.token_urlsafe(32)
    (engine / "analytics-writer.token").write_text(password)
    to_engine = links.open(f"{AUDITS[1]} to ClickHouse", lambda: _engine_address(engine))
    own: dict[str, dict[str, Any]] = {
        name: {"log": f"kafka://127.0.0.1:{link.port}"} for name, link in kafka.links.items()
    }
    for edge in EDGES:
        link = links.open(f"{edge} to Valkey", lambda: ("127.0.0.1", valkey.port))
        own[edge]["sessions"] = f"redis://127.0.0.1:{link.port}/0"
    address = f"clickhouse://writer@127.0.0.1:{to_engine.port}/tidegate"
    own[AUDITS[1]] |= {"analytics": address, "analytics_password": password}
    audit_key = ensure_signing_key(directory / "audit.pem")
    (directory / "masters").write_text(base64.b64encode(secrets.token_bytes(32)).decode() + "\n")
    (directory / "masters").chmod(0o600)
    return ChaosCluster(
        directory,
        kafka,
        own,
        servers={
            name: {"url": upstreams["sessions" if name in LEGACY else "modern"], "timeout_s": CALL_TIMEOUT_S}
            for name in MODES
        },
        rules=[{"server": name, "durability": mode} for name, mode in MODES.items()],
        audit={"roots": {"every_s": 5.0, "key_file": str(directory / "audit.pem")}},
        privacy={"key_file": str(directory / "masters") if sealed else ""},
        limits={"call_timeout_s": CALL_TIMEOUT_S, "drain_timeout_s": 15.0, "spool_bytes_max": SPOOL_BYTES_MAX},
        # the audit key is trusted beside that for releases
        trust={"bundle_keys": [ensure_signing_key(directory / "signing.pem").public], "audit_keys": [audit_key.public]},
    )


def _engine_address(data: Path) -> tuple[str, int]:
    """Where the engine's owner answers now. Raises OSError while it has not said so."""
    try:
        told = msgspec.json.decode((data / "analytics.json").read_bytes())
    except msgspec.DecodeError as error:
        raise OSError(str(error)) from error
    return told["host"], told["port"]


@contextlib.contextmanager
def _small_disk(data: Path) -> Iterator[str]:
    """A small file system for the edge's data where one may be mounted; else its files can be limited in size."""
    data.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m,mode=700", "chaos", str(data)]
    mounted = os.geteuid() == 0 and subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield "tmpfs" if mounted else "limit"
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(data)], capture_output=True, check=False)


@contextlib.contextmanager
def _running(cluster: ChaosCluster) -> Iterator[None]:
    """The owner of the engine before its user, the rules before anybody calls."""
    wanted = [cluster.policy, *cluster.edges, *cluster.audits]
    try:
        for service in wanted:
            service.launch()
        cluster.policy.wait_ready(READY_DEADLINE_S)
        cluster.publish(policy())
        for service in wanted:
            service.wait_ready(READY_DEADLINE_S)
        yield
    except BaseException:
        print(logs(cluster))
        raise
    finally:
        for service in cluster.services:
            if service.is_running:
                service.terminate()
        for service in cluster.services:
            service.stop()
