"""One measurement: a load on a system, bracketed by readings of the CPU clock of its process tree."""

import subprocess
import sys
from typing import Final

import msgspec

from bench.load import Result
from bench.processes import ROOT, cpu_s
from bench.systems import System

_GRACE_S: Final = 30.0
_decode = msgspec.json.Decoder(Result).decode


class Failed(RuntimeError):
    """A measurement is void: calls failed, or their events are not all in the log."""


class Window(msgspec.Struct, kw_only=True, frozen=True):
    """What one load on one system measured."""

    system: str
    round: int
    callers: int
    calls: int
    seconds: float
    cpu_ms_per_call: float
    calls_per_s: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    events: int  # read back from Kafka
    load_cpu_ms_per_call: float  # of the load generator: not part of the system's figure


def load(system: System, callers: int, seconds: float) -> Result:
    """Run the load generator in a process of its own. Raises Failed when any call failed."""
    command = [sys.executable, "-m", "bench.load", "--url", system.url, "--tool", system.tool]
    command += ["--callers", str(callers), "--seconds", str(seconds)]
    if system.token_file:
        command += ["--token-file", str(system.token_file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=seconds + _GRACE_S, check=False)
    try:
        result = _decode(done.stdout)
    except msgspec.DecodeError:
        words = done.stderr.decode(errors="replace")[-2000:]
        raise Failed(f"{system.name}: the load generator ended with status {done.returncode}: {words}") from None
    if result.errors or not result.calls:
        raise Failed(f"{system.name}, {callers} callers: {result.errors} of {result.calls} calls; {result.first_error}")
    return result


def measure(system: System, *, round: int, callers: int, seconds: float) -> Window:
    """Load, wait until the system has settled, read the clock, prove the calls. Raises Failed or Unbalanced."""
    before = cpu_s(system.pid)
    result = load(system, callers, seconds)
    system.settle()
    used = cpu_s(system.pid) - before
    return Window(
        system=system.name,
        round=round,
        callers=callers,
        calls=result.calls,
        seconds=result.seconds,
        cpu_ms_per_call=used * 1e3 / result.calls,
        calls_per_s=result.calls_per_s,
        p50_ms=result.p50_ms,
        p99_ms=result.p99_ms,
        max_ms=result.max_ms,
        events=system.balance(result.calls),
        load_cpu_ms_per_call=result.cpu_s * 1e3 / result.calls,
    )
