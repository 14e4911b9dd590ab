"""What a session kept in Redis costs: `python -m bench.sessions`.

For each operation, one after the other: CPU of this process, where two edges live, and time by the clock; commands and
CPU of the server as the server counts them (what a script calls counts, too), and the bytes that one open session takes
there. The server is a valkey-server on loopback.
"""

import asyncio
import resource
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
import redis.asyncio
import uvloop
from rich.console import Console
from rich.table import Table
from tests.parts.valkey import running_valkey

from tidegate.ids import now_us
from tidegate.sessions.port import SessionRecord, UpstreamKey, UpstreamSession
from tidegate.sessions.redis import RedisSessions

ROUNDS: Final = 2_000
KNOWN_ROUNDS: Final = 200_000
TTL_S: Final = 3_600.0

Step = Callable[[int], Awaitable[object]]


def record(number: int) -> SessionRecord:
    return SessionRecord(
        session_id=f"0199{number:028x}",
        tenant="acme",
        subject_id=f"{number:032x}",
        agent="claude-code",
        protocol="2025-11-25",
        client_info=msgspec.Raw(b'{"name":"claude-code","version":"2.1.0"}'),
        capabilities=msgspec.Raw(b'{"roots":{"listChanged":true},"sampling":{},"elicitation":{}}'),
        opened_us=now_us(),
        edge="edge-1",
    )


def key(number: int) -> UpstreamKey:
    return UpstreamKey("acme", "git", f"{number:032x}", "claude-code", f"0199{number:028x}", "")


def upstream(number: int) -> UpstreamSession:
    return UpstreamSession(session_id=f"{number:032x}", protocol="2025-11-25", opened_us=now_us(), edge="edge-1")


def steps(a: RedisSessions, b: RedisSessions) -> dict[str, Step]:
    """In an order in which each finds what it needs; `b` is another edge, which hears what `a` does."""
    known = record(0)

    async def from_the_copy(number: int) -> None:
        a.known(known.tenant, known.session_id)

    def session_id(number: int) -> str:
        return record(number).session_id

    return {
        "open": lambda n: a.open(record(n), TTL_S),
        "known (the copy)": from_the_copy,
        "get": lambda n: a.get("acme", session_id(n)),
        "touch": lambda n: a.touch("acme", session_id(n), TTL_S),
        "amend": lambda n: a.amend("acme", session_id(n), subscribe="file:///a"),
        "put_upstream": lambda n: a.put_upstream(key(n), upstream(n), TTL_S),
        "get_upstream": lambda n: a.get_upstream(key(n)),
        "sessions_of": lambda n: a.sessions_of("acme", session_id(n)),
        "drop_upstream": lambda n: a.drop_upstream(key(n), upstream(n).session_id),
        "window (first)": lambda n: a.window("acme", f"{n:032x}", "claude-code", "", TTL_S, now_us()),
        "post": lambda n: a.post(b.address, b"answer\n{}"),
        "tell_all": lambda n: a.tell_all(b"cancel\n{}"),
        "take (a lease)": lambda n: a.take(f"acme|git|{n}", "http://edge-1", TTL_S),
        "keep (an event)": lambda n: a.keep(f"acme|{n}", "get", b'{"jsonrpc":"2.0"}', TTL_S),
        "kept_after": lambda n: a.kept_after(f"acme|{n}", "get", "0-0", 0),
        "end (acknowledged by 2)": lambda n: a.end("acme", session_id(n), 5),
    }


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def served(client: Any) -> tuple[int, float]:
    """Commands and seconds of CPU so far, without pings and without asking for this."""
    stats, cpu = await client.info("commandstats"), await client.info("cpu")
    apart = ("ping", "info", "subscribe", "client|setinfo", "hello")
    commands = sum(one["calls"] for name, one in stats.items() if name.removeprefix("cmdstat_") not in apart)
    return commands, cpu["used_cpu_user"] + cpu["used_cpu_sys"]


async def measure(client: Any, name: str, step: Step) -> tuple[str, ...]:
    rounds = KNOWN_ROUNDS if "copy" in name else ROUNDS
    before, began, used = await served(client), time.perf_counter(), cpu_s()
    for number in range(rounds):
        await step(number)
    used, took, after = cpu_s() - used, time.perf_counter() - began, await served(client)
    commands, serving = ((there - here) / rounds for here, there in zip(before, after, strict=True))
    micros = [f"{seconds / rounds * 1e6:.1f}" for seconds in (used, took)]
    return name, *micros, f"{commands:.1f}", f"{serving * 1e6:.1f}"


async def run(url: str) -> Table:
    table = Table("operation", "edge's CPU, µs", "clock, µs", "commands", "server's CPU, µs")
    a, b = (RedisSessions(url, per_subject_max=1_000) for _ in range(2))
    client = redis.asyncio.Redis.from_url(url)
    for edge in (a, b):
        await edge.start()
    while a.awaiting or b.awaiting:
        await asyncio.sleep(0.01)
    empty = (await client.info("memory"))["used_memory"]
    for name, step in steps(a, b).items():
        table.add_row(*await measure(client, name, step))
        if name == "open":
            held = (await client.info("memory"))["used_memory"] - empty
            table.caption = (
                f"{held / ROUNDS:.0f} bytes at the server for an open session; each operation {ROUNDS} times"
            )
    for edge in (a, b):
        await edge.stop()
    await client.aclose()
    return table


def main() -> None:
    with running_valkey() as url, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        Console().print(runner.run(run(url)))


if __name__ == "__main__":
    main()
