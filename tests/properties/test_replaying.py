"""Laws of replay: the bundle that decided decides the same again from what the event kept, and nothing but that."""

import json

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.parts.audit_events import requested
from tests.properties.test_policy_engine import ARGUMENTS, ENTITIES, PRINCIPALS, SERVERS, TOOLS, Principal, policies

from tidegate.chain import Chain, open_event
from tidegate.events import CallRequested, DecisionInputs, Sealed
from tidegate.policy.bundle import Bundle, bundle_of
from tidegate.policy.engine import Engine, ToolFacts
from tidegate.policy.replaying import Past, Replayer, differs, past_of
from tidegate.policy.tally import Tally
from tidegate.policy.verdict import Verdict

CALLS = st.lists(st.tuples(PRINCIPALS, st.sampled_from(TOOLS), ARGUMENTS), min_size=1, max_size=6)


def bundle(text: str) -> Bundle:
    return bundle_of(
        {
            "manifest.json": b'{"v":1,"name":"t"}',
            "policies/p.cedar": text.encode(),
            "entities.json": json.dumps(ENTITIES).encode(),
        }
    )


def recorded(ruling: Bundle, who: Principal, facts: ToolFacts, arguments: dict[str, object], kept: bool = True) -> Past:
    """As an edge records it, written and read."""
    engine = Engine.build(ruling, TOOLS, SERVERS)
    verdict = engine.evaluate(who, facts.server, facts.tool, arguments)
    own = SERVERS[facts.server]
    event = requested(
        agent=who.agent,
        server=facts.server,
        target=facts.tool,
        decision=verdict.effect,
        reason=verdict.reason,
        rules=verdict.rules,
        labels=tuple(sorted({*own, *facts.labels})),
        inputs=DecisionInputs(bundle=ruling.digest, groups=who.groups, server_labels=own, arguments_kept=kept),
        sealed=Sealed(subject=who.user, arguments=msgspec.Raw(msgspec.json.encode(arguments if kept else {}))),
    )
    read = open_event(Chain("w").seal(event).value or b"")
    assert isinstance(read, CallRequested)
    return past_of(read, read.sealed)


@settings(max_examples=60, deadline=None)
@given(policies(), CALLS)
def test_the_same_bundle_decides_the_same_again(text: str, calls: list[tuple[Principal, ToolFacts, dict]]) -> None:  # type: ignore[type-arg]
    ruling = bundle(text)
    replayer = Replayer(ruling)
    tally = Tally(replayer)
    for who, facts, arguments in calls:
        past = recorded(ruling, who, facts, arguments)
        verdict = replayer.decide(past)
        assert isinstance(verdict, Verdict)
        assert differs(past, verdict) == ""
        tally.add(past)
    found = tally.replayed()
    assert (found.calls, found.same, found.changed, found.other_rules) == (len(calls), len(calls), 0, 0)


@settings(max_examples=60, deadline=None)
@given(policies(), policies(), CALLS)
def test_a_candidate_changes_what_its_own_engine_decides_otherwise(
    before: str,
    after: str,
    calls: list[tuple[Principal, ToolFacts, dict]],  # type: ignore[type-arg]
) -> None:
    ruling, candidate = bundle(before), bundle(after)
    tally = Tally(Replayer(candidate))
    expected = 0
    for who, facts, arguments in calls:
        past = recorded(ruling, who, facts, arguments)
        now = Engine.build(candidate, TOOLS, SERVERS).evaluate(who, facts.server, facts.tool, arguments)
        expected += now.effect != past.decision
        tally.add(past)
    found = tally.replayed()
    assert found.changed == expected == sum(change.calls for change in found.changes)
    assert found.calls == found.same + found.changed


@settings(max_examples=60, deadline=None)
@given(policies(), CALLS)
def test_without_the_arguments_only_what_does_not_depend_on_them_is_decided(
    text: str,
    calls: list[tuple[Principal, ToolFacts, dict]],  # type: ignore[type-arg]
) -> None:
    ruling = bundle(text)
    replayer = Replayer(ruling)
    for who, facts, arguments in calls:
        past = recorded(ruling, who, facts, arguments, kept=False)
        verdict = replayer.decide(past)
        standing = Engine.build(ruling, TOOLS, SERVERS).standing(who, facts.server, facts.tool)
        assert verdict == (standing or "not-kept")
        assert standing is None or differs(past, standing) == ""


def test_what_no_rule_decided_and_whom_nobody_knows_any_more_are_told_apart() -> None:
    ruling = bundle('@id("all") permit (principal, action, resource);')
    replayer = Replayer(ruling)
    past = recorded(ruling, Principal("alice", "cursor", ()), TOOLS[0], {})
    assert replayer.decide(msgspec.structs.replace(past, stage="inspection")) == "elsewhere"
    assert replayer.decide(msgspec.structs.replace(past, reason="unknown-tool")) == "elsewhere"
    assert replayer.decide(msgspec.structs.replace(past, user="")) == "erased"
