"""The three servers that the suite asks, each in a process of its own:
`with running_fixture("py", directory) as url`.
"""

import contextlib
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.conformance.suite import VERSIONS, Version
from tests.parts import node, sdk130
from tests.parts.processes import free_port, spawn, stop, wait_ready

_HERE: Final = Path(__file__).parent
DUAL: Final = VERSIONS
HANDSHAKE: Final = tuple(version for version in VERSIONS if version.revision != "2026-07-28")
FIXTURES: Final[dict[str, tuple[Version, ...]]] = {"py": DUAL, "ts": DUAL, "legacy": HANDSHAKE}
"""Name → the versions that it speaks."""
ABOUT: Final = {
    "py": "Python `mcp` 2.x, both eras (`everything_py.py`)",
    "ts": "TypeScript `@modelcontextprotocol/server` 2.x, both eras (`everything_ts.mjs`)",
    "legacy": "Python `mcp` 1.30, sessions only (`everything_130.py`)",
}


def _command(name: str) -> list[str]:
    match name:
        case "ts":
            script = node.beside(_HERE / "everything_ts.mjs", _HERE / "everything.json")
            return [str(node.node()), str(script)]
        case "legacy":
            return [str(sdk130.python()), str(_HERE / "everything_130.py")]
        case _:
            return [sys.executable, str(_HERE / "everything_py.py")]


@contextlib.contextmanager
def running_fixture(name: str, directory: Path) -> Iterator[str]:
    """Its MCP URL, as localhost; ready on entry, gone on exit. Raises PartMissing."""
    port = free_port()
    log = directory / f"everything-{name}.log"
    process = spawn([*_command(name), str(port)], cwd=directory, log=log)
    try:
        wait_ready(lambda: _listens(port), process, log, deadline_s=40)
        yield f"http://localhost:{port}/mcp"
    finally:
        stop(process, 5)


def _listens(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False
