"""A whole cluster of real processes of the command line: policy service, edges, audit consumer, detector.

`with running_cluster(directory, kafka, servers=…) as cluster`. Every service has a configuration and a data directory
of its own; what a cluster shares (public URL, secrets, trust, issuer, topic prefix) is the same in all. Any process may
be killed, ended and started again on its data. Rule: a cluster has a topic prefix of its own, so that many share a
broker.
"""

import contextlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import msgspec
import yaml
from tests.parts import warm
from tests.parts.asking import exchange, get, until
from tests.parts.books import HISTORIES, clickhouse_rows, read_topic
from tests.parts.processes import Process, free_port, wait_ready

from tidegate.chain import open_event
from tidegate.events import AnyEvent, CallRequested
from tidegate.local_issuer import LocalIssuer
from tidegate.policy.bundle import Bundle
from tidegate.policy.signing import SigningKey, ensure_signing_key
from tidegate.secrets import create_secrets

ROOT: Final = Path(__file__).resolve().parents[2]
TIDEGATE: Final = Path(sys.executable).with_name("tidegate")
TENANT: Final = "acme"
READY_DEADLINE_S: Final = 45.0
STOP_DEADLINE_S: Final = 40.0


class Service:
    """One process of `tidegate SERVICE --config FILE`, its base URL and its log."""

    def __init__(self, name: str, command: str, config: Path, base: str) -> None:
        self.name = name
        self.base = base
        self.config = config
        self.log = config.with_suffix(".log")
        self._command = [str(TIDEGATE), command, "--config", str(config)]
        self._process: Process | None = None
        self._told = 0

    @property
    def data(self) -> Path:
        return self.config.with_suffix("")

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def launch(self) -> None:
        """Start it and do not wait. From the main thread only: the process ends with the thread that started it."""
        self._process = warm.start(self._command, cwd=self.config.parent, log=self.log)

    def wait_ready(self, deadline_s: float = READY_DEADLINE_S) -> None:
        """Until /readyz says so. Raises RuntimeError with the end of the log."""
        assert self._process is not None
        wait_ready(self.is_ready, self._process, self.log, deadline_s=deadline_s)

    def start(self) -> None:
        self.launch()
        self.wait_ready()

    def is_ready(self) -> bool:
        return get(f"{self.base}/readyz")[0] == 200

    def kill(self) -> None:
        """kill -9; returns when the process is gone."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def terminate(self) -> None:
        """SIGTERM and do not wait."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)

    def wait_gone(self, deadline_s: float = STOP_DEADLINE_S) -> int:
        """The exit status. Raises subprocess.TimeoutExpired."""
        assert self._process is not None
        return self._process.wait(deadline_s)

    def stop(self) -> int:
        """SIGTERM, then the exit status; SIGKILL at the deadline."""
        if self._process is None:
            return 0
        if self._process.poll() is None:
            self.terminate()
        try:
            return self.wait_gone()
        except subprocess.TimeoutExpired:
            self.kill()
            return -signal.SIGKILL

    def metric(self, name: str) -> float:
        """The sum of a metric's samples."""
        found = re.findall(rf"^{name}(?:\{{[^}}]*\}})? ([0-9.e+-]+)$", get(f"{self.base}/metrics")[1].decode(), re.M)
        assert found, f"{self.base}/metrics has no {name}"
        return sum(map(float, found))

    def has_shipped(self) -> bool:
        """Nothing is pending here, on the disk or on its way to it."""
        return self.metric("tidegate_pending_records") == 0 and self.metric("tidegate_spool_backlog_records") == 0

    def news(self) -> str:
        """What the log has gained since the last call."""
        content = self.log.read_bytes() if self.log.exists() else b""
        fresh, self._told = content[self._told :], len(content)
        return fresh.decode(errors="replace")


class Cluster:
    """The processes, and what a test asks of them."""

    def __init__(
        self,
        directory: Path,
        bootstrap: str,
        settings: Mapping[str, Any],
        number_of_edges: int,
        own: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        self.directory = directory
        self.bootstrap = bootstrap
        self.prefix = f"t{uuid4().hex[:10]}."
        self.public_url = f"http://127.0.0.1:{free_port()}"
        self.signing: SigningKey = ensure_signing_key(directory / "signing.pem")
        self.issuer = LocalIssuer.open(directory, self.public_url)
        create_secrets(directory / "secrets.json")
        self._settings = dict(settings)
        self._own = dict(own or {})
        self._listens = {name: f"127.0.0.1:{free_port()}" for name in ("policy", "audit-consumer", "detector")}
        self.policy = self._service("policy", "policy", self._listens["policy"])
        self.audit = self._service("audit-consumer", "audit-consumer", self._listens["audit-consumer"])
        self.detector = self._service("detector", "detector", self._listens["detector"])
        self.edges = [
            self._service(f"edge-{number}", "edge", f"127.0.0.1:{free_port()}") for number in range(number_of_edges)
        ]

    @property
    def services(self) -> list[Service]:
        return [self.policy, *self.edges, self.audit, self.detector]

    def token(self, user: str = "alice@example.com", *groups: str, agent: str = "lab", sid: str = "") -> str:
        """An access token for /mcp and each /mcp/{server}."""
        audiences = [f"{self.public_url}/mcp", *(f"{self.public_url}/mcp/{name}" for name in self._settings["servers"])]
        return self.issuer.mint(user, agent, groups or ("eng",), 3600, audiences, int(time.time()), sid=sid)

    def manage(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """The management API, as an administrator: status and JSON."""
        token = self.issuer.mint(
            "root@example.com", "cli", ["tidegate-admins"], 600, [f"{self.public_url}/api/v1"], int(time.time())
        )
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        data = msgspec.json.encode(body) if body is not None else None
        status, answer = exchange(method, f"{self.policy.base}/api/v1{path}", headers, data)
        return status, msgspec.json.decode(answer) if answer else None

    def publish(self, bundle: Bundle) -> dict[str, Any]:
        """Release it. The release as the API shows it."""
        files = {path: content.decode() for path, content in bundle.files.items()}
        status, release = self.manage("POST", "/bundles", {"files": files})
        assert status in (200, 201), release
        return dict(release)

    def runs(self) -> dict[str, str]:
        """Edge → digest that it says it runs."""
        status, edges = self.manage("GET", "/edges")
        assert status == 200, edges
        return {edge["edge"]: edge["digest"] for edge in edges}

    def values(self, *topics: str) -> list[bytes]:
        """All that these topics (default: every chained history) hold now, partition by partition."""
        return [value for topic in topics or HISTORIES for value in read_topic(self.bootstrap, self.prefix + topic)]

    def events(self, *topics: str) -> list[AnyEvent]:
        """Decoded, each (writer, seq) once: what a spool shipped twice is the same record."""
        seen: dict[tuple[str, int], AnyEvent] = {}
        for value in self.values(*topics):
            event = open_event(value)
            seen.setdefault((event.writer, event.seq), event)
        return list(seen.values())

    def requests(self) -> list[CallRequested]:
        return [event for event in self.events("calls") if isinstance(event, CallRequested)]

    def wait_shipped(self) -> None:
        """Until nothing waits in the spool of any running edge. Raises AssertionError."""
        for edge in self.edges:
            if edge.is_running:
                until(lambda edge=edge: edge.has_shipped(), f"{edge.name} has shipped its spool")  # type: ignore[misc]

    def query(self, sql: str) -> list[dict[str, Any]]:
        """Rows of a SELECT, through the ClickHouse interface that the audit consumer's process serves on loopback."""
        return clickhouse_rows(self.audit.data, sql)

    def _service(self, name: str, command: str, listen: str) -> Service:
        config = self.directory / f"{name}.yaml"
        config.write_text(yaml.safe_dump(self._config(name, listen)))
        return Service(name, command, config, f"http://{listen}")

    def _config(self, name: str, listen: str) -> dict[str, Any]:
        issuer = {"issuer": self.issuer.issuer, "jwks_file": str(self.issuer.jwks_file)}
        return {
            "listen": listen,
            "public_url": self.public_url,
            "data": str(self.directory / name),
            "tenant": TENANT,
            "edge": {"id": name},
            "identity": {"issuers": [issuer]},
            "secrets_file": str(self.directory / "secrets.json"),
            "trust": {"bundle_keys": [self.signing.public]},
            "signing": {"key_file": str(self.directory / "signing.pem")} if name == "policy" else {},
            "log": f"kafka://{self.bootstrap}",
            "kafka": {"prefix": self.prefix, "partitions": 2, "replication": 1, "min_insync": 1},
            "services": {service: {"listen": own} for service, own in self._listens.items()},
            **self._settings,
            **self._own.get(name, {}),
        }


@contextlib.contextmanager
def running_cluster(
    directory: Path,
    bootstrap: str,
    *,
    servers: Mapping[str, Mapping[str, Any]],
    bundle: Bundle,
    edges: int = 2,
    audit: bool = False,
    detecting: bool = False,
    own: Mapping[str, Mapping[str, Any]] | None = None,
    **settings: Any,
) -> Iterator[Cluster]:
    """Ready on entry, the bundle ruling every edge; gone on exit. `settings` are further keys of the files, `own` those
    of single services by their names.
    """
    directory.mkdir(parents=True, exist_ok=True)
    cluster = Cluster(directory, bootstrap, {"servers": dict(servers), **settings}, edges, own)
    wanted = [cluster.policy, *cluster.edges, *([cluster.audit] * audit), *([cluster.detector] * detecting)]
    try:
        for service in wanted:
            service.launch()
        cluster.policy.wait_ready()
        cluster.publish(bundle)
        for service in wanted:
            service.wait_ready()
        yield cluster
    except BaseException:
        print(logs(cluster))
        raise
    finally:
        for service in cluster.services:
            if service.is_running:
                service.terminate()
        for service in cluster.services:
            service.stop()


def logs(cluster: Cluster) -> str:
    """What every process has said since the last call."""
    return "\n".join(f"--- {service.name}\n{said[-6000:]}" for service in cluster.services if (said := service.news()))


@contextlib.contextmanager
def telling(cluster: Cluster) -> Iterator[Cluster]:
    """For a fixture around each test: afterwards the processes' words are printed, which pytest shows where the test
    failed.
    """
    logs(cluster)
    yield cluster
    print(logs(cluster))
