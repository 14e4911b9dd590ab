"""One real Apache Kafka broker (KRaft, combined roles) from Maven artifacts: `with running_kafka() as kafka`, or
`python -m tests.parts.kafka` for one in the foreground.

Needs a JDK (17 or newer) and Maven; installs them with apt when allowed to. Counterpart: infra/kafka/pom.xml.
"""

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from tests.parts.certificates import Authority
from tests.parts.processes import CACHE, PartMissing, free_port, freeze, spawn, stop, wait_ready

POM = Path(__file__).resolve().parents[2] / "infra" / "kafka" / "pom.xml"
_JVM = (
    "-Xms192m",
    "-Xmx512m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Xshare:auto",
    "-Djava.awt.headless=true",
)

USER, PASSWORD = "tidegate", "only-for-tests"

_PROPERTIES = """\
process.roles=broker,controller
node.id=1
listeners=PLAINTEXT://127.0.0.1:{port},SASL_SSL://127.0.0.1:{secure_port},MUTUAL://127.0.0.1:{mutual_port},\
  EXPIRED://127.0.0.1:{expired_port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{port},SASL_SSL://127.0.0.1:{secure_port},MUTUAL://127.0.0.1:{mutual_port},\
  EXPIRED://127.0.0.1:{expired_port}
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,SASL_SSL:SASL_SSL,MUTUAL:SSL,EXPIRED:SSL,CONTROLLER:PLAINTEXT
sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512
listener.name.sasl_ssl.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required \
  user_{user}="{password}";
listener.name.sasl_ssl.scram-sha-256.sasl.jaas.config=\
  org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config=\
  org.apache.kafka.common.security.scram.ScramLoginModule required;
ssl.keystore.type=PEM
ssl.keystore.location={certificate}
listener.name.mutual.ssl.client.auth=required
listener.name.mutual.ssl.truststore.type=PEM
listener.name.mutual.ssl.truststore.location={authority}
listener.name.expired.ssl.keystore.type=PEM
listener.name.expired.ssl.keystore.location={expired}
controller.quorum.bootstrap.servers=127.0.0.1:{controller_port}
log.dirs={data}
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
broker.heartbeat.interval.ms=500
broker.session.timeout.ms=3000
auto.create.topics.enable=false
log.cleaner.dedupe.buffer.size=8388608
transaction.max.timeout.ms=60000
"""

_LOGGING = """\
rootLogger.level=WARN
rootLogger.appenderRef.stdout.ref=STDOUT
appender.stdout.type=Console
appender.stdout.name=STDOUT
appender.stdout.layout.type=PatternLayout
appender.stdout.layout.pattern=%d %p %c{1}: %m%n
"""


def install() -> Path:
    """The directory of the broker's jars, fetched once per version of the pom. Raises PartMissing."""
    lib = CACHE / f"kafka-{hashlib.sha256(POM.read_bytes()).hexdigest()[:12]}"
    if not lib.is_dir():
        _need_tools()
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as staging:
            jars = Path(staging) / "lib"
            _fetch(jars)
            with contextlib.suppress(OSError):  # another run was faster: its directory is as good
                jars.rename(lib)
    _need_tools(("java",))
    return lib


def _fetch(jars: Path) -> None:
    command = ["mvn", "-q", "-B", "-f", str(POM), "dependency:copy-dependencies", "-DincludeScope=runtime"]
    done = subprocess.run(
        [*command, f"-DoutputDirectory={jars}"], capture_output=True, text=True, timeout=900, check=False
    )
    if done.returncode != 0:
        raise PartMissing(
            f"Maven could not fetch Kafka ({POM}); its words:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        )


def _need_tools(tools: tuple[str, ...] = ("java", "mvn")) -> None:
    packages = {"java": "openjdk-17-jre-headless", "mvn": "maven"}
    missing = [packages[tool] for tool in tools if shutil.which(tool) is None]
    if not missing:
        return
    hint = f"Kafka tests need a JDK (17 or newer) and Maven; install: apt-get install -y {' '.join(missing)}"
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise PartMissing(hint)
    print(f"installing {' '.join(missing)} with apt-get", file=sys.stderr, flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (
        ["apt-get", "-q", "update"],
        ["apt-get", "-q", "install", "-y", "--no-install-recommends", *missing],
    ):
        if subprocess.run(command, env=environment, stdout=sys.stderr, timeout=900, check=False).returncode != 0:
            raise PartMissing(f"`{' '.join(command)}` failed. {hint}")


class Kafka:
    """A broker with its own fresh data directory; `kill` and `start` keep the data and the port."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_port()
        self.bootstrap = f"127.0.0.1:{self.port}"
        self.secure_port = free_port()
        self.secure_bootstrap = f"127.0.0.1:{self.secure_port}"  # TLS, and SASL (PLAIN, SCRAM) as `USER`, `PASSWORD`
        self.mutual_bootstrap = f"127.0.0.1:{free_port()}"  # TLS, and a certificate of the client's
        self.expired_bootstrap = f"127.0.0.1:{free_port()}"  # TLS with a certificate that has expired
        self.authority = Authority()  # who signed the broker's certificates, and whose clients it lets in
        self.authority_file = directory / "authority.pem"
        self._classpath = f"{install()}/*"
        self._log = directory / "server.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._configure()

    def start(self) -> None:
        """Start on the data that is there; returns when the broker has answered a metadata request."""
        command = ["java", *_JVM, "-Dlog4j2.configurationFile=log4j2.properties", "-cp", self._classpath]
        self._process = spawn([*command, "kafka.Kafka", "server.properties"], cwd=self.directory, log=self._log)
        admin = AdminClient({"bootstrap.servers": self.bootstrap, "reconnect.backoff.max.ms": 100, "log_level": 0})
        wait_ready(lambda: _answers(admin), self._process, self._log, deadline_s=90)

    def stop(self) -> None:
        """SIGTERM, a deadline, SIGKILL."""
        if self._process is not None:
            stop(self._process, 20)

    def kill(self) -> None:
        """kill -9; returns when the process is gone."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def pause(self) -> None:
        """Freeze the broker: connections stay open, nothing is answered."""
        assert self._process is not None
        freeze(self._process)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def _configure(self) -> None:
        certificate, expired = self.directory / "broker.pem", self.directory / "expired.pem"
        self.authority_file.write_bytes(self.authority.pem)
        certificate.write_bytes(self.authority.issue("broker"))
        expired.write_bytes(self.authority.issue("broker", ends=timedelta(hours=-1)))
        properties = _PROPERTIES.format(
            port=self.port,
            secure_port=self.secure_port,
            mutual_port=self.mutual_bootstrap.rpartition(":")[2],
            expired_port=self.expired_bootstrap.rpartition(":")[2],
            controller_port=free_port(),
            data=self.directory / "data",
            user=USER,
            password=PASSWORD,
            certificate=certificate,
            authority=self.authority_file,
            expired=expired,
        )
        (self.directory / "server.properties").write_text(properties)
        (self.directory / "log4j2.properties").write_text(_LOGGING)
        tool = [
            "java",
            *_JVM,
            "-Dlog4j2.configurationFile=log4j2.properties",
            "-cp",
            self._classpath,
            "kafka.tools.StorageTool",
        ]
        cluster = ["format", "--standalone", "--cluster-id", uuid4().hex[:22], "--config", "server.properties"]
        for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512"):
            cluster += ["--add-scram", f"{mechanism}=[name={USER},password={PASSWORD}]"]
        subprocess.run([*tool, *cluster], cwd=self.directory, check=True, capture_output=True, timeout=120)


def _answers(admin: AdminClient) -> bool:
    try:
        return bool(admin.list_topics(timeout=1).brokers)
    except KafkaException:
        return False


@contextlib.contextmanager
def running_kafka() -> Iterator[Kafka]:
    """A broker on a fresh directory, ready on entry, gone (with its data) on exit. Raises PartMissing."""
    with tempfile.TemporaryDirectory(prefix="tidegate-kafka-", ignore_cleanup_errors=True) as directory:
        kafka = Kafka(Path(directory))
        try:
            kafka.start()
            yield kafka
        finally:
            kafka.stop()


def main() -> None:
    """Run one in the foreground until SIGINT or SIGTERM; the first line printed is its bootstrap address."""
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    with running_kafka() as kafka:
        print(kafka.bootstrap, flush=True)
        ended.wait()


if __name__ == "__main__":
    main()
