"""What a bundle's schema.cedarschema declares: the types of arguments, as a JSON Schema says them, and labels. Pure.

So that what the rules were checked against holds for what they are asked about. Cedar's own parser has read the text
before a bundle rules; what is not understood here declares nothing. Counterparts: `schema_writing.py` writes such a
file, `argument_types.py` compares.
"""

import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Final

from tidegate.policy.argument_types import Document
from tidegate.policy.bundle import SCHEMA

_TOKEN: Final = re.compile(r'"((?:\\.|[^"\\])*)"|//[^\n]*|([A-Za-z_]\w*(?:::[A-Za-z_]\w*)*)|(\S)', re.DOTALL)
_ESCAPE: Final = re.compile(r"\\(?:u\{([0-9A-Fa-f]{1,6})\}|(.))", re.DOTALL)
_SIGNS: Final = {"n": "\n", "r": "\r", "t": "\t", "0": "\0"}
_DEPTH_MAX: Final = 32
_PRIMITIVES: Final = {"Bool": "boolean", "Long": "integer", "String": "string", "decimal": "number"}
_ANY: Final[Mapping[str, Any]] = {}


class _NotRead(Exception):
    """The text is not of the form that is read here."""


def argument_types(schema_text: str) -> Mapping[str, Mapping[str, Any]]:
    """Action → what its `context.args` holds, as a JSON Schema; {} where the text is not understood."""
    try:
        return _Reading(schema_text).actions() if schema_text else {}
    except _NotRead:
        return {}


def declared_types(schema_text: str) -> dict[str, Document]:
    """The same, to be compared with."""
    return {action: Document(partial(dict, args), SCHEMA) for action, args in argument_types(schema_text).items()}


def declared_labels(schema_text: str) -> dict[str, tuple[str, ...]]:
    """Action → the groups that its declaration puts it in, `call` apart; {} where the text is not understood."""
    try:
        groups = _Reading(schema_text).groups() if schema_text else {}
    except _NotRead:
        return {}
    return {action: tuple(name for name in found if name != "call") for action, found in groups.items()}


class _Reading:
    """One text, read from left to right. A token is a literal (True, text) or a word or sign (False, text)."""

    def __init__(self, text: str) -> None:
        self._tokens = list(_tokens(text))
        self._at = 0
        self._types: dict[str, Mapping[str, Any]] = {}
        self._actions: dict[str, Mapping[str, Any]] = {}
        self._groups: dict[str, tuple[str, ...]] = {}

    def groups(self) -> Mapping[str, tuple[str, ...]]:
        while self._at < len(self._tokens):
            self._declaration()
        return self._groups

    def actions(self) -> Mapping[str, Mapping[str, Any]]:
        while self._at < len(self._tokens):
            self._declaration()
        return {name: args for name, context in self._actions.items() if (args := self._args(context))}

    def _args(self, context: Mapping[str, Any]) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self._resolved(context, 0).get("properties", {}).get("args", _ANY)
        return self._resolved(found, 0)

    def _resolved(self, kind: Mapping[str, Any], depth: int) -> Mapping[str, Any]:
        """With the types that have names put in their places."""
        if depth > _DEPTH_MAX:
            return _ANY
        if "name" in kind:
            return self._resolved(self._types.get(kind["name"], _ANY), depth + 1)
        found = dict(kind)
        if "properties" in kind:
            parts = kind["properties"]
            found["properties"] = {name: self._resolved(part, depth + 1) for name, part in parts.items()}
        if "items" in kind:
            found["items"] = self._resolved(kind["items"], depth + 1)
        return found

    def _declaration(self) -> None:
        while self._takes("@"):
            self._next()
            if self._takes("("):
                self._skip_to(")")
        _, word = self._next()
        if word == "type":
            _, name = self._next()
            self._expect("=")
            self._types[name] = self._type(0)
            self._skip_to(";")
        elif word == "action":
            self._action()
        elif word == "namespace":  # names within it are others than those that edges ask about
            raise _NotRead
        else:
            self._skip_to(";")

    def _action(self) -> None:
        names = [self._next()[1]]
        while self._takes(","):
            names.append(self._next()[1])
        self._groups.update(dict.fromkeys(names, ()))
        while not self._takes(";"):
            if self._takes("in"):
                self._groups.update(dict.fromkeys(names, tuple(self._parents())))
            elif self._takes("context"):
                self._expect(":")
                context = self._type(0)
                self._actions.update(dict.fromkeys(names, context))
            else:
                self._next()

    def _parents(self) -> Iterator[str]:
        if not self._takes("["):
            yield self._parent()
            return
        while not self._takes("]"):
            yield self._parent()
            self._takes(",")

    def _parent(self) -> str:
        """`egress`, or `Action::"egress"`."""
        _, name = self._next()
        if self._takes(":"):
            self._expect(":")
            _, name = self._next()
        return name

    def _type(self, depth: int) -> Mapping[str, Any]:
        if depth > _DEPTH_MAX:
            raise _NotRead
        if self._takes("{"):
            return {"type": ["object", "null"], "properties": self._members(depth)}
        _, word = self._next()
        if word == "Set":
            self._expect("<")
            items = self._type(depth + 1)
            self._expect(">")
            return {"type": ["array", "null"], "items": items}
        primitive = _PRIMITIVES.get(word.removeprefix("__cedar::"))
        # null is an absent attribute to Cedar, whether it may be absent or not
        return {"type": [primitive, "null"]} if primitive else {"name": word}

    def _members(self, depth: int) -> dict[str, Mapping[str, Any]]:
        found: dict[str, Mapping[str, Any]] = {}
        while not self._takes("}"):
            while self._takes("@"):
                self._next()
                if self._takes("("):
                    self._skip_to(")")
            _, name = self._next()
            self._takes("?")
            self._expect(":")
            found[name] = self._type(depth + 1)
            self._takes(",")
        return found

    def _next(self) -> tuple[bool, str]:
        if self._at >= len(self._tokens):
            raise _NotRead
        self._at += 1
        return self._tokens[self._at - 1]

    def _takes(self, sign: str) -> bool:
        if self._at < len(self._tokens) and self._tokens[self._at] == (False, sign):
            self._at += 1
            return True
        return False

    def _expect(self, sign: str) -> None:
        if not self._takes(sign):
            raise _NotRead

    def _skip_to(self, sign: str) -> None:
        while not self._takes(sign):
            self._next()


def _tokens(text: str) -> Iterator[tuple[bool, str]]:
    for token in _TOKEN.finditer(text):
        literal, word, sign = token.groups()
        if literal is not None:
            yield True, _ESCAPE.sub(_unescaped, literal)
        elif word or sign:
            yield False, word or sign


def _unescaped(match: re.Match[str]) -> str:
    code, sign = match.groups()
    return chr(min(int(code, 16), 0x10FFFF)) if code else _SIGNS.get(sign, sign)
