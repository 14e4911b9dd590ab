"""What an edge holds while definitions are compared: nothing is compared where calls are served."""

import json
import threading
import time
from typing import Any

import msgspec

from tidegate.events import ToolApproved, ToolDefined
from tidegate.policy.definition_rules import DefinitionRules, Rules
from tidegate_edge.catalog import Catalog, Item, Shelf
from tidegate_edge.holding import Holding

STRICT = DefinitionRules(Rules())


def large(end: str) -> dict[str, Any]:
    return {"name": "t", "inputSchema": {"anyOf": [{"const": f"{number}{end}"} for number in range(20_000)]}}


def item(definition: dict[str, Any], digest: str) -> Item:
    fields = {key: msgspec.Raw(json.dumps(value).encode()) for key, value in definition.items()}
    return Item("up", "t", "up__t", digest, (), fields, action="t")


def offering(*items: Item) -> Catalog:
    return Catalog({"up": Shelf("up", items, "x")})


def stamp(at_us: int) -> dict[str, Any]:
    return {"id": f"{at_us:032x}", "time_us": at_us, "tenant": "acme", "region": "local"}


def recorded(holding: Holding, definition: dict[str, Any], digest: str, at_us: int) -> None:
    raw = msgspec.Raw(json.dumps(definition).encode())
    holding.apply(ToolDefined(**stamp(at_us), server="up", tool="t", digest=digest, definition=raw))


def test_what_is_not_compared_yet_is_held_at_once_and_told_when_it_is() -> None:
    holding = Holding("acme")
    recorded(holding, large("a"), "a", 1)
    recorded(holding, large("b"), "b", 2)
    catalog = offering(item(large("b"), "b"))
    holding.is_stirred = False
    started = time.process_time()
    held = holding.held("acme", STRICT, catalog, tells=True)
    assert time.process_time() - started < 0.1, "a comparison of these takes longer"
    assert "being compared" in held["up", "t"]
    assert holding.is_stirred, "it is looked at again"
    assert not holding._untold, "what is not known yet is not told"
    waiting = holding.uncompared(catalog)
    assert [one.name for one in waiting] == ["t"]
    thread = threading.Thread(target=holding.compare, args=(waiting,))
    thread.start()
    thread.join(60)
    holding.is_stirred = False
    assert holding.uncompared(catalog) == []
    assert "has changed (widened)" in holding.held("acme", STRICT, catalog, tells=True)["up", "t"]
    assert not holding.is_stirred
    assert len(holding._untold) == 1


def test_what_was_approved_needs_no_comparison() -> None:
    holding = Holding("acme")
    recorded(holding, large("a"), "a", 1)
    recorded(holding, large("b"), "b", 2)
    holding.apply(ToolApproved(**stamp(3), server="up", tool="t", digest="b", actor="root"))
    catalog = offering(item(large("b"), "b"))
    assert holding.uncompared(catalog) == []
    assert holding.held("acme", STRICT, catalog, tells=True) == {}
