"""`definitions.yaml` of a bundle: what is done with tools that are new, or whose definition has changed.

    v: 1
    first: trust            # a server's first list: trust | hold
    new: alert              # a tool that comes later: allow | alert | hold
    changed:                # by the rank of the change
      cosmetic: allow
      described: alert
      narrowed: alert
      widened: hold
      instructing: hold
    servers:
      git: {new: hold}      # the same keys, for one server

What is left out is as above; without the file nothing is held, and what is widened or instructing alerts. Read
strictly: a slip is a problem with its line. Pure. Counterparts: `trusting.py` judges by it; `check.py` shows its
problems.
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Final, Literal

import msgspec
import yaml

from tidegate.errors import BundleFault, Problem
from tidegate.events import Rank

DEFINITIONS: Final = "definitions.yaml"
BYTES_MAX: Final = 64 * 1024
SERVERS_MAX: Final = 500

Action = Literal["allow", "alert", "hold"]
ACTIONS: Final[tuple[Action, ...]] = ("allow", "alert", "hold")
CHANGED: Final[tuple[Rank, ...]] = ("cosmetic", "described", "narrowed", "widened", "instructing")
_KEYS: Final = ("first", "new", "changed")
_SERVER: Final = re.compile(r"[a-z][a-z0-9-]{0,11}")


class Rules(msgspec.Struct, frozen=True):
    """Of one server. `first` is `allow` (trust) or `hold`."""

    first: Action = "allow"
    new: Action = "alert"
    cosmetic: Action = "allow"
    described: Action = "alert"
    narrowed: Action = "alert"
    widened: Action = "hold"
    instructing: Action = "hold"

    def on(self, rank: Rank) -> Action:
        """What is done with a change of this rank; `new`: with a tool that came later than its server's others."""
        action: Action = getattr(self, rank)
        return action


LAX: Final = Rules(new="allow", described="allow", narrowed="allow", widened="alert", instructing="alert")
"""Of a bundle without the file."""


class DefinitionRules(msgspec.Struct, frozen=True):
    """The file, read."""

    every: Rules = LAX
    servers: dict[str, Rules] = {}

    def of(self, server: str) -> Rules:
        return self.servers.get(server, self.every)


NO_RULES: Final = DefinitionRules()


def stricter(one: Action, other: Action) -> Action:
    return max(one, other, key=ACTIONS.index)


def load_definition_rules(content: bytes | None) -> DefinitionRules:
    """Of a bundle's file; None: it has none. Raises BundleFault with the problems."""
    if content is None:
        return NO_RULES
    rules, problems = read_definition_rules(content.decode(errors="replace"))
    if problems:
        raise BundleFault(str(problems[0]), problems=problems)
    return rules


def read_definition_rules(text: str) -> tuple[DefinitionRules, list[Problem]]:
    """The rules and what is wrong; with a problem the rules are those without the file. Never raises."""
    try:
        return _file(_composed(text)), []
    except _Wrong as wrong:
        return NO_RULES, [Problem(DEFINITIONS, wrong.sentence, wrong.line)]
    except RecursionError:
        return NO_RULES, [Problem(DEFINITIONS, "nests too deep; it has three levels")]


class _Wrong(Exception):
    def __init__(self, node: yaml.Node | int, sentence: str) -> None:
        super().__init__(sentence)
        self.line = node if isinstance(node, int) else int(node.start_mark.line) + 1
        self.sentence = sentence


def _composed(text: str) -> yaml.Node:
    if len(text.encode(errors="replace")) > BYTES_MAX:
        raise _Wrong(1, f"has more than {BYTES_MAX} bytes")
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
            raise _Wrong(1, "uses a YAML alias (*name); write each value out, it is what people review")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        what = getattr(error, "problem", None) or str(error).replace("\n", " ")
        raise _Wrong(mark.line + 1 if mark else 1, f"is not YAML: {what}") from error
    if node is None:
        raise _Wrong(1, "is empty; it begins with `v: 1`")
    return node


def _file(node: yaml.Node) -> DefinitionRules:
    top = _mapping(node, "the file", ("v", *_KEYS, "servers"))
    version = top.get("v")
    if not isinstance(version, yaml.ScalarNode) or version.value != "1":
        raise _Wrong(version or node, "needs `v: 1`, the version of this language")
    every = _rules(top, Rules())
    listed = _mapping(top["servers"], "servers", None) if "servers" in top else {}
    if len(listed) > SERVERS_MAX:
        raise _Wrong(top["servers"], f"names more than {SERVERS_MAX} servers")
    servers: dict[str, Rules] = {}
    for name, value in listed.items():
        if not _SERVER.fullmatch(name):
            raise _Wrong(value, f"'{name[:60]}' is no server's name: those have 1 to 12 of a-z, 0-9 and '-'")
        servers[name] = _rules(_mapping(value, f"servers.{name}", _KEYS), every)
    return DefinitionRules(every, servers)


def _rules(parts: Mapping[str, yaml.Node], default: Rules) -> Rules:
    given: dict[str, Action] = {}
    if "first" in parts:
        given["first"] = "hold" if _word(parts["first"], "first", ("trust", "hold")) == "hold" else "allow"
    if "new" in parts:
        given["new"] = _action(parts["new"], "new")
    if "changed" in parts:
        listed = _mapping(parts["changed"], "changed", CHANGED)
        given |= {rank: _action(value, f"changed.{rank}") for rank, value in listed.items()}
    return msgspec.structs.replace(default, **given)


def _action(node: yaml.Node, what: str) -> Action:
    word = _word(node, what, ACTIONS)
    return next(action for action in ACTIONS if action == word)


def _word(node: yaml.Node, what: str, known: Iterable[str]) -> str:
    words = list(known)
    value = node.value if isinstance(node, yaml.ScalarNode) else ""
    if value not in words:
        given = f", not '{value[:40]}'" if value else ""
        raise _Wrong(node, f"`{what}` is one of {', '.join(words)}{given}")
    return str(value)


def _mapping(node: yaml.Node, what: str, known: Iterable[str] | None) -> dict[str, yaml.Node]:
    if not isinstance(node, yaml.MappingNode):
        raise _Wrong(node, f"{what} must have keys and values" + (f": {', '.join(known)}" if known else ""))
    found: dict[str, yaml.Node] = {}
    for key, value in node.value:
        name = key.value if isinstance(key, yaml.ScalarNode) else ""
        if not name or name in found:
            raise _Wrong(key, f"{what} has '{name[:60]}' twice" if name else f"{what} has a key that is no text")
        if known is not None and name not in known:
            close = difflib.get_close_matches(name, list(known), 1, 0.6)
            hint = f"did you mean '{close[0]}'?" if close else f"known are {', '.join(known)}"
            raise _Wrong(key, f"'{name[:60]}' is not known in {what}; {hint}")
        found[name] = value
    return found
