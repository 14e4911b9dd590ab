"""What can be said against a bundle before its release: manifest, Cedar, schema, entities, inspection, cases.

Counterpart: `services/policy` and `tidegate bundle check` refuse a bundle with a fatal problem. Pure; nothing here
raises.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

import msgspec
from cedarpy import _internal as cedar

from tidegate.errors import BundleFault, ConfigFault, Problem
from tidegate.inspection.rules import load_inspection
from tidegate.policy.budgeting import check_limits
from tidegate.policy.bundle import CASES, ENTITIES, INSPECTION, MANIFEST, SCHEMA, Bundle, Manifest
from tidegate.policy.cases import run_cases
from tidegate.policy.cedar_types import argument_types, declared_labels, declared_types
from tidegate.policy.circumstances import CIRCUMSTANCES
from tidegate.policy.definition_rules import DEFINITIONS, read_definition_rules, strange_servers
from tidegate.policy.entities import ToolFacts, open_entities
from tidegate.policy.grants import GRANTS
from tidegate.policy.grants_cedar import COMPILED
from tidegate.policy.grants_schema import declared_actions, unknown_arguments, unknown_names
from tidegate.policy.limit_hints import strange_teams
from tidegate.policy.rule_hints import hints_on
from tidegate.policy.rules import Rule, check_depth, parse_rules
from tidegate.policy.schema_slips import explained, is_about_types, unknown_tested, unlike_limits
from tidegate.policy.type_hints import beside_values, untyped_comparisons
from tidegate.policy.zones import named_zone

_POLICY_PREFIX = re.compile(r"^for policy `[^`]*`, ")
_NAMES_UNKNOWN = ("unrecognized action", "unable to find an applicable action")
_NUMBERS = {
    "expected Long but saw decimal": "; the argument or the limit is a decimal: write 50.0 for a limit on a decimal",
    "expected decimal but saw Long": "; the argument is a whole number: write 50 for a limit on it",
}
_UNSAFE = re.compile(r"safety of access to optional attribute `([\w.]+)`")
_UNKNOWN = re.compile(r"attribute `(\w+)` in context for .* not found")
_NEWER_TYPE = re.compile(r"unrecognized entity type `(?:ServiceAccount|Agent|AgentClass)`")
_NO_LABELS = frozenset({"call", "prompt", "resource", "question"})
_ANGLES = str.maketrans("<>", "()")  # Set<Set<…>> nests as brackets do


def check_bundle(bundle: Bundle, tools: Iterable[ToolFacts] | None = None) -> list[Problem]:
    """What is wrong, in order of file and line; none is fatal where the bundle can be released.

    With `tools`, those that are known, a rule that names another one is pointed out (not fatal: it may come later).
    """
    made = {COMPILED: bundle.grants.cedar} if bundle.grants.cedar else {}
    texts = {**made, **bundle.written}
    rules, problems = parse_rules(texts)
    problems += bundle.grants.problems
    broken = bool(problems)
    problems += hints_on(rules, _labels(bundle))
    problems += _manifest(bundle)
    problems += _entities(bundle)
    problems += _inspection(bundle)
    problems += check_limits(bundle)
    problems += [] if broken else strange_teams(bundle, rules)
    problems += _definitions(bundle)
    problems += [] if broken else _schema(bundle, texts, rules)
    if tools is not None:
        known = list(tools)
        problems += _unknown_tools(rules, known)
        problems += [] if broken else untyped_comparisons(rules, known, declared_types(bundle.text(SCHEMA)))
        problems += [] if broken else beside_values(rules, known)
    if not any(problem.fatal for problem in problems):
        problems += _cases(bundle)
    placed = dict.fromkeys(_at_source(problem, bundle) for problem in problems)
    return sorted(placed, key=lambda problem: (problem.path, problem.line))


def _labels(bundle: Bundle) -> list[str]:
    return [name for name in declared_actions(bundle.text(SCHEMA)) if "/" not in name and name not in _NO_LABELS]


def _at_source(problem: Problem, bundle: Bundle) -> Problem:
    """What is said of a compiled rule is said of the line of grants.yaml that it was made from."""
    if problem.path != COMPILED:
        return problem
    lines = bundle.grants.lines
    hint = next((hint for words, hint in _NUMBERS.items() if words in problem.sentence), "")
    sentence = f"{problem.sentence}{hint}"
    return Problem(GRANTS, sentence, lines.get(problem.rule, 0), problem.rule.partition(":")[0], problem.fatal)


def _manifest(bundle: Bundle) -> list[Problem]:
    try:
        manifest = msgspec.json.decode(bundle.files[MANIFEST], type=Manifest)
    except msgspec.DecodeError as error:
        return [Problem(MANIFEST, f'{error}; expected {{"v": 1, "name": "…", "version": "…", "description": "…"}}')]
    if not manifest.name.strip():
        return [Problem(MANIFEST, "`name` is empty; give the bundle a name that people will recognise")]
    try:
        named_zone(manifest.timezone)
    except ValueError as wrong:
        return [Problem(MANIFEST, str(wrong))]
    return []


def _schema(bundle: Bundle, texts: Mapping[str, str], rules: list[Rule]) -> list[Problem]:
    text = bundle.text(SCHEMA)
    if not text:
        return []
    try:
        check_depth(text.translate(_ANGLES))
        schema = cedar.Schema.from_str(text)
    except ValueError as error:
        return [Problem(SCHEMA, str(error))]
    found = msgspec.json.decode(cedar.validate_policies("\n".join(texts.values()), schema, release_gil=True))
    named = found.get("id_annotations_by_policy_id", {})
    errors: dict[str, list[str]] = {}
    for told in found["errors"]:
        errors.setdefault(named.get(told["policy_id"], ""), []).append(told["error"])
    problems = _unfit(bundle, rules, errors)
    problems += unknown_names(bundle.grants.grants, text)
    problems += unknown_arguments(bundle.grants.grants, text, schema)
    return problems + _typed_entities(bundle, schema)


def _unfit(bundle: Bundle, rules: Sequence[Rule], errors: Mapping[str, list[str]]) -> list[Problem]:
    """What Cedar says against rules, by their ids, each slip once; and arguments that only `has` asks for."""
    text = bundle.text(SCHEMA)
    declared, labels = argument_types(text), declared_labels(text)
    wrong = [name for name, told in errors.items() if any(map(is_about_types, told))]
    problems = unlike_limits(bundle.grants.grants, wrong, declared)
    limits_told, by_id = bool(problems), {rule.id: rule for rule in rules}
    for name, told in errors.items():
        rule, left = by_id.get(name), list(dict.fromkeys(told))
        if rule is not None and rule.path == COMPILED:  # `unknown_names` and `unlike_limits` say these better
            left = [one for one in left if not _is_about_names(one) and not (limits_told and is_about_types(one))]
        elif rule is not None:
            found, left = explained(rule, left, declared, labels)
            problems += found
        problems += [_invalid(rule, error) for error in left]
    for rule in rules:
        if rule.path != COMPILED and rule.id not in errors:
            problems += unknown_tested(rule, declared, labels)
    return problems


def _is_about_names(error: str) -> bool:
    return any(words in error for words in _NAMES_UNKNOWN)


def _invalid(rule: Rule | None, error: str) -> Problem:
    whose = f"'{rule.id}': " if rule is not None and rule.path != COMPILED else ""
    sentence = f"against the schema: {whose}{_POLICY_PREFIX.sub('', error)}{_advice(rule, error)}"
    return Problem(SCHEMA, sentence) if rule is None else Problem(rule.path, sentence, rule.line, rule.id)


def _advice(rule: Rule | None, error: str) -> str:
    """How to ask for what may not be there; and how an older schema learns of circumstances and service accounts."""
    if optional := _UNSAFE.search(error):
        asking = f"{_asking(optional[1])} && …"
        if rule is not None and rule.effect == "forbid" and optional[1].partition(".")[0] in CIRCUMSTANCES:
            return f"; say what must hold, which refuses where it is not known, too: `forbid … unless {{ {asking} }}`"
        return f"; ask first whether it is there: `{asking}`"
    unknown = _UNKNOWN.search(error)
    if _NEWER_TYPE.search(error) or (unknown and unknown[1] in CIRCUMSTANCES):
        return "; `tidegate bundle init DIR --schema-only` writes the schema with all that is known of a call"
    return ""


def _asking(path: str) -> str:
    before, _, last = f"context.{path}".rpartition(".")
    return f"{before} has {last}"


def _typed_entities(bundle: Bundle, schema: cedar.Schema) -> list[Problem]:
    if not bundle.text(ENTITIES):
        return []
    try:
        cedar.Entities.from_json_str(bundle.text(ENTITIES), schema)
    except ValueError as error:
        return [Problem(ENTITIES, f"does not fit {SCHEMA}: {error}")]
    return []


def _entities(bundle: Bundle) -> list[Problem]:
    try:
        open_entities(bundle.text(ENTITIES))
    except BundleFault as fault:
        return list(fault.problems)
    return []


def _inspection(bundle: Bundle) -> list[Problem]:
    if INSPECTION not in bundle.files:
        return []
    try:
        load_inspection(bundle.files[INSPECTION])
    except BundleFault as fault:
        return list(fault.problems) or [Problem(INSPECTION, fault.sentence)]
    return []


def _definitions(bundle: Bundle) -> list[Problem]:
    if DEFINITIONS not in bundle.files:
        return []
    text = bundle.text(DEFINITIONS)
    servers = {name.partition("/")[0] for name in declared_actions(bundle.text(SCHEMA)) if "/" in name}
    return read_definition_rules(text)[1] or strange_servers(text, servers)


BESIDE_TOOLS = frozenset({"prompts/get", "resources/read", "questions/ask"})
"""Actions of a server that are no tools: on them it is decided for its prompts, its resources and its questions."""


def _unknown_tools(rules: list[Rule], tools: Iterable[ToolFacts]) -> list[Problem]:
    known = {f"{facts.server}/{facts.tool}" for facts in tools}
    return [
        Problem(
            rule.path,
            f"no server has the tool '{name}' now; the rule matches nothing until it does",
            rule.line,
            rule.id,
            False,
        )
        for rule in rules
        for _, name in rule.action.entities
        if "/" in name and name not in known and name.partition("/")[2] not in BESIDE_TOOLS
    ]


def _cases(bundle: Bundle) -> list[Problem]:
    try:
        results = run_cases(bundle)
    except BundleFault as fault:
        return list(fault.problems) or [Problem(CASES, fault.sentence)]
    except ConfigFault as fault:
        return [Problem(CASES, fault.sentence)]
    return [Problem(CASES, result.sentence, result.line) for result in results if not result.passed]
