"""cases.yaml: calls that policy writers expect to be allowed, denied or asked about; run before each release.

A list of {note, user or service, groups, agent, server, tool, labels, arguments, at, address, taint, protocol, expect,
rules, approver, shadow}; `labels` count for the tool and its server, and without them those that the schema declares;
`rules`, where given, are exactly the rules that must determine the answer; `shadow` is what it would be if the rules in
shadow mode ruled. A case about a tool that the schema does not have is refused.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, tzinfo
from ipaddress import ip_address
from typing import Any, Literal, get_args

import msgspec
import yaml

from tidegate.errors import BundleFault, Problem
from tidegate.plain_yaml import NotPlain, PlainLoader, UsesAlias, check_plain
from tidegate.policy.bundle import CASES, SCHEMA, Bundle
from tidegate.policy.cedar_types import declared_labels
from tidegate.policy.engine import Engine, ToolFacts
from tidegate.policy.facts import Facts
from tidegate.policy.grants_schema import declared_actions, unknown_server, unknown_tool
from tidegate.policy.rules import Rule
from tidegate.policy.verdict import Effect, Verdict
from tidegate.policy.yaml_reading import hint, line_of, quoting
from tidegate.policy.zones import zone_of

CASES_MAX = 10_000
CASES_BYTES_MAX = 4 * 1024 * 1024
_EFFECTS = get_args(Effect)
_FIELD_AT = re.compile(r"at `\$\.(\w+)")


class Case(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One expected decision. It is its own principal (`user`, `groups`, `agent`)."""

    note: str
    user: str = ""
    service: str = ""  # a service account, in the place of `user`
    groups: tuple[str, ...] = ()
    agent: str = ""
    server: str
    tool: str
    labels: tuple[str, ...] | None = None
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


_FIELDS = Case.__struct_fields__


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
    unlabelled: bool = False  # rules go by labels, and nobody says which the tool has

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
        if self.passed or not self.unlabelled:
            return self._told
        named = f"{self.case.server}/{self.case.tool}"
        return f"{self._told}; no label of {named} is known, and rules go by labels: say `labels: […]` in the case"

    @property
    def _told(self) -> str:
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
    cases: list[tuple[Case, int]] = []
    problems: list[Problem] = []
    for written, item in _read(text):
        try:
            cases.append((msgspec.convert(item, Case), line_of(written)))
        except msgspec.ValidationError as error:
            problems.append(_malformed(item, written, error))
    if problems:
        raise _fault(problems)
    return cases


def _read(text: str) -> list[tuple[yaml.Node, Any]]:
    """Each entry as it is written, and its value. Raises BundleFault."""
    line, entries = 1, []
    if len(text.encode(errors="replace")) > CASES_BYTES_MAX:
        raise _fault([Problem(CASES, f"has more than {CASES_BYTES_MAX} bytes", 1)])
    try:
        check_plain(text)
        loader = PlainLoader(text)
        node = loader.get_single_node()
        for item in _listed(node):
            line = line_of(item)
            entries.append((item, loader.construct_document(item)))
    except UsesAlias as alias:
        sentence = "uses a YAML alias (*name); write each case out, it is what people review"
        raise _fault([Problem(CASES, sentence, alias.line)]) from None
    except NotPlain as unfit:
        raise _fault([Problem(CASES, str(unfit), unfit.line)]) from None
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else line
        sentence = f"is not YAML: {error}".replace("\n", " ") + quoting(text, line)
        raise _fault([Problem(CASES, sentence, line)]) from error
    return entries


def _listed(node: yaml.Node | None) -> list[yaml.Node]:
    """Raises BundleFault."""
    if node is None or node.tag.endswith(":null"):
        return []
    if not isinstance(node, yaml.SequenceNode) or len(node.value) > CASES_MAX:
        keys = "- note: …, user: …, server: …, tool: …, expect: …"
        raise _fault([Problem(CASES, f"must be a list of at most {CASES_MAX} cases: {keys}")])
    return list(node.value)


def _malformed(item: Any, written: yaml.Node, error: msgspec.ValidationError) -> Problem:
    """With the line of the key that is wrong, and what was meant."""
    keys = {key.value: key for key, _ in written.value} if isinstance(written, yaml.MappingNode) else {}
    given = item if isinstance(item, dict) else {}
    if stray := next((key for key in given if key not in _FIELDS), None):
        sentence = f"'{str(stray)[:60]}' is not known in a case; {hint(str(stray), _FIELDS)}"
        return Problem(CASES, sentence, line_of(keys.get(stray, written)))
    for key in ("expect", "shadow"):
        if key in given and given[key] not in _EFFECTS and (key, given[key]) != ("shadow", None):
            sentence = f"`{key}` takes {', '.join(_EFFECTS)}; not '{str(given[key])[:40]}'"
            return Problem(CASES, sentence, line_of(keys.get(key, written)))
    field = _FIELD_AT.search(str(error))
    return Problem(CASES, f"is not a case: {error}", line_of(keys.get(field[1] if field else "", written)))


_LABEL_OF = {"prompts/get": ("prompt",), "resources/read": ("resource",), "questions/ask": ("question",)}


def run_cases(bundle: Bundle) -> list[CaseResult]:
    """Every case of the bundle, decided. Raises BundleFault where the bundle or its cases cannot be read."""
    cases = load_cases(bundle.text(CASES))
    if not cases:
        return []
    if strangers := _strangers(cases, bundle.text(SCHEMA)):
        raise _fault(strangers)
    ruling, zone, labels = Engine.build(bundle, (), {}), zone_of(bundle), _Labels.of(bundle)
    shadow, by_label = ruling.unshadowed(), any(map(_goes_by_labels, ruling.rules))
    return [
        CaseResult(
            case,
            _decide(ruling, case, labels, zone),
            line,
            None if case.shadow is None else _decide(shadow, case, labels, zone),
            by_label and not labels.knows(case),
        )
        for case, line in cases
    ]


@dataclass(frozen=True)
class _Labels:
    """What the schema declares: labels by action, and by server those that all of its actions have."""

    of_action: Mapping[str, tuple[str, ...]]
    of_server: Mapping[str, frozenset[str]]

    @staticmethod
    def of(bundle: Bundle) -> "_Labels":
        of_action = declared_labels(bundle.text(SCHEMA))
        of_server: dict[str, frozenset[str]] = {}
        for name, labels in of_action.items():
            server, slash, _ = name.partition("/")
            if slash:
                of_server[server] = of_server.get(server, frozenset(labels)).intersection(labels)
        return _Labels(of_action, of_server)

    def knows(self, case: Case) -> bool:
        return case.labels is not None or f"{case.server}/{case.tool}" in self.of_action

    def tool(self, case: Case) -> tuple[str, ...]:
        """With what an edge's catalogue gives to prompts, resources and questions by itself."""
        given = self.of_action.get(f"{case.server}/{case.tool}", ()) if case.labels is None else case.labels
        return tuple(dict.fromkeys([*given, *_LABEL_OF.get(case.tool, ())]))

    def server(self, case: Case) -> tuple[str, ...]:
        return tuple(sorted(self.of_server.get(case.server, ()))) if case.labels is None else case.labels


def _goes_by_labels(rule: Rule) -> bool:
    by_action = any("/" not in name and name != "call" for _, name in rule.action.entities)
    return by_action or "resource.labels" in rule.text


def _strangers(cases: Sequence[tuple[Case, int]], schema_text: str) -> list[Problem]:
    """A problem for each case about a tool that the schema does not have: it would be denied, and prove nothing."""
    actions = declared_actions(schema_text)
    if not any("/" in name for name in actions):
        return []
    told = [(line, unknown_server(case.server, actions) or _unknown_tool(case, actions)) for case, line in cases]
    return [Problem(CASES, sentence, line) for line, sentence in told if sentence]


def _unknown_tool(case: Case, actions: Mapping[str, tuple[str, ...]]) -> str:
    return "" if case.tool in _LABEL_OF else unknown_tool(case.server, case.tool, actions)


def _decide(engine: Engine, case: Case, labels: _Labels, zone: tzinfo) -> Verdict:
    tools = [ToolFacts(case.server, case.tool, labels.tool(case))]
    about = engine.with_tools(tools, {case.server: labels.server(case)})
    return about.evaluate(case.person, case.server, case.tool, case.arguments, case.facts(zone))


def _fault(problems: Sequence[Problem]) -> BundleFault:
    return BundleFault(str(problems[0]), problems=problems)
