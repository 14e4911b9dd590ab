"""Rules and limits that do not fit the declared arguments, in words: which rule, which argument, what to write. Pure.

Cedar's own check finds them and names neither place nor argument; here they are looked for again, in the rule's text or
in the grant. What is not found is told in Cedar's words. Counterpart: `check.py`.
"""

import difflib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec
from cedarpy import _internal as cedar

from tidegate.errors import Problem
from tidegate.policy.grants import GRANTS, Grant, Limit, Op
from tidegate.policy.rules import NOTHING, Need, Rule

Path = tuple[str, ...]
Declared = Mapping[str, Mapping[str, Any]]
"""By action: what `context.args` holds, as a JSON Schema (see `cedar_types.argument_types`)."""

_KINDS: Final = {
    "boolean": "Bool",
    "integer": "Long",
    "string": "String",
    "number": "decimal",
    "array": "Set",
    "object": "record",
}
_WORDS: Final = {
    "Bool": "true or false (Bool)",
    "Long": "a whole number (Long)",
    "String": "text (String)",
    "decimal": "a number with a fraction (decimal)",
    "Set": "a list (Set)",
    "record": "an object",
}
_LESS: Final = frozenset({"<", "<=", ">", ">="})
_DECIMAL_LESS: Final = {
    "<": "lessThan",
    "<=": "lessThanOrEqual",
    ">": "greaterThan",
    ">=": "greaterThanOrEqual",
}
_GRANT_KINDS: Final = {"text": "String", "bool": "Bool", "long": "Long", "decimal": "decimal"}
_TYPES = re.compile(r"types .* are not compatible|unexpected type: ")
_ACTION = re.compile(r'unrecognized action `Action::"((?:\\.|[^"\\])*)"`')
_LACKING = re.compile(r'attribute `args\.([^`]+)` in context for Action::"([^"]*)" not found')
_NO_ACTION: Final = "unable to find an applicable action"
SAID_MAX: Final = 60


class Compared(NamedTuple):
    """An argument and the literal that a rule compares it with. `each`: with what its list holds."""

    path: Path
    op: str
    kind: str
    text: str
    each: bool = False


def is_about_types(error: str) -> bool:
    return bool(_TYPES.search(error))


def explained(
    rule: Rule, errors: Sequence[str], declared: Declared, labels: Mapping[str, Collection[str]]
) -> tuple[list[Problem], list[str]]:
    """What can be said of Cedar's errors on a rule, and those that are left. `labels`: of each declared action."""
    found = list(_unknown_actions(rule, errors, labels))
    left = [error for error in errors if not _ACTION.search(error) and not (found and _NO_ACTION in error)]
    found += _lacking(rule, left, declared)
    left = [error for error in left if not _LACKING.search(error)]
    if any(map(is_about_types, left)):
        unlike = list(_unlike(rule, declared, labels))
        found += unlike
        left = [error for error in left if not (unlike and is_about_types(error))]
    return found, list(dict.fromkeys(left))


def _unknown_actions(rule: Rule, errors: Iterable[str], labels: Collection[str]) -> Iterator[Problem]:
    for name in dict.fromkeys(match[1] for error in errors if (match := _ACTION.search(error))):
        sentence = f"'{rule.id}' names the action '{name}', which is not declared{_meant(name, labels)}"
        yield _problem(rule, sentence, rule.text.find(f'"{name}"'))


def _lacking(rule: Rule, errors: Iterable[str], declared: Declared) -> Iterator[Problem]:
    tools: dict[str, list[str]] = {}
    for error in errors:
        if match := _LACKING.search(error):
            tools.setdefault(match[1], []).append(match[2])
    for name, actions in tools.items():
        path = tuple(name.split("."))
        first = sorted(actions)[0]
        more = f" and {len(actions) - 1} more" if len(actions) > 1 else ""
        known = _members(declared.get(first, {}), path[:-1])
        sentence = f"'{rule.id}' looks at `context.args.{name}`, which {first}{more} does not have"
        yield _problem(rule, f"{sentence}{_meant(path[-1], known)}", _place(rule, path))


def unknown_tested(rule: Rule, declared: Declared, labels: Mapping[str, Collection[str]]) -> Iterator[Problem]:
    """Arguments that a rule asks for (`has`) and none of its tools has: Cedar says nothing of them. Not fatal."""
    tested = list(_tested(rule.needs.parts.get("args", NOTHING), ()))
    actions = [action for action in _about(rule, labels) if action in declared] if tested else []
    for path in tested:
        inside = [set(found) for one in actions if (found := _members(declared[one], path[:-1])) is not None]
        if inside and not any(path[-1] in found for found in inside):
            which = actions[0] if len(actions) == 1 else f"none of {len(actions)} tools"
            verb = "does not have" if len(actions) == 1 else "has"
            sentence = f"'{rule.id}' asks for `context.args.{'.'.join(path)}`, which {which} {verb}"
            told = f"{sentence}{_meant(path[-1], set().union(*inside))}"
            where = re.search(rf"\bhas\s+\"?{re.escape(path[-1])}\b", rule.text)
            yield _problem(rule, told, where.start() if where else 0, fatal=False)


def _tested(need: Need, path: Path) -> Iterator[Path]:
    for name, part in need.parts.items():
        if part.tested:
            yield (*path, name)
        yield from _tested(part, (*path, name))


def _unlike(rule: Rule, declared: Declared, labels: Mapping[str, Collection[str]]) -> Iterator[Problem]:
    actions = list(_about(rule, labels))
    for one in dict.fromkeys(_comparisons(rule)):
        for action in actions:
            kind = _kind(declared.get(action, {}), one.path, one.each)
            if kind and not _fits(kind, one.kind, one.op):
                name = f"context.args.{'.'.join(one.path)}"
                sentence = f"'{rule.id}' compares `{name}`, which {action} declares as {_WORDS[kind]}, with {one.text}"
                yield _problem(rule, sentence + _advice(kind, one, name), _place(rule, one.path, one.text))
                break


def _fits(declared: str, kind: str, op: str) -> bool:
    return declared == kind if op not in _LESS else declared == kind == "Long"


def _advice(declared: str, one: Compared, name: str) -> str:
    value = _as_kind(declared, one.text)
    if declared == "decimal" and value:
        written = f'decimal("{value}")'
        method = _DECIMAL_LESS.get(one.op)
        return f"; write `{name}.{method}({written})`" if method else f"; write {written}"
    if declared == "String" and value:
        return f'; write "{value}"'
    if declared == "Long" and value and one.op in _DECIMAL_LESS.values():
        sign = next(sign for sign, method in _DECIMAL_LESS.items() if method == one.op)
        return f"; write `{name} {sign} {value}`"
    return f"; write {value}" if value else ""


def _as_kind(declared: str, text: str) -> str:
    """The same value in the declared kind; "" where it has none."""
    plain = text.removeprefix('decimal("').removesuffix('")').strip('"')
    number = re.fullmatch(r"(-?\d{1,14})(?:\.(\d{1,4}))?", plain)
    if declared == "Long" and number and not (number[2] or "").strip("0"):
        return number[1]
    if declared == "decimal" and number:
        return f"{number[1]}.{number[2] or '0'}"
    if declared == "String" and plain:
        return plain
    return plain if declared == "Bool" and plain in ("true", "false") else ""


def _comparisons(rule: Rule) -> Iterator[Compared]:
    (parsed,) = msgspec.json.decode(cedar.policies_to_json_str(rule.text))["staticPolicies"].values()
    waiting: list[Any] = [parsed["conditions"]]
    while waiting:
        node = waiting.pop(0)
        if isinstance(node, list):
            waiting += node
        elif isinstance(node, Mapping):
            for op, operand in node.items():
                yield from _compared(op, operand)
            waiting += node.values()


def _compared(op: str, operand: Any) -> Iterator[Compared]:
    if op == "like" and (path := _argument(operand["left"])):
        yield Compared(path, op, "String", "a pattern")
    elif op in _LESS or op in ("==", "!="):
        yield from _sides(op, operand["left"], operand["right"])
    elif op in _DECIMAL_LESS.values():
        yield from _sides(op, operand[0], operand[1])
    elif op in ("contains", "containsAll", "containsAny"):
        left, right = operand["left"], operand["right"]
        for one, other, each in ((left, right, True), (right, left, op != "contains")):
            if path := _argument(one):
                yield from (Compared(path, op, *said, each) for part in _parts(other) if (said := _literal(part)))


def _parts(node: Any) -> list[Any]:
    return list(node["Set"]) if isinstance(node, Mapping) and "Set" in node else [node]


def _sides(op: str, left: Any, right: Any) -> Iterator[Compared]:
    for one, other in ((left, right), (right, left)):
        if (path := _argument(one)) and (said := _literal(other)):
            yield Compared(path, op, *said)


def _literal(node: Any) -> tuple[str, str] | None:
    """Its kind and its text in Cedar."""
    match node:
        case {"Value": bool(value)}:
            return "Bool", str(value).lower()
        case {"Value": int(value)}:
            return "Long", str(value)
        case {"Value": str(value)}:
            return "String", f'"{value[:SAID_MAX]}"'
        case {"decimal": [{"Value": str(value)}]}:
            return "decimal", f'decimal("{value[:SAID_MAX]}")'
    return None


def _argument(node: Any) -> Path:
    """("filter", "author") of `context.args.filter.author`; () of anything else."""
    path: list[str] = []
    while isinstance(node, Mapping) and "." in node:
        path.append(node["."]["attr"])
        node = node["."]["left"]
    return tuple(reversed(path[:-1])) if node == {"Var": "context"} and path[-1:] == ["args"] else ()


def _about(rule: Rule, labels: Mapping[str, Collection[str]]) -> Iterator[str]:
    """The declared actions that a rule can be about."""
    named = {name for _, name in rule.action.entities}
    for action, groups in labels.items():
        if "/" in action and (not named or "call" in named or action in named or not named.isdisjoint(groups)):
            yield action


def _members(args: Mapping[str, Any], path: Path) -> Collection[str] | None:
    """The names of what an object holds; None where that is not known."""
    for name in path:
        args = args.get("properties", {}).get(name, {})
    found = args.get("properties")
    return None if found is None else list(found)


def _kind(args: Mapping[str, Any], path: Path, each: bool = False) -> str:
    """The declared kind of an argument, or of what its list holds; "" where there is none."""
    for name in path:
        args = args.get("properties", {}).get(name, {})
    if each:
        args = args.get("items", {})
    return _KINDS.get(next(iter(args.get("type", ())), ""), "")


def _place(rule: Rule, path: Path, text: str = "") -> int:
    """Where a rule names an argument, beside this literal where it can be found."""
    names = "".join(rf'\s*(?:\.\s*{re.escape(name)}\b|\[\s*"{re.escape(name)}"\s*\])' for name in path)
    places = list(re.finditer(rf"\bcontext\s*\.\s*args{names}", rule.text))
    beside = [place for place in places if text and text in re.split(r"&&|\|\|", rule.text[place.end() :])[0]]
    return next((place.start() for place in (*beside, *places)), 0)


def _problem(rule: Rule, sentence: str, offset: int, *, fatal: bool = True) -> Problem:
    return Problem(rule.path, f"against the schema: {sentence}", rule.line_at(offset), rule.id, fatal)


def _meant(name: str, known: Collection[str] | None) -> str:
    close = difflib.get_close_matches(name, sorted(known or ()), 1, 0.6)
    return f"; did you mean '{close[0]}'?" if close else ""


def unlike_limits(grants: Iterable[Grant], wrong: Collection[str], declared: Declared) -> list[Problem]:
    """Limits of other types than their tools declare, of the compiled rules that Cedar found `wrong`."""
    found: list[Problem] = []
    for grant in grants:
        for use in grant.uses:
            own = grant.id if use.server == "*" else f"{grant.id}/{use.server}"
            limits = [*(grant.limits if own in wrong else ()), *((grant.asks or ()) if f"{own}:ask" in wrong else ())]
            actions = [f"{use.server}/{tool}" for tool in use.tools] or _all_of(use.server, declared)
            for limit in limits:
                told = (_unlike_limit(limit, action, declared.get(action, {})) for action in actions)
                found += [Problem(GRANTS, one, limit.line, own) for one in list(filter(None, told))[:1]]
    return found


def _all_of(server: str, declared: Declared) -> list[str]:
    return [action for action in declared if server == "*" or action.partition("/")[0] == server]


def _unlike_limit(limit: Limit, action: str, args: Mapping[str, Any]) -> str:
    name = ".".join(limit.path)
    for op, values in limit.tests:
        kind = _kind(args, limit.path, op == "only")
        for value in values:
            given = _GRANT_KINDS[value.kind]
            if kind and given != kind:
                written = _as_kind(kind, value.text)
                quoted = f"'{written}'" if kind == "String" else written
                said = f"{_op(op)}{value.text[:SAID_MAX]}"
                advice = f"write {quoted}" if written else f"it takes {_WORDS[kind]}"
                return f"`{name}` of {action} is {_WORDS[kind]}, not {_WORDS[given]} as in `{said}`: {advice}"
    return ""


def _op(op: Op) -> str:
    return "" if op in ("equals", "one_of") else f"{op}: "
