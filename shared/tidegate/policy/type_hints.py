"""Rules that a value of another type passes, because nobody declares the type of what they compare; and comparisons
with what is none of an argument's declared values. Pure.

For Cedar `"true" == true` is false, not an error. Where a type is declared, by the tool or by the bundle's schema, such
a call is denied; where none is, a forbid by equality lets it pass. Counterparts: `argument_types.py` compares at each
call, `check.py` tells what is found here.
"""

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec
from cedarpy import _internal as cedar

from tidegate.errors import Problem
from tidegate.policy.argument_types import Document
from tidegate.policy.comparisons import Likeness
from tidegate.policy.entities import ToolFacts
from tidegate.policy.rules import NOTHING, Need, Rule

_DEPTH_MAX: Final = 400  # operators within operators that are looked into
VALUES_MAX: Final = 1_000  # of one argument; with more, nothing is said
_EQUAL: Final = frozenset({"==", "contains", "containsAll", "containsAny"})
Path = tuple[str, ...]


def untyped_comparisons(
    rules: Iterable[Rule], tools: Sequence[ToolFacts], declared: Mapping[str, Document]
) -> Iterator[Problem]:
    """None fatal. `declared`: by action, what the bundle's own schema says."""
    by_name = {f"{tool.server}/{tool.tool}": tool for tool in tools if tool.takes is not None}
    for rule in rules:
        if "args" not in rule.needs.parts:
            continue
        for path in sorted(passed_by_unlike(rule)):
            tool = next((one for one in _meant(rule, by_name) if not _is_declared(one, path, declared, rule)), None)
            if tool is not None:
                name = ".".join(path)
                sentence = (
                    f"'{name}' of {tool.server}/{tool.tool} has no declared type, so a value of another type than the "
                    'rule compares with (`"true"` for `true`) passes it; declare it in schema.cedarschema, or say with '
                    "`unless` what must hold"
                )
                yield Problem(rule.path, sentence, rule.line, rule.id, False)


def beside_values(rules: Iterable[Rule], tools: Sequence[ToolFacts]) -> Iterator[Problem]:
    """Comparisons of an argument with what is none of the values (`enum`) that its tools admit. None fatal."""
    by_name = {f"{tool.server}/{tool.tool}": tool for tool in tools if tool.takes is not None}
    for rule in rules:
        args = rule.needs.parts.get("args", NOTHING)
        compared = [(name, need) for name, need in args.parts.items() if need.compared]
        meant = list(_meant(rule, by_name)) if compared else []
        for name, need in compared:
            admitted = [values for tool in meant if (values := _values(tool, name))]
            known = sorted(set().union(*admitted))[:VALUES_MAX]
            if not known or len(known) == VALUES_MAX or len(admitted) < len(meant):
                continue
            for text in _strange(need, known):
                close = difflib.get_close_matches(text.upper(), [value.upper() for value in known], 1, 0.6)
                likely = next((value for value in known if [value.upper()] == close), "")
                hint = f"did you mean '{likely[:60]}'?" if likely else f"those are {', '.join(known)[:200]}"
                sentence = f"no value of '{name}' of {meant[0].server}/{meant[0].tool} is '{text[:60]}'; {hint}"
                yield Problem(rule.path, sentence, rule.line_at(rule.text.find(f'"{text}"')), rule.id, False)


def _strange(need: Need, known: Sequence[str]) -> Iterator[str]:
    for one in sorted(need.compared, key=repr):
        yield from sorted(value for value in one.among if isinstance(value, str) and value not in known)
        if one.like and not any(Likeness([one]).of(value) == "~1" for value in known):
            yield "*".join(one.like)


def _values(tool: ToolFacts, name: str) -> set[str]:
    """The texts that an argument may be, null apart; none where it may be anything else."""
    assert tool.takes is not None
    found = tool.takes.root.get("properties", {})
    part = found.get(name) if isinstance(found, Mapping) else None
    choices = part.get("anyOf", [part]) if isinstance(part, Mapping) else []
    values: set[str] = set()
    for choice in choices if isinstance(choices, list) else []:
        listed = choice.get("enum") if isinstance(choice, Mapping) else None
        if isinstance(listed, list) and all(value is None or isinstance(value, str) for value in listed):
            values.update(value for value in listed if value is not None)
        elif choice != {"type": "null"}:
            return set()
    return values


def passed_by_unlike(rule: Rule) -> set[Path]:
    """The arguments whose equality makes the call harder: where another type comes, it does not."""
    (parsed,) = msgspec.json.decode(cedar.policies_to_json_str(rule.text))["staticPolicies"].values()
    found: set[Path] = set()
    for condition in parsed["conditions"]:
        tightens = (rule.effect == "forbid") is (condition["kind"] == "when")
        found.update(_compared(condition["body"], tightens, _DEPTH_MAX))
    return found


def _compared(node: Any, tightens: bool | None, depth: int) -> Iterator[Path]:
    """`tightens`: whether the expression makes the call harder where it is true; None: it may do either."""
    if depth == 0 or not isinstance(node, Mapping | list):
        return
    if isinstance(node, list):
        for part in node:
            yield from _compared(part, None, depth - 1)
        return
    for op, operand in node.items():
        if op in ("&&", "||"):
            for side in ("left", "right"):
                yield from _compared(operand[side], tightens, depth - 1)
        elif op == "!":
            yield from _compared(operand["arg"], None if tightens is None else not tightens, depth - 1)
        elif op == "if-then-else":
            yield from _compared(operand["if"], None, depth - 1)
            for branch in ("then", "else"):
                yield from _compared(operand[branch], tightens, depth - 1)
        elif op in _EQUAL or op == "!=":
            if tightens is not (op == "!="):
                yield from (path for side in ("left", "right") if (path := _argument(operand[side])))
        elif op != "Value":
            yield from _compared(list(operand.values()) if isinstance(operand, Mapping) else operand, None, depth - 1)


def _argument(node: Any) -> Path | None:
    path: list[str] = []
    while isinstance(node, Mapping) and "." in node:
        path.append(node["."]["attr"])
        node = node["."]["left"]
    if node != {"Var": "context"} or len(path) < 2 or path[-1] != "args":
        return None
    return tuple(reversed(path[:-1]))


def _meant(rule: Rule, tools: Mapping[str, ToolFacts]) -> Iterator[ToolFacts]:
    """Those that the rule can be about."""
    named = tools if _is_wide(rule) else [name for _, name in rule.action.entities]
    for name in named:
        tool = tools.get(name)
        if tool is not None and rule.resource.admits(("Server", tool.server), frozenset()):
            yield tool


def _is_wide(rule: Rule) -> bool:
    return not all("/" in name for _, name in rule.action.entities) or not rule.action.entities


def _is_declared(tool: ToolFacts, path: Path, declared: Mapping[str, Document], rule: Rule) -> bool:
    assert tool.takes is not None
    own = declared.get(f"{tool.server}/{tool.tool}")
    if tool.takes.declares(path) or (own is not None and own.declares(path)):
        return True
    return _is_wide(rule) and not tool.takes.names(path[0])
