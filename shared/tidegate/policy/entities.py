"""The entities that a decision is made over: the bundle's own, the tools as actions, the servers, and the principal.

Counterpart: `engine.py`. A target's entities (bundle, one action, one server) are parsed once; a principal is added
to a copy.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import msgspec
from cedarpy import _internal as cedar

from tidegate.errors import BundleFault, ConfigFault, Problem
from tidegate.policy.bundle import ENTITIES
from tidegate.policy.rules import Uid

CALL: Uid = ("Action", "call")


@dataclass(frozen=True)
class ToolFacts:
    """What rules may know of a tool: its server, the server's own name of it, and its labels."""

    server: str
    tool: str
    labels: tuple[str, ...] = ()


class _Entity(msgspec.Struct, frozen=True):
    uid: dict[str, Any]
    attrs: dict[str, Any] = {}
    parents: list[dict[str, Any]] = []
    tags: dict[str, Any] = {}


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

    @cached_property
    def parsed(self) -> cedar.Entities:
        """All of them. Raises ValueError where Cedar cannot read them."""
        return cedar.Entities.from_json_str(_json(self.entities.values()))

    def target(self, facts: ToolFacts, server_labels: Iterable[str]) -> "Target":
        """The entities for calls of one tool."""
        labels = sorted({*server_labels, *facts.labels})
        action = ("Action", f"{facts.server}/{facts.tool}")
        server = ("Server", facts.server)
        parents = [CALL, *(("Action", check_label(label)) for label in labels), *self.parents(action)]
        own = [
            _entity(action, parents),
            _entity(server, self.parents(server), {**self._attrs(server), "labels": sorted(set(server_labels))}),
        ]
        return Target(self, action, server, self.ancestors(parents), self.ancestors(self.parents(server)), own)

    def _attrs(self, uid: Uid) -> dict[str, Any]:
        return dict(self.entities[uid].attrs) if uid in self.entities else {}


@dataclass(frozen=True)
class Target:
    """One tool of one server, as Cedar sees it."""

    book: EntityBook
    action: Uid
    server: Uid
    action_ancestors: frozenset[Uid]
    server_ancestors: frozenset[Uid]
    own: list[_Entity]

    @cached_property
    def parsed(self) -> cedar.Entities:
        replaced = {self.action, self.server}
        if replaced.isdisjoint(self.book.entities):
            return self.book.parsed.with_added_json_str(_json(self.own))
        kept = [entity for uid, entity in self.book.entities.items() if uid not in replaced]
        return cedar.Entities.from_json_str(_json([*kept, *self.own]))

    def with_user(self, user: Uid, groups: Iterable[Uid]) -> cedar.Entities:
        """These entities and the user in these groups, and in those that the bundle puts the user in."""
        known = self.book.entities.get(user)
        if known is None:
            return self.parsed.with_added_json_str(_json([_entity(user, groups)]))
        merged = _entity(user, [*groups, *self.book.parents(user)], known.attrs, known.tags)
        replaced = {self.action, self.server, user}
        kept = [entity for uid, entity in self.book.entities.items() if uid not in replaced]
        return cedar.Entities.from_json_str(_json([*kept, *self.own, merged]))


def open_entities(text: str) -> EntityBook:
    """The book of an entities.json; "" holds none. Raises BundleFault."""
    try:
        listed = msgspec.json.decode(text or "[]", type=list[_Entity])
        book = EntityBook({_uid(entity.uid): entity for entity in listed})
        if len(book.entities) != len(listed):
            raise ValueError("an entity is listed twice")
        _ = book.parsed
    except (ValueError, KeyError, TypeError, RecursionError) as error:  # msgspec's errors are ValueErrors
        sentence = f"does not hold Cedar entities ([{{uid, attrs, parents}}, …]): {error}"
        raise BundleFault(f"{ENTITIES}: {sentence}", problems=[Problem(ENTITIES, sentence)]) from error
    return book


def check_label(label: str) -> str:
    """A label names an action group, so it may not look like a tool. Raises ConfigFault."""
    if not label or "/" in label or len(label) > 64:
        raise ConfigFault(f"the label '{label}' must have 1 to 64 characters and no '/'; '/' marks tools")
    return label


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
