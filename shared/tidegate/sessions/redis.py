"""Sessions in Redis or Valkey (6.2 and later, not Redis Cluster): for any number of edges.

Counterparts: `memory.py` under the same suite, `hearing.py` for what other edges say. Every key begins with the
tenant and the format's version and has a time to live. Local copies are used only while notices are heard. The parts
stand in `redis_….py`, one for each protocol of `port.py`.
"""

from tidegate.sessions.hearing import Hearing, Notice
from tidegate.sessions.redis_budgets import RedisBudgets
from tidegate.sessions.redis_bus import RedisBus
from tidegate.sessions.redis_clients import RedisClientSessions
from tidegate.sessions.redis_leases import RedisLeases
from tidegate.sessions.redis_link import Link
from tidegate.sessions.redis_streams import RedisKeptStreams
from tidegate.sessions.redis_taints import RedisTaints
from tidegate.sessions.redis_upstreams import RedisUpstreamSessions
from tidegate.sessions.redis_windows import RedisWindows


class RedisSessions:
    """`url` is redis:// or rediss:// (TLS; `?ssl_ca_certs=FILE`). Raises ConfigFault when it is malformed."""

    def __init__(self, url: str, *, per_subject_max: int) -> None:
        self._link = Link(url)
        self._hearing = Hearing(
            url,
            publish=self._link.publish,
            on_notice=self._heard,
            on_loss=self._lost,
            on_regained=self._regained,
        )
        channels = self._hearing.channels
        self._clients = clients = RedisClientSessions(self._link, self._hearing, per_subject_max)
        self._upstreams = upstreams = RedisUpstreamSessions(self._link, self._hearing, f"{channels}opened")
        self._bus = bus = RedisBus(self._link, self._hearing, f"{channels}bus|")
        self._streams = streams = RedisKeptStreams(self._link, self._hearing, f"{channels}wake|")
        self._taints = taints = RedisTaints(self._link, self._hearing, f"{channels}taint")
        self._windows = windows = RedisWindows(self._link, taints)
        leases, budgets = RedisLeases(self._link), RedisBudgets(self._link)
        # The port, method by method: bound once, so that the hot path goes through no further call.
        self.open, self.get, self.touch, self.end = clients.open, clients.get, clients.touch, clients.end
        self.amend, self.on_amended = clients.amend, clients.on_amended
        self.known, self.is_live = clients.known, clients.is_live
        self.get_upstream, self.put_upstream = upstreams.get_upstream, upstreams.put_upstream
        self.drop_upstream, self.known_upstream = upstreams.drop_upstream, upstreams.known_upstream
        self.claim_idle, self.sessions_of = upstreams.claim_idle, upstreams.sessions_of
        self.on_upstream_opened = upstreams.on_upstream_opened
        self.window, self.known_window = windows.window, windows.known_window
        self.address, self.post, self.tell_all, self.on_message = bus.address, bus.post, bus.tell_all, bus.on_message
        self.take, self.renew, self.give_up = leases.take, leases.renew, leases.give_up
        self.draw, self.standings = budgets.draw, budgets.standings
        self.keep, self.kept_after, self.finish = streams.keep, streams.kept_after, streams.finish
        self.taint, self.taint_of, self.known_taint = taints.taint, taints.taint_of, taints.known_taint

    @property
    def awaiting(self) -> frozenset[str]:
        return frozenset() if self._hearing.is_sound else frozenset({"sessions"})

    async def start(self) -> None:
        self._bus.start()
        self._hearing.start()

    async def stop(self) -> None:
        await self._hearing.stop()
        await self._bus.stop()
        await self._link.close()

    def _heard(self, notice: Notice) -> None:
        (self._clients if notice.kind == "session" else self._upstreams).heard(notice.key)

    def _lost(self) -> None:
        self._clients.lost()
        self._upstreams.lost()
        self._windows.lost()
        self._streams.lost()
        self._taints.doubt()

    def _regained(self) -> None:
        self._taints.doubt()
        self._windows.regained()
        self._clients.regained()
