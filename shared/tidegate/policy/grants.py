"""`grants.yaml`: who may use which tools of which servers, within which limits; read and checked here, line by line.

Counterpart: `grants_cedar.py` writes what is read here as Cedar, which is what rules. The language is taught in
docs/policy.md. Rules: a slip is a problem with its line and what was meant; nothing is guessed.
"""

from dataclasses import dataclass
from typing import Literal

import yaml

from tidegate.errors import Problem
from tidegate.policy.annotations import APPROVER_MAX, duration_s
from tidegate.policy.yaml_reading import (
    LIST_MAX,
    SERVER_NAME,
    Value,
    Wrong,
    check_version,
    composed,
    entry_id,
    line_of,
    mapping_of,
    names_of,
    scalar_of,
    sentence_of,
    sequence_of,
    text_of,
    truth_of,
)

GRANTS = "grants.yaml"
GRANTS_MAX = 500
GRANTS_BYTES_MAX = 512 * 1024
ANY = "*"

Op = Literal["equals", "one_of", "like", "below", "at_most", "at_least", "only", "absent"]
OPS: tuple[Op, ...] = ("equals", "one_of", "like", "below", "at_most", "at_least", "only", "absent")
_COMPARES = ("at_most", "at_least")
_TEXTS = ("like", "below")
_KEYS = (
    "id",
    "team",
    "user",
    "service",
    "agent",
    "tools",
    "limits",
    "ask",
    "approver",
    "expires",
    "mode",
    "reason",
    "advice",
)


@dataclass(frozen=True)
class Limit:
    """What one argument must be. `path` as in ("filter", "limit"); `optional`: it may also be absent."""

    path: tuple[str, ...]
    tests: tuple[tuple[Op, tuple[Value, ...]], ...]
    optional: bool
    line: int


@dataclass(frozen=True)
class Use:
    """Tools of a server, by name or by label; neither: all that it offers. `server` may be ANY where labels choose."""

    server: str
    tools: tuple[str, ...]
    labels: tuple[str, ...]
    line: int


@dataclass(frozen=True)
class Grant:
    """One entry. `asks`: None never; () always; else where the limits hold or their argument is not there. In `shadow`
    mode it grants nothing, and what it would grant is told.
    """

    id: str
    line: int
    teams: tuple[str, ...]
    users: tuple[str, ...]
    agents: tuple[str, ...]
    uses: tuple[Use, ...]
    limits: tuple[Limit, ...]
    asks: tuple[Limit, ...] | None
    reason: str
    advice: str
    services: tuple[str, ...] = ()
    approver: str = ""
    expires: str = ""  # as it was written, and checked: "10m"
    shadow: bool = False

    @property
    def everyone(self) -> bool:
        return ANY in self.teams


def read_grants(text: str) -> tuple[list[Grant], list[Problem]]:
    """The grants of a file in its order, and what is wrong; a wrong grant is left out. Never raises."""
    reader = _Reader()
    try:
        if len(text.encode(errors="replace")) > GRANTS_BYTES_MAX:
            raise Wrong(1, f"has more than {GRANTS_BYTES_MAX} bytes; write the rules in policies/*.cedar")
        return reader.file(composed(text, "grant")), reader.problems
    except Wrong as wrong:
        return [], [*reader.problems, Problem(GRANTS, wrong.sentence, wrong.line)]
    except RecursionError:
        return [], [Problem(GRANTS, "nests too deep; a grant has two levels")]


class _Reader:
    """Walks the nodes of one file; `problems` grows."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self._ids: dict[str, int] = {}

    def file(self, node: yaml.Node | None) -> list[Grant]:
        if node is None:
            raise Wrong(1, "is empty; it begins with `v: 1`, then `grants:` and a list")
        top = mapping_of(node, "the file", ("v", "grants"))
        check_version(top, node)
        listed = sequence_of(top["grants"], "grants", GRANTS_MAX) if "grants" in top else []
        return [grant for item in listed if (grant := self._tried(item)) is not None]

    def _tried(self, item: yaml.Node) -> Grant | None:
        try:
            return self._grant(item)
        except Wrong as wrong:
            self.problems.append(Problem(GRANTS, wrong.sentence, wrong.line))
            return None

    def _grant(self, node: yaml.Node) -> Grant:
        parts = mapping_of(node, "a grant", _KEYS)
        name, line = entry_id(parts, node, "grant", self._ids), line_of(node)
        teams, users, services, agents = (names_of(parts.get(key), key) for key in ("team", "user", "service", "agent"))
        if not teams and not users and not services:
            raise Wrong(
                line, f"the grant '{name}' says not who: add `team: NAME`, `user: NAME`, or `team: '*'` for all"
            )
        if ANY in (*users, *services, *agents):
            raise Wrong(line, "'*' is for `team`: it is everybody; leave `agent` out where any agent may act")
        if "tools" not in parts:
            raise Wrong(line, f"the grant '{name}' has no `tools`; write for example `tools: {{git: [git_log]}}`")
        asks = _asks(parts.get("ask"))
        if asks is None and (stray := next((key for key in ("approver", "expires") if key in parts), "")):
            raise Wrong(parts[stray], f"`{stray}` has a meaning only beside `ask`")
        return Grant(
            name,
            line,
            teams,
            users,
            agents,
            uses_of(parts["tools"]),
            _limits(parts.get("limits"), "limits"),
            asks,
            sentence_of(parts.get("reason"), "reason"),
            sentence_of(parts.get("advice"), "advice"),
            services,
            _approver(parts.get("approver")),
            _expires(parts.get("expires")),
            _is_shadow(parts.get("mode")),
        )


def uses_of(node: yaml.Node) -> tuple[Use, ...]:
    """What `tools` names, in any file of this language. Raises Wrong."""
    if not isinstance(node, yaml.MappingNode):
        raise Wrong(node, "`tools` takes servers with their tools: {git: [git_log, git_show], time: '*'}")
    found = [_use(name, value) for name, value in mapping_of(node, "tools", None).items()]
    if not found:
        raise Wrong(node, "`tools` names no server")
    return tuple(found)


def _use(server: str, node: yaml.Node) -> Use:
    line = line_of(node)
    if server != ANY and not SERVER_NAME.fullmatch(server):
        raise Wrong(line, f"'{server}' is no server's name: those have 1 to 12 of a-z, 0-9 and '-'")
    if isinstance(node, yaml.MappingNode):
        parts = mapping_of(node, f"the tools of {server}", ("labels",))
        labels = names_of(parts.get("labels"), "labels")
        if wrong := [label for label in labels if "/" in label or len(label) > 64]:
            raise Wrong(line, f"'{wrong[0]}' is no label; labels have at most 64 characters and no '/'")
        if not labels:
            raise Wrong(line, f"say by which labels: {server}: {{labels: [read-only]}}")
        return Use(server, (), labels, line)
    tools = names_of(node, f"tools.{server}")
    if server == ANY:
        raise Wrong(line, "for tools of all servers choose by label: '*': {labels: [read-only]}")
    if ANY in tools:
        if len(tools) > 1:
            raise Wrong(line, f"'*' is all of {server}; take the other names out, or the '*'")
        return Use(server, (), (), line)
    if not tools:
        raise Wrong(line, f"no tool of {server} is named; list them, or write '*' for all")
    return Use(server, tools, (), line)


def _limits(node: yaml.Node | None, what: str) -> tuple[Limit, ...]:
    if node is None:
        return ()
    if not isinstance(node, yaml.MappingNode):
        raise Wrong(node, f"`{what}` takes arguments: {{repo_path: data/shop, max_count: {{at_most: 50}}}}")
    return tuple(_limit(name, value, what) for name, value in mapping_of(node, what, None).items())


def _limit(name: str, node: yaml.Node, what: str) -> Limit:
    path = tuple(name.split("."))
    line = line_of(node)
    if not all(path):
        raise Wrong(line, f"'{name}' is no argument's name; a dot leads into an object: filter.limit")
    if isinstance(node, yaml.ScalarNode):
        return Limit(path, (("equals", (scalar_of(node, name),)),), False, line)
    if isinstance(node, yaml.SequenceNode):
        return Limit(path, (("one_of", _values(node, name)),), False, line)
    parts = mapping_of(node, f"the limit on {name}", (*OPS, "optional"))
    optional = "optional" in parts and truth_of(parts.pop("optional"), "optional")
    tests = tuple((op, _operands(op, parts[op], name)) for op in OPS if op in parts)
    if not tests:
        raise Wrong(line, f"the limit on {name} says nothing; known are {', '.join(OPS)}")
    if what == "ask" and optional:
        raise Wrong(line, f"`optional` has no meaning in `ask`: where {name} is not there, a person is asked")
    if any(op == "absent" for op, _ in tests) and (len(tests) > 1 or optional):
        raise Wrong(line, f"{name}: `absent` stands alone; for a value or nothing write the value and `optional: true`")
    return Limit(path, tests, optional, line)


def _operands(op: Op, node: yaml.Node, name: str) -> tuple[Value, ...]:
    if op == "absent":
        if not truth_of(node, f"{name}.absent"):
            raise Wrong(node, f"{name}: write `absent: true`, or leave it out")
        return ()
    values = _values(node, f"{name}.{op}")
    line = line_of(node)
    if op in _COMPARES and (len(values) != 1 or values[0].kind not in ("long", "decimal")):
        raise Wrong(line, f"{name}: `{op}` takes one number")
    if op in _TEXTS and any(value.kind != "text" for value in values):
        raise Wrong(line, f"{name}: `{op}` takes text, or a list of texts; put it in quotes")
    if op == "only" and any(value.kind == "decimal" for value in values):
        raise Wrong(line, f"{name}: `only` takes texts or whole numbers")
    if op == "equals" and len(values) != 1:
        raise Wrong(line, f"{name}: `equals` takes one value; for several write `one_of: […]`")
    if op == "below" and any(not value.text.strip("/") or ".." in value.text for value in values):
        raise Wrong(line, f"{name}: `below` takes a directory without '..', for example docs/public")
    return values


def _values(node: yaml.Node, name: str) -> tuple[Value, ...]:
    if isinstance(node, yaml.ScalarNode):
        return (scalar_of(node, name),)
    values = tuple(scalar_of(item, name) for item in sequence_of(node, name, LIST_MAX))
    if not values:
        raise Wrong(node, f"{name}: the list is empty, so no call would be granted")
    kinds = {"number" if value.kind in ("long", "decimal") else value.kind for value in values}
    if len(kinds) > 1:
        raise Wrong(node, f"{name}: the values are of different kinds ({', '.join(sorted(kinds))})")
    return values


def _asks(node: yaml.Node | None) -> tuple[Limit, ...] | None:
    if node is None:
        return None
    if isinstance(node, yaml.ScalarNode):
        return () if truth_of(node, "ask") else None
    found = _limits(node, "ask")
    if not found:
        raise Wrong(node, "`ask` names no argument; to ask always write `ask: true`")
    return found


def _approver(node: yaml.Node | None) -> str:
    if node is None:
        return ""
    name = text_of(node, "approver")
    if name != name.strip() or len(name) > APPROVER_MAX:
        raise Wrong(node, "`approver` takes `other` (anybody but the requester) or the name of a team")
    return name


def _expires(node: yaml.Node | None) -> str:
    if node is None:
        return ""
    text = scalar_of(node, "expires").text
    try:
        duration_s(text, "`expires`")
    except ValueError as wrong:
        raise Wrong(node, str(wrong)) from None
    return text


def _is_shadow(node: yaml.Node | None) -> bool:
    if node is not None and scalar_of(node, "mode").text != "shadow":
        raise Wrong(node, "`mode` takes only `shadow`; without it, the grant rules")
    return node is not None
