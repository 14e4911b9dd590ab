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

from collections.abc import Iterable, Mapping
from typing import Final, Literal

import msgspec
import yaml

from tidegate.errors import BundleFault, Problem
from tidegate.events import Rank
from tidegate.policy.yaml_reading import SERVER_NAME, Wrong, check_version, composed, hint, mapping_of

DEFINITIONS: Final = "definitions.yaml"
BYTES_MAX: Final = 64 * 1024

Action = Literal["allow", "alert", "hold"]
ACTIONS: Final[tuple[Action, ...]] = ("allow", "alert", "hold")
CHANGED: Final[tuple[Rank, ...]] = ("cosmetic", "described", "narrowed", "widened", "instructing")
_KEYS: Final = ("first", "new", "changed")


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
    except Wrong as wrong:
        return NO_RULES, [Problem(DEFINITIONS, wrong.sentence, wrong.line)]
    except RecursionError:
        return NO_RULES, [Problem(DEFINITIONS, "nests too deep; it has three levels")]


def strange_servers(text: str, known: Iterable[str]) -> list[Problem]:
    """Servers of a file that can be read which are none of those that are known: not fatal, they may come later."""
    names = sorted(set(known))
    try:
        top = mapping_of(_composed(text), "the file", None)
        listed = mapping_of(top["servers"], "servers", None) if names and "servers" in top else {}
    except (Wrong, RecursionError):
        return []
    return [
        Problem(
            DEFINITIONS,
            f"schema.cedarschema has no server '{name[:60]}', so nothing goes by these rules; {hint(name, names)}",
            value.start_mark.line + 1,
            fatal=False,
        )
        for name, value in listed.items()
        if name not in names
    ]


def _composed(text: str) -> yaml.Node:
    if len(text.encode(errors="replace")) > BYTES_MAX:
        raise Wrong(1, f"has more than {BYTES_MAX} bytes")
    node = composed(text, "value")
    if node is None:
        raise Wrong(1, "is empty; it begins with `v: 1`")
    return node


def _file(node: yaml.Node) -> DefinitionRules:
    top = mapping_of(node, "the file", ("v", *_KEYS, "servers"))
    check_version(top, node)
    every = _rules(top, Rules())
    listed = mapping_of(top["servers"], "servers", None) if "servers" in top else {}
    servers: dict[str, Rules] = {}
    for name, value in listed.items():
        if not SERVER_NAME.fullmatch(name):
            raise Wrong(value, f"'{name[:60]}' is no server's name: those have 1 to 12 of a-z, 0-9 and '-'")
        servers[name] = _rules(mapping_of(value, f"servers.{name}", _KEYS), every)
    return DefinitionRules(every, servers)


def _rules(parts: Mapping[str, yaml.Node], default: Rules) -> Rules:
    given: dict[str, Action] = {}
    if "first" in parts:
        given["first"] = "hold" if _word(parts["first"], "first", ("trust", "hold")) == "hold" else "allow"
    if "new" in parts:
        given["new"] = _action(parts["new"], "new")
    if "changed" in parts:
        listed = mapping_of(parts["changed"], "changed", CHANGED)
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
        raise Wrong(node, f"`{what}` is one of {', '.join(words)}{given}")
    return str(value)
