"""A bounded map whose entries end by themselves. Pure: `now` is an argument."""

from collections.abc import Iterator
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Expiring(Generic[K, V]):
    """At most `entries_max` entries; a full map lets the oldest go, so it serves as a cache and never as the truth."""

    __slots__ = ("_entries", "_entries_max")

    def __init__(self, entries_max: int) -> None:
        self._entries: dict[K, tuple[float, V]] = {}
        self._entries_max = entries_max

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[tuple[K, V]]:
        """What was written longest ago comes first; what has ended may be among it."""
        return ((key, value) for key, (_, value) in self._entries.items())

    def get(self, key: K, now: float) -> V | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        if now >= entry[0]:
            del self._entries[key]
            return None
        return entry[1]

    def put(self, key: K, value: V, until: float) -> None:
        self._entries.pop(key, None)  # so that the order of the map is the order of writing
        if len(self._entries) >= self._entries_max:
            del self._entries[next(iter(self._entries))]
        self._entries[key] = (until, value)

    def amend(self, key: K, value: V) -> None:
        """Change what is there; it ends when it would have."""
        if (entry := self._entries.get(key)) is not None:
            self._entries[key] = (entry[0], value)

    def drop(self, key: K) -> None:
        self._entries.pop(key, None)

    def clear(self) -> None:
        self._entries.clear()

    def sweep(self, now: float) -> None:
        """Let go of everything that has ended."""
        for key in [key for key, (until, _) in self._entries.items() if now >= until]:
            del self._entries[key]
