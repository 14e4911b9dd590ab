"""What all parts hold at a moment of a soak, and whether it came back: samples, bounds, a table.

Counterpart: run.py.
"""

import time
from collections.abc import Sequence
from typing import Final, NamedTuple

from tests.parts.cluster import Cluster
from tests.parts.strays import Store, holding, zombies_of


class Held(NamedTuple):
    """Sums over both edges, and what Valkey and the servers hold for them."""

    at_s: float
    memory_mib: float
    descriptors: int
    threads: int
    children: int
    zombies: int
    calls_in_flight: int
    valkey_keys: int
    valkey_connections: int
    server_sessions: int
    server_streams: int


WHAT: Final = {
    "memory_mib": "memory of both edges, MiB",
    "descriptors": "open descriptors of both edges",
    "threads": "threads of both edges",
    "children": "child processes",
    "zombies": "children that nobody waited for",
    "calls_in_flight": "calls in flight",
    "valkey_keys": "keys in Valkey",
    "valkey_connections": "connections to Valkey",
    "server_sessions": "sessions at the servers, by their own count",
    "server_streams": "streams that the servers hold open",
}
BOUNDS: Final = {
    "memory_mib": 32.0,  # caches of tokens, decisions and lists have found their size
    "descriptors": 48,  # connections to servers are kept for the next burst
    "threads": 2,
    "children": 0,
    "zombies": 0,
    "calls_in_flight": 0,
    "valkey_keys": 4,  # the gateway's own sessions and leases may be caught in renewal
    "valkey_connections": 8,
    "server_sessions": 1,
    "server_streams": 1,
}
"""How far above the start the end may be."""


def held_now(cluster: Cluster, store: Store, servers: Sequence[dict[str, int]], began_s: float) -> Held:
    """`servers`: the books of the servers, as they tell them."""
    edges = [holding(edge.pid) for edge in cluster.edges]
    return Held(
        at_s=time.monotonic() - began_s,
        memory_mib=sum(one.rss_kib for one in edges) / 1024,
        descriptors=sum(one.descriptors for one in edges),
        threads=sum(one.threads for one in edges),
        children=sum(one.children for one in edges),
        zombies=sum(len(zombies_of(edge.pid)) for edge in cluster.edges),
        calls_in_flight=int(sum(edge.metric("tidegate_calls_in_flight") for edge in cluster.edges)),
        valkey_keys=store.keys(),
        valkey_connections=store.connections(),
        server_sessions=sum(one["sessions"] for one in servers),
        server_streams=sum(one["streams"] for one in servers),
    )


def excess(start: Held, end: Held) -> dict[str, float]:
    """What has not come back to the start within its bound, and by how much."""
    return {
        name: grown for name, bound in BOUNDS.items() if (grown := getattr(end, name) - getattr(start, name)) > bound
    }


def table(start: Held, samples: Sequence[Held], end: Held) -> list[tuple[str, str, str, str, str, bool]]:
    """Rows: what, at the start, at its most, at the end, the bound, whether it holds."""
    rows = []
    over = excess(start, end)
    for name, what in WHAT.items():
        first, last = getattr(start, name), getattr(end, name)
        most = max(getattr(one, name) for one in (start, *samples, end))
        digits = 1 if name == "memory_mib" else 0
        shown = [f"{value:.{digits}f}" for value in (first, most, last)]
        rows.append((what, *shown, f"start + {BOUNDS[name]:g}", name not in over))
    return rows


def plotted(samples: Sequence[Held], loaded: tuple[float, float]) -> str:
    """Memory over time as an SVG; the time under load is shaded. No library: a line, two axes, four words."""
    width, height, left, bottom = 720, 300, 60, 40
    last_s = max(samples[-1].at_s, 1.0)
    most = max(one.memory_mib for one in samples) * 1.1

    def x(at_s: float) -> float:
        return left + (width - left - 20) * at_s / last_s

    def y(mib: float) -> float:
        return height - bottom - (height - bottom - 20) * mib / most

    line = " ".join(f"{x(one.at_s):.1f},{y(one.memory_mib):.1f}" for one in samples)
    begin, end = (x(at_s) for at_s in loaded)
    ticks = [f'<text x="8" y="{y(mib):.0f}">{mib:.0f} MiB</text>' for mib in (0, most / 2, most)]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
            'font-size="11">',
            f'<rect x="{begin:.1f}" y="20" width="{end - begin:.1f}" height="{height - bottom - 20}" fill="#eef"/>',
            f'<polyline points="{line}" fill="none" stroke="#224" stroke-width="1.5"/>',
            f'<path d="M{left} 20V{height - bottom}H{width - 20}" fill="none" stroke="#888"/>',
            *ticks,
            f'<text x="{begin:.0f}" y="{height - 22}">under load</text>',
            f'<text x="{width - 90}" y="{height - 22}">{last_s:.0f} s</text>',
            f'<text x="{left}" y="14">Memory of both edges</text>',
            "</svg>",
            "",
        ]
    )
