"""The configuration file: read once, checked whole, refused with the key's path, what was expected and a suggestion.

`${VAR}` and `${VAR:-default}` are expanded in strings. Counterparts: `settings.py` has the keys, `settings_checks.py`
what types cannot say.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import yaml

from tidegate.errors import ConfigFault
from tidegate.settings import Settings
from tidegate.settings_checks import check_settings, closest


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
        return f"{path}: {what}"
    known = _fields_at(path)
    return f"{path}.{unknown[1]}: unknown key{closest(unknown[1], known)}; known here: {', '.join(sorted(known))}"


def _fields_at(path: str) -> list[str]:
    node: Any = Settings
    for step in re.findall(r"\.([\w-]+)|\[(?:\d+|\.\.\.)\]", path):
        node = _child(node, step)
    return _names(node)


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
