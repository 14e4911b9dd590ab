"""Budgets in Redis: one hash for each counter, all draws of a request in one script. Part of `redis.py`; counterpart
`memory_budgets.py`, which does the same sums.

The clock is Redis' own. A day is named by the edge, which knows zones, and checked by the script. Every request has an
id: one that is sent twice, where a connection had died unseen, is answered twice and counted once. The keys of a tenant
share a hash tag, so that a script finds them in one slot.
"""

import hashlib
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

from tidegate.ids import now_us, uuid7
from tidegate.sessions.budgets import (
    DRAWS_AT_ONCE_MAX,
    GRACE_S,
    HELD_RETRY_MS,
    LEASE_S,
    MARKS_AT_ONCE_MAX,
    PART,
    Counter,
    Draw,
    Share,
    Standing,
    bucket_ms,
    day_at,
)
from tidegate.sessions.port import SessionsUnavailable
from tidegate.sessions.redis_link import Argument, Link

_LEASE_MS: Final = int((LEASE_S + GRACE_S) * 1000)
_USED_MS: Final = int(LEASE_S * 1000)
_ANSWERED_MS: Final = 10_000
_KEPT_MS: Final = 60_000  # of a day that is over
_SCANNED: Final = 1_000
_SCANS_MAX: Final = 2_000
_OTHER_DAY: Final = 0
_TRIES: Final = 3

# KEYS answered, then for each draw its hash and its set of marks.
# ARGV holder, ms after which a lease is lost, part, ms that a day's keys outlive it, ms for an answer, ms to retry when
# others hold it, ms for which a lease may be used; then for each draw: name, kind, most, refill, every ms, its day's
# start and end, need, want, rest, back, of which day these are, number of marks, marks. Answers {1, now, then granted,
# left, short, retry ms, lease ms, day for each}, or {0, now} where a day is not today.
_DRAW: Final = """
local answered = redis.call('GET', KEYS[1])
if answered then return cmsgpack.unpack(answered) end
local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)
local holder, lease, part, kept = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local lasts = tonumber(ARGV[7])
local draws, at = {}, 8
for i = 1, (#KEYS - 1) / 2 do
  local d = {hash = KEYS[2 * i], set = KEYS[2 * i + 1], name = ARGV[at], kind = ARGV[at + 1], marks = {}}
  d.most, d.refill, d.every = tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4])
  d.starts, d.ends = tonumber(ARGV[at + 5]), tonumber(ARGV[at + 6])
  d.need, d.want = tonumber(ARGV[at + 7]), tonumber(ARGV[at + 8])
  d.rest, d.back = tonumber(ARGV[at + 9]), tonumber(ARGV[at + 10])
  d.day = d.kind == 'day' and d.ends or 0
  if tonumber(ARGV[at + 11]) ~= d.day then d.rest, d.back = math.min(d.rest, 0), 0 end
  local count = tonumber(ARGV[at + 12])
  for m = 1, count do d.marks[m] = ARGV[at + 12 + m] end
  at = at + 13 + count
  if d.ends > 0 and (now < d.starts or now >= d.ends) then return {0, now} end
  draws[i] = d
end
local short = false
for _, d in ipairs(draws) do
  local flat, stored = redis.call('HGETALL', d.hash), {}
  d.others, d.own, d.gone = 0, 0, {}
  for f = 1, #flat, 2 do
    local who = string.match(flat[f], '^e:(.*)$')
    if who then
      local units, till = string.match(flat[f + 1], '^(%d+) (%d+)$')
      if tonumber(till) <= now then d.gone[#d.gone + 1] = flat[f]
      elseif who == holder then d.own = tonumber(units)
      else d.others = d.others + tonumber(units) end
    else stored[flat[f]] = flat[f + 1] end
  end
  local rest, debt = math.max(d.rest, 0), math.max(-d.rest, 0)
  d.used = tonumber(stored.u) or 0
  if d.kind == 'places' then d.left = d.most - d.others - rest
  elseif d.kind == 'distinct' then
    for m = 1, #d.marks, 500 do redis.call('PFADD', d.set, unpack(d.marks, m, math.min(m + 499, #d.marks))) end
    d.used = redis.call('PFCOUNT', d.set)
    d.left = d.most - d.used
  elseif d.kind == 'day' then
    d.used = math.max(0, d.used - d.back) + debt
    d.left = d.most - d.used
  else
    local free, since = tonumber(stored.t) or d.most, tonumber(stored.a) or now
    local full = math.max(d.most - d.others - d.own, free)
    free = math.min(free + math.max(0, now - since) * d.refill / d.every, full)
    d.free = math.max(0, math.min(free + d.back - debt, d.most - d.others - rest))
    d.left = math.floor(d.free + 0.000001)
  end
  if d.left < d.need then short = true end
end
local answer = {1, now}
for _, d in ipairs(draws) do
  local got, retry = 0, 0
  if not short and d.kind ~= 'distinct' then got = math.max(d.need, math.min(d.want, math.floor(d.left / part))) end
  if d.kind == 'day' then d.used = d.used + got end
  if d.kind == 'bucket' then d.free = math.max(0, d.free - got) end
  if #d.gone > 0 then redis.call('HDEL', d.hash, unpack(d.gone)) end
  local units = math.max(d.rest, 0) + math.max(0, d.kind == 'places' and got or got - d.need)
  redis.call('HSET', d.hash, 'n', d.name, 'k', d.kind, 'm', d.most, 'r', d.refill, 'v', d.every, 'f', d.ends,
    'u', string.format('%.0f', d.used), 't', string.format('%.17g', d.free or 0), 'a', now)
  if units > 0 then redis.call('HSET', d.hash, 'e:' .. holder, string.format('%.0f %.0f', units, now + lease))
  else redis.call('HDEL', d.hash, 'e:' .. holder) end
  local lives = lease
  if d.ends > 0 then lives = d.ends - now + kept
  elseif d.kind == 'bucket' then lives = lease + math.ceil(d.most * d.every / d.refill) end
  redis.call('PEXPIRE', d.hash, lives)
  if d.kind == 'distinct' then redis.call('PEXPIRE', d.set, lives) end
  local lacks = d.left < d.need
  if lacks then
    if d.kind == 'bucket' then retry = math.max(1, math.ceil((d.need - d.free) * d.every / d.refill))
    elseif d.ends > 0 then retry = math.max(1, d.ends - now) end
    if d.left + d.others >= d.need and (d.kind == 'day' or d.kind == 'bucket') then
      retry = math.min(retry, tonumber(ARGV[6]))
    end
  end
  local n = #answer
  answer[n + 1], answer[n + 2] = got, math.max(0, d.left - got)
  answer[n + 3], answer[n + 4] = lacks and 1 or 0, retry
  answer[n + 5], answer[n + 6] = d.ends > 0 and math.min(lasts, d.ends - now) or lasts, d.day
end
redis.call('SET', KEYS[1], cmsgpack.pack(answer), 'PX', ARGV[5])
return answer
"""


class RedisBudgets:
    def __init__(self, link: Link) -> None:
        self._link = link
        self._script = link.script(_DRAW)
        self._ahead_ms = 0.0  # of Redis' clock before our monotonic one
        self._has_asked = False

    async def draw(self, holder: str, draws: Sequence[Draw]) -> list[Share]:
        """Of one tenant, DRAWS_AT_ONCE_MAX at most."""
        tenant, name = draws[0].counter.tenant, uuid7(now_us())
        assert len(draws) <= DRAWS_AT_ONCE_MAX
        assert all(draw.counter.tenant == tenant and len(draw.marks) <= MARKS_AT_ONCE_MAX for draw in draws)
        for _ in range(_TRIES):
            keys, arguments = self._asked(tenant, holder, name, draws)
            async with self._link.asked():
                answer = await self._script(keys, arguments)
            self._ahead_ms, self._has_asked = answer[1] - time.monotonic() * 1000, True
            if answer[0] != _OTHER_DAY:
                return [
                    Share(got, left, bool(short), retry, lease, day)
                    for got, left, short, retry, lease, day in zip(*[iter(answer[2:])] * 6, strict=True)
                ]
        raise SessionsUnavailable("the clock of the session store does not stand still; check it")

    def _asked(self, tenant: str, holder: str, name: str, draws: Sequence[Draw]) -> tuple[list[str], list[Argument]]:
        now = int(time.monotonic() * 1000 + self._ahead_ms) if self._has_asked else now_us() // 1000
        root = _root(tenant)
        keys: list[str] = [f"{root}answered|{name}"]
        arguments: list[Argument] = [holder, _LEASE_MS, PART, _KEPT_MS, _ANSWERED_MS, HELD_RETRY_MS, _USED_MS]
        for draw in draws:
            counter = draw.counter
            is_daily = counter.kind in ("day", "distinct")
            date, start, end = day_at(counter.zone, now) if is_daily else ("", 0, 0)
            digest = hashlib.blake2b(f"{counter.name}|{date}".encode(), digest_size=16).hexdigest()
            keys += [f"{root}counter|{digest}", f"{root}marks|{digest}"]
            arguments += [counter.name, counter.kind, counter.most, counter.refill, counter.every_ms, start, end]
            arguments += [draw.need, draw.want, draw.rest, draw.back, draw.day, len(draw.marks), *draw.marks]
        return keys, arguments

    async def standings(self, tenant: str, most: int) -> tuple[list[Standing], bool]:
        """By looking through Redis: for people, not for calls. Whole unless there are more, or Redis is too large."""
        found: list[Standing] = []
        cursor = 0
        for _ in range(_SCANS_MAX):
            async with self._link.asked():
                cursor, keys = await self._link.redis.scan(cursor, f"{_escaped(_root(tenant))}counter|*", _SCANNED)
                pipeline = self._link.redis.pipeline(transaction=False)
                for key in keys:
                    pipeline.hgetall(key)
                hashes: list[Any] = await pipeline.execute()
                clock = await self._link.redis.time()
            now = int(clock[0]) * 1000 + int(clock[1]) // 1000
            found += _standings(hashes, now)
            if cursor == 0 or len(found) > most:
                break
        return found[:most], cursor == 0 and len(found) <= most


def _root(tenant: str) -> str:
    quoted = quote(tenant, safe="")
    return f"{quoted}|1|budget|{{{quoted}}}|"


def _escaped(text: str) -> str:
    return "".join(f"\\{char}" if char in "*?[]\\" else char for char in text)


def _standings(hashes: Iterable[Mapping[bytes, bytes]], now_ms: int) -> list[Standing]:
    seen: dict[str, Standing] = {}
    for fields in hashes:
        if fields and not 0 < int(fields[b"f"]) <= now_ms:
            standing = _standing({str(key, "utf-8"): str(value, "utf-8") for key, value in fields.items()}, now_ms)
            seen[standing.name] = standing
    return list(seen.values())


def _standing(fields: Mapping[str, Any], now_ms: int) -> Standing:
    kind, most, ends = fields["k"], int(fields["m"]), int(fields["f"])
    refill, every = int(fields["r"]), int(fields["v"])
    leases = [value.split(" ") for key, value in fields.items() if key.startswith("e:")]
    held = sum(int(units) for units, until in leases if int(until) > now_ms)
    used, full = (held, 0) if kind == "places" else (int(fields["u"]), ends - now_ms)
    if kind == "bucket":
        came = float(fields["t"]) + max(0, now_ms - int(fields["a"])) * refill / every
        free = min(came, most - held)
        used = most - int(free + 1e-6)
        full = bucket_ms(Counter("", "", kind, most, refill, every), most - free)
    return Standing(fields["n"], kind, most, used, held, full, refill, every)
