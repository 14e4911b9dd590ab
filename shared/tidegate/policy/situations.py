"""The calls that two bundles are compared over: every principal, tool, argument and circumstance that they mention.

A value is tried with its neighbours: a number beside a limit, a text that a pattern takes and one that it does not, an
argument left out. Bounded; the same for the same bundles. Counterparts: `differences.py`; `occasions.py` for
circumstances; `pattern_samples.py` for texts that several patterns take.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, tzinfo
from typing import Any, Literal

import msgspec
from cedarpy import _internal as cedar

from tidegate.policy.bundle import CASES, ENTITIES, SCHEMA, Bundle
from tidegate.policy.cases import load_cases
from tidegate.policy.circumstances import CIRCUMSTANCES
from tidegate.policy.comparisons import comparison_in
from tidegate.policy.entities import ToolFacts, open_entities
from tidegate.policy.facts import Facts
from tidegate.policy.grants_schema import declared_actions
from tidegate.policy.moments import moments_of, nodes_of
from tidegate.policy.occasions import occasions_of, of_a_kind
from tidegate.policy.pattern_samples import Pattern, shared_texts
from tidegate.policy.rules import Rule, Uid, parse_rules
from tidegate.policy.zones import zone_of

PEOPLE_MAX = 60
TARGETS_MAX = 400
SHAPES_MAX = 64
CALLS_MAX = 400
VALUES_MAX = 12
STRANGER = "somebody-else"
OTHER_TOOL = "any-other-tool"
ABSENT = object()
Path = tuple[str, ...]
NOW: Path = ("now",)


@dataclass(frozen=True)
class Person:
    """Who asks."""

    user: str
    groups: tuple[str, ...] = ()
    agent: str = ""
    kind: Literal["user", "service"] = "user"


@dataclass(frozen=True)
class Situation:
    """One tool, and the calls to try: arguments and circumstances."""

    facts: ToolFacts
    calls: list[tuple[dict[str, Any], Facts]]
    whole: bool = True  # False: more of them, or combinations, are mentioned than are tried


@dataclass(frozen=True)
class Situations:
    people: list[Person]
    situations: list[Situation]
    whole: bool


@dataclass
class _Mentions:
    """What rules and cases speak of; dictionaries as ordered sets."""

    users: dict[str, None] = field(default_factory=dict)
    services: dict[str, None] = field(default_factory=dict)
    groups: dict[str, None] = field(default_factory=dict)
    agents: dict[str, None] = field(default_factory=dict)
    actions: dict[str, None] = field(default_factory=dict)
    servers: dict[str, None] = field(default_factory=dict)
    people: dict[Person, None] = field(default_factory=dict)
    values: list[tuple[Rule, dict[Path, list[Any]]]] = field(default_factory=list)
    patterns: list[tuple[Rule, list[tuple[Path, Pattern]]]] = field(default_factory=list)  # on arguments
    cases: dict[ToolFacts, list[dict[str, Any]]] = field(default_factory=dict)
    around: list[tuple[Rule, dict[Path, list[Any]]]] = field(default_factory=list)  # circumstances, as `values`
    occasions: dict[tuple[str, str], dict[Facts, None]] = field(default_factory=dict)  # of cases, by server and tool
    zone: tzinfo = UTC
    whole: bool = True  # False: a rule looks at the time, or at arguments, in a way that no values can be read off


def situations_of(*bundles: Bundle) -> Situations:
    """Raises BundleFault where a bundle's cases or entities cannot be read."""
    found = _Mentions()
    for bundle in bundles:
        _mentioned(bundle, found)
    people = list(_people(found))
    targets = list(_targets(bundles, found))
    situations = [_situation(facts, found) for facts in targets[:TARGETS_MAX]]
    whole = found.whole and len(people) <= PEOPLE_MAX and len(targets) <= TARGETS_MAX
    whole = whole and all(one.whole for one in situations)
    return Situations(people[:PEOPLE_MAX], situations, whole)


def _mentioned(bundle: Bundle, found: _Mentions) -> None:
    rules, _ = parse_rules(bundle.policies)
    for rule in rules:
        bodies = _bodies(rule)
        for uid in (*rule.principal.entities, *rule.action.entities, *rule.resource.entities, *_entities(bodies)):
            _sorted_in(uid, found)
        if rule.principal.type == "ServiceAccount":
            found.services[STRANGER] = None
        values: dict[Path, list[Any]] = {}
        around: dict[Path, list[Any]] = {}
        for path, value in _compared(bodies):
            if path == ("agent", "id") and isinstance(value, str):
                found.agents[value] = None
            elif path[:1] == ("args",) and len(path) > 1:
                _hold(values.setdefault(path[1:], []), value)
            elif path and path[0] in CIRCUMSTANCES and path != NOW:
                _hold(around.setdefault(path, []), value)
        moments, is_whole = moments_of(bodies)
        found.whole = found.whole and is_whole and not _calculates(bodies)
        if moments or not is_whole or any(path == NOW for path, _ in _compared(bodies)):
            around[NOW] = moments
        found.values.append((rule, values))
        found.patterns.append((rule, list(_patterns(bodies))))
        found.around.append((rule, around))
    for uid in open_entities(bundle.text(ENTITIES)).entities:
        _sorted_in(uid, found)
    found.zone = zone_of(bundle)
    for case, _ in load_cases(bundle.text(CASES)):
        who = case.person
        found.people[Person(who.user, who.groups, who.agent, who.kind)] = None
        found.occasions.setdefault((case.server, case.tool), {})[case.facts(found.zone)] = None
        shapes = found.cases.setdefault(ToolFacts(case.server, case.tool, case.labels or ()), [])
        if case.arguments not in shapes:
            shapes.append(case.arguments)


def _hold(held: list[Any], value: Any) -> None:
    """Each value once; True is not 1 here."""
    if not any(_equal(value, other) for other in held):
        held.append(value)


def _sorted_in(uid: Uid, found: _Mentions) -> None:
    kind, name = uid
    places = {
        "User": found.users,
        "ServiceAccount": found.services,
        "Group": found.groups,
        "Agent": found.agents,
        "Action": found.actions,
        "Server": found.servers,
    }
    if kind in places:
        places[kind][name] = None


def _people(found: _Mentions) -> Iterator[Person]:
    """Those of the cases; a member of each group and each user, through each agent that a rule names and another; and
    service accounts where a rule is about them.
    """
    agents = ["", *found.agents]
    made = [Person(STRANGER, (), agent) for agent in agents]
    made += [Person(f"member-of-{name}", (name,), agent) for name in found.groups for agent in agents]
    made += [Person(name, (), agent) for name in found.users for agent in agents]
    made += [Person(name, (), agent, "service") for name in found.services for agent in agents]
    if found.services:
        made += [Person(f"service-of-{name}", (name,), agent, "service") for name in found.groups for agent in agents]
    yield from dict.fromkeys([*found.people, *made])


def _targets(bundles: Iterable[Bundle], found: _Mentions) -> Iterator[ToolFacts]:
    """Tools that a rule, case or schema names, with the labels that schema or case give them; and for labels and
    servers that rules name, a tool that nobody names.
    """
    labels = {name for name in found.actions if "/" not in name and name != "call"}
    declared: dict[str, tuple[str, ...]] = {}
    for bundle in bundles:
        for name, words in declared_actions(bundle.text(SCHEMA)).items():
            if "/" in name:
                declared[name] = tuple(sorted({*declared.get(name, ()), *(labels & set(words))}))
    named = dict.fromkeys([*(name for name in found.actions if "/" in name), *declared])
    servers = list(dict.fromkeys([*found.servers, *(name.partition("/")[0] for name in named)])) or ["any-server"]
    made = [ToolFacts(*_split(name), declared.get(name, ())) for name in named]
    made += [ToolFacts(server, OTHER_TOOL) for server in servers]
    made += [ToolFacts(server, f"{OTHER_TOOL}-{label}", (label,)) for label in sorted(labels) for server in servers]
    cases = [facts if facts.labels else _labelled(facts, declared) for facts in found.cases]
    yield from dict.fromkeys([*cases, *made])


def _labelled(facts: ToolFacts, declared: Mapping[str, tuple[str, ...]]) -> ToolFacts:
    """A case that names no label is about the tool as the schema has it."""
    return ToolFacts(facts.server, facts.tool, declared.get(f"{facts.server}/{facts.tool}", ()))


def _split(name: str) -> tuple[str, str]:
    server, _, tool = name.partition("/")
    return server, tool


def _situation(facts: ToolFacts, found: _Mentions) -> Situation:
    """Every shape of arguments on every occasion; where those are too many, each with the first of the others."""
    shapes, is_whole = _shapes(facts, found)
    values: dict[Path, list[Any]] = {}
    for rule, mentioned in found.around:
        if _may_match(rule, facts):
            for path, listed in mentioned.items():
                held = values.setdefault(path, [])
                is_whole = is_whole and len(listed) <= VALUES_MAX
                for value in listed[:VALUES_MAX]:
                    _hold(held, value)
    told = found.occasions.get((facts.server, facts.tool), {})
    occasions, is_all = occasions_of(values, told if values else (), found.zone)
    if len(shapes) * len(occasions) <= CALLS_MAX:
        calls = [(shape, occasion) for occasion in occasions for shape in shapes]
        return Situation(facts, calls, is_whole and is_all)
    calls = [(shape, occasions[0]) for shape in shapes]
    calls += [(shape, occasion) for shape in shapes[:4] for occasion in occasions[1:]]
    return Situation(facts, calls, whole=False)


def _shapes(facts: ToolFacts, found: _Mentions) -> tuple[list[dict[str, Any]], bool]:
    """The cases' arguments as they are, and every combination of values; where those are too many, each value on
    every base, one at a time. And whether that is all of them.
    """
    bases = [shape for known, shapes in found.cases.items() if _same(known, facts) for shape in shapes]
    values: dict[Path, list[Any]] = {}
    for rule, mentioned in found.values:
        if _may_match(rule, facts):
            for path, listed in mentioned.items():
                held = values.setdefault(path, [ABSENT])
                held += [value for value in listed if not any(_equal(value, other) for other in held)]
    whole = all(len(listed) <= VALUES_MAX for listed in values.values())
    values = {path: listed[:VALUES_MAX] for path, listed in sorted(values.items())}
    for path, patterns in _patterns_on(facts, found).items():
        texts, is_all = shared_texts(patterns, [value for value in values[path] if isinstance(value, str)])
        values[path] += texts
        whole = whole and is_all
    shapes = [*bases, {}]
    combined = [*itertools.islice(itertools.product(*values.values()), SHAPES_MAX + 1)]
    if len(combined) <= SHAPES_MAX:
        shapes += [_with({}, dict(zip(values, combination, strict=True))) for combination in combined]
    first = {path: next((value for value in listed if value is not ABSENT), ABSENT) for path, listed in values.items()}
    for base in [*bases, _with({}, first)]:
        shapes += [_with(base, {path: value}) for path, listed in values.items() for value in listed]
    unique = {msgspec.json.encode(shape, order="sorted"): shape for shape in shapes}
    whole = whole and len(combined) <= SHAPES_MAX and len(unique) <= 2 * SHAPES_MAX
    return list(unique.values())[: 2 * SHAPES_MAX], whole


def _patterns_on(facts: ToolFacts, found: _Mentions) -> dict[Path, list[Pattern]]:
    patterns: dict[Path, list[Pattern]] = {}
    for rule, mentioned in found.patterns:
        if mentioned and _may_match(rule, facts):
            for path, pattern in mentioned:
                _hold(patterns.setdefault(path, []), pattern)
    return patterns


def _same(one: ToolFacts, other: ToolFacts) -> bool:
    return (one.server, one.tool) == (other.server, other.tool)


def _equal(one: Any, other: Any) -> bool:
    return one is other or (type(one) is type(other) and one == other)


def _may_match(rule: Rule, facts: ToolFacts) -> bool:
    """On the wide side: a rule for a group of actions may mean any tool."""
    names = [name for kind, name in rule.action.entities if kind == "Action" and "/" in name]
    servers = [name for kind, name in rule.resource.entities if kind == "Server"]
    all_named = len(names) == len(rule.action.entities) > 0
    return (not all_named or f"{facts.server}/{facts.tool}" in names) and (not servers or facts.server in servers)


def _with(shape: Mapping[str, Any], changed: Mapping[Path, Any]) -> dict[str, Any]:
    """The arguments with some of them set, or left out."""
    made: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(shape))
    for path, value in changed.items():
        node = made
        for name in path[:-1]:
            if value is ABSENT and not isinstance(node.get(name), dict):
                break
            if not isinstance(node.get(name), dict):
                node[name] = {}
            node = node[name]
        else:
            if value is ABSENT:
                node.pop(path[-1], None)
            else:
                node[path[-1]] = value
    return made


def _bodies(rule: Rule) -> list[Any]:
    est = next(iter(msgspec.json.decode(cedar.policies_to_json_str(rule.text))["staticPolicies"].values()))
    return [condition["body"] for condition in est["conditions"]]


def _entities(bodies: list[Any]) -> Iterator[Uid]:
    for node in nodes_of(bodies):
        if isinstance(entity := node.get("__entity"), Mapping):
            yield str(entity["type"]), str(entity["id"])


def _compared(bodies: list[Any]) -> Iterator[tuple[Path, Any]]:
    """Paths of the context with values to try, around those that they are compared with."""
    for body in bodies:
        yield from _truths(body)
    for node in nodes_of(bodies):
        for op, operand in node.items():
            if op in ("&&", "||", "!", "if-then-else"):
                yield from (found for part in operand.values() for found in _truths(part))
            if op == "has" and isinstance(operand, Mapping):
                path = _path(operand["left"])
                if path is not None:
                    yield (*path, operand["attr"]), ABSENT
            elif op == "isEmpty" and isinstance(operand, Mapping) and (path := _path(operand["arg"])) is not None:
                yield from ((path, listed) for listed in _sets([]))
            elif op == "like" and isinstance(operand, Mapping) and (path := _path(operand["left"])) is not None:
                yield from ((path, text) for text in _likes(operand["pattern"]))
            elif isinstance(operand, Mapping) and "left" in operand and "right" in operand:
                yield from _sides(op, operand["left"], operand["right"])
            elif isinstance(operand, list) and len(operand) == 2:
                yield from _sides(op, operand[0], operand[1])
            elif isinstance(operand, list) and (example := of_a_kind(op)) and (path := _path(operand[0])) is not None:
                yield path, example


def _patterns(bodies: list[Any]) -> Iterator[tuple[Path, Pattern]]:
    for node in nodes_of(bodies):
        if "like" not in node or (compared := comparison_in("like", node["like"])) is None:
            continue
        path = _path(compared[0])
        if path is not None and path[:1] == ("args",) and len(path) > 1 and compared[1].like:
            yield path[1:], compared[1].like


def _calculates(bodies: list[Any]) -> bool:
    """Whether arguments are reckoned with: which of them make a difference cannot be read off."""
    sums = [node[op] for node in nodes_of(bodies) for op in ("+", "-", "*", "neg") if op in node]
    return any((path := _path(node)) is not None and path[:1] == ("args",) for node in nodes_of(sums))


def _truths(node: Any) -> Iterator[tuple[Path, Any]]:
    """An argument that stands alone as a condition."""
    path = _path(node)
    if path is not None:
        yield from ((path, True), (path, False))


def _sides(op: str, left: Any, right: Any) -> Iterator[tuple[Path, Any]]:
    for at, other in ((left, right), (right, left)):
        path = _path(at)
        if path is None:
            continue
        found = list(_literals(other))
        is_set = op in ("containsAll", "containsAny") or (op == "contains" and at is left)
        if is_set or (op in ("==", "!=") and isinstance(other, Mapping) and "Set" in other):
            yield from ((path, listed) for listed in _sets(found))
            continue
        for value in found:
            yield from ((path, near) for near in _near(value))


def _sets(found: list[Any]) -> Iterator[list[Any]]:
    """None of these elements, all, each alone, and with another one."""
    yield []
    yield found
    yield [*found, "another"]
    yield from ([value] for value in found)


def _near(value: Any) -> Iterator[Any]:
    yield value
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int | float):
        yield from (value + 1, value - 1)
    elif isinstance(value, str):
        yield f"{value}-other" if value else "other"


def _likes(pattern: list[Any]) -> Iterator[str]:
    """A text that the pattern takes, and one that it does not (unless it takes all)."""
    text = "".join("x" if part == "Wildcard" else str(part["Literal"]) for part in pattern)
    yield text
    yield f"not-{text}-so"


def _literals(node: Any) -> Iterator[Any]:
    match node:
        case {"Value": bool() | int() | str() as value}:
            yield value
        case {"decimal": [{"Value": str(digits)}]}:
            yield float(digits)
        case {"ip": [{"Value": str(text)}]} | {"datetime": [{"Value": str(text)}]}:
            yield text
        case {"Set": [*parts]}:
            for part in parts:
                yield from _literals(part)


def _path(node: Any) -> Path | None:
    """("args", "path") of `context.args.path`."""
    match node:
        case {"Var": "context"}:
            return ()
        case {".": {"left": left, "attr": str(attr)}}:
            path = _path(left)
            return None if path is None else (*path, attr)
        case _:
            return None
