"""Prompts, resources and templates become events when they are seen, change or go; a restless server fills no log."""

import json
from typing import Any

from tidegate.events import AnyEvent, OfferDefined, OfferWithdrawn
from tidegate_edge.calls import Place
from tidegate_edge.offers import CHANGES_MAX, CHANGES_PER_S, Key, Offers
from tidegate_edge.shelves import Shelf, shelve
from tidegate_edge.upstream.port import Definitions


class World:
    """One server's offers, and the log that any edge folds."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.recorded: dict[Key, str] = {}
        self.offers = Offers(Place("t", "r", "e"), "acme", self.recorded, lambda: self.now_s)

    def see(self, shelf: Shelf, *partial: Any) -> list[AnyEvent]:
        events = self.offers.changes(shelf, partial)
        for event in events:
            if isinstance(event, OfferDefined):
                self.recorded[event.server, event.kind, event.target] = event.digest
            elif isinstance(event, OfferWithdrawn):
                del self.recorded[event.server, event.kind, event.target]
        self.offers.settled(shelf.server)
        return events


def shelf(prompts: tuple[str, ...] = (), resources: tuple[str, ...] = (), text: str = "") -> Shelf:
    return shelve(
        "wiki",
        Definitions(
            (),
            tuple(json.dumps({"name": name, "description": text}).encode() for name in prompts),
            tuple(json.dumps({"uri": uri, "name": "r"}).encode() for uri in resources),
            (json.dumps({"uriTemplate": "wiki://{page}", "name": "t"}).encode(),),
        ),
    )


def told(events: list[AnyEvent]) -> list[tuple[str, str, str]]:
    return [(type(one).__name__, one.kind, one.target) for one in events]  # type: ignore[union-attr]


def test_each_is_told_when_it_is_first_seen_when_it_changes_and_when_it_goes() -> None:
    world = World()
    first = world.see(shelf(("plan",), ("wiki://a",)))
    assert told(first) == [
        ("OfferDefined", "prompt", "plan"),
        ("OfferDefined", "resource", "wiki://a"),
        ("OfferDefined", "template", "wiki://{page}"),
    ]
    assert isinstance(first[0], OfferDefined)
    assert json.loads(bytes(first[0].definition))["name"] == "plan"
    assert world.see(shelf(("plan",), ("wiki://a",))) == []
    (changed,) = world.see(shelf(("plan",), ("wiki://a",), text="other words"))
    assert isinstance(changed, OfferDefined)
    assert (changed.target, changed.previous) == ("plan", first[0].digest)
    assert told(world.see(shelf((), ("wiki://b",)))) == [
        ("OfferWithdrawn", "prompt", "plan"),
        ("OfferDefined", "resource", "wiki://b"),
        ("OfferWithdrawn", "resource", "wiki://a"),
    ]


def test_of_a_list_that_is_not_whole_nothing_is_withdrawn() -> None:
    world = World()
    world.see(shelf(("plan",), ("wiki://a",)))
    assert world.see(shelf(), "prompts", "resources") == []
    assert told(world.see(shelf(), "prompts")) == [("OfferWithdrawn", "resource", "wiki://a")]


def test_what_another_edge_has_recorded_is_not_recorded_again() -> None:
    one, other = World(), World()
    one.see(shelf(("plan",)))
    other.recorded.update(one.recorded)
    assert other.see(shelf(("plan",))) == []


def test_a_server_that_offers_others_all_the_time_is_recorded_up_to_a_bound_and_then_by_the_hour() -> None:
    world, written = World(), 0
    for number in range(20):
        written += len(world.see(shelf(resources=tuple(f"wiki://{number}/{page}" for page in range(1_000)))))
    assert written == CHANGES_MAX
    assert world.offers.owed == {"wiki"}
    world.now_s += 3_600
    last = shelf(resources=("wiki://stays",))
    assert len(world.see(last)) == int(3_600 * CHANGES_PER_S)
    while world.offers.owed:
        world.now_s += 3_600
        world.see(last)
    assert set(world.recorded) == {("wiki", "resource", "wiki://stays"), ("wiki", "template", "wiki://{page}")}


def test_what_could_not_be_recorded_is_owed() -> None:
    world = World()
    world.offers.changes(shelf(("plan",)), ())
    assert world.offers.owed == {"wiki"}, "nobody said that it is durable"
    world.see(shelf(("plan",)))
    assert not world.offers.owed
