"""The tools, labels and limits of grants.yaml against the tools and arguments that schema.cedarschema has.

Limits ask whether an argument is there before they look at it, so Cedar's own check cannot tell a misspelt one from one
that is left out. Here the schema is asked for each argument by itself. Counterpart: `check.py`.
"""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping

import msgspec
from cedarpy import _internal as cedar

from tidegate.errors import Problem
from tidegate.policy.grants import ANY, GRANTS, Grant, Limit, Use
from tidegate.policy.grants_cedar import escaped, rule_id

_TOKEN = re.compile(r'"((?:\\.|[^"\\])*)"|//[^\n]*|([A-Za-z_]\w*)|(\S)', re.DOTALL)
_MISSING = re.compile(r"attribute `.*` in context for .* not found|does not have the attribute|attribute .* not found")
_ESCAPE = re.compile(r"\\(?:u\{([0-9A-Fa-f]{1,6})\}|(.))", re.DOTALL)
_SIGNS = {"n": "\n", "r": "\r", "t": "\t", "0": "\0"}
_PROBES_MAX = 5_000


def unknown_names(grants: Iterable[Grant], schema_text: str) -> list[Problem]:
    """A problem for each server, tool and label that the schema does not declare."""
    actions = declared_actions(schema_text)
    found: list[Problem] = []
    for grant in grants:
        for use in grant.uses:
            found += [Problem(GRANTS, sentence, use.line, rule_id(grant, use)) for sentence in unknown_in(use, actions)]
    return found


def unknown_in(use: Use, actions: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    """A sentence for each tool and label of a use that is not among the declared actions, and for its server."""
    for tool in use.tools:
        if sentence := unknown_tool(use.server, tool, actions):
            yield sentence
    if not use.tools and use.server != ANY and (sentence := unknown_server(use.server, actions)):
        yield sentence
    labels = [name for name in actions if "/" not in name]
    for label in use.labels:
        if label not in labels:
            yield f"the schema has no label '{label}'; {_hint(label, labels)}"


def unknown_tool(server: str, tool: str, actions: Mapping[str, tuple[str, ...]]) -> str:
    """A sentence, or "" where it is declared."""
    name = f"{server}/{tool}"
    if name in actions:
        return ""
    return f"the schema has no tool '{name}'; {_hint(name, [one for one in actions if '/' in one])}"


def unknown_server(server: str, actions: Mapping[str, tuple[str, ...]]) -> str:
    """A sentence, or "" where it has a declared action, or the schema names no server at all."""
    servers = {name.partition("/")[0] for name in actions if "/" in name}
    if not servers or server in servers:
        return ""
    return f"the schema has no server '{server}'; {_hint(server, sorted(servers), 0.5)}"


def unknown_arguments(grants: Iterable[Grant], schema_text: str, schema: cedar.Schema) -> list[Problem]:
    """A problem for each limit on an argument that a tool of its grant does not have."""
    actions = declared_actions(schema_text)
    known: dict[tuple[str, tuple[str, ...]], bool] = {}
    problems: list[Problem] = []
    for grant in grants:
        for limit in (*grant.limits, *(grant.asks or ())):
            for use in grant.uses:
                named = list(_meant(use, actions))
                lacking = [name for name in named if not _has(schema, name, limit.path, known)]
                if lacking and (use.tools or len(lacking) == len(named)):
                    sentence = _sentence(lacking, limit, actions)
                    problems.append(Problem(GRANTS, sentence, limit.line, rule_id(grant, use)))
    return problems


def declared_actions(schema_text: str) -> Mapping[str, tuple[str, ...]]:
    """The actions of a schema with the names that stand in their declaration: parents, arguments and their types."""
    found: dict[str, tuple[str, ...]] = {}
    names: list[str] = []
    words: list[str] = []
    heading = False
    depth = 0  # of braces: parents stand in none, arguments in three and more
    for token in _TOKEN.finditer(schema_text):
        literal, word, sign = token.groups()
        text = None if literal is None else _ESCAPE.sub(_unescaped, literal)
        if word == "action" and not names and not words:
            heading = True
        elif heading and sign != ";":
            depth += (sign == "{") - (sign == "}")
            if word in ("in", "appliesTo", "attributes") or sign == "{" or words:
                words.append("" if depth in (1, 2) else text or word or "")
            elif text or word:
                names.append(text or word)
        elif sign == ";":
            found.update({name: tuple(word for word in words if word) for name in names})
            names, words, heading, depth = [], [], False, 0
    return found


def _meant(use: Use, actions: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    """The declared actions that a use is about. By label: of those that name the label."""
    if use.tools:
        yield from (f"{use.server}/{tool}" for tool in use.tools if f"{use.server}/{tool}" in actions)
        return
    for name, words in actions.items():
        server, slash, _ = name.partition("/")
        if slash and use.server in (ANY, server) and (not use.labels or not set(use.labels).isdisjoint(words)):
            yield name


def _has(
    schema: cedar.Schema, action: str, path: tuple[str, ...], known: dict[tuple[str, tuple[str, ...]], bool]
) -> bool:
    """Whether the context of this action has such an argument, optional ones included."""
    key = (action, path)
    if key not in known and len(known) < _PROBES_MAX:
        at = "context.args" + "".join(f'["{escaped(name)}"]' for name in path)
        probe = f'permit (principal, action == Action::"{escaped(action)}", resource) when {{ {at} == {at} }};'
        errors = msgspec.json.decode(cedar.validate_policies(probe, schema))["errors"]
        known[key] = not any(_MISSING.search(error["error"]) for error in errors)
    return known.get(key, True)


def _sentence(lacking: list[str], limit: Limit, actions: Mapping[str, tuple[str, ...]]) -> str:
    name = ".".join(limit.path)
    words = list(dict.fromkeys(word for action in lacking for word in actions[action]))
    which = ", ".join(lacking[:3]) + (f" and {len(lacking) - 3} more" if len(lacking) > 3 else "")
    return f"{which} {'has' if len(lacking) == 1 else 'have'} no argument '{name}'; {_hint(limit.path[-1], words)}"


def _hint(name: str, known: Iterable[str], likeness: float = 0.7) -> str:
    close = difflib.get_close_matches(name, list(known), 1, likeness)
    return f"did you mean '{close[0]}'?" if close else "schema.cedarschema names what there is"


def _unescaped(match: re.Match[str]) -> str:
    code, sign = match.groups()
    return chr(min(int(code, 16), 0x10FFFF)) if code else _SIGNS.get(sign, sign)
