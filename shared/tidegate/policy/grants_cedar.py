"""Grants as the Cedar that rules in their stead: pure text from text, the same on every machine.

Counterpart: `grants.py` reads the file. A grant becomes, for each server, a permit `ID/SERVER`; limits make it
conditional, and add a forbid `ID/SERVER:limits` that lets the refusal name its reason; `ask` adds an asking forbid
`ID/SERVER:ask`. Neither forbid holds where another grant of the file allows the call by itself: grants add up. Grants
in shadow mode do not, until they count: what stands beside one is then replaced by its `…:then`.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from tidegate.errors import Problem
from tidegate.policy.annotations import UNTIL_SHADOW
from tidegate.policy.grants import ANY, GRANTS, Grant, Limit, Op, Use, read_grants
from tidegate.policy.yaml_reading import Value

COMPILED = "grants.cedar"
"""The path under which compiled rules are known; no file of a bundle has it."""
PIECES_MAX = 1_000
BESIDE_MAX = 64
_WORDS: dict[Op, str] = {
    "equals": "is",
    "one_of": "is one of",
    "like": "is like",
    "below": "is at or below",
    "at_most": "is at most",
    "at_least": "is at least",
    "only": "holds only",
    "absent": "is left out",
}
_BARE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_0123456789")
_RESERVED = frozenset({"true", "false", "if", "then", "else", "in", "is", "like", "has"})


@dataclass(frozen=True)
class Compiled:
    """`cedar` is "" where something is wrong; `lines` leads from a rule's id to the line of its grant."""

    cedar: str
    grants: tuple[Grant, ...]
    lines: dict[str, int]
    problems: tuple[Problem, ...]


def compile_grants(text: str) -> Compiled:
    """What a grants.yaml means. Never raises."""
    grants, problems = read_grants(text)
    if problems:
        return Compiled("", tuple(grants), {}, tuple(problems))
    fractions = frozenset(_fractions(grants))
    pieces = [_Piece(grant, use, fractions) for grant in grants for use in grant.uses]
    beside = _beside(pieces)
    if crowded := list(_crowded(pieces, beside)):
        return Compiled("", tuple(grants), {}, tuple(crowded))
    rules = [(piece, rule) for piece in pieces for rule in _rules(piece, beside[piece.id])]
    header = f"// Made from {GRANTS}, which is the source: change it there.\n"
    return Compiled(
        header + "".join(f"\n{rule}" for _, (_, rule) in rules),
        tuple(grants),
        {name: piece.use.line for piece, (name, _) in rules},
        (),
    )


def rule_id(grant: Grant, use: Use) -> str:
    return grant.id if use.server == ANY else f"{grant.id}/{use.server}"


@dataclass(frozen=True)
class _Piece:
    """A grant on one server: what becomes one permit."""

    grant: Grant
    use: Use
    fractions: frozenset[tuple[str, tuple[str, ...]]]

    @property
    def id(self) -> str:
        return rule_id(self.grant, self.use)

    @property
    def who(self) -> str:
        """The principal as a condition; "" for everybody."""
        if self.grant.everyone:
            return ""
        parts = [f'principal in Group::"{escaped(name)}"' for name in self.grant.teams]
        parts += [f'principal == User::"{escaped(name)}"' for name in self.grant.users]
        parts += [f'principal == ServiceAccount::"{escaped(name)}"' for name in self.grant.services]
        return _any(parts)

    @property
    def agent(self) -> str:
        return _any(f'context.agent.id == "{escaped(name)}"' for name in self.grant.agents)

    @property
    def actions(self) -> str:
        names = [f"{self.use.server}/{tool}" for tool in self.use.tools] or list(self.use.labels)
        listed = [f'Action::"{escaped(name)}"' for name in names]
        if not listed:
            return "action"
        if len(listed) == 1:
            return f"action {'==' if self.use.tools else 'in'} {listed[0]}"
        return f"action in [{', '.join(listed)}]"

    @property
    def server(self) -> str:
        return "resource" if self.use.server == ANY else f'resource == Server::"{self.use.server}"'

    @property
    def within(self) -> str:
        """The limits as a condition; "" without."""
        return _all(_limit(limit, limit.optional, self._is_fraction(limit)) for limit in self.grant.limits)

    @property
    def asked(self) -> str:
        """The condition under which a person is asked; "" always."""
        return _all(_limit(limit, True, self._is_fraction(limit)) for limit in self.grant.asks or ())

    def head(self) -> tuple[str, list[str]]:
        """The scope, and the `when` of what does not fit into one."""
        grant = self.grant
        alone = self.who if len((*grant.teams, *grant.users, *grant.services)) == 1 else ""
        scope = f"(\n  {alone or 'principal'},\n  {self.actions},\n  {self.server}\n)"
        return scope, [part for part in ("" if alone else self.who, self.agent) if part]

    def overlaps(self, other: "_Piece") -> bool:
        """Whether some call can be meant by both."""
        mine, theirs = self.use, other.use
        if ANY not in (mine.server, theirs.server) and mine.server != theirs.server:
            return False
        return not (mine.tools and theirs.tools) or not set(mine.tools).isdisjoint(theirs.tools)

    def as_condition(self, of: "_Piece", *, unasked: bool) -> str:
        """That this piece allows a call which `of` is about; `unasked`: without asking."""
        mine = self.use
        sure = set(of.use.tools) <= set(mine.tools) if of.use.tools else False
        actions = "" if self.actions == "action" or (mine.tools and sure) else self.actions
        server = "" if mine.server in (ANY, of.use.server) else self.server
        asked = f"!({self.asked})" if unasked and self.grant.asks else ""
        return _all([self.who, self.agent, server, actions, self.within, asked]) or "true"

    def _is_fraction(self, limit: Limit) -> bool:
        return any(
            path == limit.path and (ANY in (server, self.use.server) or server == self.use.server)
            for server, path in self.fractions
        )


def _beside(pieces: list[_Piece]) -> dict[str, list[_Piece]]:
    """For each piece the others that some of its calls are also about, in order."""
    by_server: dict[str, list[_Piece]] = {}
    for piece in pieces:
        by_server.setdefault(piece.use.server, []).append(piece)
    anywhere = by_server.get(ANY, [])
    found: dict[str, list[_Piece]] = {}
    for piece in pieces[:PIECES_MAX]:
        server = piece.use.server
        near = pieces if server == ANY else [*by_server[server], *anywhere]
        found[piece.id] = [other for other in near if other is not piece and other.overlaps(piece)]
    return found


def _crowded(pieces: list[_Piece], beside: Mapping[str, list[_Piece]]) -> Iterator[Problem]:
    if len(pieces) > PIECES_MAX:
        sentence = f"grants on servers, counted together, are {len(pieces)}; at most {PIECES_MAX} are compiled"
        yield Problem(GRANTS, f"{sentence}; choose tools by label", pieces[PIECES_MAX].use.line)
        return
    for piece in pieces:
        limited = piece.grant.limits or piece.grant.asks is not None
        if limited and len(beside[piece.id]) > BESIDE_MAX:
            sentence = f"'{piece.id}' has limits, and {len(beside[piece.id])} more grants are about the same tools"
            advice = f"at most {BESIDE_MAX} may be: name the teams that share limits in one grant"
            yield Problem(GRANTS, f"{sentence}; {advice}", piece.use.line, piece.id)


def _rules(piece: _Piece, others: list[_Piece]) -> Iterator[tuple[str, str]]:
    """The rules of a piece: id and text."""
    grant = piece.grant
    scope, when = piece.head()
    conditions = [*when, *([piece.within] if piece.within else [])]
    yield piece.id, _rule(piece.id, "permit", scope, conditions, [], _mode(grant))
    if piece.within:
        notes = [("reason", grant.reason or _told(piece)), ("advice", grant.advice)]
        alternatives = [(other, other.as_condition(piece, unasked=False)) for other in others]
        yield from _forbids(piece, "limits", (scope, when, [piece.within]), alternatives, notes)
    if grant.asks is not None:
        told = grant.reason or f"The grant '{grant.id}' wants a person to approve this call first."
        whom = [("approver", grant.approver), ("expires", grant.expires)]
        notes = [("effect", "ask"), *whom, ("reason", told), ("advice", grant.advice)]
        alternatives = [(other, other.as_condition(piece, unasked=True)) for other in others if other.grant.asks != ()]
        asked = [piece.asked] if piece.asked else []
        yield from _forbids(piece, "ask", (scope, [*when, *asked], []), alternatives, notes)


def _forbids(
    piece: _Piece,
    what: str,
    about: tuple[str, list[str], list[str]],
    alternatives: list[tuple[_Piece, str]],
    notes: list[tuple[str, str]],
) -> Iterator[tuple[str, str]]:
    """A forbid, unless an alternative holds; and where some of those are in shadow mode, the one that would rule with
    them.
    """
    name = f"{piece.id}:{what}"
    scope, when, unless = about
    every = [condition for _, condition in alternatives]
    ruling = [condition for other, condition in alternatives if not other.grant.shadow]
    if piece.grant.shadow or len(every) == len(ruling):
        yield name, _rule(name, "forbid", scope, when, [*unless, *every], [*_mode(piece.grant), *notes])
        return
    yield name, _rule(name, "forbid", scope, when, [*unless, *ruling], [(UNTIL_SHADOW, "then"), *notes])
    then = f"{name}:then"
    yield then, _rule(then, "forbid", scope, when, [*unless, *every], [("mode", "shadow"), *notes])


def _mode(grant: Grant) -> list[tuple[str, str]]:
    return [("mode", "shadow")] if grant.shadow else []


def _rule(
    name: str,
    effect: str,
    scope: str,
    when: list[str],
    unless: list[str],
    notes: Iterable[tuple[str, str]] = (),
) -> str:
    lines = [f'@id("{name}")', *(f'@{key}("{escaped(text)}")' for key, text in notes if text)]
    text = "\n".join([*lines, f"{effect} {scope}"])
    if when:
        text += f"\nwhen {{ {_all(when)} }}"
    if unless:
        text += "\nunless {\n  " + "\n  || ".join(f"({part})" for part in dict.fromkeys(unless)) + "\n}"
    return f"{text};\n"


def _limit(limit: Limit, optional: bool, fraction: bool) -> str:
    """True where the argument is there and as it must be; never an error, whatever is missing."""
    at, there = "context.args", []
    for name in limit.path:
        bare = is_bare(name)
        quoted = f'"{escaped(name)}"'
        there.append(f"{at} has {name if bare else quoted}")
        at = f"{at}.{name}" if bare else f"{at}[{quoted}]"
    present = " && ".join(there)
    if limit.tests[0][0] == "absent":
        return f"!({present})"
    tests = _all(_test(op, values, at, fraction) for op, values in limit.tests)
    return f"(if {present} then {tests} else true)" if optional else f"{present} && {tests}"


def _test(op: Op, values: tuple[Value, ...], at: str, fraction: bool) -> str:
    literals = [_literal(value, fraction) for value in values]
    if op == "only":
        return f"[{', '.join(literals)}].containsAll({at})"
    if op == "like":
        return _any(f'{at} like "{_pattern(value.text)}"' for value in values)
    if op == "below":
        return f'!({at} like "*..*") && {_any(_below(value.text.rstrip("/"), at) for value in values)}'
    if op in ("at_most", "at_least"):
        if literals[0].startswith("decimal("):
            return f"{at}.{'lessThanOrEqual' if op == 'at_most' else 'greaterThanOrEqual'}({literals[0]})"
        return f"{at} {'<=' if op == 'at_most' else '>='} {literals[0]}"
    if len(literals) > 1 and not any(literal.startswith("decimal(") for literal in literals):
        return f"[{', '.join(literals)}].contains({at})"
    return _any(f"{at} == {literal}" for literal in literals)


def _below(directory: str, at: str) -> str:
    return f'({at} == "{escaped(directory)}" || {at} like "{_pattern(directory, wild=False)}/*")'


def _literal(value: Value, fraction: bool) -> str:
    if value.kind == "text":
        return f'"{escaped(value.text)}"'
    if value.kind == "decimal" or (fraction and value.kind == "long"):
        return f'decimal("{value.text if "." in value.text else value.text + ".0"}")'
    return value.text


def _fractions(grants: Iterable[Grant]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Arguments that are compared with a fraction somewhere: everywhere, then, or the comparisons would not mix."""
    for grant in grants:
        for limit in (*grant.limits, *(grant.asks or ())):
            if any(value.kind == "decimal" for op, values in limit.tests for value in values if op != "only"):
                yield from ((use.server, limit.path) for use in grant.uses)


def _told(piece: _Piece) -> str:
    """The sentence of a refusal where the grant has none of its own."""
    limits = " and ".join(_in_words(limit) for limit in piece.grant.limits)
    return f"The grant '{piece.grant.id}' allows this only where {limits}."


def _in_words(limit: Limit) -> str:
    tests = " and ".join(
        f"{_WORDS[op]} {', '.join(value.text for value in values)}".rstrip() for op, values in limit.tests
    )
    return f"{'.'.join(limit.path)} {tests}{' or is left out' if limit.optional else ''}"


def _all(parts: Iterable[str]) -> str:
    return " && ".join(part for part in parts if part)


def _any(parts: Iterable[str]) -> str:
    """Of several, one of them, in brackets."""
    found = list(parts)
    return found[0] if len(found) == 1 else f"({' || '.join(found)})" if found else ""


def is_bare(name: str) -> bool:
    """Whether an attribute's name stands without quotes."""
    return bool(name) and not name[0].isdigit() and _BARE.issuperset(name) and name not in _RESERVED


def escaped(text: str) -> str:
    """The inside of a Cedar string literal, on one line; half a character becomes the sign for an unknown one."""
    return "".join(
        f"\\{char}" if char in '"\\' else char if char.isprintable() else f"\\u{{{_code(char):x}}}" for char in text
    )


def _code(char: str) -> int:
    return 0xFFFD if "\ud800" <= char <= "\udfff" else ord(char)


def _pattern(text: str, *, wild: bool = True) -> str:
    """The inside of a `like` literal; `*` matches anything unless it shall be itself."""
    literal = escaped(text)
    return literal if wild else literal.replace("*", "\\*")
