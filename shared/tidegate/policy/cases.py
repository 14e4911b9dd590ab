"""cases.yaml: calls that policy writers expect to be allowed, denied or asked about; run before each release.

A list of {note, user or service, groups, agent, server, tool, labels, arguments, at, address, taint, protocol, expect,
rules, approver, shadow}; `labels` count for the tool and its server; `rules`, where given, are exactly the rules that
must determine the answer; `shadow` is what it would be if the rules in shadow mode ruled.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, tzinfo
from ipaddress import ip_address
from typing import Any, Literal

import msgspec
import yaml

from tidegate.errors import BundleFault, Problem
from tidegate.policy.bundle import CASES, Bundle
from tidegate.policy.engine import Engine, ToolFacts
from tidegate.policy.facts import Facts
from tidegate.policy.verdict import Effect, Verdict
from tidegate.policy.zones import zone_of

CASES_MAX = 10_000


class Case(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One expected decision. It is its own principal (`user`, `groups`, `agent`)."""

    note: str
    user: str = ""
    service: str = ""  # a service account, in the place of `user`
    groups: tuple[str, ...] = ()
    agent: str = ""
    server: str
    tool: str
    labels: tuple[str, ...] = ()
    arguments: dict[str, Any] = {}
    at: datetime | None = None  # without an offset: in the zone of the bundle
    address: str = ""
    taint: tuple[str, ...] = ()
    protocol: str = ""
    expect: Effect
    rules: tuple[str, ...] | None = None
    approver: str | None = None
    shadow: Effect | None = None

    def __post_init__(self) -> None:
        if bool(self.user) == bool(self.service):
            raise ValueError("it names who calls by one of `user` and `service`")
        if self.address:
            ip_address(self.address)
        if self.approver is not None and self.expect != "ask":
            raise ValueError("`approver` is of a case that expects `ask`")

    @property
    def person(self) -> "Asking":
        """Who asks, to the engine."""
        if self.service:
            return Asking(self.service, self.agent, self.groups, "service")
        return Asking(self.user, self.agent, self.groups)

    def facts(self, zone: tzinfo) -> Facts:
        at = self.at if self.at is None or self.at.tzinfo else self.at.replace(tzinfo=zone)
        now_us = 0 if at is None else max(0, round(at.timestamp() * 1_000_000))
        return Facts(now_us, self.address, tuple(sorted(set(self.taint))), self.protocol)


class Asking(msgspec.Struct, frozen=True):
    """A principal of a case."""

    user: str
    agent: str = ""
    groups: tuple[str, ...] = ()
    kind: Literal["user", "service"] = "user"


@dataclass(frozen=True)
class CaseResult:
    """What came of a case; `line` is where it stands in cases.yaml."""

    case: Case
    verdict: Verdict
    line: int
    unshadowed: Verdict | None = None  # where the case says what it would be

    @property
    def passed(self) -> bool:
        case, found = self.case, self.verdict
        return (
            found.effect == case.expect
            and (case.rules is None or sorted(case.rules) == sorted(found.rules))
            and (case.approver is None or case.approver == found.approver)
            and self._shadow_passed
        )

    @property
    def _shadow_passed(self) -> bool:
        return self.unshadowed is None or self.unshadowed.effect == self.case.shadow

    @property
    def sentence(self) -> str:
        """What differs, for a reader of the file."""
        found = self.verdict
        if found.effect == self.case.expect and not self._shadow_passed and self.unshadowed is not None:
            by = _by(self.unshadowed.rules)
            told = f"{self.unshadowed.effect}{by} ({self.unshadowed.reason}), expected {self.case.shadow}"
            return f"'{self.case.note}': with the rules in shadow mode {told}"
        by = _by(found.rules) + (f" for '{found.approver}' to approve" if found.approver else "")
        wanted = self.case.expect + _by(self.case.rules or ())
        wanted += f" for '{self.case.approver}' to approve" if self.case.approver else ""
        outcome = "as expected" if self.passed else f"expected {wanted}"
        return f"'{self.case.note}': {found.effect}{by} ({found.reason}), {outcome}"


def _by(rules: Sequence[str]) -> str:
    return f" by {', '.join(rules)}" if rules else ""


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
    ruling, zone = Engine.build(bundle, (), {}), zone_of(bundle)
    shadow = ruling.unshadowed()
    return [
        CaseResult(
            case, _decide(ruling, case, zone), line, None if case.shadow is None else _decide(shadow, case, zone)
        )
        for case, line in cases
    ]


def _decide(engine: Engine, case: Case, zone: tzinfo) -> Verdict:
    labels = case.labels
    if (label := _LABEL_OF.get(case.tool)) is not None and label not in labels:  # as an edge's catalogue gives it
        labels = (*labels, label)
    tools = [ToolFacts(case.server, case.tool, labels)]
    about = engine.with_tools(tools, {case.server: case.labels})
    return about.evaluate(case.person, case.server, case.tool, case.arguments, case.facts(zone))


def _fault(problems: Sequence[Problem]) -> BundleFault:
    return BundleFault(str(problems[0]), problems=problems)
