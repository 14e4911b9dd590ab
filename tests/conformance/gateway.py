"""Two edges on one Kafka and one Valkey in front of one server, behind the round robin: `with through(url, …) as door`.

Every tool of the server is allowed, and what calls carry is inspected as in production.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from tests.conformance.round_robin import round_robin
from tests.parts.cluster import Cluster, running_cluster

from tidegate.policy.bundle import bundle_of

SERVER: Final = "everything"
MERGED: Final = "/mcp"
"""The door of all servers; there is one, and names carry no prefix."""
OWN: Final = f"/mcp/{SERVER}"
BUNDLE: Final = bundle_of(
    {
        "manifest.json": b'{"v": 1, "name": "conformance"}',
        "policies/all.cedar": b'@id("all") permit (principal in Group::"eng", action in Action::"call", resource);',
        "inspection.yaml": b"packs: [secrets]\n",
    }
)


@contextlib.contextmanager
def through(upstream: str, directory: Path, bootstrap: str, sessions: str, door: str = MERGED) -> Iterator[str]:
    """The URL that the suite asks instead of `upstream`; afterwards each edge must have had its share."""
    naming: dict[str, Any] = {"naming": {"prefix": "none"}} if door == MERGED else {}
    with (
        round_robin() as proxy,
        running_cluster(
            directory,
            bootstrap,
            servers={SERVER: {"url": upstream}},
            bundle=BUNDLE,
            sessions=sessions,
            allowed_hosts=[f"localhost:{proxy.port}"],
            **naming,
        ) as cluster,
    ):
        ports = [urlsplit(edge.base).port or 0 for edge in cluster.edges]
        proxy.open([("127.0.0.1", port) for port in ports], cluster.token())
        yield f"http://localhost:{proxy.port}{door}"
        _shared_fairly(proxy.passed, cluster)


def _shared_fairly(passed: dict[int, int], cluster: Cluster) -> None:
    """A run in which one edge did everything would show nothing."""
    shares = sorted(passed.values())
    assert shares[-1] - shares[0] <= 1, f"the edges had {shares} requests"
    assert all(edge.is_running for edge in cluster.edges), "an edge has ended"
