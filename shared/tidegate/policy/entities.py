"""The entities that a decision is made over: the bundle's own, the tools as actions, the servers, and the principal.

Counterpart: `engine.py`. Of a bundle's entities a decision gets those that it can reach: from the principal, the tool,
the server and what the rules name, over parents, attributes and tags. Cedar cannot look at any other.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec
from cedarpy import _internal as cedar

from tidegate.errors import BundleFault, ConfigFault, Problem
from tidegate.policy.argument_types import Document
from tidegate.policy.bundle import ENTITIES
from tidegate.policy.rules import Uid, entities_in

CALL: Uid = ("Action", "call")
CHECKED_AT_ONCE = 100


@dataclass(frozen=True)
class ToolFacts:
    """What rules may know of a tool: its server, the server's own name of it, its labels, and the types of its
    arguments (None: nobody says).
    """

    server: str
    tool: str
    labels: tuple[str, ...] = ()
    takes: Document | None = field(default=None, compare=False, repr=False)


class _Entity(msgspec.Struct, frozen=True):
    uid: dict[str, Any]
    attrs: dict[str, Any] = {}
    parents: list[dict[str, Any]] = []
    tags: dict[str, Any] = {}


_decode_list = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_entity = msgspec.json.Decoder(_Entity).decode


@dataclass(frozen=True)
class EntityBook:
    """The entities of a bundle, by uid. Made by `open_entities`."""

    entities: Mapping[Uid, _Entity] = field(default_factory=dict)

    def ancestors(self, parents: Iterable[Uid]) -> frozenset[Uid]:
        """The parents and all that they are in."""
        found: set[Uid] = set()
        waiting = list(parents)
        while waiting:
            uid = waiting.pop()
            if uid not in found:
                found.add(uid)
                waiting += self.parents(uid)
        return frozenset(found)

    def parents(self, uid: Uid) -> list[Uid]:
        entity = self.entities.get(uid)
        return [] if entity is None else [_uid(parent) for parent in entity.parents]

    def check(self) -> None:
        """Raises ValueError where Cedar cannot read them, or they are in one another in a circle.

        Some at a time: Cedar lets no other thread run while it reads.
        """
        listed = list(self.entities.values())
        for start in range(0, len(listed), CHECKED_AT_ONCE):
            cedar.Entities.from_json_str(_json(listed[start : start + CHECKED_AT_ONCE]))
        settled: set[Uid] = set()
        for uid in self.entities:
            self._settle(uid, settled)

    def _settle(self, uid: Uid, settled: set[Uid]) -> None:
        """Depth first; what is on the way twice is in itself."""
        way: dict[Uid, Iterator[Uid]] = {}
        waiting = iter((uid,))
        while True:
            found = next((one for one in waiting if one not in settled), None)
            if found is not None and found in way:
                raise ValueError(f'{found[0]}::"{found[1]}" is in itself, over its parents')
            if found is not None:
                waiting = way[found] = iter(self.parents(found))
            elif not way:
                return
            else:
                settled.add(way.popitem()[0])
                waiting = next(reversed(way.values()), iter(()))

    def reached(self, start: Iterable[Uid]) -> Iterator[_Entity]:
        """Those of these that the bundle has, and all that they lead to."""
        seen: set[Uid] = set()
        waiting = list(start)
        while waiting:
            uid = waiting.pop()
            if uid in seen or uid not in self.entities:
                continue
            seen.add(uid)
            yield self.entities[uid]
            waiting += _named_by(self.entities[uid])

    def target(self, facts: ToolFacts, server_labels: Iterable[str]) -> "Target":
        """The entities for calls of one tool."""
        labels = sorted({*server_labels, *facts.labels})
        action = ("Action", f"{facts.server}/{facts.tool}")
        server = ("Server", facts.server)
        known = self.known(server)
        parents = [CALL, *(("Action", check_label(label)) for label in labels), *self.parents(action)]
        own = [
            _entity(action, parents, self.known(action).attrs, self.known(action).tags),
            _entity(server, self.parents(server), {**known.attrs, "labels": sorted(set(server_labels))}, known.tags),
        ]
        return Target(self, action, server, self.ancestors(parents), self.ancestors(self.parents(server)), own)

    def known(self, uid: Uid) -> _Entity:
        """The bundle's, or one without anything."""
        return self.entities.get(uid) or _Entity(uid={})


@dataclass(frozen=True)
class Target:
    """One tool of one server, as Cedar sees it."""

    book: EntityBook
    action: Uid
    server: Uid
    action_ancestors: frozenset[Uid]
    server_ancestors: frozenset[Uid]
    own: list[_Entity]

    @property
    def tool(self) -> str:
        return self.action[1].removeprefix(f"{self.server[1]}/")

    def with_user(self, user: Uid, groups: Iterable[Uid], named: Iterable[Uid] = ()) -> "Reach":
        """What can matter for the user in these groups, and in those that the bundle puts the user in; `named`: what
        the rules name. Raises ValueError where Cedar cannot read it.
        """
        known = self.book.known(user)
        merged = _entity(user, [*groups, *self.book.parents(user)], known.attrs, known.tags)
        own = [*self.own, merged]
        replaced = {self.action, self.server, user}
        start = [uid for entity in own for uid in _named_by(entity)]
        others = [entity for entity in self.book.reached([*start, *named]) if _uid(entity.uid) not in replaced]
        return Reach(cedar.Entities.from_json_str(_json([*own, *others])), len(own) + len(others))


class Reach(NamedTuple):
    """Entities as Cedar takes them, and how many they are."""

    entities: cedar.Entities
    size: int


def open_entities(text: str) -> EntityBook:
    """The book of an entities.json; "" holds none. Raises BundleFault."""
    try:  # one at a time: the decoder lets no other thread run while it reads
        listed = [_decode_entity(raw) for raw in _decode_list(text or "[]")]
        book = EntityBook({_uid(entity.uid): entity for entity in listed})
        if len(book.entities) != len(listed):
            raise ValueError("an entity is listed twice")
        book.check()
    except (ValueError, KeyError, TypeError, RecursionError) as error:  # msgspec's errors are ValueErrors
        sentence = f"does not hold Cedar entities ([{{uid, attrs, parents}}, …]): {error}"
        raise BundleFault(f"{ENTITIES}: {sentence}", problems=[Problem(ENTITIES, sentence)]) from error
    return book


def check_label(label: str) -> str:
    """A label names an action group, so it may not look like a tool. Raises ConfigFault."""
    if not label or "/" in label or len(label) > 64:
        raise ConfigFault(f"the label '{label}' must have 1 to 64 characters and no '/'; '/' marks tools")
    return label


def _named_by(entity: _Entity) -> Iterator[Uid]:
    return entities_in([entity.parents, entity.attrs, entity.tags])


def _uid(given: Mapping[str, Any]) -> Uid:
    inner = given.get("__entity", given)
    return str(inner["type"]), str(inner["id"])


def _entity(
    uid: Uid, parents: Iterable[Uid], attrs: Mapping[str, Any] | None = None, tags: Mapping[str, Any] | None = None
) -> _Entity:
    unique = dict.fromkeys(parent for parent in parents if parent != uid)
    return _Entity(
        uid={"type": uid[0], "id": uid[1]},
        attrs=dict(attrs or {}),
        parents=[{"type": kind, "id": name} for kind, name in unique],
        tags=dict(tags or {}),
    )


def _json(entities: Iterable[_Entity]) -> str:
    return msgspec.json.encode(list(entities)).decode()
