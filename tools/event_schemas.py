"""Publishes what the log holds: a JSON Schema for each event under docs/schemas, and the tables of docs/events.md, from
the structs and comments of `tidegate/events.py`.

`python -m tools.event_schemas` writes; a test compares. Files of types that are gone stay: their events are in logs.
"""

import ast
import inspect
import io
import json
import re
import tokenize
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Final, get_args

import msgspec
from msgspec.inspect import Field, LiteralType, StructType, VarTupleType, type_info
from tools.event_words import FIELDS, OF, TEXTS

from tidegate import events
from tidegate.chain import schema_uri
from tidegate.events import AnyEvent, Call, Event, FindingRaised, key_of, type_of
from tidegate.ocsf import finding as ocsf_finding

ROOT: Final = Path(__file__).resolve().parents[1]
PAGE: Final = ROOT / "docs" / "events.md"
SCHEMAS: Final = ROOT / "docs" / "schemas"
GENERATED: Final = re.compile(r"(?<=<!-- events -->\n).*?(?=<!-- /events -->)", re.DOTALL)

KINDS: Final[tuple[type[Event], ...]] = get_args(AnyEvent)
SCALARS: Final = {"StrType": "string", "IntType": "integer", "FloatType": "number", "BoolType": "boolean"}


class Words(msgspec.Struct, frozen=True):
    """What is said of a class: its docstring, and the comment behind each field."""

    text: str
    fields: dict[str, str]


@cache
def _said(module: ModuleType) -> Mapping[str, Words]:
    source = inspect.getsource(module)
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    classes = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    return {node.name: Words(ast.get_docstring(node) or "", dict(_commented(node, comments))) for node in classes}


def _commented(node: ast.ClassDef, comments: Mapping[int, str]) -> Iterator[tuple[str, str]]:
    for line in node.body:
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
            yield line.target.id, comments.get(line.end_lineno or line.lineno, "")


def _words(kind: type) -> Words:
    """Of the class, with the comments of what it inherits."""
    fields: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        module = inspect.getmodule(base)
        if module in (events, ocsf_finding) and base.__name__ in _said(module):
            fields |= _said(module)[base.__name__].fields
    module = inspect.getmodule(kind)
    text = _said(module)[kind.__name__].text if module in (events, ocsf_finding) else ""
    told = {field.name: fields.get(field.name) or _told(kind, field.name) for field in msgspec.structs.fields(kind)}
    return Words(" ".join(text.split()) or TEXTS.get(kind.__name__, ""), told)


def _told(kind: type, field: str) -> str:
    """By the class that declares the field first, where the same name means several things."""
    for base in kind.__mro__:
        if field in OF.get(base.__name__, {}):
            return OF[base.__name__][field]
    return FIELDS.get(field, "")


def unexplained() -> list[str]:
    """Events without a sentence, and fields without a meaning: none, if the words are complete."""
    whole: list[type] = [Event, Call, *KINDS, ocsf_finding.StoredFinding]
    kinds = [*whole, *(inner for kind in whole for inner in _structs(type_info(kind)))]
    bare = [kind.__name__ for kind in kinds if not _words(kind).text]
    fields = [f"{kind.__name__}.{name}" for kind in kinds for name, text in _words(kind).fields.items() if not text]
    return [*bare, *fields]


def schema_of(kind: type[Event]) -> dict[str, Any]:
    """Of the stored form. Open to members that it does not name: later releases add some."""
    name = type_of(kind)
    definitions: dict[str, Any] = {}
    if kind is FindingRaised:  # stored as the OCSF object alone
        info = type_info(ocsf_finding.StoredFinding)
        assert isinstance(info, StructType)
        own = _object(info, definitions)
        own["properties"]["class_uid"] = {"const": ocsf_finding.CLASS}
        own["description"] = _words(FindingRaised).text
    else:
        info = type_info(kind)
        assert isinstance(info, StructType)
        own = _object(info, definitions)
        own["properties"] = {"type": {"const": name}} | own["properties"]
        own["required"] = ["type", *own["required"]]
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": schema_uri(name.encode()).decode(),
        "title": name,
    }
    return head | own | ({"$defs": dict(sorted(definitions.items()))} if definitions else {})


def _object(info: StructType, definitions: dict[str, Any]) -> dict[str, Any]:
    words = _words(info.cls)
    properties = {field.encode_name: _member(field, words, definitions) for field in info.fields}
    required = [field.encode_name for field in info.fields if field.required]
    described = {"description": words.text} if words.text else {}
    return {**described, "type": "object", "properties": properties, "required": required}


def _member(field: Field, words: Words, definitions: dict[str, Any]) -> dict[str, Any]:
    member = _schema(field.type, definitions)
    if comment := words.fields.get(field.name):
        member = {**member, "description": comment}
    if isinstance(field.default, str | int):
        member = {**member, "default": field.default}
    return member


def _schema(info: msgspec.inspect.Type, definitions: dict[str, Any]) -> dict[str, Any]:
    match info:
        case LiteralType():
            return {"enum": list(info.values)}
        case VarTupleType():
            return {"type": "array", "items": _schema(info.item_type, definitions)}
        case msgspec.inspect.DictType():
            return {"type": "object", "additionalProperties": _schema(info.value_type, definitions)}
        case StructType():
            name = info.cls.__name__
            if name not in definitions:
                definitions[name] = {}
                definitions[name] = _object(info, definitions)
            return {"$ref": f"#/$defs/{name}"}
        case msgspec.inspect.RawType():
            return {}
    if (scalar := SCALARS.get(type(info).__name__)) is None:
        raise TypeError(f"no JSON Schema for {info}: teach tools/event_schemas.py")
    return {"type": scalar}


def files() -> dict[str, str]:
    """Every schema's text by its file's name."""
    return {f"{type_of(kind)}.json": json.dumps(schema_of(kind), indent=2) + "\n" for kind in KINDS}


def key_text(kind: type[Event]) -> str:
    """The log key in terms of fields, as "{tenant}|{subject_id}|{agent}"."""
    values: dict[str, Any] = {}
    for field in msgspec.structs.fields(kind):
        if field.required:
            info = type_info(field.type)
            others = {"IntType": 0, "RawType": msgspec.Raw(b"null")}
            values[field.name] = others.get(type(info).__name__, f"{{{field.name}}}")
    example: Any = kind(**values)
    return key_of(example).decode()


def tables() -> str:
    """The generated part of the page."""
    rows = [
        f"| [`{type_of(kind)}`](schemas/{type_of(kind)}.json) | `{events.TOPIC_OF[type_of(kind).split('.', 1)[0]]}` "
        f"| `{_cell(key_text(kind))}` | {_cell(_words(kind).text)} |"
        for kind in KINDS
    ]
    parts = ["| event | topic | key | what it says |\n|---|---|---|---|\n" + "\n".join(rows)]
    parts += [_section("Every event", Event), _section("Every event of a call", Call, beside=Event)]
    for kind in KINDS:
        if kind is not FindingRaised:
            base = Call if issubclass(kind, Call) else Event
            parts.append(_section(f"`{type_of(kind)}`", kind, beside=base))
    return "\n\n".join([*parts, *_shared_sections()]) + "\n"


def _shared_sections() -> list[str]:
    structs: dict[type, None] = {}
    for kind in KINDS:
        for inner in _structs(type_info(kind)):
            structs[inner] = None
    return [_section(f"The part `{struct.__name__}`", struct) for struct in structs]


def _structs(info: msgspec.inspect.Type) -> Iterator[type]:
    """What a struct holds, not itself."""
    for field in info.fields if isinstance(info, StructType) else ():
        inner = field.type.item_type if isinstance(field.type, VarTupleType) else field.type
        if isinstance(inner, StructType):
            yield inner.cls
            yield from _structs(inner)


def _section(title: str, kind: type, beside: type | None = None) -> str:
    info = type_info(kind)
    assert isinstance(info, StructType)
    words, known = _words(kind), {field.name for field in msgspec.structs.fields(beside)} if beside else set()
    fields = [field for field in info.fields if field.name not in known]
    rows = [
        f"| `{field.encode_name}` | {_shown(field)} | {_cell(words.fields.get(field.name, ''))} |" for field in fields
    ]
    table = "| field | type | meaning |\n|---|---|---|\n" + "\n".join(rows) if rows else "No fields of its own."
    return "\n\n".join(part for part in (f"### {title}", words.text, table) if part)


def _shown(field: Field) -> str:
    optional = "" if field.required else ", may be missing"
    match field.type:
        case LiteralType():
            return ", ".join(f"`{value}`" for value in field.type.values) + optional
        case VarTupleType():
            inner = field.type.item_type
            return f"list of {inner.cls.__name__ if isinstance(inner, StructType) else _plain(inner)}{optional}"
        case StructType():
            return field.type.cls.__name__ + optional
    return _plain(field.type) + optional


def _plain(info: msgspec.inspect.Type) -> str:
    return {"StrType": "text", "IntType": "integer", "FloatType": "number", "BoolType": "boolean"}.get(
        type(info).__name__, "any JSON"
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "\\<")


def page(before: str) -> str:
    """The page with its tables written anew. Raises ValueError where it has no place for them."""
    if not GENERATED.search(before):
        raise ValueError(f"{PAGE} has no lines <!-- events --> and <!-- /events -->")
    return GENERATED.sub(lambda _: f"\n{tables()}\n", before, count=1)


def main() -> None:
    SCHEMAS.mkdir(parents=True, exist_ok=True)
    for name, text in files().items():
        (SCHEMAS / name).write_text(text)
    PAGE.write_text(page(PAGE.read_text()))


if __name__ == "__main__":
    main()
