"""Tidegate as the system under test: its own configuration in a fresh directory, a real broker, one edge process.

Everything is on: RS256 token, argument rules, both directions inspected, fsynced spool, events shipped to Kafka. Only
what the contract promises is used: `tidegate policy|edge|token --config`, /readyz, /metrics. Counterpart: `policy/`.
"""

import contextlib
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from tests.parts.kafka import running_kafka
from tests.parts.processes import free_port, wait_ready

from bench.ledger import Ledger
from bench.processes import ROOT, running
from tidegate.secrets import create_secrets, write_private

BACKLOG: Final = "tidegate_spool_backlog_records"
PREFIX: Final = "tidegate."
SHIPPED_DEADLINE_S: Final = 30.0
BUNDLE: Final = ROOT / "bench" / "policy"
USER: Final = ("--user", "alice@example.com", "--agent", "bench", "--groups", "eng")
_SAMPLE: Final = rb"^%b(?:\{[^}]*\})? ([0-9.e+]+)$"

Command = Callable[[Sequence[str]], list[str]]
"""Arguments of `tidegate` to a whole command line."""


class Governed:
    """A running edge and what is needed to measure it."""

    def __init__(self, base: str, pid: int, token_file: Path, ledger: Ledger) -> None:
        self.url = f"{base}/mcp"
        self.pid = pid
        self.token_file = token_file
        self.ledger = ledger
        self._metrics = f"{base}/metrics"

    def wait_shipped(self) -> None:
        """Returns when the edge says that nothing waits in its spool. Raises TimeoutError."""
        until = time.monotonic() + SHIPPED_DEADLINE_S
        while (backlog := self._backlog()) > 0:
            if time.monotonic() > until:
                raise TimeoutError(f"{backlog:.0f} records are still in the spool after {SHIPPED_DEADLINE_S:.0f} s")
            time.sleep(0.05)

    def _backlog(self) -> float:
        return self.metric(BACKLOG)

    def metric(self, name: str) -> float:
        """The sum of a metric's samples. Raises RuntimeError where the edge has none of that name."""
        with urllib.request.urlopen(self._metrics, timeout=5) as answer:
            found: list[bytes] = re.findall(_SAMPLE % name.encode(), answer.read(), re.MULTILINE)
        if not found:
            raise RuntimeError(f"{self._metrics} has no {name}")
        return sum(float(value) for value in found)


def tidegate(arguments: Sequence[str]) -> list[str]:
    """The command that the virtual environment has installed."""
    return [str(Path(sys.executable).with_name("tidegate")), *arguments]


@contextlib.contextmanager
def running_governed(
    directory: Path,
    upstream: str,
    *,
    edge_command: Command = tidegate,
    bundle: Path = BUNDLE,
    settings: Mapping[str, object] | None = None,
) -> Iterator[Governed]:
    """Broker, policy service and edge; ready on entry, gone on exit. `settings` are laid over the file's keys. Raises
    RuntimeError with the end of a log.
    """
    with contextlib.ExitStack() as stack:
        kafka = stack.enter_context(running_kafka())
        config = directory / "tidegate.yaml"
        listen, policy_listen = (f"127.0.0.1:{free_port()}" for _ in range(2))
        keys = _settings(directory, upstream, kafka.bootstrap, listen, policy_listen) | dict(settings or {})
        config.write_text(yaml.safe_dump(keys))
        command = tidegate(["policy", "--config", str(config)])
        _service(stack, command, f"http://{policy_listen}", directory / "policy.log")
        _run(["bundle", "publish", str(bundle), "--config", str(config)])
        token_file = directory / "token"
        write_private(token_file, _token(config))
        command = edge_command(["edge", "--config", str(config)])
        edge = _service(stack, command, f"http://{listen}", directory / "edge.log")
        yield Governed(f"http://{listen}", edge.pid, token_file, Ledger(kafka.bootstrap, f"{PREFIX}calls"))


def _settings(directory: Path, upstream: str, bootstrap: str, listen: str, policy_listen: str) -> dict[str, object]:
    create_secrets(directory / "secrets.json")
    signing = Ed25519PrivateKey.generate()
    pem = signing.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    write_private(directory / "signing.pem", pem)
    public = signing.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return {
        "listen": listen,
        "data": str(directory / "data"),
        "secrets_file": str(directory / "secrets.json"),
        "signing": {"key_file": str(directory / "signing.pem")},
        "trust": {"bundle_keys": [b64encode(public).decode()]},
        "servers": {"up": {"url": upstream}},
        "identity": {"local_issuer": True},
        "policy": str(BUNDLE),
        "log": f"kafka://{bootstrap}",
        "kafka": {"prefix": PREFIX, "partitions": 4, "replication": 1, "min_insync": 1},
        "sessions": "memory",
        "audit": {"mode": "spool", "capture": "masked"},
        "services": {"policy": {"listen": policy_listen}},
    }


def _service(stack: contextlib.ExitStack, command: list[str], base: str, log: Path) -> subprocess.Popen[bytes]:
    process = stack.enter_context(running(command, log=log))
    wait_ready(lambda: _is_ready(f"{base}/readyz"), process, log, deadline_s=60)
    return process


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _token(config: Path) -> bytes:
    token = _run(["token", "--config", str(config), *USER]).strip()
    if token.count(b".") != 2:
        raise RuntimeError("`tidegate token` printed something that is not a token")
    return token


def _run(arguments: Sequence[str]) -> bytes:
    """What the command prints. Raises RuntimeError with the end of its complaint."""
    done = subprocess.run(tidegate(arguments), capture_output=True, timeout=60, check=False)
    if done.returncode != 0:
        words = done.stderr.decode(errors="replace")[-2000:]
        raise RuntimeError(f"`tidegate {arguments[0]}` failed with status {done.returncode}: {words}")
    return done.stdout
