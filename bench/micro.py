"""The single steps of a governed call, timed alone: `python -m bench.micro [step …]`.

Each step is made ready once, then timed call by call on the measured request of `load.py` under the bundle of
`policy/`; one whose code is not installed is skipped, and says so. The sum is less than an edge's CPU per call:
sockets, the parsing of HTTP, the event loop and Kafka's client are not here.
"""

import argparse
import asyncio
import itertools
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from bench.governed import BUNDLE
from bench.load import Requests
from tidegate.events import CallCompleted, CallRequested, DecisionInputs, Sealed
from tidegate.ids import now_us, uuid7

TIMES: Final = 5_000
_PARALLEL: Final = 16

Step = Callable[[], object]
Ready = Callable[[Path], Step]


class Timing(msgspec.Struct):
    p50_us: float
    p99_us: float
    cpu_us: float  # mean, all threads


def request() -> tuple[dict[bytes, bytes], bytes]:
    """(headers, body) of the measured request."""
    _, sent = Requests("http://127.0.0.1:8080/mcp", "up__echo", "").next()
    head, _, body = sent.partition(b"\r\n\r\n")
    lines = (line.partition(b": ") for line in head.split(b"\r\n")[1:])
    return {name: value for name, _, value in lines}, body


def arguments() -> bytes:
    found = re.search(rb'"arguments":(\{.*?\})', request()[1])
    assert found is not None
    return found[1]


def result() -> bytes:
    """A result of about 1 kB, as the upstream gives it."""
    text = "The quick brown fox jumps over the lazy dog while the gateway keeps its books. " * 12
    content = [{"type": "text", "text": text[:900]}]
    return msgspec.json.encode({"content": content, "isError": False, "resultType": "complete"})


def events() -> tuple[CallRequested, CallCompleted]:
    """The two events of the measured call, with everything that they carry."""
    at_us = now_us()
    sealed = Sealed(issuer="http://127.0.0.1:8080/local", subject="alice@example.com", login="alice@example.com")
    shared = {
        "id": uuid7(at_us),
        "time_us": at_us,
        "tenant": "default",
        "region": "local",
        "call_id": uuid7(at_us),
        "root_call_id": uuid7(at_us),
        "requested_us": at_us,
        "subject_id": "0f" * 16,
        "agent": "bench",
        "session_id": "1e" * 16,
        "protocol": "2026-07-28",
        "edge": "bench-8080",
        "method": "tools/call",
        "server": "up",
        "target": "echo",
        "mode": "spool",
        "decision": "allow",
        "reason": "granted",
        "rules": ("echo-below-srv",),
        "bundle": "ab" * 32,
    }
    requested = msgspec.convert(shared | {"type": "call.requested.v1", "arguments_digest": "cd" * 32}, CallRequested)
    ended = {"type": "call.completed.v1", "outcome": "ok", "completed_us": at_us, "result_digest": "ef" * 32}
    completed = msgspec.convert(shared | ended, CallCompleted)
    raw = msgspec.structs.replace(sealed, arguments=msgspec.Raw(arguments()))
    inputs = DecisionInputs(bundle="ab" * 32, release=1, catalog="ba" * 32, groups=("eng",), now_us=at_us)
    return (
        msgspec.structs.replace(requested, inputs=inputs, sealed=raw, arguments_bytes=len(arguments())),
        msgspec.structs.replace(completed, sealed=msgspec.structs.replace(sealed, result=msgspec.Raw(result()))),
    )


def json_step(_: Path) -> Step:
    from tidegate_edge import strict_json

    body = request()[1]
    return lambda: strict_json.read(body)


def accept_step(_: Path) -> Step:
    from tidegate_edge.accept import accept

    headers, body = request()
    return lambda: accept(headers, body)


def token_step(directory: Path) -> Step:
    from tidegate.identity import Principal, TokenVerifier
    from tidegate.jwks import FileKeys
    from tidegate.local_issuer import LocalIssuer
    from tidegate.secrets import ClusterSecrets
    from tidegate.settings import Issuer

    issuer = LocalIssuer.open(directory, "http://127.0.0.1:8080")
    audience = ("http://127.0.0.1:8080/mcp",)
    token = issuer.mint("alice@example.com", "bench", ("eng",), 3600, audience, int(time.time()))
    verifier = TokenVerifier(
        [Issuer(issuer=issuer.issuer, jwks_file=str(issuer.jwks_file), tenant="default", algorithms=("RS256",))],
        {issuer.issuer: FileKeys(issuer.jwks_file)},
        ClusterSecrets.generate(),
        audiences=audience,
        tenant="default",
    )
    assert isinstance(asyncio.run(verifier.verify(token)), Principal)
    raw = token.encode()
    return lambda: verifier.verify_cached(raw, now_us())


class _Alice(msgspec.Struct, frozen=True):
    user: str = "alice@example.com"
    agent: str = "bench"
    groups: tuple[str, ...] = ("eng",)


def _decide_step(*, kept: bool) -> Ready:
    """No two calls have the same arguments. `kept`: answers for what rules cannot tell apart are."""

    def ready(_: Path) -> Step:
        from tidegate.policy.bundle import load_bundle
        from tidegate.policy.engine import Engine, ToolFacts
        from tidegate.policy.facts import NO_FACTS

        engine = Engine.build(load_bundle(BUNDLE), [ToolFacts("up", "echo"), ToolFacts("up", "note")], {"up": ()})
        alice, given, numbers = _Alice(), msgspec.json.decode(arguments()), itertools.count()
        verdict = engine.evaluate(alice, "up", "echo", given)
        assert verdict.effect == "allow", verdict
        assert engine.standing(alice, "up", "echo") is None, "the decision must depend on the arguments"

        def fresh() -> dict[str, object]:
            return {**given, "path": f"{given['path']}{next(numbers)}"}

        if kept:
            return lambda: engine.evaluate(alice, "up", "echo", fresh())
        return lambda: engine.evaluate_many(alice, "up", "echo", [(fresh(), NO_FACTS)])

    return ready


def _scan_step(raw: bytes, direction: str) -> Ready:
    def ready(_: Path) -> Step:
        from tidegate.inspection.rules import load_inspection
        from tidegate.inspection.scanner import EMPTY, Scanner

        scanner = Scanner(load_inspection((BUNDLE / "inspection.yaml").read_bytes()))
        towards = "arguments" if direction == "arguments" else "result"
        found = scanner.scan(raw, towards)  # type: ignore[arg-type]
        assert found is EMPTY, f"the measured call must be clean, not {found}"
        return lambda: scanner.scan(raw, towards)  # type: ignore[arg-type]

    return ready


def seal_step(_: Path) -> Step:
    from tidegate.chain import Chain

    chain, pair = Chain("bench-8080.spool.1"), events()

    def seal() -> None:
        for event in pair:
            chain.seal(event)

    return seal


def _spool_step(parallel: int) -> Ready:
    """One durable record per call: `parallel` callers submit at once, so the time of a group is shared."""

    def ready(directory: Path) -> Step:
        from tidegate.chain import Chain
        from tidegate.log.commit import GroupCommit
        from tidegate.log.spool import Spool

        spool = Spool(directory / f"spool-{parallel}", 1 << 30, edge="bench")
        commit = GroupCommit(spool, records_max=20_000, name="spool")
        chain, event = Chain(spool.writer), events()[0]
        loop = asyncio.new_event_loop()

        async def group() -> None:
            await asyncio.gather(*[commit.submit(chain.seal(event)) for _ in range(parallel)])

        return lambda: loop.run_until_complete(group())

    return ready


STEPS: Final[dict[str, tuple[str, Ready, int]]] = {
    "json": ("strict JSON of the request", json_step, 1),
    "accept": ("accept: headers and envelope", accept_step, 1),
    "token": ("RS256 token, verified before", token_step, 1),
    "decide": ("decide by argument rules", _decide_step(kept=True), 1),
    "decide-asked": ("the same, asked of Cedar", _decide_step(kept=False), 1),
    "scan-arguments": (f"scan the arguments, {len(arguments())} bytes", _scan_step(arguments(), "arguments"), 1),
    "scan-result": (f"scan the result, {len(result())} bytes", _scan_step(result(), "result"), 1),
    "seal": ("encode and chain both events", seal_step, 1),
    "spool": ("one record, fsynced, alone", _spool_step(1), 1),
    "spool-16": ("the same, 16 at once, each", _spool_step(_PARALLEL), _PARALLEL),
}
"""Name → (what it is, how to make it ready, how many it does at a time)."""


def timed(step: Step, times: int, at_a_time: int) -> Timing:
    step()
    took: list[float] = []
    cpu_s = time.process_time()
    for _ in range(times):
        started = time.perf_counter_ns()
        step()
        took.append((time.perf_counter_ns() - started) / 1e3 / at_a_time)
    cpu_us = (time.process_time() - cpu_s) * 1e6 / times / at_a_time
    took.sort()
    return Timing(took[times // 2], took[times * 99 // 100], cpu_us)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", nargs="*", choices=[[], *STEPS], help=f"some of {', '.join(STEPS)} (default: all)")
    parser.add_argument("--times", type=int, default=TIMES)
    options = parser.parse_args()
    run(options.steps or list(STEPS), options.times, Console())


def run(names: Sequence[str], times: int, console: Console) -> None:
    table = Table(title="Single steps, µs", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("step")
    for column in ("p50", "p99", "CPU"):
        table.add_column(column, justify="right")
    for name in names:
        words, ready, at_a_time = STEPS[name]
        with tempfile.TemporaryDirectory(prefix="tidegate-micro-", ignore_cleanup_errors=True) as directory:
            try:
                step = ready(Path(directory))
            except ImportError as missing:
                table.add_row(words, "–", "–", f"skipped: {missing}")
                continue
            timing = timed(step, min(times, 1_000) if "spool" in name else times, at_a_time)
        table.add_row(words, *(f"{value:.1f}" for value in (timing.p50_us, timing.p99_us, timing.cpu_us)))
    console.print(table)


if __name__ == "__main__":
    main()
