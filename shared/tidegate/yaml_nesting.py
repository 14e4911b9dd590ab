"""A first look at YAML from outside: how deep it nests, before anything is built of it.

Reading goes event by event and stops at what is refused, for the time that PyYAML takes grows with the square of the
depth. Counterparts: `policy/yaml_reading.py`, `policy/cases.py` and `inspection/rules.py` build what this has let pass.
"""

from collections.abc import Iterator
from typing import Final

import yaml

NESTING_MAX: Final = 32


class NestsTooDeep(ValueError):
    """`line`: where one level too many begins."""

    def __init__(self, line: int) -> None:
        super().__init__(f"nests too deep: more than {NESTING_MAX} levels")
        self.line = line


def shallow_events(text: str | bytes) -> Iterator[yaml.Event]:
    """The events of a text, as long as it is YAML and shallow. Raises yaml.YAMLError or NestsTooDeep."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > NESTING_MAX:
                raise NestsTooDeep(event.start_mark.line + 1 if event.start_mark else 1)
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        yield event


def check_nesting(text: str | bytes) -> None:
    """Raises yaml.YAMLError or NestsTooDeep."""
    for _ in shallow_events(text):
        pass
