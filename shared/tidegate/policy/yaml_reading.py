"""The strict reading of YAML that people write in a bundle: `grants.yaml`, `limits.yaml`, `definitions.yaml`.

Nodes in, values out, one small function for each shape. Rules: a slip is raised as `Wrong` with its line and what was
meant; nothing is guessed. Counterparts: `grants.py`, `budgets.py` and `definition_rules.py` say what their file means.
"""

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

import yaml

from tidegate.plain_yaml import NUMBER_CHARS_MAX, NotPlain, UsesAlias, check_plain

LIST_MAX: Final = 500
NAME_MAX: Final = 512
SERVER_NAME: Final = re.compile(r"[a-z][a-z0-9-]{0,11}")

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_LONG_MIN, _LONG_MAX = -(2**63), 2**63 - 1
_DECIMAL = re.compile(r"-?\d{1,14}\.\d{1,4}")
_BARE_SIGN = re.compile(r"(?::\s|[\[,-])\s*([*%@`][^\s,\]}]{0,40})")
_BARE_COLON = re.compile(r"\s*(?:-\s+)?[\w.]+:\s+(\S.*:(?:\s.*|$))")
_QUOTED_MAX = 60
_MEANT = {
    "teams": "team",
    "users": "user",
    "agents": "agent",
    "services": "service",
    "approvers": "approver",
    "tool": "tools",
    "server": "tools",
    "servers": "tools",
}


@dataclass(frozen=True)
class Value:
    """A scalar as it was written: text, truth, whole number, or a number with a fraction (its digits)."""

    kind: Literal["text", "bool", "long", "decimal"]
    text: str


class Wrong(Exception):
    """What a person wrote, and in which line. `at`: the node, or the line itself."""

    def __init__(self, at: yaml.Node | int, sentence: str) -> None:
        super().__init__(sentence)
        self.line = at if isinstance(at, int) else line_of(at)
        self.sentence = sentence


def composed(text: str, entry: str) -> yaml.Node | None:
    """The nodes of a file; `entry` is what it is a list of. None where it is empty. Raises Wrong."""
    try:
        check_plain(text)
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except UsesAlias as alias:
        sentence = f"uses a YAML alias (*name); write each {entry} out for its reviewers; text with * goes in quotes"
        raise Wrong(alias.line, sentence) from None
    except NotPlain as unfit:
        raise Wrong(unfit.line, str(unfit)) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        what = getattr(error, "problem", None) or str(error).replace("\n", " ")
        line = mark.line + 1 if mark else 1
        raise Wrong(line, f"is not YAML: {what}{quoting(text, line)}") from error


def quoting(text: str, line: int) -> str:
    """What to put in quotes, where a sign that means something to YAML seems to stand for itself in this line."""
    lines = text.splitlines()
    written = lines[line - 1] if line <= len(lines) else ""
    if star := _BARE_SIGN.search(written):
        return f"; put '{star[1]}' in quotes where it stands for itself"
    if (value := _BARE_COLON.match(written)) and value[1][0] not in "'\"[{&*!|>":
        return f"; put the text in quotes: '{_cut(value[1])}'" if "'" not in value[1] else "; put the text in quotes"
    return ""


def _cut(text: str) -> str:
    return text if len(text) <= _QUOTED_MAX else f"{text[:_QUOTED_MAX]}…"


def check_version(top: dict[str, yaml.Node], node: yaml.Node) -> None:
    """Raises Wrong."""
    if "v" not in top or scalar_of(top["v"], "v").text != "1":
        raise Wrong(top.get("v", node), "needs `v: 1`, the version of this language")


def entry_id(parts: dict[str, yaml.Node], node: yaml.Node, entry: str, taken: dict[str, int]) -> str:
    """The `id` of one entry, which becomes taken. Raises Wrong."""
    if "id" not in parts:
        raise Wrong(node, f"the {entry} has no `id`; it is what refusals and the audit trail name")
    name = text_of(parts["id"], "id")
    if not _ID.fullmatch(name):
        raise Wrong(parts["id"], f"the id '{name}' is not 1 to 64 of letters, digits and . _ -")
    if (earlier := taken.setdefault(name, line_of(node))) != line_of(node):
        raise Wrong(parts["id"], f"the id '{name}' is taken in line {earlier}; give each {entry} its own")
    return name


def scalar_of(node: yaml.Node, what: str) -> Value:
    if not isinstance(node, yaml.ScalarNode):
        raise Wrong(node, f"`{what}` takes a single value")
    tag, text, line = node.tag.rpartition(":")[2], node.value, line_of(node)
    if tag == "null":
        raise Wrong(line, f"`{what}` has no value; for an argument that must not be there write {{absent: true}}")
    if tag == "bool":
        return Value("bool", "true" if text.lower() in ("yes", "true", "on") else "false")
    if tag == "int":
        return Value("long", str(_whole(node, what)))
    if tag == "float":
        if not _DECIMAL.fullmatch(text):
            raise Wrong(line, f"`{what}`: {text} is no decimal; write at most four places after the point, as in 99.95")
        return Value("decimal", text)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Wrong(line, f"`{what}` holds half a character (a lone surrogate)") from None
    return Value("text", text)


def _whole(node: yaml.ScalarNode, what: str) -> int:
    try:
        if len(node.value) > NUMBER_CHARS_MAX:
            raise ValueError
        whole = int(yaml.SafeLoader("").construct_yaml_int(node))
    except (ValueError, IndexError):  # `0x_`, `!!int x`, thousands of digits
        raise Wrong(node, f"`{what}`: {node.value[:40]} is no whole number") from None
    if not _LONG_MIN <= whole <= _LONG_MAX:
        raise Wrong(node, f"`{what}`: {node.value[:40]} is outside the 64-bit range of whole numbers")
    return whole


def mapping_of(node: yaml.Node, what: str, known: Iterable[str] | None) -> dict[str, yaml.Node]:
    """Keys to nodes; unknown and repeated keys are refused, with the one that was meant."""
    if not isinstance(node, yaml.MappingNode):
        raise Wrong(node, f"{what} must have keys and values" + (f": {', '.join(known)}" if known else ""))
    if len(node.value) > LIST_MAX:
        raise Wrong(node, f"{what} has more than {LIST_MAX} entries")
    found: dict[str, yaml.Node] = {}
    for key, value in node.value:
        name = key.value if isinstance(key, yaml.ScalarNode) else ""
        if name in found or not name:
            raise Wrong(key, f"{what} has '{name}' twice" if name else f"{what} has a key that is no text")
        if known is not None and name not in known:
            raise Wrong(key, f"'{name[:60]}' is not known in {what}; {hint(name, known)}")
        found[name] = value
    return found


def hint(name: str, known: Iterable[str]) -> str:
    """What was meant, or else what there is."""
    listed = list(known)
    close = [_MEANT[name]] if _MEANT.get(name) in listed else difflib.get_close_matches(name, listed, 1, 0.6)
    return f"did you mean '{close[0]}'?" if close else f"known are {', '.join(listed)}"


def sequence_of(node: yaml.Node, what: str, items_max: int) -> list[yaml.Node]:
    if not isinstance(node, yaml.SequenceNode):
        raise Wrong(node, f"`{what}` takes a list")
    if len(node.value) > items_max:
        raise Wrong(node, f"`{what}` has more than {items_max} entries")
    return list(node.value)


def names_of(node: yaml.Node | None, what: str) -> tuple[str, ...]:
    """One name or a list of them, in order, each once."""
    if node is None:
        return ()
    items = [node] if isinstance(node, yaml.ScalarNode) else sequence_of(node, what, LIST_MAX)
    if not items:
        raise Wrong(node, f"`{what}` is an empty list: leave it out, or name somebody")
    return tuple(dict.fromkeys(text_of(item, what) for item in items))


def text_of(node: yaml.Node, what: str) -> str:
    value = scalar_of(node, what)
    if value.kind != "text" or not value.text.strip() or len(value.text) > NAME_MAX:
        raise Wrong(node, f"`{what}` takes a name of 1 to {NAME_MAX} characters; put '{value.text[:40]}' in quotes")
    return value.text


def sentence_of(node: yaml.Node | None, what: str) -> str:
    return "" if node is None else scalar_of(node, what).text.strip()


def truth_of(node: yaml.Node, what: str) -> bool:
    value = scalar_of(node, what)
    if value.kind != "bool":
        raise Wrong(node, f"`{what}` takes true or false")
    return value.text == "true"


def line_of(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
