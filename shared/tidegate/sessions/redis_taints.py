"""What sessions have read, in Redis: one hash per session. Part of `redis.py`; counterpart `memory_taints.py`.

A taint is told before `taint` returns: every edge has acknowledged it, or is one that has heard nothing for SILENCE_S
and asks again. A session's taint only ever grows, so that a copy which may be old is never thrown away: what it holds
is added to what the store says, and put back where the store has lost it. What renews a session renews its hash, too.
"""

import asyncio
import contextlib
import time
from collections.abc import Iterable, Set
from typing import Final, NamedTuple

import msgspec

from tidegate.limits import SESSIONS_CACHED_MAX
from tidegate.sessions.expiring import Expiring
from tidegate.sessions.hearing import SILENCE_S, Hearing
from tidegate.sessions.redis_link import Argument, Link, milliseconds, taint_key

# KEYS taint. ARGV ttl ms, nonce, channel, message, labels. Answers how many are told, the labels that this nonce
# brought (sent twice, it answers the same), and all.
_TAINT: Final = """
local fresh = {}
for i = 5, #ARGV do
  redis.call('HSETNX', KEYS[1], ARGV[i], ARGV[2])
  if redis.call('HGET', KEYS[1], ARGV[i]) == ARGV[2] then fresh[#fresh + 1] = ARGV[i] end
end
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[1]) then redis.call('PEXPIRE', KEYS[1], ARGV[1]) end
return {redis.call('PUBLISH', ARGV[3], ARGV[4]), fresh, redis.call('HKEYS', KEYS[1])}
"""
_COPY_KEPT_S: Final = 3_600.0
_DELIVERED_S: Final = 0.5  # what an edge hears last may have been on its way for so long


class Tainted(msgspec.Struct, frozen=True, kw_only=True):
    """Told to every edge; who takes it acknowledges the nonce on `reply_to`."""

    v: int = 1
    tenant: str
    session_id: str
    labels: list[str]
    ttl_s: float
    reply_to: str
    nonce: str


class _Copy(NamedTuple):
    epoch: int  # in which it was taken; in a later one it may lack labels
    labels: frozenset[str]
    ttl_s: float


_messages = msgspec.json.Decoder(Tainted)


class RedisTaints:
    def __init__(self, link: Link, hearing: Hearing, channel: str) -> None:
        self._link, self._hearing, self._channel = link, hearing, channel
        self._taint = link.script(_TAINT)
        self._copies: Expiring[tuple[str, str], _Copy] = Expiring(SESSIONS_CACHED_MAX)
        self._epoch = 0  # a new one whenever messages may have been missed
        hearing.hear(channel, self._take)

    async def taint(self, tenant: str, session_id: str, labels: Set[str], ttl_s: float) -> frozenset[str]:
        epoch = self._epoch
        with self._hearing.expecting() as waiting:
            told = Tainted(
                tenant=tenant,
                session_id=session_id,
                labels=sorted(labels),
                ttl_s=ttl_s,
                reply_to=self._hearing.reply_to,
                nonce=waiting.nonce,
            )
            message = msgspec.json.encode(told)
            arguments: list[Argument] = [milliseconds(ttl_s), told.nonce, self._channel, message, *told.labels]
            async with self._link.asked():
                receivers, fresh, held = await self._taint([taint_key(tenant, session_id)], arguments)
            self._keep(tenant, session_id, _Copy(epoch, _labels(held), ttl_s))
            with contextlib.suppress(TimeoutError):  # who has not heard it by then knows that it hears nothing
                async with asyncio.timeout(SILENCE_S + _DELIVERED_S):
                    await waiting.until(int(receivers))
        return _labels(fresh)

    async def taint_of(self, tenant: str, session_id: str) -> frozenset[str]:
        key, epoch = taint_key(tenant, session_id), self._epoch
        async with self._link.asked():
            pipeline = self._link.redis.pipeline(transaction=False)
            pipeline.hkeys(key)
            pipeline.pttl(key)
            stored, left_ms = await pipeline.execute()
        found = _labels(stored)
        copy = self._keep(tenant, session_id, _Copy(epoch, found, max(left_ms / 1000, 0.0)))
        if lost := copy.labels - found:  # or it was told since, which puts it there once more
            await self.taint(tenant, session_id, lost, copy.ttl_s)
        return copy.labels

    def known_taint(self, tenant: str, session_id: str) -> frozenset[str] | None:
        if not self._hearing.is_sound:
            return None
        copy = self._copies.get((tenant, session_id), time.monotonic())
        return copy.labels if copy is not None and copy.epoch == self._epoch else None

    def renew(self, tenant: str, session_id: str, ttl_s: float) -> None:
        """A session that goes on keeps what is held of its taint here, for a store that has lost it."""
        held = self._copies.get((tenant, session_id), time.monotonic())
        if held is not None:
            self._keep(tenant, session_id, held._replace(ttl_s=max(held.ttl_s, ttl_s)))

    def doubt(self) -> None:
        """Messages may have been missed: copies are asked for anew."""
        self._epoch += 1

    def _take(self, body: bytes) -> None:
        try:
            told = _messages.decode(body)
        except msgspec.DecodeError:  # of a newer edge: something was tainted, and nobody here can say what
            self.doubt()
            return
        # Without a copy the rest of the session's labels is not known here: what is told is kept as an old one.
        self._keep(told.tenant, told.session_id, _Copy(-1, frozenset(told.labels), told.ttl_s))
        self._hearing.acknowledge(told.reply_to, told.nonce)

    def _keep(self, tenant: str, session_id: str, copy: _Copy) -> _Copy:
        """Together with what is held already: what was told while the store was asked is in there."""
        now = time.monotonic()
        held = self._copies.get((tenant, session_id), now)
        if held is not None:
            epoch, labels, ttl_s = held
            copy = _Copy(max(epoch, copy.epoch), labels | copy.labels, max(ttl_s, copy.ttl_s))
        self._copies.put((tenant, session_id), copy, now + max(copy.ttl_s, _COPY_KEPT_S))
        return copy


def _labels(stored: Iterable[bytes]) -> frozenset[str]:
    return frozenset(str(label, "utf-8") for label in stored)
