"""The configuration file: read once, checked whole, refused with the key's path, what was expected and a suggestion.

`${VAR}` and `${VAR:-default}` are expanded in strings. Counterparts: `settings.py` has the keys, `settings_checks.py`
what types cannot say.
"""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import yaml

from tidegate.errors import ConfigFault
from tidegate.settings import Settings
from tidegate.settings_checks import check_settings, closest

_STEPS: Final = re.compile(r"\.[\w-]+|\[(?:\d+|\.\.\.)\]")


def load_settings(path: str | Path, environment: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
    """Read and check a configuration file. Raises ConfigFault. `overrides` replace top-level keys (from flags)."""
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigFault(
            f"{path}: cannot be read ({error.strerror}); give --config the path of a tidegate.yaml"
        ) from error
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigFault(f"{path}: is not valid YAML: {error}") from error
    if raw is None:
        raw = {}
    if not isinstance(raw, dict):
        raise ConfigFault(f"{path}: expected keys and values at the top, got {type(raw).__name__}")
    raw = _expand(raw, os.environ if environment is None else environment, "$")
    raw.update({key: value for key, value in overrides.items() if value is not None})
    raw["root"] = str(file.parent.resolve())
    return check_settings(_convert(raw, file), file)


def _convert(raw: dict[str, Any], file: Path) -> Settings:
    try:
        return msgspec.convert(raw, Settings)
    except msgspec.ValidationError as error:
        raise ConfigFault(f"{file}: {_sentence(str(error), raw)}") from error


def _sentence(message: str, raw: dict[str, Any]) -> str:
    """msgspec says "Object contains unknown field `x` - at `$.y`"; say the path first and suggest the nearest key."""
    what, _, where = message.partition(" - at ")
    path = where.strip("`") or "$"
    unknown = re.fullmatch(r"Object contains unknown field `(.*)`", what)
    if unknown is None:
        return _value_sentence(path, what, raw)
    known = _fields_at(path)
    return f"{path}.{unknown[1]}: unknown key{closest(unknown[1], known)}; known here: {', '.join(sorted(known))}"


def _value_sentence(path: str, what: str, raw: dict[str, Any]) -> str:
    """Of a value that is none of those that can be: which there are, and under which key it stands."""
    wrong = re.fullmatch(r"Invalid enum value (?:'(.*)'|(.*))", what)
    allowed = _literals(_node_at(path)) if wrong else ()
    if wrong is None or not allowed:
        return f"{path}: {what}"
    value = wrong[1] if wrong[1] is not None else wrong[2]
    near = closest(value, [str(one) for one in allowed])
    found = next(_paths(raw, _STEPS.findall(path), value), None)
    where = path if found is None else f"${found}"
    return f"{where}: '{value}' is none of {', '.join(str(one) for one in allowed)}{near}"


def _paths(node: Any, steps: list[str], value: str, at: str = "") -> Iterator[str]:
    """Where in the file the value stands: msgspec does not say under which of several keys."""
    if not steps:
        if str(node) == value:
            yield at
        return
    step, rest = steps[0], steps[1:]
    if not step.startswith("["):
        if isinstance(node, dict) and step[1:] in node:
            yield from _paths(node[step[1:]], rest, value, at + step)
    elif isinstance(node, dict):
        for key, one in node.items():
            yield from _paths(one, rest, value, f"{at}.{key}")
    elif isinstance(node, list):
        for index, one in enumerate(node):
            if step in ("[...]", f"[{index}]"):
                yield from _paths(one, rest, value, f"{at}[{index}]")


def _fields_at(path: str) -> list[str]:
    return _names(_node_at(path))


def _node_at(path: str) -> Any:
    node: Any = Settings
    for step in _STEPS.findall(path):
        node = _child(node, step.lstrip("."))
    return node


def _literals(node: Any) -> tuple[Any, ...]:
    info = node if isinstance(node, msgspec.inspect.Type) else msgspec.inspect.type_info(node)
    if isinstance(info, msgspec.inspect.UnionType):
        return tuple(value for part in info.types for value in _literals(part))
    return tuple(info.values) if isinstance(info, msgspec.inspect.LiteralType) else ()


def _child(node: Any, step: str) -> Any:
    info = msgspec.inspect.type_info(node) if not isinstance(node, msgspec.inspect.Type) else node
    if isinstance(info, msgspec.inspect.UnionType):
        info = next(part for part in info.types if not isinstance(part, msgspec.inspect.NoneType))
    if isinstance(info, msgspec.inspect.StructType):
        return next((field.type for field in info.fields if field.encode_name == step), info)
    if isinstance(info, msgspec.inspect.DictType):
        return info.value_type
    if isinstance(info, msgspec.inspect.VarTupleType):
        return info.item_type
    return info


def _names(node: Any) -> list[str]:
    info = msgspec.inspect.type_info(node) if not isinstance(node, msgspec.inspect.Type) else node
    if isinstance(info, msgspec.inspect.UnionType):
        info = next(part for part in info.types if not isinstance(part, msgspec.inspect.NoneType))
    if isinstance(info, msgspec.inspect.VarTupleType | msgspec.inspect.DictType):
        info = info.item_type if isinstance(info, msgspec.inspect.VarTupleType) else info.value_type
    if isinstance(info, msgspec.inspect.StructType):
        return [field.encode_name for field in info.fields if field.encode_name != "root"]
    return []


def _expand(node: Any, environment: Mapping[str, str], path: str) -> Any:
    if isinstance(node, dict):
        return {key: _expand(value, environment, f"{path}.{key}") for key, value in node.items()}
    if isinstance(node, list):
        return [_expand(value, environment, f"{path}[{index}]") for index, value in enumerate(node)]
    if not isinstance(node, str):
        return node

    def value_of(match: re.Match[str]) -> str:
        name, default = match[1], match[2]
        if name in environment:
            return environment[name]
        if default is None:
            raise ConfigFault(
                f"{path}: the environment variable {name} is not set; set it, or write ${{{name}:-default}}"
            )
        return default

    return re.sub(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}", value_of, node)
