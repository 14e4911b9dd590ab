"""Which JSON types a tool's inputSchema admits where rules look, and whether arguments are of them. Pure.

For Cedar the text "true" is another value than `true`, and a rule that compares with `==` passes it; a server may read
both as true. So what a rule looks at has to be of a type that was declared, or the call is denied. Only types are
compared (`type`, `enum`, `const`, `anyOf`, `oneOf`, `allOf`, `$ref`, the members of objects, the items of lists):
whether a value is a good one is the server's to say. What declares no type admits every value. Counterparts:
`engine.py` asks, `cedar_types.py` reads the types of a bundle's own schema.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from types import NoneType
from typing import Any, Final, NamedTuple
from urllib.parse import unquote

import msgspec

from tidegate.limits import JSON_DEPTH_MAX, POLICY_VALUES_MAX
from tidegate.policy.rules import NOTHING, Need

INPUT_SCHEMA: Final = "inputSchema"
_TYPES: Final[Mapping[str, frozenset[type]]] = {
    "null": frozenset({NoneType}),
    "boolean": frozenset({bool}),
    "integer": frozenset({int}),
    "number": frozenset({int, float}),
    "string": frozenset({str}),
    "array": frozenset({list}),
    "object": frozenset({dict}),
}
_NAMES: Final = {
    NoneType: "null",
    bool: "a boolean",
    int: "an integer",
    float: "a number",
    str: "a string",
    list: "an array",
    dict: "an object",
}
PROMPTS_GET: Final = "prompts/get"
_NOTHING: Final = frozenset({object})
_PLAIN: Final = frozenset(_NAMES) - {dict, list} | _NOTHING
_STEPS_MAX: Final = 4 * POLICY_VALUES_MAX
_REFS_MAX: Final = 16
_ABSENT: Final = object()
_WHOLE: Final = Need(whole=True)
_decode: Final = msgspec.json.Decoder(dict[str, Any]).decode


def _read(schema: bytes | msgspec.Raw) -> Mapping[str, Any]:
    try:
        return _decode(schema)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}


def _read_within(definition: bytes | msgspec.Raw) -> Mapping[str, Any]:
    schema = _read(definition).get(INPUT_SCHEMA)
    return schema if isinstance(schema, dict) else {}


class Unlike(NamedTuple):
    """An argument of another type than was declared. `declared` and `came` are words, never the value."""

    path: str
    declared: str
    came: str
    by: str  # what declares it


class Document:
    """What one document declares of a tool's arguments; read at the first question."""

    def __init__(self, read: Callable[[], Mapping[str, Any]], name: str = INPUT_SCHEMA) -> None:
        self.name = name
        self._read = read
        self._nodes: dict[int, tuple[object, _Node]] = {}  # by identity; the schema is held with its node
        self._root: Mapping[str, Any] | None = None
        self._depth = 0

    @staticmethod
    def of_json(schema: bytes | msgspec.Raw) -> "Document":
        """An inputSchema as its server sent it. What is no JSON object declares nothing."""
        return Document(partial(_read, schema))

    @staticmethod
    def of_definition(definition: bytes | msgspec.Raw) -> "Document":
        """A tool's whole definition."""
        return Document(partial(_read_within, definition))

    @property
    def root(self) -> Mapping[str, Any]:
        if self._root is None:
            self._root = self._read()
        return self._root

    def declares(self, path: Sequence[str]) -> bool:
        """Whether the type of this argument is said, in whatever way."""
        node = self.node(self.root)
        for name in path:
            if node.groups:
                return True
            node = node.part(name)
        return not node.is_silent

    def names(self, argument: str) -> bool:
        properties = self.root.get("properties")
        return isinstance(properties, dict) and argument in properties

    def node(self, schema: object) -> "_Node":
        """What a schema of this document admits."""
        schema = self._followed(schema)
        if not isinstance(schema, dict) or not schema:
            return _ANY
        known = self._nodes.get(id(schema))
        if known is not None:
            return known[1]
        if self._depth >= JSON_DEPTH_MAX:  # alternatives within alternatives, over references
            return _ANY
        node = _Node(self, schema)
        self._nodes[id(schema)] = (schema, node)
        self._depth += 1
        node.settle()
        self._depth -= 1
        return node

    def _followed(self, schema: object) -> object:
        """Where a reference leads that stands alone."""
        for _ in range(_REFS_MAX):
            if not isinstance(schema, dict) or "$ref" not in schema or _KEYS.intersection(schema):
                return schema
            schema = self.target(schema["$ref"])
        return None

    def target(self, reference: object) -> object:
        """Within the document; None, which declares nothing, where it leads elsewhere or nowhere."""
        if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
            return None
        here: object = self.root
        for part in reference[2:].split("/") if reference != "#" else ():
            name = unquote(part).replace("~1", "/").replace("~0", "~")
            if isinstance(here, list):
                here = here[int(name)] if name.isdecimal() and len(name) < 6 and int(name) < len(here) else None
            else:
                here = here.get(name) if isinstance(here, dict) else None
        return here


_KEYS: Final = frozenset({"type", "enum", "const", "anyOf", "oneOf", "allOf", "properties", "items", "prefixItems"})


class _Node:
    """What is admitted at one place. `types` None: any."""

    __slots__ = ("_document", "_parts", "_schema", "groups", "types")

    def __init__(self, document: Document | None, schema: Mapping[str, Any]) -> None:
        self._document = document
        self._schema = schema
        self._parts: dict[str, _Node] = {}
        self.types: frozenset[type] | None = None
        self.groups: tuple[tuple[_Node, ...], ...] = ()  # of each group one has to fit

    def settle(self) -> None:
        """Alternatives that differ in their types alone are joined."""
        document, schema = self._document, self._schema
        assert document is not None
        self.types = _types_in(schema)
        groups: list[tuple[_Node, ...]] = []
        for key in ("anyOf", "oneOf"):
            listed = schema.get(key)
            if isinstance(listed, list) and listed:
                groups.append(tuple(document.node(one) for one in listed))
        listed = schema.get("allOf")
        groups += [(document.node(one),) for one in listed] if isinstance(listed, list) else []
        if "$ref" in schema:
            groups.append((document.node(document.target(schema["$ref"])),))
        kept = []
        for group in groups:
            self._narrow(group)
            if any(node.is_structured for node in group) and not any(node.is_silent for node in group):
                kept.append(group)
        self.groups = tuple(kept)

    def _narrow(self, group: tuple["_Node", ...]) -> None:
        if any(node.types is None for node in group):
            return
        joined = frozenset[type]().union(*(node.types or () for node in group))
        self.types = joined if self.types is None else self.types & joined

    @property
    def is_structured(self) -> bool:
        """Whether it says more than which types."""
        return bool(self.groups) or not _STRUCTURE.isdisjoint(self._schema)

    @property
    def is_silent(self) -> bool:
        return self.types is None and not self.is_structured

    def part(self, name: str) -> "_Node":
        """Of an object's member."""
        document = self._document
        if document is None:
            return _ANY
        known = self._parts.get(name)
        if known is not None:
            return known
        properties = self._schema.get("properties")
        if isinstance(properties, dict) and name in properties:
            found = self._parts[name] = document.node(properties[name])
            return found
        if "patternProperties" in self._schema:
            return _ANY
        return document.node(self._schema.get("additionalProperties"))

    def item(self, place: int) -> "_Node":
        """Of a list's items."""
        document = self._document
        if document is None:
            return _ANY
        first, rest = self._schema.get("prefixItems"), self._schema.get("items")
        if isinstance(rest, list):  # as drafts before 2020-12 have it
            first, rest = rest, self._schema.get("additionalItems")
        if isinstance(first, list) and place < len(first):
            return document.node(first[place])
        return document.node(rest)


_STRUCTURE: Final = frozenset({"properties", "additionalProperties", "items", "prefixItems", "additionalItems"})
_ANY: Final = _Node(None, {})


def _types_in(schema: Mapping[str, Any]) -> frozenset[type] | None:
    """By `type`, `enum` and `const`; None where they do not say, or in words that JSON Schema does not have."""
    named = schema.get("type")
    types = None
    if named is not None:
        listed = named if isinstance(named, list) else [named]
        if not all(isinstance(one, str) and one in _TYPES for one in listed):
            return None
        types = frozenset[type]().union(*(_TYPES[one] for one in listed))
    values = (
        schema["enum"] if isinstance(schema.get("enum"), list) else [schema["const"]] if "const" in schema else None
    )
    if values is not None:
        given = frozenset(type(value) for value in values)
        given |= _TYPES["number"] if float in given else frozenset()
        types = given if types is None else types & given
    if types is not None and (schema.get("nullable") is True or schema.get("default", _ABSENT) is None):
        types |= _TYPES["null"]
    return types


def admits(types: frozenset[type] | None, value: object) -> bool:
    """1.0 and 1e2 are integers, as JSON Schema counts them."""
    kind = type(value)
    if types is None or kind in types:
        return True
    return kind is float and int in types and value.is_integer()  # type: ignore[attr-defined]


class Expected:
    """Of one tool and what some rules look at. Made once for all calls of a route."""

    __slots__ = ("_documents", "_listed", "_need")

    def __init__(self, documents: tuple[Document, ...], need: Need) -> None:
        self._need = need
        self._documents = documents
        self._listed: tuple[_Looked, ...] | None = None
        roots = [(document.node(document.root), document.name) for document in documents]
        if not (need.whole or need.compared or any(root.groups for root, _ in roots)):
            self._listed = tuple(
                _Looked(name, _PLAIN if node.types is None else node.types & _PLAIN | _NOTHING, part, node, by)
                for name, part in need.parts.items()
                for root, by in roots
                if not (node := root.part(name)).is_silent
            )

    def unlike(self, arguments: Mapping[str, object]) -> Unlike | None:
        """The first argument that rules look at and that is of no type which was declared. Never raises."""
        listed = self._listed
        if listed is None:
            return self._unlike_whole(arguments)
        for name, fine, need, node, by in listed:
            value = arguments.get(name, _ABSENT)
            if type(value) in fine:
                continue
            found = _Comparing().compare(node, value, need, (name,))
            if found is not None:
                return found.told(by)
        return None

    def _unlike_whole(self, arguments: Mapping[str, object]) -> Unlike | None:
        arguments = arguments if type(arguments) is dict else dict(arguments)
        for document in self._documents:
            found = _Comparing().compare(document.node(document.root), arguments, self._need, ())
            if found is not None:
                return found.told(document.name)
        return None


class _Looked(NamedTuple):
    """An argument that rules look at, and of which something is declared."""

    name: str
    fine: frozenset[type]  # at a glance; that of `_ABSENT` among them
    need: Need
    node: _Node
    by: str


class _Found(NamedTuple):
    at: tuple[str, ...]
    declared: frozenset[type]  # empty: it could not be compared
    came: type

    def told(self, by: str) -> Unlike:
        path = ".".join(self.at).replace(".[]", "[]").encode("utf-8", "replace").decode()[:200] or "arguments"
        return Unlike(path, _worded(self.declared), _NAMES.get(self.came, "something else"), by)


def _worded(types: frozenset[type]) -> str:
    names = [name for kind, name in _NAMES.items() if kind in types and not (kind is int and float in types)]
    return " or ".join([*names[1:], *names[:1]] if NoneType in types else names)


class _Comparing:
    """One comparison, at a bounded price: alternatives within alternatives could make it without end."""

    def __init__(self) -> None:
        self._steps_left = _STEPS_MAX

    def compare(self, node: _Node, value: object, need: Need, at: tuple[str, ...]) -> _Found | None:
        self._steps_left -= 1
        if self._steps_left < 0 or len(at) > JSON_DEPTH_MAX:
            return _Found(at, frozenset(), type(value))
        if not admits(node.types, value):
            return _Found(at, node.types or frozenset(), type(value))
        found = next(self._among(node, value, need, at), None)
        if found is None and isinstance(value, dict):
            found = next(self._members(node, value, need, at), None)
        if found is None and isinstance(value, list) and need.whole:
            found = next(self._items(node, value, at), None)
        return found

    def _among(self, node: _Node, value: object, need: Need, at: tuple[str, ...]) -> Iterator[_Found]:
        """For each group of alternatives why none fits: the one that comes furthest says it."""
        for group in node.groups:
            found: list[_Found] = []
            for one in group:
                one_found = (
                    self.compare(one, value, need, at) if self._steps_left > 0 else _Found(at, frozenset(), object)
                )
                if one_found is None:
                    break
                found.append(one_found)
            else:
                yield max(found, key=lambda each: len(each.at))

    def _members(self, node: _Node, value: Mapping[str, object], need: Need, at: tuple[str, ...]) -> Iterator[_Found]:
        looked_at = value if need.whole or need.compared else need.parts
        for name in looked_at:
            inner = value.get(name, _ABSENT)
            part = node.part(name)
            if inner is _ABSENT or part is _ANY:
                continue
            needed = _WHOLE if need.whole or need.compared else need.parts.get(name, NOTHING)
            found = self.compare(part, inner, needed, (*at, name))
            if found is not None:
                yield found

    def _items(self, node: _Node, values: list[object], at: tuple[str, ...]) -> Iterator[_Found]:
        for place, value in enumerate(values):
            item = node.item(place)
            if item is not _ANY:
                found = self.compare(item, value, _WHOLE, (*at, "[]"))
                if found is not None:
                    yield found


_TEXT: Final = {"type": "string"}
_PROMPT: Final = {"properties": {"name": _TEXT, "arguments": {"type": "object", "additionalProperties": _TEXT}}}
PROMPTS: Final = Document(lambda: _PROMPT, "the protocol")
"""Of `prompts/get`, as rules see it: the arguments of a prompt are texts."""
