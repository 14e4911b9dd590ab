"""Cedar texts taken apart: each rule with its annotations, its scope, and what of the context it looks at.

Counterpart: `engine.py` slices by the scopes here and sends only the arguments named here. Every reading errs on the
wide side: a form that is not understood counts as "may match" or "uses everything".
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeGuard

import msgspec
from cedarpy import _internal as cedar

from tidegate.errors import Problem
from tidegate.limits import POLICY_DEPTH_MAX, POLICY_OPERATORS_MAX
from tidegate.policy.annotations import read_notes
from tidegate.policy.comparisons import Comparison, comparison_in
from tidegate.policy.grants_cedar import COMPILED

Uid = tuple[str, str]
"""An entity's type and id."""

_TOKEN = re.compile(r'"(?:\\.|[^"\\])*"|//[^\n]*|;', re.DOTALL)
_OPERATOR = re.compile(r"&&|\|\||[-+*.!(\[{]|\bif\b")
_BRACKET = re.compile(r"[(\[{)\]}]")
_STRING = re.compile(r'"(?:\\.|[^"\\])*"|//[^\n]*', re.DOTALL)
_ANNOTATIONS = re.compile(r'(?:@\w+\s*(?:\(\s*"(?:\\.|[^"\\])*"\s*\))?|\s+|//[^\n]*)*', re.DOTALL)
_BLANK = re.compile(r"(?:\s|//[^\n]*)*")
_DECIMAL_METHODS = frozenset({"lessThan", "lessThanOrEqual", "greaterThan", "greaterThanOrEqual"})


@dataclass(frozen=True)
class Scope:
    """One line of a rule's head. `entities` empty and `type` empty: anything."""

    entities: tuple[Uid, ...] = ()
    type: str = ""
    exact: bool = False  # `==`: the entity itself, not what is in it

    def admits(self, uid: Uid, ancestors: frozenset[Uid]) -> bool:
        """Whether the entity can match; `ancestors` holds everything it is in, itself excluded."""
        if self.type and uid[0] != self.type:
            return False
        if not self.entities:
            return True
        return uid in self.entities or (not self.exact and any(entity in ancestors for entity in self.entities))


@dataclass(frozen=True)
class Need:
    """What rules want to see of a value: all of it, how it compares, only that it is there, or the named attributes of
    it.
    """

    whole: bool = False
    decimal: bool = False  # compared as a decimal: whole numbers are sent as decimals, too
    parts: Mapping[str, "Need"] = field(default_factory=dict)
    tested: bool = False  # asked whether it is there
    compared: frozenset[Comparison] = frozenset()  # with what rules say; where not `whole`, nothing else is seen of it

    def __or__(self, other: "Need") -> "Need":
        names = self.parts.keys() | other.parts.keys()
        nothing = Need()
        parts = {name: self.parts.get(name, nothing) | other.parts.get(name, nothing) for name in sorted(names)}
        return Need(
            self.whole or other.whole,
            self.decimal or other.decimal,
            parts,
            tested=self.tested or other.tested,
            compared=self.compared | other.compared,
        )


NOTHING = Need()
_TESTED = Need(tested=True)


@dataclass(frozen=True)
class Rule:
    """One static Cedar policy. A rule in shadow mode rules nothing; what it would have changed is told."""

    id: str
    effect: Literal["permit", "forbid"]
    ask: bool
    shadow: bool
    until_shadow: bool  # rules, and does not count where those in shadow mode do
    reason: str
    advice: str
    approver: str  # of an asking rule: "" anybody, "other" anybody but the requester, else a group's name
    expires_s: int  # of an asking rule: for how long the question stands; 0: it does not say
    unread: tuple[str, ...]  # annotations that mean nothing here
    path: str
    line: int
    principal: Scope
    action: Scope
    resource: Scope
    needs: Need  # of the context
    mentions: frozenset[Uid]  # entities that the conditions name
    text: str = field(repr=False)  # Cedar, without annotations
    text_line: int  # in which it begins

    def line_at(self, offset: int) -> int:
        """The line of this place in `text`."""
        return self.text_line + self.text.count("\n", 0, max(0, offset))


def parse_rules(texts: Mapping[str, str]) -> tuple[list[Rule], list[Problem]]:
    """The rules of all texts in order of path and line, and what is wrong with them. A wrong rule is left out."""
    rules: list[Rule] = []
    problems: list[Problem] = []
    seen: dict[str, Rule] = {}
    for path, text in texts.items():
        for item in _parse_text(path, text):
            if isinstance(item, Problem):
                problems.append(item)
                continue
            rules.append(item)
            if (earlier := seen.setdefault(item.id, item)) is not item:
                sentence = f'@id("{item.id}") is taken by {earlier.path}:{earlier.line}; give each rule its own'
                problems.append(Problem(path, sentence, item.line, item.id))
                rules.pop()
    return rules, problems


def _parse_text(path: str, text: str) -> Iterator[Rule | Problem]:
    """Statement by statement: Cedar's errors carry no position, and it lets no other thread run while it parses."""
    line, counted = 1, 0
    for start, statement in statements(text):
        line, counted = line + text.count("\n", counted, start), start
        yield _parse_statement(path, line, statement)


def _parse_statement(path: str, line: int, statement: str) -> Rule | Problem:
    try:
        check_depth(statement)
        check_operators(statement)
        parsed = msgspec.json.decode(cedar.policies_to_json_str(statement))
    except RecursionError:
        return Problem(path, "nests too many operators in one another; split the rule into several", line)
    except ValueError as error:
        name = re.search(r'@id\("((?:\\.|[^"\\])*)"\)', statement)
        return Problem(path, f"does not parse: {error}", line, name[1] if name else "")
    if len(parsed["staticPolicies"]) != 1:
        return Problem(path, "templates (?principal, ?resource) are not used here; write the rule for a Group", line)
    return _rule(path, line, statement, next(iter(parsed["staticPolicies"].values())))


def check_depth(text: str) -> None:
    """Cedar's parsers recurse; a text that nests too deep would end the process. Raises ValueError before it does."""
    depth = 0
    for bracket in _BRACKET.findall(_STRING.sub("", text)):
        depth += 1 if bracket in "([{" else -1
        if depth > POLICY_DEPTH_MAX:
            raise ValueError(f"brackets nest more than {POLICY_DEPTH_MAX} deep")


def check_operators(text: str) -> None:
    """Operators nest without brackets. Raises ValueError."""
    if len(_OPERATOR.findall(_STRING.sub("", text))) > POLICY_OPERATORS_MAX:
        raise ValueError(f"more than {POLICY_OPERATORS_MAX} operators; split it into several rules")


def _rule(path: str, line: int, statement: str, est: dict[str, Any]) -> Rule | Problem:
    notes = {name: value or "" for name, value in est.get("annotations", {}).items()}
    begin = _ANNOTATIONS.match(statement).end()  # type: ignore[union-attr]  # it matches the empty text
    effect: Literal["permit", "forbid"] = est["effect"]
    try:
        said = read_notes(notes, effect, compiled=path == COMPILED)
    except ValueError as wrong:
        return Problem(path, str(wrong), line, notes.get("id", ""))
    return Rule(
        id=said.id,
        effect=effect,
        ask=said.ask,
        shadow=said.shadow,
        until_shadow=said.until_shadow,
        reason=said.reason,
        advice=said.advice,
        approver=said.approver,
        expires_s=said.expires_s,
        unread=said.unread,
        path=path,
        line=line,
        principal=_scope(est["principal"]),
        action=_scope(est["action"]),
        resource=_scope(est["resource"]),
        needs=needs_of(condition["body"] for condition in est["conditions"]),
        mentions=frozenset(entities_in(est["conditions"])),
        text=statement[begin:],
        text_line=line + statement.count("\n", 0, begin),
    )


def statements(text: str) -> Iterator[tuple[int, str]]:
    """Each statement of a Cedar text with the offset at which it begins, comments before it skipped."""
    start = 0
    for token in _TOKEN.finditer(text):
        if token[0] == ";":
            yield _statement(text, start, token.end())
            start = token.end()
    begin, rest = _statement(text, start, len(text))
    if rest:
        yield begin, rest


def _statement(text: str, start: int, end: int) -> tuple[int, str]:
    blank = _BLANK.match(text, start, end)
    begin = blank.end() if blank else start
    return begin, text[begin:end]


def _scope(est: Mapping[str, Any]) -> Scope:
    match est:
        case {"op": "==", "entity": entity}:
            return Scope((_uid(entity),), exact=True)
        case {"op": "in", "entity": entity}:
            return Scope((_uid(entity),))
        case {"op": "in", "entities": [_, *_] as entities}:
            return Scope(tuple(_uid(entity) for entity in entities))
        case {"op": "is", "entity_type": kind, "in": {"entity": entity}}:
            return Scope((_uid(entity),), type=kind)
        case {"op": "is", "entity_type": kind}:
            return Scope(type=kind)
        case _:
            return Scope()


def _uid(entity: Mapping[str, str]) -> Uid:
    return entity["type"], entity["id"]


def entities_in(value: Any) -> Iterator[Uid]:
    """Every entity that a value in Cedar's JSON names: of rules (EST) or of entities' attributes."""
    waiting = [value]
    while waiting:
        node = waiting.pop()
        if isinstance(node, list | tuple):
            waiting += node
        elif isinstance(node, Mapping):
            inner = node.get("__entity", node)
            if isinstance(inner, Mapping) and isinstance(inner.get("type"), str) and isinstance(inner.get("id"), str):
                yield inner["type"], inner["id"]
            waiting += node.values()


def needs_of(bodies: Iterable[Any]) -> Need:
    """What these conditions look at, as a need of `context`."""
    need = NOTHING
    for body in bodies:
        for path, leaf in _mentions(body):
            need |= _at(path, leaf)
    return need


def _at(path: tuple[str, ...], leaf: Need) -> Need:
    for name in reversed(path):
        leaf = Need(parts={name: leaf})
    return leaf


def _mentions(body: Any) -> Iterator[tuple[tuple[str, ...], Need]]:
    """Every mention of the context: its path and its use. Anything but a chain of attributes uses the whole value."""
    waiting: list[tuple[Any, bool]] = [(body, False)]
    while waiting:
        node, decimal = waiting.pop()
        path = _chain(node)
        if path is not None:
            yield path, Need(whole=True, decimal=decimal)
        elif isinstance(node, list):
            waiting += [(part, False) for part in node]
        elif isinstance(node, Mapping):
            for op, operand in node.items():
                if op == "has" and (held := _chain(operand["left"])) is not None:
                    yield (*held, operand["attr"]), _TESTED
                elif (found := comparison_in(op, operand)) and _is_argument(path := _chain(found[0])):
                    yield path, Need(compared=frozenset((found[1],)))
                else:
                    waiting += _operands(op, operand)


def _is_argument(path: tuple[str, ...] | None) -> TypeGuard[tuple[str, ...]]:
    return path is not None and len(path) > 1 and path[0] == "args"


def _operands(op: str, operand: Any) -> Iterable[tuple[Any, bool]]:
    """The expressions under an operator, each with whether it is compared as a decimal."""
    if op == "Value":
        return []
    if op == "Record":  # its keys are attribute names, not operators
        return [(part, False) for part in operand.values()]
    if op in _DECIMAL_METHODS:
        return [(part, True) for part in operand]
    if op in ("==", "!="):
        sides = [operand["left"], operand["right"]]
        decimal = any(_is_decimal(side) for side in sides)
        return [(side, decimal) for side in sides]
    return [(operand, False)]


def _is_decimal(node: Any) -> bool:
    return isinstance(node, Mapping) and "decimal" in node


def _chain(node: Any) -> tuple[str, ...] | None:
    """("args", "path") of `context.args.path`; () of `context`; None of anything else."""
    match node:
        case {"Var": "context"}:
            return ()
        case {".": {"left": left, "attr": str(attr)}}:
            path = _chain(left)
            return None if path is None else (*path, attr)
        case _:
            return None
