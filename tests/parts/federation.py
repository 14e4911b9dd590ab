"""Several edges on one Valkey and one Kafka before four servers: `one` and `two` (handshake era, sessions), `new`
(2026-07-28), `own` (a process for each principal). `with federation(directory, kafka) as world`.

Starting costs seconds: share one per module. Every tool is allowed to eng but `secret-tool`; a `path` below /etc is
not. Counterparts: restless.py (the servers), cluster.py (the processes), strays.py (what they hold).
"""

import contextlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from tests.parts.cluster import ROOT, Cluster, running_cluster
from tests.parts.edge import Speaker
from tests.parts.restless import Restless, restless
from tests.parts.strays import Store
from tests.parts.valkey import Valkey, running_valkey_server

from tidegate.policy.bundle import Bundle, bundle_of

POLICY: Final = """
@id("eng-all") permit (principal in Group::"eng", action in Action::"call", resource);
@id("not-etc") @reason("Nothing below /etc may be read.")
forbid (principal, action in Action::"call", resource) when { context.args has path && context.args.path like "/etc*" };
@id("hidden") forbid (principal, action in [Action::"one/secret-tool", Action::"new/secret-tool"], resource);
"""


def bundle(version: str = "1", rules: str = POLICY) -> Bundle:
    files = {
        "manifest.json": f'{{"v": 1, "name": "federation", "version": "{version}"}}',
        "policies/p.cedar": rules,
        "inspection.yaml": "packs: [secrets]\n",
    }
    return bundle_of({path: content.encode() for path, content in files.items()})


@dataclass
class World:
    """What a test asks of it."""

    cluster: Cluster
    valkey: Valkey
    store: Store
    one: Restless
    two: Restless
    new: Restless
    processes: Path  # where each process of `own` writes its pid

    @property
    def bases(self) -> list[str]:
        return [edge.base for edge in self.cluster.edges]

    def speaker(self, edge: int = 0, user: str = "alice@example.com", agent: str = "lab") -> Speaker:
        listen = urlsplit(self.cluster.edges[edge].base).netloc
        return Speaker(listen, self.cluster.token(user, agent=agent))

    def pids(self) -> list[int]:
        """Every process of `own` that was ever started, in order."""
        file = self.processes / "pids"
        return [int(word) for word in file.read_text().split()] if file.exists() else []


def own_server(directory: Path, **more: Any) -> dict[str, Any]:
    """A process for each principal: its tool `who` tells its pid and how often it was called."""
    directory.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "tests.parts.stdio_servers", "legacy", str(directory)]
    return {"command": command, "cwd": str(ROOT), "process": "per-principal", **more}


@contextlib.contextmanager
def federation(
    directory: Path,
    bootstrap: str,
    *,
    edges: int = 2,
    servers: Mapping[str, Mapping[str, Any]] | None = None,
    own: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Iterator[World]:
    """Ready on entry, gone on exit. `servers`: more of them; `own`: more settings of that server."""
    with (
        running_valkey_server() as valkey,
        restless("sessions") as one,
        restless("sessions") as two,
        restless("modern") as new,
        contextlib.closing(Store(valkey.url)) as store,
        running_cluster(
            directory,
            bootstrap,
            servers={
                "one": {"url": one.url, "timeout_s": 15},
                "two": {"url": two.url, "timeout_s": 15},
                "new": {"url": new.url, "timeout_s": 15},
                "own": own_server(directory / "own", **(own or {})),
                **(servers or {}),
            },
            bundle=bundle(),
            edges=edges,
            sessions=valkey.url,
            **settings,
        ) as cluster,
    ):
        yield World(cluster, valkey, store, one, two, new, directory / "own")
