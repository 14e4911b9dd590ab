"""Labels of tools at a moment: by the definition and the operator's word of then, and by what annotations suggested to
the edges of then, whatever they suggest today.
"""

from typing import Any

import msgspec

from tidegate.chain import Chain
from tidegate.events import ServerRegistered, ToolDefined
from tidegate.policy.history import World

NOW = 1_700_000_000_000_000
DELETES, READS = {"destructiveHint": True}, {"readOnlyHint": True}


class Catalogue:
    """What edges recorded of one tool, a second apart."""

    def __init__(self) -> None:
        self._values: list[bytes] = []
        self._chain = Chain("edge/test")

    def _add(self, kind: type, **fields: Any) -> "Catalogue":
        at_us = NOW + len(self._values) * 1_000_000
        fields.setdefault("suggested_known", "suggested" in fields)
        event = kind(id=f"e{at_us}", time_us=at_us, tenant="acme", region="eu", server="fs", **fields)
        self._values.append(self._chain.seal(event).value or b"")
        return self

    def registered(self, **fields: Any) -> "Catalogue":
        return self._add(ServerRegistered, transport="http", **fields)

    def defined(self, annotations: dict[str, bool], **fields: Any) -> "Catalogue":
        definition = msgspec.Raw(msgspec.json.encode({"name": "wipe", "annotations": annotations}))
        return self._add(ToolDefined, tool="wipe", digest="d", definition=definition, **fields)

    def labels(self, number: int) -> tuple[str, ...]:
        """After so many events."""
        world = World("acme", "main", NOW + (number - 1) * 1_000_000)
        for value in self._values:
            world.apply(value)
        return {facts.tool: facts.labels for facts in world.facts()}["wipe"]


def test_labels_are_those_of_the_definition_as_it_stood_then() -> None:
    known = Catalogue().registered().defined(READS).defined(DELETES)
    assert (known.labels(2), known.labels(3)) == ((), ("destructive",))


def test_what_edges_of_then_suggested_stands_whatever_is_suggested_today() -> None:
    known = Catalogue().registered(suggested={}).defined(DELETES, suggested=("risky",))
    assert known.labels(2) == ("risky",)
    known.registered(suggested={"wipe": ("risky", "worse")}, labels=("prod", "-worse"))
    assert known.labels(3) == ("prod", "risky")
    known.registered(suggested={})
    assert (known.labels(3), known.labels(4)) == (("prod", "risky"), ())


def test_edges_that_say_nothing_are_taken_to_have_suggested_what_is_suggested_today() -> None:
    known = Catalogue().registered().defined(DELETES).registered(suggested={}).registered()
    assert (known.labels(2), known.labels(3), known.labels(4)) == (("destructive",), (), ("destructive",))


def test_the_operator_s_word_replaces_what_was_suggested() -> None:
    known = Catalogue().registered(tool_labels={"wipe": ("safe",)}).defined(DELETES, suggested=("risky",))
    assert known.labels(2) == ("safe",)
