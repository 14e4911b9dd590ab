"""Names at a door of several servers: prefixes, the length that clients bear, and what to do where two servers say the
same. Pure. A shown name is never parsed: it resolves through the map that was made with it.

In `always` a name depends on the configuration and on the tool alone; in `collision` and `none` also on the others.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple, TypeVar

from tidegate.settings import Naming

HASH_CHARS: Final = 8
_HEX: Final = frozenset("0123456789abcdef")
K = TypeVar("K", bound=tuple[str, str])


class Names(NamedTuple):
    """What is shown for each (server, name), and those that are shown under no name since another has theirs."""

    shown: dict[tuple[str, str], str]
    lost: tuple[tuple[str, str], ...]


def name_all(rules: Naming, items: Iterable[tuple[str, str]], servers: Sequence[str]) -> Names:
    """Names for all tools (or all prompts) of a catalogue: (server, its own name) each. `servers` is their order in the
    configuration. No two get the same name.
    """
    ordered = sorted(set(items))
    given = {item: rules.names[key] for item in ordered if (key := "/".join(item)) in rules.names}
    reserved = frozenset(rules.names.values())
    rest = [item for item in ordered if item not in given]
    if rules.prefix == "none":
        place = {server: index for index, server in enumerate(servers)}
        rest.sort(key=lambda item: (place.get(item[0], len(place)), item))
        wanted = {item: fit(item[1], rules.length_max) for item in rest}
        return _first_come(given, wanted, reserved)
    prefixed = {item: free(prefixed_name(rules, *item), rules.length_max, reserved) for item in rest}
    if rules.prefix == "always":
        return _first_come(given, prefixed, frozenset())
    plain = {item: fit(item[1], rules.length_max) for item in rest}
    return _first_come(given, apart(plain, prefixed.__getitem__, reserved), frozenset())


def prefixed_name(rules: Naming, server: str, name: str) -> str:
    """`server__name`, cut where it is longer than clients bear."""
    return fit(f"{server}{rules.separator}{name}", rules.length_max)


def fit(full: str, length_max: int) -> str:
    """`full`, or its beginning and a stable hash of all of it. A whole name that looks like a cut one is cut, too: so
    whole and cut names never meet.
    """
    if len(full) < length_max or (len(full) == length_max and not _looks_cut(full)):
        return full
    return _cut(full, length_max)


def free(shown: str, length_max: int, reserved: frozenset[str]) -> str:
    """`shown`, or another name where an operator has given this one away."""
    for _ in range(4):
        if shown not in reserved:
            return shown
        shown = _cut(shown, length_max)
    return shown


def apart(plain: dict[K, str], qualified: Callable[[K], str], reserved: frozenset[str] = frozenset()) -> dict[K, str]:
    """The plain name for each, but the qualified one for all that would share theirs; decided over the whole, in no
    order.
    """
    shown = dict(plain)
    while True:
        count = Counter(shown.values())
        clashing = [
            item
            for item, name in shown.items()
            if (count[name] > 1 or name in reserved) and item in plain and name == plain[item]
        ]
        changed = False
        for item in clashing:
            other = qualified(item)
            changed = changed or other != shown[item]
            shown[item] = other
        if not changed:
            return shown


def _first_come(
    given: dict[tuple[str, str], str], wanted: dict[tuple[str, str], str], reserved: frozenset[str]
) -> Names:
    """Given names stand; of equal others the first one stays."""
    shown: dict[tuple[str, str], str] = {}
    taken = set(reserved)
    lost: list[tuple[str, str]] = []
    for item, name in (*given.items(), *wanted.items()):
        if item not in given and name in taken:
            lost.append(item)
            continue
        taken.add(name)
        shown[item] = name
    return Names(shown, tuple(lost))


def _looks_cut(name: str) -> bool:
    return name[-HASH_CHARS - 1] == "_" and _HEX.issuperset(name[-HASH_CHARS:])


def _cut(full: str, length_max: int) -> str:
    return f"{full[: length_max - HASH_CHARS - 1]}_{hashlib.sha256(full.encode()).hexdigest()[:HASH_CHARS]}"
