"""Runs the conformance suite against the fixtures directly and through two edges, and tells what is lost on the way.

  make conformance                                      everything, and writes docs/conformance.md
  python -m tests.conformance.run --fixture py --version 2026-07-28 --only server-stateless
  python -m tests.conformance.run --fixture legacy --through-only
  python -m tests.conformance.run --url http://localhost:3101/mcp      a server of yours instead of a fixture

Ends with 1 when a check that succeeds directly does not succeed through the gateway.
"""

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from tests.conformance.fixtures import ABOUT, FIXTURES, running_fixture
from tests.conformance.gateway import MERGED, OWN, through
from tests.conformance.report import Measured, markdown, terminal
from tests.conformance.suite import VERSIONS, Outcome, SuiteFailed, Version, run_suite
from tests.parts import node
from tests.parts.kafka import running_kafka
from tests.parts.processes import PartMissing
from tests.parts.valkey import running_valkey

PAGE: Final = Path(__file__).resolve().parents[2] / "docs" / "conformance.md"
AT_ONCE: Final = 2
YOURS: Final = "yours"


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    began = time.monotonic()
    runs: list[Measured] = []
    try:
        with working_directory(options.keep) as directory, parts(options) as kafka_valkey:
            for name in [YOURS] if options.url else options.fixture:
                runs += measure(name, options, directory / name, *kafka_valkey)
    except (PartMissing, SuiteFailed) as missing:
        print(missing, file=sys.stderr)
        return 2
    for run in runs:
        print(terminal(run))
    losses = sum(1 for run in runs for _ in [*run.losses(), *run.failures(), *run.problems])
    print(f"\n{losses} checks lost or failed; {time.monotonic() - began:.0f} s")
    if options.writes:
        PAGE.write_text(markdown(runs))
        print(f"wrote {PAGE}")
    return 1 if losses else 0


def measure(name: str, options: argparse.Namespace, directory: Path, bootstrap: str, sessions: str) -> list[Measured]:
    """One server in every version that it speaks, directly and through."""
    directory.mkdir(parents=True)
    spoken = FIXTURES.get(name, VERSIONS)
    versions = [version for version in VERSIONS if version.name in (options.version or [own.name for own in spoken])]
    runs = [Measured(name, version.name) for version in versions]
    with contextlib.ExitStack() as stack:
        url = options.url or stack.enter_context(running_fixture(name, directory))
        if not options.through_only:
            told(f"{name}: asked directly at {url}")
            for run, outcome in zip(runs, ask_all(url, versions, options.only, directory / "direct"), strict=True):
                run.direct = outcome
        if not options.direct_only:
            told(f"{name}: two edges start")
            door = stack.enter_context(through(url, directory / "cluster", bootstrap, sessions, options.door))
            told(f"{name}: asked through them at {door}")
            for run, outcome in zip(runs, ask_all(door, versions, options.only, directory / "through"), strict=True):
                run.through = outcome
    return runs


def ask_all(url: str, versions: Sequence[Version], only: str, directory: Path) -> list[Outcome]:
    """What each version says of `url`, in their order; two at a time."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(lambda version: run_suite(url, version, directory / version.name, only), versions))


@contextlib.contextmanager
def working_directory(kept: str) -> Iterator[Path]:
    """Where configurations, logs and data of the processes are."""
    if kept:
        Path(kept).mkdir(parents=True)
        yield Path(kept)
        return
    with tempfile.TemporaryDirectory(prefix="tidegate-conformance-") as directory:
        yield Path(directory)


@contextlib.contextmanager
def parts(options: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Addresses of Kafka and Valkey, where they are needed; and whatever has to be fetched once."""
    node.home()
    if options.direct_only:
        yield "", ""
        return
    told("Kafka and Valkey start")
    with running_kafka() as kafka, running_valkey() as valkey:
        yield kafka.bootstrap, valkey


def told(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    names = [version.name for version in VERSIONS]
    fixtures = "; ".join(f"{name}: {about}" for name, about in ABOUT.items())
    parser = argparse.ArgumentParser(
        prog="python -m tests.conformance.run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--fixture", action="append", choices=list(FIXTURES), help=f"one server alone, may repeat ({fixtures})"
    )
    parser.add_argument("--url", default="", help="a server of yours, with localhost as its host")
    parser.add_argument("--version", action="append", choices=names, help="one suite or revision alone, may repeat")
    parser.add_argument("--only", default="", metavar="SCENARIO", help="one scenario alone")
    parser.add_argument("--door", default=MERGED, choices=[MERGED, OWN], help=f"the endpoint asked (default {MERGED})")
    parser.add_argument(
        "--keep", default="", metavar="DIR", help="a new directory for what the processes write: logs, checks"
    )
    side = parser.add_mutually_exclusive_group()
    side.add_argument("--direct-only", action="store_true", help="without the gateway")
    side.add_argument("--through-only", action="store_true", help="without asking directly; failures count as lost")
    options = parser.parse_args(arguments)
    whole = not (options.fixture or options.url or options.version or options.only)
    options.writes = whole and options.door == MERGED and not (options.direct_only or options.through_only)
    options.fixture = options.fixture or list(FIXTURES)
    return options


if __name__ == "__main__":
    sys.exit(main())
