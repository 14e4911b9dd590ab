"""YAML from outside: a first look before anything is built of it, and a loader that builds plain values alone.

A few bytes of YAML can mean gigabytes (aliases of aliases), and nesting, numbers and keys can cost the square of their
length. So: no aliases, bounded nesting, bounded numbers, keys that are text; what is refused has its line. Reading goes
event by event and stops there. Counterparts: `policy/yaml_reading.py`, `policy/cases.py`, `inspection/rules.py`.
"""

from collections.abc import Callable, Iterator
from typing import Any, Final

import yaml

NESTING_MAX: Final = 32
NUMBER_CHARS_MAX: Final = 400
_TEXT: Final = "tag:yaml.org,2002:str"
_MERGE: Final = "tag:yaml.org,2002:merge"


class NotPlain(ValueError):
    """What no file of ours may use. `line`: where it stands."""

    def __init__(self, line: int, sentence: str) -> None:
        super().__init__(sentence)
        self.line = line


class UsesAlias(NotPlain):
    """`*name`."""


def plain_events(text: str | bytes) -> Iterator[yaml.Event]:
    """The events of a text, as long as it is plain YAML. Raises yaml.YAMLError, NotPlain."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > NESTING_MAX:
                raise NotPlain(_line(event.start_mark), f"nests too deep: more than {NESTING_MAX} levels")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.AliasEvent):
            raise UsesAlias(_line(event.start_mark), "uses a YAML alias (*name); write it out")
        yield event


def check_plain(text: str | bytes) -> None:
    """Raises yaml.YAMLError, NotPlain."""
    for _ in plain_events(text):
        pass


class PlainLoader(yaml.SafeLoader):
    """For what `check_plain` has let pass: whatever cannot be built is a yaml.MarkedYAMLError with its place."""

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        value = super().construct_scalar(node)
        try:
            str(value).encode()
        except UnicodeEncodeError:
            raise _unfit("half a character (a lone surrogate)", node) from None
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():  # `!!map x`
            if not isinstance(key, yaml.ScalarNode) or key.tag not in (_TEXT, _MERGE):
                raise _unfit("a key that is no text: put it in quotes", key)
        return super().construct_mapping(node, deep)


def _built(construct: Callable[[Any, Any], Any]) -> Callable[[PlainLoader, yaml.Node], Any]:
    """PyYAML's own way, whose errors are not all YAML errors (`!!bool perhaps`, a date that no calendar has)."""

    def built(loader: PlainLoader, node: yaml.Node) -> Any:
        if len(node.value) > NUMBER_CHARS_MAX:
            raise _unfit(f"a number of more than {NUMBER_CHARS_MAX} characters: put it in quotes if it is text", node)
        try:
            return construct(loader, node)
        except (ValueError, LookupError, AttributeError, TypeError, ArithmeticError) as error:
            because = f": {error}" if isinstance(error, ValueError) else ""
            raise _unfit(f"'{str(node.value)[:40]}' is no {node.tag.rpartition(':')[2]}{because}", node) from None

    return built


for _name in ("bool", "int", "float", "timestamp"):
    _tag = f"tag:yaml.org,2002:{_name}"
    PlainLoader.add_constructor(_tag, _built(yaml.SafeLoader.yaml_constructors[_tag]))


def _unfit(sentence: str, node: yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, sentence, node.start_mark)


def _line(mark: Any) -> int:
    return int(mark.line) + 1 if mark else 1
