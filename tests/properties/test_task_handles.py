"""What a task's handle keeps of arguments is bounded, and decides as the arguments do or denies."""

from functools import partial
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.policy.bundle import bundle_of
from tidegate.policy.engine import Engine, ToolFacts
from tidegate_edge import tasks
from tidegate_edge.messages import decode_fields
from tidegate_edge.targets import Handle

RULES = [
    '@id("p") permit (principal, action, resource);',
    '@id("p") permit (principal, action, resource) when { context.args has a && context.args.a == "x" };',
    '@id("p") permit (principal, action, resource) unless { context.args has b };',
    '@id("p") permit (principal, action, resource); @id("f") forbid (principal, action, resource)'
    " when { context.args has b && context.args.b has c && context.args.b.c > 3 };",
    '@id("p") permit (principal, action, resource); @id("f") forbid (principal, action, resource)'
    ' when { context.args has a && context.args.a like "*secret*" };',
    '@id("p") permit (principal, action, resource); @id("f") forbid (principal, action, resource)'
    ' when { context.args == {"a": "x"} };',
]
SMALL = st.sampled_from(["x", "a secret", "", 1, 0.5, None, True, [1, "x"], {"c": 9}, {"c": 1}])
LARGE = st.sampled_from(["x" * 3_000, {"c": 9, "d": "y" * 3_000}, ["secret"] * 900])
ARGUMENTS = st.dictionaries(st.sampled_from(["a", "b", "d"]) | st.text(max_size=300), SMALL | LARGE, max_size=8)


class Alice:
    user, agent, groups, kind = "alice", "lab", ("eng",), "user"


def engine_of(rules: str) -> Engine:
    files = {"manifest.json": '{"v": 1, "name": "x"}', "policies/p.cedar": rules}
    bundle = bundle_of({path: text.encode() for path, text in files.items()})
    return Engine.build(bundle, [ToolFacts("s", "t", ())], {"s": ()})


ENGINES = [engine_of(rules) for rules in RULES]


def handle_of(arguments: dict[str, Any]) -> Handle:
    """As it comes back from a client."""
    kept, left_out = tasks._kept(decode_fields(msgspec.json.encode(arguments)))
    handle = Handle("s", "t", "task", "root", arguments=kept, left_out=left_out)
    raw = msgspec.json.encode(handle)
    assert len(raw) < tasks.KEPT_BYTES_MAX + tasks.LEFT_OUT_BYTES_MAX + 512
    return msgspec.json.decode(raw, type=Handle)


@settings(max_examples=300)
@given(ARGUMENTS, st.sampled_from(ENGINES))
def test_by_a_handle_no_more_is_allowed_than_by_the_arguments(arguments: dict[str, Any], engine: Engine) -> None:
    handle = handle_of(arguments)
    decide = partial(engine.evaluate, Alice(), "s", "t")
    by_handle, by_arguments = decide(handle.known), decide(arguments)
    if handle.arguments is None:
        assert handle.known == {}
        assert engine.needs_arguments(Alice(), "s", "t") or by_handle == by_arguments
    elif not handle.left_out:
        assert handle.known == arguments
        assert by_handle == by_arguments
    else:
        assert by_handle.effect in ("deny", by_arguments.effect)


def test_what_is_small_is_kept_beside_what_is_large() -> None:
    handle = handle_of({"body": "x" * 100_000, "to": "bob", "urgent": True})
    assert (handle.arguments is not None and set(handle.arguments), handle.left_out) == ({"to", "urgent"}, ("body",))
    assert handle_of({}).arguments == {}
    assert handle_of({"x" * 600: "y" * 3_000}).arguments is None
