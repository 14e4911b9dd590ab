"""The official conformance suite, run against one URL, and what its checks said.

Every scenario leaves a `checks.json`: a list of {id, name, status, errorMessage}. SUCCESS counts as passed, FAILURE as
failed; a check is lost when it succeeds less often through the gateway than directly.
"""

import json
import re
import subprocess
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from tests.parts import node

DEADLINE_S: Final = 240.0
SCENARIO_DEADLINE_MS: Final = 15_000
_STAMP: Final = re.compile(r"-(\d{4}-\d{2}-\d{2}T[\d-]+Z)$")


class Version(NamedTuple):
    """A suite, and the revision of the protocol that it is asked to speak."""

    name: str
    package: str
    revision: str = ""


VERSIONS: Final = (
    Version("0.1.16", "conformance-0.1"),
    Version("2025-06-18", "conformance-0.2", "2025-06-18"),
    Version("2025-11-25", "conformance-0.2", "2025-11-25"),
    Version("2026-07-28", "conformance-0.2", "2026-07-28"),
)


@dataclass(frozen=True)
class Check:
    """What one check said."""

    id: str
    name: str
    status: str
    message: str


Outcome = Mapping[str, tuple[Check, ...]]
"""Scenario → its checks."""


class SuiteFailed(RuntimeError):
    """The suite itself did not run; the message has its words."""


def run_suite(url: str, version: Version, told: Path, scenario: str = "") -> Outcome:
    """All scenarios of a version, or one; `told`: where their results go. Raises SuiteFailed."""
    package = node.modules() / version.package
    command = [str(node.node()), str(package / "dist" / "index.js"), "server", "--url", url, "-o", str(told)]
    command += ["--scenario", scenario] if scenario else ["--suite", "all"]
    if version.revision:
        command += ["--spec-version", version.revision, "--timeout", str(SCENARIO_DEADLINE_MS)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    except subprocess.TimeoutExpired as expired:
        raise SuiteFailed(f"{version.name} at {url} did not end within {DEADLINE_S:.0f} s") from expired
    files = sorted(told.glob("**/checks.json"), key=lambda path: path.stat().st_mtime_ns)
    outcome = {_scenario(path): _checks(path) for path in files}
    if not outcome and "SKIPPED" not in done.stdout:
        raise SuiteFailed(f"{version.name} at {url} left no results: {done.stdout[-1500:]}{done.stderr[-1500:]}")
    return outcome


def passed(checks: tuple[Check, ...]) -> int:
    return sum(check.status == "SUCCESS" for check in checks)


def failed(checks: tuple[Check, ...]) -> int:
    return sum(check.status == "FAILURE" for check in checks)


def lost(direct: tuple[Check, ...], through: tuple[Check, ...]) -> list[str]:
    """Each check that succeeds directly and does not through the gateway, with what was said instead."""
    ours = Counter((check.id, check.name) for check in through if check.status == "SUCCESS")
    theirs = Counter((check.id, check.name) for check in direct if check.status == "SUCCESS")
    others = {(check.id, check.name): check for check in through if check.status != "SUCCESS"}
    blamed = "; ".join(sorted({check.message for check in through if check.status == "FAILURE" and check.message}))
    return [f"{key[0]} ({key[1]}): {_why(others.get(key), blamed)}" for key in theirs if ours[key] < theirs[key]]


def _why(check: Check | None, blamed: str) -> str:
    if check is None:
        return f"did not come to pass; {blamed}" if blamed else "did not come to pass"
    return f"{check.status}: {check.message or 'no message'}"


def _scenario(path: Path) -> str:
    return _STAMP.sub("", path.parent.name).removeprefix("server-")


def _checks(path: Path) -> tuple[Check, ...]:
    return tuple(
        Check(check["id"], check.get("name", ""), check["status"], check.get("errorMessage") or "")
        for check in json.loads(path.read_text())
    )
