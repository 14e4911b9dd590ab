"""The configuration file: read once, checked whole, refused with the key's path, what was expected and a suggestion.

`${VAR}` and `${VAR:-default}` are expanded in strings. Counterparts: `settings.py` has the keys, `settings_checks.py`
what types cannot say.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import yaml

from tidegate.errors import ConfigFault
from tidegate.settings import Settings
from tidegate.settings_checks import check_settings, closest

_STEPS: Final = re.compile(r"\.[\w-]+|\[(?:\d+|\.\.\.)\]")
_TYPES: Final = {
    "str": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "array": "a list",
    "object": "keys and values",
    "null": "nothing",
}
_EXAMPLES: Final = {"array": "[one, two]", "object": "{key: value}", "bool": "true", "int": "10"}


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
    what, _, told = message.partition(" - at ")
    path = told.removeprefix("`key` in ").strip("`") or "$"
    if told.startswith("`key`"):
        return f"{path}: keys are text; put the one that is {_TYPES.get(what.split('`')[-2], 'none')} in quotes"
    where = _located(message, path, raw)
    unknown = re.fullmatch(r"Object contains unknown field `(.*)`", what)
    if unknown is not None:
        known = _fields_at(path)
        return f"{where}.{unknown[1]}: unknown key{closest(unknown[1], known)}; known here: {', '.join(sorted(known))}"
    wrong = re.fullmatch(r"Expected `([\w |]+)`, got `(\w+)`", what)
    if wrong is not None:
        return f"{where}: {_type_sentence(path, wrong[1].split(' | '), wrong[2])}"
    return f"{where}: {_value_sentence(path, what)}"


def _type_sentence(path: str, wanted: list[str], got: str) -> str:
    """The value itself is not told: it may be a secret."""
    expected = " or ".join(_TYPES.get(one, one) for one in wanted if one != "null" or len(wanted) == 1)
    example = _default_at(path) or _EXAMPLES.get(wanted[0], "")
    if not example and wanted[0] == "str" and got in ("int", "float", "bool"):
        return f"expected {expected}, got {_TYPES[got]}; put it in quotes"
    key = (_STEPS.findall(path) or [""])[-1]
    such = f"; for example {key.lstrip('.')}: {example}" if example and key.startswith(".") else ""
    return f"expected {expected}, got {_TYPES.get(got, got)}{such}"


def _value_sentence(path: str, what: str) -> str:
    """Of a value that is none of those that can be: which there are."""
    wrong = re.fullmatch(r"Invalid enum value (?:'(.*)'|(.*))", what)
    allowed = _literals(_node_at(path)) if wrong else ()
    if wrong is None or not allowed:
        return what
    value = wrong[1] if wrong[1] is not None else wrong[2]
    near = closest(value, [str(one) for one in allowed])
    return f"'{value}' is none of {', '.join(str(one) for one in allowed)}{near}"


def _located(message: str, path: str, raw: dict[str, Any]) -> str:
    """The path with the file's keys, where msgspec writes `[...]` for whichever key of a mapping it was."""
    keys: list[Any] = []
    where = "$"
    for step in _STEPS.findall(path):
        if step == "[...]":
            members = _at(raw, keys)
            found = [key for key in members if _fault(_alone(raw, keys, key)) == message] if members else []
            if not found:
                return path
            raw = _alone(raw, keys, found[0])
            step = f".{found[0]}"
            keys.append(found[0])
        else:
            keys.append(step[1:] if step.startswith(".") else int(step[1:-1]))
        where += step
    return where if keys else path


def _at(node: Any, keys: list[Any]) -> dict[str, Any]:
    """The mapping at these keys; empty where there is none."""
    for key in keys:
        node = node[key]
    return node if isinstance(node, dict) else {}


def _alone(node: Any, keys: list[Any], key: str) -> Any:
    """A copy in which the mapping at `keys` has this key alone."""
    if not keys:
        return {key: node[key]}
    inner = _alone(node[keys[0]], keys[1:], key)
    if isinstance(node, list):
        return [*node[: keys[0]], inner, *node[keys[0] + 1 :]]
    return {**node, keys[0]: inner}


def _fault(raw: dict[str, Any]) -> str:
    try:
        msgspec.convert(raw, Settings)
    except msgspec.ValidationError as error:
        return str(error)
    return ""


def _default_at(path: str) -> str:
    """The default of the key at a path, as an example; "" where there is none to show."""
    before, _, key = path.rpartition(".")
    info = _struct(_node_at(before)) if before else None
    for field in info.fields if info else ():
        if field.encode_name == key and isinstance(field.default, str | int | float) and field.default != "":
            return str(field.default).lower() if isinstance(field.default, bool) else str(field.default)
    return ""


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
    info = _struct(node)
    return [field.encode_name for field in info.fields if field.encode_name != "root"] if info else []


def _struct(node: Any) -> msgspec.inspect.StructType | None:
    info = msgspec.inspect.type_info(node) if not isinstance(node, msgspec.inspect.Type) else node
    if isinstance(info, msgspec.inspect.UnionType):
        info = next(part for part in info.types if not isinstance(part, msgspec.inspect.NoneType))
    if isinstance(info, msgspec.inspect.VarTupleType | msgspec.inspect.DictType):
        info = info.item_type if isinstance(info, msgspec.inspect.VarTupleType) else info.value_type
    return info if isinstance(info, msgspec.inspect.StructType) else None


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
