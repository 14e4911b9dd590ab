"""cases.yaml: calls that policy writers expect to be allowed, denied or asked about; run before each release.

A list of {note, user, groups, agent, server, tool, labels, arguments, expect, rules}; `labels` count for the tool and
its server, `rules`, where given, are exactly the rules that must determine the answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import yaml

from tidegate.errors import BundleFault, Problem
from tidegate.policy.bundle import CASES, Bundle
from tidegate.policy.engine import Engine, ToolFacts
from tidegate.policy.verdict import Effect, Verdict

CASES_MAX = 10_000


class Case(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One expected decision. It is its own principal (`user`, `groups`, `agent`)."""

    note: str
    user: str
    groups: tuple[str, ...] = ()
    agent: str = ""
    server: str
    tool: str
    labels: tuple[str, ...] = ()
    arguments: dict[str, Any] = {}
    expect: Effect
    rules: tuple[str, ...] | None = None


@dataclass(frozen=True)
class CaseResult:
    """What came of a case; `line` is where it stands in cases.yaml."""

    case: Case
    verdict: Verdict
    line: int

    @property
    def passed(self) -> bool:
        expected = self.case.rules
        return self.verdict.effect == self.case.expect and (
            expected is None or sorted(expected) == sorted(self.verdict.rules)
        )

    @property
    def sentence(self) -> str:
        """What differs, for a reader of the file."""
        found = self.verdict
        by = f" by {', '.join(found.rules)}" if found.rules else ""
        wanted = self.case.expect + (f" by {', '.join(self.case.rules)}" if self.case.rules else "")
        outcome = "as expected" if self.passed else f"expected {wanted}"
        return f"'{self.case.note}': {found.effect}{by} ({found.reason}), {outcome}"


def load_cases(text: str) -> list[tuple[Case, int]]:
    """The cases of a file with their lines. Raises BundleFault with each one that is malformed."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        raw = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise _fault([Problem(CASES, f"is not YAML: {error}".replace("\n", " "))]) from error
    if raw is None:
        return []
    if not isinstance(raw, list) or not isinstance(node, yaml.SequenceNode) or len(raw) > CASES_MAX:
        raise _fault(
            [
                Problem(
                    CASES,
                    f"must be a list of at most {CASES_MAX} cases: - note: …, user: …, server: …, tool: …, expect: …",
                )
            ]
        )
    lines = [item.start_mark.line + 1 for item in node.value]
    cases: list[tuple[Case, int]] = []
    problems: list[Problem] = []
    for item, line in zip(raw, lines, strict=True):
        try:
            cases.append((msgspec.convert(item, Case), line))
        except msgspec.ValidationError as error:
            problems.append(Problem(CASES, f"is not a case: {error}", line))
    if problems:
        raise _fault(problems)
    return cases


_LABEL_OF = {"prompts/get": "prompt", "resources/read": "resource"}


def run_cases(bundle: Bundle) -> list[CaseResult]:
    """Every case of the bundle, decided. Raises BundleFault where the bundle or its cases cannot be read."""
    cases = load_cases(bundle.text(CASES))
    if not cases:
        return []
    engine = Engine.build(bundle, (), {})
    return [CaseResult(case, _decide(engine, case), line) for case, line in cases]


def _decide(engine: Engine, case: Case) -> Verdict:
    labels = case.labels
    if (label := _LABEL_OF.get(case.tool)) is not None and label not in labels:  # as an edge's catalogue gives it
        labels = (*labels, label)
    facts = ToolFacts(case.server, case.tool, labels)
    return engine.with_tools([facts], {case.server: case.labels}).evaluate(case, case.server, case.tool, case.arguments)


def _fault(problems: Sequence[Problem]) -> BundleFault:
    return BundleFault(str(problems[0]), problems=problems)
