"""What deciding costs: `python -m bench.decisions`. About a minute.

For bundles of 20, 200 and 2,000 rules over 5,000 entities: a decision that holds for any arguments (kept by the edge),
one that depends on them (asked of Cedar, and kept for all that rules cannot tell apart), making a bundle ready beside a
running event loop and how long that loop stood still, and recorded calls decided again (decoding included), by pages as
`tidegate bundle replay` does. Prints the table of docs/performance.md, and under it when, with what and at which load.
"""

import argparse
import asyncio
import os
import platform
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime
from statistics import quantiles

import msgspec

from tidegate.chain import Chain, open_event
from tidegate.events import CallRequested, DecisionInputs, Sealed
from tidegate.ids import now_us, uuid7
from tidegate.policy.bundle import Bundle, bundle_of
from tidegate.policy.engine import Engine, ToolFacts
from tidegate.policy.facts import NO_FACTS
from tidegate.policy.release import Activation
from tidegate.policy.replaying import Past, Replayer, past_of
from tidegate.policy.signing import Release
from tidegate.policy.tally import Tally
from tidegate_cli.past_calls import PAGE_ROWS
from tidegate_cli.replaying import seldom_collecting
from tidegate_edge.preparing import prepared

RULES = (20, 200, 2_000)
ENTITIES = 5_000
TOOLS_PER_SERVER = 20
TIMES = 4_000
REPLAYED = 20_000
AGAIN = 8  # calls, over and over
WARMING = 12_000  # before what is counted: every person and tool was seen
TICK_S = 0.001


class Person(msgspec.Struct, frozen=True):
    user: str
    agent: str
    groups: tuple[str, ...]


def bundle(rules: int) -> Bundle:
    """A third of the rules looks at arguments; each names one team and one or two tools, as grants do."""
    texts = []
    for number in range(rules):
        server, tool, team = number // TOOLS_PER_SERVER, number % TOOLS_PER_SERVER, number % 50
        scope = (
            f'principal in Group::"team-{team}", action == Action::"s{server}/t{tool}", resource == Server::"s{server}"'
        )
        match number % 3:
            case 0:
                texts.append(f'@id("r{number}") permit ({scope});')
            case 1:
                texts.append(f'@id("r{number}") permit ({scope}) when {{ context.args.path like "/srv/*" }};')
            case _:
                texts.append(
                    f'@id("r{number}") forbid ({scope}) when {{ context.args has size && context.args.size > 9 }};'
                )
    people = [
        {
            "uid": {"type": "User", "id": f"user-{number}"},
            "attrs": {},
            "parents": [{"type": "Group", "id": f"team-{number % 50}"}],
        }
        for number in range(ENTITIES)
    ]
    files = {
        "manifest.json": b'{"v":1,"name":"bench"}',
        "policies/bench.cedar": "\n".join(texts).encode(),
        "entities.json": msgspec.json.encode(people),
    }
    return bundle_of(files)


def tools(rules: int) -> list[ToolFacts]:
    return [ToolFacts(f"s{number // TOOLS_PER_SERVER}", f"t{number % TOOLS_PER_SERVER}") for number in range(rules)]


def calls(rules: int, times: int, seed: int) -> list[tuple[Person, ToolFacts, dict[str, object]]]:
    """Of rules that look at arguments, by people whom they are about; as many people as an edge has in its caches. No
    two with the same arguments.
    """
    chosen = random.Random(seed)
    known = tools(rules)
    looking = [number for number in range(rules) if number % 3]
    made = []
    for _ in range(times):
        number = chosen.choice(looking)
        person = Person(f"user-{number % 50}", "agent", (f"team-{number % 50}",))
        made.append((person, known[number], {"path": f"/srv/{chosen.random()}", "size": -chosen.getrandbits(48)}))
    return made


async def ready(made: Bundle, rules: int) -> tuple[Engine, float, float]:
    """(engine, seconds, the longest time that the loop stood still meanwhile). As an edge does it, bytes included."""
    gaps: list[float] = []

    async def tick() -> None:
        last = time.perf_counter()
        while True:
            await asyncio.sleep(TICK_S)
            now = time.perf_counter()
            gaps.append(now - last - TICK_S)
            last = now

    ticking = asyncio.create_task(tick())
    await asyncio.sleep(0.05)
    began = time.perf_counter()
    release = Release(tenant="acme", ring="main", number=1, digest=made.digest, previous="")
    activation = Activation(release, made.canonical, b"")
    ready_made = await asyncio.to_thread(lambda: prepared(activation.bundle))
    engine = ready_made.engine.with_tools(tools(rules), {})
    took = time.perf_counter() - began
    await asyncio.sleep(2 * TICK_S)
    ticking.cancel()
    return engine, took, max(gaps)


def timed(step: Callable[[int], object]) -> tuple[float, float]:
    """(p50, p99) in microseconds."""
    took = []
    for number in range(TIMES):
        began = time.perf_counter_ns()
        step(number)
        took.append((time.perf_counter_ns() - began) / 1_000)
    marks = quantiles(took, n=100)
    return marks[49], marks[98]


def _asked_of_cedar(engine: Engine, person: Person, facts: ToolFacts, arguments: dict[str, object]) -> object:
    """As replay asks: it keeps nothing."""
    return engine.evaluate_many(person, facts.server, facts.tool, [(arguments, NO_FACTS)])


def recorded(engine: Engine, asked: list[tuple[Person, ToolFacts, dict[str, object]]]) -> list[bytes]:
    chain = Chain("bench")
    values = []
    for person, facts, arguments in asked:
        verdict = engine.evaluate(person, facts.server, facts.tool, arguments)
        at_us = now_us()
        event = CallRequested(
            id=uuid7(at_us),
            time_us=at_us,
            tenant="acme",
            region="eu",
            call_id=uuid7(at_us),
            root_call_id="",
            requested_us=at_us,
            subject_id="",
            agent=person.agent,
            session_id="",
            method="tools/call",
            server=facts.server,
            target=facts.tool,
            mode="spool",
            decision=verdict.effect,
            reason=verdict.reason,
            rules=verdict.rules,
            inputs=DecisionInputs(groups=person.groups, arguments_kept=True),
            sealed=Sealed(subject=person.user, arguments=msgspec.Raw(msgspec.json.encode(arguments))),
        )
        values.append(chain.seal(event).value or b"")
    return values


def replay(made: Bundle, values: list[bytes]) -> float:
    """Decisions a second of CPU, after the first WARMING. Raises RuntimeError where one is not as it was recorded."""
    tally = Tally(Replayer(made))
    with seldom_collecting():
        _replay(tally, values[:WARMING])
        began = time.process_time()
        _replay(tally, values[WARMING:])
        took = time.process_time() - began
    found = tally.replayed()
    if found.changed or found.other_rules:
        raise RuntimeError(f"the same bundle decided {found.changed} calls otherwise: this is a fault")
    return (len(values) - WARMING) / took


def _replay(tally: Tally, values: list[bytes]) -> None:
    for start in range(0, len(values), PAGE_ROWS):
        tally.add_all([_past(value) for value in values[start : start + PAGE_ROWS]])


def _past(value: bytes) -> Past:
    event = open_event(value)
    assert isinstance(event, CallRequested)
    return past_of(event, event.sealed)


async def run(sizes: tuple[int, ...]) -> dict[str, list[str]]:
    """What was measured, by name, for each size."""
    rows: dict[str, list[str]] = {}
    for size in sizes:
        made = bundle(size)
        engine, took, stall = await ready(made, size)
        for person, facts, arguments in (*calls(size, 5 * TIMES, seed=1), *(asked := calls(size, TIMES, seed=2))):
            engine.evaluate(person, facts.server, facts.tool, arguments)
        kept = timed(lambda n, of=asked, by=engine: by.standing(of[n][0], of[n][1].server, of[n][1].tool))  # type: ignore[misc]
        new = timed(lambda n, of=asked, by=engine: _asked_of_cedar(by, *of[n]))  # type: ignore[misc]
        like = timed(lambda n, of=asked, by=engine: by.evaluate(of[n][0], of[n][1].server, of[n][1].tool, of[n][2]))  # type: ignore[misc]
        past = recorded(engine, calls(size, WARMING + REPLAYED, seed=3))
        for name, value in (
            ("a decision for any arguments, looked up: p50 / p99 µs", f"{kept[0]:.1f} / {kept[1]:.1f}"),
            ("a decision by arguments, asked of Cedar: p50 / p99 µs", f"{new[0]:.0f} / {new[1]:.0f}"),
            (
                "the same, kept for what rules cannot tell apart: p50 / p99 µs",
                f"{like[0]:.1f} / {like[1]:.1f}",
            ),
            ("a bundle made ready beside the event loop, ms", f"{took * 1e3:.0f}"),
            ("the longest that the loop stood still meanwhile, ms", f"{stall * 1e3:.1f}"),
            (
                "recorded calls decided again (`tidegate bundle replay`), per second of CPU",
                f"{replay(made, past):,.0f}",
            ),
            ("the same, arguments seen before", f"{replay(made, past[:AGAIN] * (len(past) // AGAIN)):,.0f}"),
        ):
            rows.setdefault(name, []).append(value)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rules", type=int, nargs="+", default=list(RULES), metavar="N")
    sizes = tuple(parser.parse_args().rules)
    before = os.getloadavg()[0]
    rows = asyncio.run(run(sizes))
    print("|".join(["", " ", *(f" {size:,} rules " for size in sizes), ""]))
    print("|---" * (len(sizes) + 1) + "|")
    for name, values in rows.items():
        print(f"| {' | '.join((name, *values))} |")
    load = f"load {before:.1f} before, {os.getloadavg()[0]:.1f} after, on {os.cpu_count()} cores"
    print(f"\n{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, CPython {platform.python_version()}, {load}")


if __name__ == "__main__":
    main()
