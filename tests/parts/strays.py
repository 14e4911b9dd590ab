"""What a process holds, read from outside: memory, descriptors, threads, children; and what a Valkey holds for it.

Rule: figures are facts of the kernel and the server, so that a leak cannot hide behind the gateway's own metrics.
Counterparts: `tests/soak` and `tests/e2e/test_user_asks_leaks.py`, which compare them before and after.
"""

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import redis
from tests.parts.asking import children_of, until


class Holding(NamedTuple):
    """Of one process."""

    rss_kib: int
    descriptors: int
    threads: int
    children: int


def holding(pid: int) -> Holding:
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    return Holding(
        rss_kib=int(status["VmRSS"].split()[0]),
        descriptors=sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir()),
        threads=int(status["Threads"]),
        children=len(children_of(pid)),
    )


def zombies_of(pid: int) -> list[int]:
    """Descendants that ended and were not waited for."""
    return [child for child in children_of(pid) if state(child) == "Z"]


def state(pid: int) -> str:
    """The kernel's letter; "" where there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except OSError:
        return ""


class Store:
    """A Valkey, asked about itself."""

    def __init__(self, url: str) -> None:
        self._client: Any = redis.Redis.from_url(url)

    def close(self) -> None:
        self._client.close()

    def keys(self) -> int:
        return int(self._client.dbsize())

    def names(self, pattern: str = "*") -> set[str]:
        return {name.decode() for name in self._client.scan_iter(pattern, count=1_000)}

    def connections(self) -> int:
        return int(self._client.info("clients")["connected_clients"]) - 1  # without this one

    def uptime_s(self) -> int:
        return int(self._client.info("server")["uptime_in_seconds"])

    def commands(self) -> Counter[str]:
        """Calls by command, since start; without those of asking this. A transaction counts by its parts."""
        told = self._client.info("commandstats")
        found = Counter({name.removeprefix("cmdstat_"): int(figures["calls"]) for name, figures in told.items()})
        for own in ("info", "dbsize", "scan"):
            found.pop(own, None)
        return found

    def pass_time(self, seconds: int) -> None:
        """Until the server is so much older, by its own clock."""
        old = self.uptime_s()
        until(lambda: self.uptime_s() >= old + seconds, f"Valkey is {seconds} s older", seconds + 10)
