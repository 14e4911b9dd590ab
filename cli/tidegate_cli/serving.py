"""The work of `tidegate up` and its like: settings, log lines, what is awaited, and the addresses once it is ready.

Counterpart: `running.py` runs the services and knows no terminal.
"""

import contextlib
import logging
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import typer

from tidegate.errors import ConfigFault, OurFault
from tidegate.settings import Settings, host_port
from tidegate.settings_file import load_settings
from tidegate_cli.serve_commands import ALL

AWAIT_POLL_S = 0.25
FOREIGN_EVERY_S = 10.0
TEMPLATES_MAX = 1_000
CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
PACKAGES = (
    "tidegate",
    "tidegate_cli",
    "tidegate_edge",
    "tidegate_policy",
    "tidegate_audit_consumer",
    "tidegate_detector",
)


def serve(config: Path, services: tuple[str, ...], listen: str | None) -> int:
    """Until SIGINT or SIGTERM; the exit code. Raises Fault."""
    settings = load_settings(config, listen=listen)
    with prepared(settings, services):
        from tidegate_cli.running import run

        async def ready(settings: Settings) -> None:
            typer.echo(_addresses(settings, services), err=True)

        return run(settings, services, on_ready=ready)


def serve_demo(config: Path, listen: str | None) -> int:
    """`up` on the first example, and an agent that makes its first calls. Raises Fault."""
    from tidegate_cli.demo import Demo, choose_notes_port
    from tidegate_cli.running import run

    choose_notes_port()
    settings = load_settings(config, listen=listen)
    demo = Demo(settings, config)
    with prepared(settings, ALL), demo.surroundings():
        code = run(settings, ALL, on_ready=demo.tell)
    typer.echo("Stopped; everything recorded is in " + str(settings.data_dir), err=True)
    return code


@contextlib.contextmanager
def prepared(settings: Settings, services: tuple[str, ...]) -> Iterator[None]:
    """What the process needs around the services. Raises ConfigFault where the address is taken."""
    _log_to_stderr()
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"  # for stdio servers
    if "edge" in services:
        _check_free(settings.listen)
    watcher = Awaiting(settings) if "edge" in services else None
    if watcher is not None:
        watcher.start()
    try:
        yield
    finally:
        if watcher is not None:
            watcher.stop()


class Awaiting(threading.Thread):
    """Says on stderr what readiness still awaits, whenever that changes, until nothing is awaited."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(name="awaiting", daemon=True)
        host, port = host_port(settings.listen)
        self._without_policy = settings.is_local and not settings.policy
        self._url = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}/readyz"
        self._ended = threading.Event()

    def run(self) -> None:
        said = ""
        while not self._ended.wait(AWAIT_POLL_S):
            awaited = self._awaited()
            if awaited == "":
                return
            if awaited is not None and awaited != said:
                typer.echo(f"awaiting {awaited}{self._remedy(awaited)}", err=True)
                said = awaited

    def stop(self) -> None:
        self._ended.set()

    def _awaited(self) -> str | None:
        from tidegate_cli.gateway import exchange

        try:
            _, body = exchange("GET", self._url, {}, None, 2.0)
            awaiting = msgspec.json.decode(body)["awaiting"]
        except (OurFault, msgspec.DecodeError, KeyError, TypeError):
            return None
        return ", ".join(dict.fromkeys(name for names in awaiting.values() for name in names))

    def _remedy(self, awaited: str) -> str:
        if awaited != "bundle" or not self._without_policy:
            return ""
        return ": no rules yet; `tidegate bundle publish DIR` gives some, or `policy: DIR` in the configuration"


def _check_free(listen: str) -> None:
    host, port = host_port(listen)
    if port == 0:
        raise ConfigFault(f"{listen}: clients are told the port, so name one, for example --listen {host}:8080")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigFault(
                f"cannot listen on {listen} ({error.strerror}); stop what uses it, or give --listen {host}:{port + 100}"
            ) from error


def _addresses(settings: Settings, services: tuple[str, ...]) -> str:
    if "edge" not in services:
        return f"Ready: {', '.join(services)}. Ctrl-C drains and stops."
    lines = [f"Ready. MCP is at {settings.url}/mcp, one server alone at {settings.url}/mcp/{{server}}."]
    if settings.local_issuer:
        lines.append("A token: tidegate token --user you@example.com --agent claude-code --groups eng (same --config)")
    return "\n".join([*lines, "Ctrl-C drains and stops."])


class NowAndThen(logging.Filter):
    """Foreign libraries retry ten times a second and say so each time: of each sentence of theirs, one in a while."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._said: dict[str, float] = {}  # by template

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name.startswith(PACKAGES):
            return True
        template, now_s = f"{record.name} {record.msg}"[:200], self._clock()
        if now_s - self._said.get(template, -FOREIGN_EVERY_S) < FOREIGN_EVERY_S:
            return False
        if len(self._said) >= TEMPLATES_MAX:
            self._said.clear()
        self._said[template] = now_s
        return True


class OneLine(logging.Formatter):
    """A message may hold a stranger's words: they must not look like a line of ours, nor steer a terminal."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return CONTROLS.sub(lambda one: one[0].encode("unicode_escape").decode(), super().formatMessage(record))


def _log_to_stderr() -> None:
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(OneLine("%(asctime)s %(levelname)s %(message)s"))
        handler.addFilter(NowAndThen())
    for package in PACKAGES:
        logging.getLogger(package).setLevel(logging.INFO)
