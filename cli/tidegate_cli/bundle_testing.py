"""The work of `tidegate bundle test`: decide the cases of a bundle and of further files, and tell each verdict."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree

from tidegate.errors import BundleFault, ConfigFault
from tidegate.policy.bundle import CASES, Bundle, bundle_of, load_bundle
from tidegate.policy.cases import CaseResult, run_cases
from tidegate_cli.output import DECISION_STYLES, plain, print_document, say

FILE_BYTES_MAX: Final = 4 * 1024 * 1024


@dataclass(frozen=True)
class Tried:
    """A case, decided, and the file that it stands in."""

    path: str
    result: CaseResult


def show_cases(directory: Path, files: Sequence[Path], only: str, junit: Path | None, as_json: bool) -> int:
    """The exit code: 1 where a case fails, or there was none to run. Raises Fault where something cannot be read."""
    bundle = load_bundle(directory)
    tried = [Tried(str(directory / CASES), result) for result in run_cases(bundle)]
    own = (directory / CASES).resolve()
    others = {file.resolve(): file for file in files if file.resolve() != own}
    for file in others.values():
        tried += [Tried(str(file), result) for result in _run_file(bundle, file)]
    tried = [one for one in tried if only.lower() in one.result.case.note.lower()]
    failed = [one for one in tried if not one.result.passed]
    if junit is not None:
        _write_junit(junit, directory, tried)
    if as_json:
        print_document({"bundle": bundle.digest, "passed": not failed, "cases": [_document(one) for one in tried]})
    else:
        for one in tried:
            _say(one)
        _say_sum(tried, failed, only)
    return int(bool(failed) or not tried)


def _run_file(bundle: Bundle, file: Path) -> list[CaseResult]:
    """The file's cases, decided by the bundle. What is wrong is said of the file."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ConfigFault(f"{file} cannot be read: {error.strerror or error}") from error
    if len(content) > FILE_BYTES_MAX:
        raise ConfigFault(f"{file}: a file of cases has at most {FILE_BYTES_MAX} bytes; split it")
    try:
        return run_cases(bundle_of({**bundle.files, CASES: content}))
    except BundleFault as fault:
        first = fault.problems[0] if fault.problems else None
        if first is None or first.path != CASES:
            raise
        raise ConfigFault(f"{file}:{first.line}: {first.sentence}") from fault


def _say(one: Tried) -> None:
    result = one.result
    verdict, case = result.verdict, result.case
    mark = "[green]passed[/]" if result.passed else "[red]failed[/]"
    by = f" by {plain(', '.join(verdict.rules))}" if verdict.rules else ""
    effect = f"[{DECISION_STYLES[verdict.effect]}]{verdict.effect}[/]{by} ({verdict.reason})"
    say(f"{mark}  {plain(one.path)}:{result.line}  {plain(case.note)}")
    who = f"{case.user} of {', '.join(case.groups)}" if case.groups else case.user
    say(f"        {plain(who)}: {plain(f'{case.server}/{case.tool}')} → {effect}")
    if verdict.told and verdict.effect != "allow":
        say(f"        [dim]{plain(verdict.told)}[/]")
    if (would := result.unshadowed) is not None:
        shown = f"[{DECISION_STYLES[would.effect]}]{would.effect}[/] by {plain(', '.join(would.rules) or 'no rule')}"
        say(f"        with the rules in shadow mode → {shown}")
    if not result.passed:
        say(f"        [red]{plain(result.sentence)}[/]")


def _say_sum(tried: list[Tried], failed: list[Tried], only: str) -> None:
    if not tried:
        what = f"no case's note has '{plain(only)}' in it" if only else f"there is no case; write some into {CASES}"
        say(f"[red]nothing was tried[/]  {what}")
    elif failed:
        say(f"[red]{len(failed)} of {len(tried)} cases failed[/]")
    else:
        say(f"[green]{len(tried)} case{'s' if len(tried) != 1 else ''} passed[/]")


def _document(one: Tried) -> dict[str, Any]:
    case, verdict = one.result.case, one.result.verdict
    return {
        "file": one.path,
        "line": one.result.line,
        "note": case.note,
        "passed": one.result.passed,
        "expected": {"decision": case.expect, "rules": case.rules},
        "decision": verdict.effect,
        "reason": verdict.reason,
        "rules": verdict.rules,
        "message": verdict.told,
        "shadow": one.result.unshadowed.effect if one.result.unshadowed else None,
        "sentence": one.result.sentence,
    }


def _write_junit(file: Path, directory: Path, tried: list[Tried]) -> None:
    """The XML that build servers read: a test suite for each file, a test case for each case."""
    root = ElementTree.Element("testsuites", name=str(directory))
    suites: dict[str, list[Tried]] = {}
    for one in tried:
        suites.setdefault(one.path, []).append(one)
    for path, cases in suites.items():
        failures = sum(not one.result.passed for one in cases)
        suite = ElementTree.SubElement(
            root, "testsuite", name=path, tests=str(len(cases)), failures=str(failures), errors="0", skipped="0"
        )
        for one in cases:
            name = _printable(one.result.case.note)
            case = ElementTree.SubElement(suite, "testcase", classname=path, name=name, line=str(one.result.line))
            if not one.result.passed:
                ElementTree.SubElement(case, "failure", message=_printable(one.result.sentence))
    try:
        ElementTree.ElementTree(root).write(file, encoding="utf-8", xml_declaration=True)
    except OSError as error:
        raise ConfigFault(f"--junit: {file} cannot be written: {error.strerror or error}") from error


def _printable(text: str) -> str:
    """XML 1.0 has no control characters."""
    return "".join(char if char.isprintable() else " " for char in text)
