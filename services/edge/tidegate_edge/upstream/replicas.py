"""The addresses of one server: one, or several replicas. Requests without a session go round; one with a session stays
where that was opened; a replica that cannot be reached is passed over for a while.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from tidegate import __version__
from tidegate_edge.translate import MODERN
from tidegate_edge.upstream.connection import Pool

DOWN_S: Final = 5.0


class Replica:
    """One address: `pool` for requests, `streams` for what is listened to; the heads of requests, credential
    included.
    """

    def __init__(self, pool: Pool, streams: Pool, headers: Mapping[str, str], target: str = "") -> None:
        self.pool = pool
        self.streams = streams
        self.url = pool.url
        self.down_until_s = 0.0
        self._own = "".join(f"{key.lower()}: {value}\r\n" for key, value in headers.items())
        self.head = self.head_to(target or pool.target)
        self.modern_head = self.head + f"mcp-protocol-version: {MODERN}\r\n".encode()
        common = f"host: {pool.authority}\r\nuser-agent: tidegate/{__version__}\r\n{self._own}"
        self.stream_head = f"GET {pool.target} HTTP/1.1\r\n{common}accept: text/event-stream\r\n".encode()
        self.end_head = f"DELETE {pool.target} HTTP/1.1\r\n{common}".encode()

    def head_to(self, target: str) -> bytes:
        """Of a POST to this path."""
        return (
            f"POST {target} HTTP/1.1\r\nhost: {self.pool.authority}\r\ncontent-type: application/json\r\n"
            f"accept: application/json, text/event-stream\r\nuser-agent: tidegate/{__version__}\r\n{self._own}"
        ).encode()

    def went_down(self) -> None:
        self.down_until_s = self.pool.loop.time() + DOWN_S

    def close(self) -> None:
        self.pool.close()
        self.streams.close()


class Replicas:
    """At least one."""

    def __init__(self, replicas: Sequence[Replica]) -> None:
        self._all = tuple(replicas)
        self._by_url = {replica.url: replica for replica in self._all}
        self._turns = itertools.count()

    @property
    def are_many(self) -> bool:
        return len(self._all) > 1

    def __iter__(self) -> Iterator[Replica]:
        return iter(self._all)

    def in_turn(self) -> Sequence[Replica]:
        """Each once, the next in turn first, those that are down last."""
        if len(self._all) == 1:
            return self._all
        start = next(self._turns) % len(self._all)
        turned = self._all[start:] + self._all[:start]
        now_s = turned[0].pool.loop.time()
        return sorted(turned, key=lambda replica: max(0.0, replica.down_until_s - now_s))

    def named(self, url: str) -> Replica | None:
        """Of a session: "" is the only one there is."""
        if not url:
            return None if self.are_many else self._all[0]
        return self._by_url.get(url)

    def name_of(self, replica: Replica) -> str:
        """As sessions carry it."""
        return replica.url if self.are_many else ""

    def close(self) -> None:
        for replica in self._all:
            replica.close()
