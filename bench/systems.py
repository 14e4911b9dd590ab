"""The systems that are compared, each behind the same facts: where it listens, who calls, its pid, when it is done."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.governed import running_governed
from bench.processes import listening


def _nothing() -> None:
    return None


def _uncounted(calls: int) -> int:
    return 0


@dataclass(frozen=True)
class System:
    """One system under test. `settle` returns when its work is done; `balance` proves the calls and returns events."""

    name: str
    url: str
    tool: str
    pid: int
    token_file: Path | None = None
    settle: Callable[[], None] = _nothing
    balance: Callable[[int], int] = _uncounted


NAMES = ("direct", "passthrough", "tidegate")


@contextlib.contextmanager
def running_systems(names: tuple[str, ...], directory: Path, say: Callable[[str], None]) -> Iterator[list[System]]:
    """Start the named ones over one upstream. Raises RuntimeError when one does not become ready."""
    with contextlib.ExitStack() as stack:
        say("starting the upstream")
        quiet = ("--seen-max", "1000")
        pid, at = stack.enter_context(listening("bench.upstream", *quiet, directory=directory))
        upstream: str = at["url"]
        systems = [System("direct", upstream, "echo", pid)] if "direct" in names else []
        if "passthrough" in names:
            say("starting the passthrough")
            arguments = ("--upstream", upstream)
            pid, at = stack.enter_context(listening("bench.passthrough", *arguments, directory=directory))
            systems.append(System("passthrough", at["url"], "echo", pid))
        if "tidegate" in names:
            say("starting Kafka, the policy service and an edge")
            systems.append(stack.enter_context(running_tidegate(directory, upstream)))
        yield systems


@contextlib.contextmanager
def running_tidegate(directory: Path, upstream: str) -> Iterator[System]:
    with running_governed(directory, upstream) as edge:
        yield System(
            "tidegate",
            edge.url,
            "up__echo",
            edge.pid,
            edge.token_file,
            edge.wait_shipped,
            edge.ledger.balance,
        )
