"""What limits cost: `python -m bench.limits`. About 80 seconds.

One edge with real Kafka and Valkey under a closed loop, in turns under the same rules without limits, with limits that
have room (a lease covers the common call), and with one that is always nearly used up (each call has to ask). CPU of
the edge per governed call, and how often Redis was asked, counted by Redis itself.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any, Final

import msgspec
import redis
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from tests.parts.valkey import running_valkey

from bench.governed import BUNDLE, Governed, running_governed, tidegate
from bench.measure import load
from bench.processes import cpu_s, listening
from bench.systems import System

CALLERS: Final = 4
ROUNDS: Final = 4
SECONDS: Final = 4.0
RELEASED_S: Final = 20.0
LIMITS: Final[Mapping[str, str]] = {
    "without limits": "",
    "four counters, with room": """
v: 1
limits:
  - {id: pace, per: [user, tool], calls: 50000000/minute}
  - {id: day, per: [tenant, server], daily: {calls: 1000000000, bytes: 900GB}, concurrent: 100000}
""",
    "one counter, nearly used up": """
v: 1
limits:
  - {id: pace, per: [user, tool], calls: 20000/second, burst: 7}
""",
}


class Turn(msgspec.Struct, frozen=True):
    """One load under one set of limits."""

    cpu_ms: float
    p50_ms: float
    p99_ms: float
    exchanges: float  # scripts of limits that Redis ran, per call
    commands: float  # that Redis got from this edge, per call


class Redis:
    """What the server has counted."""

    def __init__(self, url: str) -> None:
        self._client = redis.Redis.from_url(url)

    def counts(self) -> tuple[int, int]:
        """Scripts run, and all commands that clients sent (this one's aside)."""
        stats: Any = self._client.info("commandstats")
        calls = {name.removeprefix("cmdstat_"): int(one["calls"]) for name, one in stats.items()}
        scripts = calls.get("evalsha", 0)
        inside = {"get", "set", "hgetall", "hset", "hdel", "pexpire", "time", "pfadd", "pfcount"}
        return scripts, sum(number for name, number in calls.items() if name not in inside and name != "info")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=ROUNDS)
    options.add_argument("--seconds", type=float, default=SECONDS)
    chosen = options.parse_args()
    found: defaultdict[str, list[Turn]] = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="tidegate-limits-") as name, running(Path(name)) as (edge, seen, directory):
        system = System("tidegate", edge.url, "up__echo", edge.pid, edge.token_file, edge.wait_shipped)
        for round_number in range(chosen.rounds + 1):
            for what, limits in LIMITS.items():
                release(edge, directory, limits)
                turn = measured(system, seen, chosen.seconds)
                if round_number:  # the first round warms up
                    found[what].append(turn)
                print(f"round {round_number}: {what}: {turn.cpu_ms:.3f} ms", file=sys.stderr)
    show(found)


@contextmanager
def running(directory: Path) -> Iterator[tuple[Governed, Redis, Path]]:
    with ExitStack() as stack:
        url = stack.enter_context(running_valkey())
        _, at = stack.enter_context(listening("bench.upstream", "--seen-max", "1000", directory=directory))
        keys: dict[str, object] = {"sessions": url}
        edge = stack.enter_context(running_governed(directory, at["url"], settings=keys))
        yield edge, Redis(url), directory


def release(edge: Governed, directory: Path, limits: str) -> None:
    """Publish the measured rules with these limits, and wait until they rule."""
    place = directory / "bundle"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(BUNDLE, place)
    if limits:
        (place / "limits.yaml").write_text(limits)
    before = edge.metric("tidegate_bundle_release")
    command = tidegate(["bundle", "publish", str(place), "--config", str(directory / "tidegate.yaml"), "--json"])
    told = msgspec.json.decode(subprocess.run(command, check=True, capture_output=True, timeout=60).stdout)
    if not told.get("created", True):
        return
    end = time.monotonic() + RELEASED_S
    while edge.metric("tidegate_bundle_release") <= before:
        if time.monotonic() > end:
            raise TimeoutError("the bundle does not rule")
        time.sleep(0.05)


def measured(system: System, seen: Redis, seconds: float) -> Turn:
    """Raises Failed where any call was refused."""
    scripts, commands = seen.counts()
    used_s = cpu_s(system.pid)
    result = load(system, CALLERS, seconds)
    system.settle()
    used_s = cpu_s(system.pid) - used_s
    scripts, commands = (after - before for after, before in zip(seen.counts(), (scripts, commands), strict=True))
    calls = result.calls
    return Turn(used_s * 1e3 / calls, result.p50_ms, result.p99_ms, scripts / calls, commands / calls)


def show(found: Mapping[str, list[Turn]]) -> None:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("", "CPU ms a call", "p50 ms", "p99 ms", "limit scripts a call", "commands a call"):
        table.add_column(name, justify="right" if name else "left")
    for what, turns in found.items():
        values = [[getattr(turn, name) for turn in turns] for name in Turn.__struct_fields__]
        cpu, p50, p99, scripts, commands = (median(each) for each in values)
        table.add_row(what, f"{cpu:.3f}", f"{p50:.2f}", f"{p99:.2f}", f"{scripts:.4f}", f"{commands:.4f}")
    Console().print(table)


if __name__ == "__main__":
    main()
