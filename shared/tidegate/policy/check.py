"""What can be said against a bundle before its release: manifest, Cedar, schema, entities, inspection, cases.

Counterpart: `services/policy` and `tidegate bundle check` refuse a bundle with a fatal problem. Pure; nothing here
raises.
"""

import re
from collections.abc import Iterable

import msgspec
from cedarpy import _internal as cedar

from tidegate.errors import BundleFault, ConfigFault, Problem
from tidegate.inspection.rules import load_inspection
from tidegate.policy.bundle import CASES, ENTITIES, INSPECTION, MANIFEST, SCHEMA, Bundle, Manifest
from tidegate.policy.cases import run_cases
from tidegate.policy.entities import ToolFacts, open_entities
from tidegate.policy.rules import Rule, check_depth, parse_rules

_POLICY_PREFIX = re.compile(r"^for policy `[^`]*`, ")
_ANGLES = str.maketrans("<>", "()")  # Set<Set<…>> nests as brackets do


def check_bundle(bundle: Bundle, tools: Iterable[ToolFacts] | None = None) -> list[Problem]:
    """What is wrong, in order of file and line; none is fatal where the bundle can be released.

    With `tools`, those that are known, a rule that names another one is pointed out (not fatal: it may come later).
    """
    rules, problems = parse_rules(bundle.policies)
    broken = bool(problems)
    problems += _manifest(bundle)
    problems += _entities(bundle)
    problems += _inspection(bundle)
    problems += [] if broken else _schema(bundle, rules)
    problems += [] if tools is None else _unknown_tools(rules, tools)
    if not any(problem.fatal for problem in problems):
        problems += _cases(bundle)
    return sorted(problems, key=lambda problem: (problem.path, problem.line))


def _manifest(bundle: Bundle) -> list[Problem]:
    try:
        manifest = msgspec.json.decode(bundle.files[MANIFEST], type=Manifest)
    except msgspec.DecodeError as error:
        return [Problem(MANIFEST, f'{error}; expected {{"v": 1, "name": "…", "version": "…", "description": "…"}}')]
    return (
        []
        if manifest.name.strip()
        else [Problem(MANIFEST, "`name` is empty; give the bundle a name that people will recognise")]
    )


def _schema(bundle: Bundle, rules: list[Rule]) -> list[Problem]:
    text = bundle.text(SCHEMA)
    if not text:
        return []
    try:
        check_depth(text.translate(_ANGLES))
        schema = cedar.Schema.from_str(text)
    except ValueError as error:
        return [Problem(SCHEMA, str(error))]
    found = msgspec.json.decode(cedar.validate_policies("\n".join(bundle.policies.values()), schema, release_gil=True))
    named = found.get("id_annotations_by_policy_id", {})
    by_id = {rule.id: rule for rule in rules}
    problems = [_invalid(by_id.get(named.get(error["policy_id"], "")), error["error"]) for error in found["errors"]]
    return problems + _typed_entities(bundle, schema)


def _invalid(rule: Rule | None, error: str) -> Problem:
    sentence = f"against the schema: {_POLICY_PREFIX.sub('', error)}"
    return Problem(SCHEMA, sentence) if rule is None else Problem(rule.path, sentence, rule.line, rule.id)


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


BESIDE_TOOLS = frozenset({"prompts/get", "resources/read"})
"""Actions of a server that are no tools: on them it is decided for its prompts and its resources."""


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
