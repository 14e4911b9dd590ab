"""Laws of replay: the bundle that decided decides the same again from what the event kept, and nothing but that."""

import json

import msgspec
from cedarpy._internal import Entities, PolicySet
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.parts.audit_events import requested
from tests.properties.test_policy_engine import (
    ARGUMENTS,
    ENTITIES,
    FACTS,
    PRINCIPALS,
    SERVERS,
    TOOLS,
    ZONE,
    Principal,
    policies,
)

from tidegate.chain import Chain, open_event
from tidegate.events import CallRequested, DecisionInputs, Sealed
from tidegate.policy.bundle import Bundle, bundle_of
from tidegate.policy.engine import BATCH_MAX, Engine, ToolFacts
from tidegate.policy.facts import NO_FACTS, Facts
from tidegate.policy.preparing import authorize, authorize_all
from tidegate.policy.replaying import Blank, Past, Replayer, differs, past_of
from tidegate.policy.tally import Tally
from tidegate.policy.verdict import Verdict

CALLS = st.lists(st.tuples(PRINCIPALS, st.sampled_from(TOOLS), ARGUMENTS, FACTS), min_size=1, max_size=6)
Calls = list[tuple[Principal, ToolFacts, dict[str, object], Facts]]


def bundle(text: str) -> Bundle:
    return bundle_of(
        {
            "manifest.json": json.dumps({"v": 1, "name": "t", "timezone": ZONE}).encode(),
            "policies/p.cedar": text.encode(),
            "entities.json": json.dumps(ENTITIES).encode(),
        }
    )


def recorded(
    ruling: Bundle,
    who: Principal,
    tool: ToolFacts,
    arguments: dict[str, object],
    facts: Facts = NO_FACTS,
    *,
    kept: bool = True,
    named: bool = True,
) -> Past:
    """As an edge records it, written and read: circumstances where they matter. `named`: and which these are."""
    engine = Engine.build(ruling, TOOLS, SERVERS)
    needs = engine.needs_facts(who, tool.server, tool.tool)
    verdict = engine.evaluate(who, tool.server, tool.tool, arguments, facts)
    own = SERVERS[tool.server]
    event = requested(
        agent=who.agent,
        server=tool.server,
        target=tool.tool,
        protocol=facts.protocol,
        decision=verdict.effect,
        reason=verdict.reason,
        rules=verdict.rules,
        labels=tuple(sorted({*own, *tool.labels})),
        inputs=DecisionInputs(
            bundle=ruling.digest,
            groups=who.groups,
            server_labels=own,
            now_us=facts.now_us,
            kind=who.kind,
            taint=facts.taint if "taint" in needs else (),
            facts=tuple(sorted(needs)) if named else (),
            arguments_kept=kept,
        ),
        sealed=Sealed(
            subject=who.user,
            address=facts.address if "network" in needs else "",
            arguments=msgspec.Raw(msgspec.json.encode(arguments if kept else {})),
        ),
    )
    read = open_event(Chain("w").seal(event).value or b"")
    assert isinstance(read, CallRequested)
    return past_of(read, read.sealed)


@settings(max_examples=60, deadline=None)
@given(policies(), CALLS)
def test_the_same_bundle_decides_the_same_again(text: str, calls: Calls) -> None:
    ruling = bundle(text)
    replayer = Replayer(ruling)
    tally = Tally(replayer)
    for who, tool, arguments, facts in calls:
        past = recorded(ruling, who, tool, arguments, facts)
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
    calls: Calls,
) -> None:
    ruling, candidate = bundle(before), bundle(after)
    tally = Tally(Replayer(candidate))
    engine = Engine.build(candidate, TOOLS, SERVERS)
    expected = lacking = 0
    for who, tool, arguments, facts in calls:
        past = recorded(ruling, who, tool, arguments, facts)
        if engine.needs_facts(who, tool.server, tool.tool) <= past.known:
            now = engine.evaluate(who, tool.server, tool.tool, arguments, facts)
            expected += now.effect != past.decision
        else:
            lacking += 1
        tally.add(past)
    found = tally.replayed()
    assert found.changed == expected == sum(change.calls for change in found.changes)
    assert (found.calls, found.not_kept) == (found.same + found.changed + lacking, lacking)


UNUSUAL = {"a": "\ud800", "b": 2**70, "c": {"__extn": {"fn": "ip", "arg": "x"}}, "d": [None]}  # parts have no form
PAGES = st.lists(
    st.tuples(PRINCIPALS, st.sampled_from(TOOLS), ARGUMENTS | st.just(UNUSUAL) | st.none(), FACTS, st.booleans()),
    max_size=12,
)
Pages = list[tuple[Principal, ToolFacts, dict[str, object] | None, Facts, bool]]


@settings(max_examples=100, deadline=None)
@given(policies(), PAGES)
def test_a_page_is_decided_as_its_calls_are_one_by_one(text: str, page: Pages) -> None:
    ruling = bundle(text)
    alone, engine = Replayer(ruling), Engine.build(ruling, TOOLS, SERVERS)
    pasts: list[Past] = []
    expected: list[Verdict | Blank] = []
    for number, (who, tool, arguments, facts, told) in enumerate(page):
        past = msgspec.structs.replace(
            recorded(ruling, who, tool, {}, facts),
            arguments=arguments,
            facts=facts,
            known=frozenset({"now", "time", "network", "taint", "protocol"} if told else {"protocol"}),
            stage="inspection" if number % 5 == 4 else "policy",
        )
        pasts.append(past)
        call = (who, tool.server, tool.tool)
        if past.stage != "policy":
            expected.append("elsewhere")
        elif engine.standing(*call) is None and (
            not engine.needs_facts(*call) <= past.known or (arguments is None and engine.needs_arguments(*call))
        ):
            expected.append("not-kept")
        else:
            expected.append(engine.evaluate(*call, arguments or {}, facts))
    assert Replayer(ruling).decide_all(pasts) == expected
    assert [alone.decide(past) for past in pasts] == expected


@settings(max_examples=60, deadline=None)
@given(policies(), CALLS)
def test_without_the_arguments_only_what_does_not_depend_on_them_is_decided(
    text: str,
    calls: Calls,
) -> None:
    ruling = bundle(text)
    replayer = Replayer(ruling)
    for who, tool, arguments, facts in calls:
        past = recorded(ruling, who, tool, arguments, facts, kept=False)
        verdict = replayer.decide(past)
        engine = Engine.build(ruling, TOOLS, SERVERS)
        if engine.needs_arguments(who, tool.server, tool.tool):
            assert verdict == "not-kept"
        else:
            assert isinstance(verdict, Verdict)
            assert differs(past, verdict) == ""


def test_an_event_that_tells_no_circumstances_is_decided_again_where_no_rule_needs_them() -> None:
    at_home = bundle(
        '@id("home") permit (principal, action in Action::"read", resource)\n'
        'when { context.network.ip.isInRange(ip("10.0.0.0/8")) };\n'
        '@id("clean") permit (principal, action == Action::"fs/write", resource)\n'
        'when { !context.taint.contains("sensitive") };\n'
    )
    replayer = Replayer(at_home)
    who, (read, write, _) = Principal("alice", "cursor", ()), TOOLS
    inside = Facts(now_us=1, address="10.0.0.9")
    assert replayer.decide(recorded(at_home, who, read, {}, named=False)) == "not-kept"
    assert replayer.decide(recorded(at_home, who, write, {}, named=False)) == "not-kept"
    told = recorded(at_home, who, read, {}, inside, named=False)
    verdict = replayer.decide(told)
    assert isinstance(verdict, Verdict)
    assert verdict.effect == "allow"
    assert differs(told, verdict) == ""
    older = Replayer(bundle('@id("all") permit (principal, action, resource);'))
    assert isinstance(older.decide(recorded(at_home, who, write, {}, named=False)), Verdict)


def test_what_came_of_a_question_is_compared_with_the_asking() -> None:
    asking = bundle(
        '@id("all") permit (principal, action, resource);\n'
        '@id("ask") @effect("ask") @approver("other") forbid (principal, action, resource);'
    )
    event = requested(
        server="fs",
        target="read",
        decision="allow",
        reason="approved",
        rules=("ask",),
        approval_id="a1",
        inputs=DecisionInputs(bundle=asking.digest, arguments_kept=True),
        sealed=Sealed(subject="alice", arguments=msgspec.Raw(b"{}")),
    )
    past = past_of(event, event.sealed)
    verdict = Replayer(asking).decide(past)
    assert isinstance(verdict, Verdict)
    assert differs(past, verdict) == ""
    assert isinstance(lax := Replayer(bundle('@id("all") permit (principal, action, resource);')).decide(past), Verdict)
    assert "decision: recorded ask, now allow" in differs(past, lax)


def test_what_no_rule_decided_and_whom_nobody_knows_any_more_are_told_apart() -> None:
    ruling = bundle('@id("all") permit (principal, action, resource);')
    replayer = Replayer(ruling)
    past = recorded(ruling, Principal("alice", "cursor", ()), TOOLS[0], {})
    assert replayer.decide(msgspec.structs.replace(past, stage="inspection")) == "elsewhere"
    assert replayer.decide(msgspec.structs.replace(past, reason="unknown-tool")) == "elsewhere"
    assert replayer.decide(msgspec.structs.replace(past, user="")) == "erased"


def test_more_calls_of_one_tool_than_cedar_is_asked_at_once_keep_their_order() -> None:
    ruling = bundle('@id("few") permit (principal, action, resource) when { context.args.a < 70 };')
    page = [recorded(ruling, Principal("alice", "cursor", ()), TOOLS[0], {"a": number}) for number in range(150)]
    assert len(page) > 2 * BATCH_MAX
    told = Replayer(ruling).decide_all(page)
    assert [verdict.effect for verdict in told if isinstance(verdict, Verdict)] == ["allow"] * 70 + ["deny"] * 80


def test_what_is_no_request_errs_alone() -> None:
    rules = PolicySet.from_str("permit (principal, action, resource) when { context.a == 1 };")
    who = {"principal": 'User::"u"', "action": 'Action::"a"', "resource": 'Server::"s"'}
    contexts = ['{"a":1}', '{"a":', "\ud800", '{"a":2}', '{"a":{"__extn":{"fn":"decimal","arg":"x"}}}', '{"b":1}']
    requests = [{**who, "context": context} for context in contexts]
    nobody = Entities.from_json_str("[]")
    for of in (requests, [request for request in requests if request["context"] != "\ud800"]):
        found = authorize_all(of, rules, nobody)
        assert found == [authorize(request, rules, nobody) for request in of]
        clean = [request["context"] for request, one in zip(of, found, strict=True) if not one.errors]
        assert clean == ['{"a":1}', '{"a":2}']
        assert found[0].reason == ["policy0"]
