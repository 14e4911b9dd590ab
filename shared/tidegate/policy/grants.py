"""`grants.yaml`: who may use which tools of which servers, within which limits; read and checked here, line by line.

Counterpart: `grants_cedar.py` writes what is read here as Cedar, which is what rules. The language is taught in
docs/policy.md. Rules: a slip is a problem with its line and what was meant; nothing is guessed.
"""

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import yaml

from tidegate.errors import Problem
from tidegate.policy.annotations import APPROVER_MAX, duration_s

GRANTS = "grants.yaml"
GRANTS_MAX = 500
GRANTS_BYTES_MAX = 512 * 1024
LIST_MAX = 500
NAME_MAX = 512
ANY = "*"

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SERVER = re.compile(r"[a-z][a-z0-9-]{0,11}")
_LONG_MIN, _LONG_MAX = -(2**63), 2**63 - 1
_DECIMAL = re.compile(r"-?\d{1,14}\.\d{1,4}")
_PLURALS = {
    "teams": "team",
    "users": "user",
    "agents": "agent",
    "services": "service",
    "approvers": "approver",
    "tool": "tools",
    "server": "tools",
    "servers": "tools",
}

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
class Value:
    """A scalar as it was written: text, truth, whole number, or a number with a fraction (its digits)."""

    kind: Literal["text", "bool", "long", "decimal"]
    text: str


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
        if len(text.encode()) > GRANTS_BYTES_MAX:
            raise _Wrong(1, f"has more than {GRANTS_BYTES_MAX} bytes; write the rules in policies/*.cedar")
        return reader.file(_composed(text)), reader.problems
    except _Wrong as wrong:
        return [], [*reader.problems, Problem(GRANTS, wrong.sentence, wrong.line)]
    except RecursionError:
        return [], [Problem(GRANTS, "nests too deep; a grant has two levels")]


class _Wrong(Exception):
    def __init__(self, line: int, sentence: str) -> None:
        super().__init__(sentence)
        self.line = line
        self.sentence = sentence


def _composed(text: str) -> yaml.Node | None:
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
            raise _Wrong(1, "uses a YAML alias (*name); write each grant out, it is what people review")
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        what = getattr(error, "problem", None) or str(error).replace("\n", " ")
        raise _Wrong(mark.line + 1 if mark else 1, f"is not YAML: {what}") from error


class _Reader:
    """Walks the nodes of one file; `problems` grows."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self._ids: dict[str, int] = {}

    def file(self, node: yaml.Node | None) -> list[Grant]:
        if node is None:
            raise _Wrong(1, "is empty; it begins with `v: 1`, then `grants:` and a list")
        top = _mapping(node, "the file", ("v", "grants"))
        if "v" not in top or _scalar(top["v"], "v").text != "1":
            raise _Wrong(_line(top.get("v", node)), "needs `v: 1`, the version of this language")
        listed = _sequence(top["grants"], "grants", GRANTS_MAX) if "grants" in top else []
        return [grant for item in listed if (grant := self._tried(item)) is not None]

    def _tried(self, item: yaml.Node) -> Grant | None:
        try:
            return self._grant(item)
        except _Wrong as wrong:
            self.problems.append(Problem(GRANTS, wrong.sentence, wrong.line))
            return None

    def _grant(self, node: yaml.Node) -> Grant:
        parts = _mapping(node, "a grant", _KEYS)
        if "id" not in parts:
            raise _Wrong(_line(node), "the grant has no `id`; it is what refusals and the audit trail name")
        name = _text(parts["id"], "id")
        if not _ID.fullmatch(name):
            raise _Wrong(_line(parts["id"]), f"the id '{name}' is not 1 to 64 of letters, digits and . _ -")
        line = _line(node)
        if (earlier := self._ids.setdefault(name, line)) != line:
            raise _Wrong(_line(parts["id"]), f"the id '{name}' is taken in line {earlier}; give each grant its own")
        teams, users, services, agents = (_names(parts.get(key), key) for key in ("team", "user", "service", "agent"))
        if not teams and not users and not services:
            raise _Wrong(
                line, f"the grant '{name}' says not who: add `team: NAME`, `user: NAME`, or `team: '*'` for all"
            )
        if ANY in (*users, *services, *agents):
            raise _Wrong(line, "'*' is for `team`: it is everybody; leave `agent` out where any agent may act")
        if "tools" not in parts:
            raise _Wrong(line, f"the grant '{name}' has no `tools`; write for example `tools: {{git: [git_log]}}`")
        asks = _asks(parts.get("ask"))
        if asks is None and (stray := next((key for key in ("approver", "expires") if key in parts), "")):
            raise _Wrong(_line(parts[stray]), f"`{stray}` has a meaning only beside `ask`")
        return Grant(
            name,
            line,
            teams,
            users,
            agents,
            _uses(parts["tools"]),
            _limits(parts.get("limits"), "limits"),
            asks,
            _sentence(parts.get("reason"), "reason"),
            _sentence(parts.get("advice"), "advice"),
            services,
            _approver(parts.get("approver")),
            _expires(parts.get("expires")),
            _is_shadow(parts.get("mode")),
        )


def _uses(node: yaml.Node) -> tuple[Use, ...]:
    if not isinstance(node, yaml.MappingNode):
        raise _Wrong(_line(node), "`tools` takes servers with their tools: {git: [git_log, git_show], time: '*'}")
    found = [_use(name, value) for name, value in _mapping(node, "tools", None).items()]
    if not found:
        raise _Wrong(_line(node), "`tools` names no server")
    return tuple(found)


def _use(server: str, node: yaml.Node) -> Use:
    line = _line(node)
    if server != ANY and not _SERVER.fullmatch(server):
        raise _Wrong(line, f"'{server}' is no server's name: those have 1 to 12 of a-z, 0-9 and '-'")
    if isinstance(node, yaml.MappingNode):
        parts = _mapping(node, f"the tools of {server}", ("labels",))
        labels = _names(parts.get("labels"), "labels")
        if wrong := [label for label in labels if "/" in label or len(label) > 64]:
            raise _Wrong(line, f"'{wrong[0]}' is no label; labels have at most 64 characters and no '/'")
        if not labels:
            raise _Wrong(line, f"say by which labels: {server}: {{labels: [read-only]}}")
        return Use(server, (), labels, line)
    tools = _names(node, f"tools.{server}")
    if server == ANY:
        raise _Wrong(line, "for tools of all servers choose by label: '*': {labels: [read-only]}")
    if ANY in tools:
        if len(tools) > 1:
            raise _Wrong(line, f"'*' is all of {server}; take the other names out, or the '*'")
        return Use(server, (), (), line)
    if not tools:
        raise _Wrong(line, f"no tool of {server} is named; list them, or write '*' for all")
    return Use(server, tools, (), line)


def _limits(node: yaml.Node | None, what: str) -> tuple[Limit, ...]:
    if node is None:
        return ()
    if not isinstance(node, yaml.MappingNode):
        raise _Wrong(_line(node), f"`{what}` takes arguments: {{repo_path: data/shop, max_count: {{at_most: 50}}}}")
    return tuple(_limit(name, value, what) for name, value in _mapping(node, what, None).items())


def _limit(name: str, node: yaml.Node, what: str) -> Limit:
    path = tuple(name.split("."))
    line = _line(node)
    if not all(path):
        raise _Wrong(line, f"'{name}' is no argument's name; a dot leads into an object: filter.limit")
    if isinstance(node, yaml.ScalarNode):
        return Limit(path, (("equals", (_scalar(node, name),)),), False, line)
    if isinstance(node, yaml.SequenceNode):
        return Limit(path, (("one_of", _values(node, name)),), False, line)
    parts = _mapping(node, f"the limit on {name}", (*OPS, "optional"))
    optional = "optional" in parts and _truth(parts.pop("optional"), "optional")
    tests = tuple((op, _operands(op, parts[op], name)) for op in OPS if op in parts)
    if not tests:
        raise _Wrong(line, f"the limit on {name} says nothing; known are {', '.join(OPS)}")
    if what == "ask" and optional:
        raise _Wrong(line, f"`optional` has no meaning in `ask`: where {name} is not there, a person is asked")
    if any(op == "absent" for op, _ in tests) and (len(tests) > 1 or optional):
        raise _Wrong(
            line, f"{name}: `absent` stands alone; for a value or nothing write the value and `optional: true`"
        )
    return Limit(path, tests, optional, line)


def _operands(op: Op, node: yaml.Node, name: str) -> tuple[Value, ...]:
    if op == "absent":
        if not _truth(node, f"{name}.absent"):
            raise _Wrong(_line(node), f"{name}: write `absent: true`, or leave it out")
        return ()
    values = _values(node, f"{name}.{op}")
    line = _line(node)
    if op in _COMPARES and (len(values) != 1 or values[0].kind not in ("long", "decimal")):
        raise _Wrong(line, f"{name}: `{op}` takes one number")
    if op in _TEXTS and any(value.kind != "text" for value in values):
        raise _Wrong(line, f"{name}: `{op}` takes text, or a list of texts; put it in quotes")
    if op == "only" and any(value.kind == "decimal" for value in values):
        raise _Wrong(line, f"{name}: `only` takes texts or whole numbers")
    if op == "equals" and len(values) != 1:
        raise _Wrong(line, f"{name}: `equals` takes one value; for several write `one_of: […]`")
    if op == "below" and any(not value.text.strip("/") or ".." in value.text for value in values):
        raise _Wrong(line, f"{name}: `below` takes a directory without '..', for example docs/public")
    return values


def _values(node: yaml.Node, name: str) -> tuple[Value, ...]:
    if isinstance(node, yaml.ScalarNode):
        return (_scalar(node, name),)
    values = tuple(_scalar(item, name) for item in _sequence(node, name, LIST_MAX))
    if not values:
        raise _Wrong(_line(node), f"{name}: the list is empty, so no call would be granted")
    kinds = {"number" if value.kind in ("long", "decimal") else value.kind for value in values}
    if len(kinds) > 1:
        raise _Wrong(_line(node), f"{name}: the values are of different kinds ({', '.join(sorted(kinds))})")
    return values


def _asks(node: yaml.Node | None) -> tuple[Limit, ...] | None:
    if node is None:
        return None
    if isinstance(node, yaml.ScalarNode):
        return () if _truth(node, "ask") else None
    found = _limits(node, "ask")
    if not found:
        raise _Wrong(_line(node), "`ask` names no argument; to ask always write `ask: true`")
    return found


def _approver(node: yaml.Node | None) -> str:
    if node is None:
        return ""
    name = _text(node, "approver")
    if name != name.strip() or len(name) > APPROVER_MAX:
        raise _Wrong(_line(node), "`approver` takes `other` (anybody but the requester) or the name of a team")
    return name


def _expires(node: yaml.Node | None) -> str:
    if node is None:
        return ""
    text = _scalar(node, "expires").text
    try:
        duration_s(text, "`expires`")
    except ValueError as wrong:
        raise _Wrong(_line(node), str(wrong)) from None
    return text


def _is_shadow(node: yaml.Node | None) -> bool:
    if node is not None and _scalar(node, "mode").text != "shadow":
        raise _Wrong(_line(node), "`mode` takes only `shadow`; without it, the grant rules")
    return node is not None


def _scalar(node: yaml.Node, what: str) -> Value:
    if not isinstance(node, yaml.ScalarNode):
        raise _Wrong(_line(node), f"`{what}` takes a single value")
    tag, text, line = node.tag.rpartition(":")[2], node.value, _line(node)
    if tag == "null":
        raise _Wrong(line, f"`{what}` has no value; for an argument that must not be there write {{absent: true}}")
    if tag == "bool":
        return Value("bool", "true" if text.lower() in ("yes", "true", "on") else "false")
    if tag == "int":
        whole = yaml.SafeLoader("").construct_yaml_int(node)
        if not _LONG_MIN <= whole <= _LONG_MAX:
            raise _Wrong(line, f"`{what}`: {text} is outside the 64-bit range of whole numbers")
        return Value("long", str(whole))
    if tag == "float":
        if not _DECIMAL.fullmatch(text):
            raise _Wrong(
                line, f"`{what}`: {text} is no decimal; write at most four places after the point, as in 99.95"
            )
        return Value("decimal", text)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _Wrong(line, f"`{what}` holds half a character (a lone surrogate)") from None
    return Value("text", text)


def _mapping(node: yaml.Node, what: str, known: Iterable[str] | None) -> dict[str, yaml.Node]:
    """Keys to nodes; unknown and repeated keys are refused, with the one that was meant."""
    if not isinstance(node, yaml.MappingNode):
        raise _Wrong(_line(node), f"{what} must have keys and values" + (f": {', '.join(known)}" if known else ""))
    if len(node.value) > LIST_MAX:
        raise _Wrong(_line(node), f"{what} has more than {LIST_MAX} entries")
    found: dict[str, yaml.Node] = {}
    for key, value in node.value:
        name = key.value if isinstance(key, yaml.ScalarNode) else ""
        if name in found or not name:
            raise _Wrong(_line(key), f"{what} has '{name}' twice" if name else f"{what} has a key that is no text")
        if known is not None and name not in known:
            raise _Wrong(_line(key), f"'{name[:60]}' is not known in {what}; {_meant(name, known)}")
        found[name] = value
    return found


def _meant(name: str, known: Iterable[str]) -> str:
    listed = list(known)
    close = [_PLURALS[name]] if _PLURALS.get(name) in listed else difflib.get_close_matches(name, listed, 1, 0.6)
    return f"did you mean '{close[0]}'?" if close else f"known are {', '.join(listed)}"


def _sequence(node: yaml.Node, what: str, items_max: int) -> list[yaml.Node]:
    if not isinstance(node, yaml.SequenceNode):
        raise _Wrong(_line(node), f"`{what}` takes a list")
    if len(node.value) > items_max:
        raise _Wrong(_line(node), f"`{what}` has more than {items_max} entries")
    return list(node.value)


def _names(node: yaml.Node | None, what: str) -> tuple[str, ...]:
    """One name or a list of them, in order, each once."""
    if node is None:
        return ()
    items = [node] if isinstance(node, yaml.ScalarNode) else _sequence(node, what, LIST_MAX)
    if not items:
        raise _Wrong(_line(node), f"`{what}` is an empty list: leave it out, or name somebody")
    return tuple(dict.fromkeys(_text(item, what) for item in items))


def _text(node: yaml.Node, what: str) -> str:
    value = _scalar(node, what)
    if value.kind != "text" or not value.text.strip() or len(value.text) > NAME_MAX:
        raise _Wrong(
            _line(node), f"`{what}` takes a name of 1 to {NAME_MAX} characters; put '{value.text[:40]}' in quotes"
        )
    return value.text


def _sentence(node: yaml.Node | None, what: str) -> str:
    return "" if node is None else _scalar(node, what).text.strip()


def _truth(node: yaml.Node, what: str) -> bool:
    value = _scalar(node, what)
    if value.kind != "bool":
        raise _Wrong(_line(node), f"`{what}` takes true or false")
    return value.text == "true"


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
