"""Calls that a rule asks about, over two edges: who is asked, what an answer does, that a yes lets one call pass."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from tests.parts.approving import AWAY, NO, NONE, WHY, House, asked, every, house, nonce, refusal, yes
from tests.parts.edge import SECRET, until

from tidegate.events import CallRequested

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def at(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    async with house(tmp_path_factory.mktemp("approvals")) as running:
        yield running


async def test_a_form_that_is_accepted_at_another_edge_lets_the_call_pass_once(at: House) -> None:
    mark, alice = nonce(), at.person()
    arguments = {"words": mark, "to": "everybody"}
    question, state = asked(await alice.call("up__note", arguments))
    for told in ("tests wants to call the tool note of the server up", "alice", WHY, mark, "UTC"):
        assert told in question["message"]
    assert question["requestedSchema"]["required"] == ["approve"]
    assert at.sighted(mark) == 0
    answer = await alice.call("up__note", arguments, at=1, state=state, responses=yes("it is fine"))
    assert mark in answer.text
    (used,) = [one for one in await at.stored("calls") if isinstance(one, CallRequested) and one.reason == "approved"]
    assert await at.steps(used.approval_id) == ["Requested", "Granted", "Consumed"]
    assert (at.sighted(mark), await at.decisions(mark)) == (1, Counter(ask=1, allow=1))
    assert used.rules == ("ask-note",)
    assert at.sighted("it is fine") == at.sighted("inputResponses") == 0  # the answer is no server's to see
    for edge in (0, 1):  # the same answer again, anywhere: it is a new question
        asked(await alice.call("up__note", arguments, at=edge, state=state, responses=yes()))
    assert (at.sighted(mark), await at.completions(mark)) == (1, 1)


async def test_a_call_that_is_declined_is_not_made_and_not_asked_about_again(at: House) -> None:
    mark, alice = nonce(), at.person()
    _, state = asked(await alice.call("up__note", {"words": mark}))
    declined = refusal(await alice.call("up__note", {"words": mark}, at=1, state=state, responses=NO))
    assert (declined["reason"], declined["rules"]) == ("approval-denied", ["ask-note"])
    for edge in (0, 1):
        again = await alice.call("up__note", {"words": mark}, at=edge)
        assert refusal(again)["reason"] == "approval-denied"
        assert "denied by you" in again.text
    yes_after_no = await alice.call("up__note", {"words": mark}, state=state, responses=yes())
    assert refusal(yes_after_no)["reason"] == "approval-denied"
    assert (at.sighted(mark), await at.decisions(mark)) == (0, Counter(ask=1, deny=4))


async def test_who_declines_is_heard_even_if_somebody_else_agreed_meanwhile(at: House) -> None:
    mark, alice = nonce(), at.person()
    _, state = asked(await alice.call("up__note", {"words": mark}))
    approval_id = refusal(await alice.call("up__note", {"words": mark}, can=NONE))["approval"]["id"]
    await at.decide(approval_id, grant=True)
    answer = await alice.call("up__note", {"words": mark}, state=state, responses=NO)
    assert refusal(answer)["reason"] == "approval-denied"
    assert refusal(await alice.call("up__note", {"words": mark}, at=1))["reason"] == "approval-denied"
    assert at.sighted(mark) == 0


async def test_a_no_in_the_form_is_a_no(at: House) -> None:
    mark, alice = nonce(), at.person()
    _, state = asked(await alice.call("up__note", {"words": mark}))
    no = {"approval": {"action": "accept", "content": {"approve": False, "reason": "not to everybody"}}}
    answer = await alice.call("up__note", {"words": mark}, state=state, responses=no)
    assert refusal(answer)["reason"] == "approval-denied"
    assert "not to everybody" in answer.text
    assert at.sighted(mark) == 0


async def test_a_question_that_is_put_away_stays_and_is_put_again(at: House) -> None:
    mark, alice = nonce(), at.person()
    _, state = asked(await alice.call("up__note", {"words": mark}))
    away = refusal(await alice.call("up__note", {"words": mark}, state=state, responses=AWAY))
    assert away["reason"] == "approval-required"
    _, again = asked(await alice.call("up__note", {"words": mark}, at=1))
    assert mark in (await alice.call("up__note", {"words": mark}, state=again, responses=yes())).text
    assert at.sighted(mark) == 1
    assert (await at.steps(away["approval"]["id"])) == ["Requested", "Granted", "Consumed"]


async def test_a_client_that_can_be_asked_nothing_is_told_how_and_always_the_same(at: House) -> None:
    mark, alice = nonce(), at.person()
    first = await alice.call("up__note", {"words": mark}, can=NONE)
    told = refusal(first)
    approval_id = told["approval"]["id"]
    assert (told["decision"], told["reason"], told["approval"]["approver"]) == ("ask", "approval-required", "")
    assert f"tidegate approvals approve {approval_id}" in first.text
    assert WHY in first.text
    again = refusal(await alice.call("up__note", {"words": mark}, at=1, can=NONE))
    assert again["approval"] == told["approval"]
    await at.decide(approval_id, grant=True)
    assert mark in (await alice.call("up__note", {"words": mark}, at=1, can=NONE)).text
    assert at.sighted(mark) == 1
    after = refusal(await alice.call("up__note", {"words": mark}, can=NONE))
    assert after["approval"]["id"] != approval_id
    assert (at.sighted(mark), await at.decisions(mark)) == (1, Counter(ask=3, allow=1))


@pytest.mark.parametrize(("tool", "approver"), [("pay", "other"), ("wipe", "ops")])
async def test_where_a_second_person_must_approve_the_client_is_not_asked(at: House, tool: str, approver: str) -> None:
    mark, alice = nonce(), at.person()
    told = refusal(await alice.call(f"up__{tool}", {"words": mark}))
    assert told["approval"]["approver"] == approver
    await at.stand_for_nothing(told["approval"]["id"], alice.subject_id)
    assert refusal(await alice.call(f"up__{tool}", {"words": mark}, at=1))["approval"] == told["approval"]
    assert at.sighted(mark) == 0
    await at.decide(told["approval"]["id"], grant=True)
    assert mark in (await alice.call(f"up__{tool}", {"words": mark}, at=1)).text
    assert at.sighted(mark) == 1


async def test_what_a_second_person_denied_is_told_with_the_reason(at: House) -> None:
    mark, alice = nonce(), at.person()
    told = refusal(await alice.call("up__pay", {"words": mark}))
    await at.decide(told["approval"]["id"], grant=False)
    for edge in (0, 1):
        answer = await alice.call("up__pay", {"words": mark}, at=edge)
        assert refusal(answer)["reason"] == "approval-denied"
        assert "somebody who may approve it: looked at it" in answer.text
    assert at.sighted(mark) == 0


async def test_of_many_calls_at_both_edges_one_alone_uses_a_yes(at: House) -> None:
    mark, alice = nonce(), at.person()
    approval_id = refusal(await alice.call("up__pay", {"words": mark}))["approval"]["id"]
    await at.decide(approval_id, grant=True)
    answers = await asyncio.gather(*[alice.call("up__pay", {"words": mark}, at=edge) for edge in every(60)])
    passed = [one for one in answers if not one.result.get("isError")]
    assert (len(passed), at.sighted(mark)) == (1, 1)
    reasons = Counter(refusal(one)["reason"] for one in answers if one.result.get("isError"))
    assert set(reasons) <= {"approval-used", "approval-required"}
    assert (await at.steps(approval_id)).count("Consumed") == 1
    assert ((await at.decisions(mark))["allow"], await at.completions(mark)) == (1, 1)


@pytest.mark.parametrize("turn", range(4))
async def test_of_many_answers_to_one_question_one_alone_counts(at: House, turn: int) -> None:
    mark, alice = nonce(), at.person()
    _, state = asked(await alice.call("up__note", {"words": mark}))
    retries = [alice.call("up__note", {"words": mark}, at=edge, state=state, responses=yes()) for edge in every(40)]
    answers = await asyncio.gather(*retries)
    passed = [one for one in answers if one.result["resultType"] == "complete" and not one.result.get("isError")]
    assert (len(passed), at.sighted(mark)) == (1, 1)
    assert (await at.decisions(mark))["allow"] == 1


async def test_a_yes_serves_nobody_else_and_no_other_call(at: House) -> None:
    mark, alice = nonce(), at.person()
    approval_id = refusal(await alice.call("up__pay", {"words": mark, "amount": 10}))["approval"]["id"]
    await at.decide(approval_id, grant=True)
    others = [
        (at.person("bob@example.com"), {"words": mark, "amount": 10}),
        (at.person(agent="another-agent"), {"words": mark, "amount": 10}),
        (alice, {"words": mark, "amount": 11}),
        (alice, {"words": mark, "amount": 10, "to": None}),
        (alice, {"words": mark, "amount": "10"}),
    ]
    for person, arguments in others:
        told = refusal(await person.call("up__pay", arguments, at=1))
        assert (told["reason"], told["approval"]["id"] == approval_id) == ("approval-required", False)
    assert at.sighted(mark) == 0
    assert mark in (await alice.call("up__pay", {"amount": 10, "words": mark}, at=1)).text  # the order says nothing
    assert at.sighted(mark) == 1


async def test_a_state_serves_nobody_else_and_no_other_call(at: House) -> None:
    mark, alice = nonce(), at.person()
    _, state = asked(await alice.call("up__note", {"words": mark}))
    for person, arguments in (
        (at.person("bob@example.com"), {"words": mark}),
        (at.person(agent="another-agent"), {"words": mark}),
        (alice, {"words": mark, "more": 1}),
    ):
        answer = await person.call("up__note", arguments, state=state, responses=yes())
        assert (answer.status, answer.error["data"]) == (400, {"reason": "invalid_request_state"})
    assert (at.sighted(mark), await at.decisions(mark)) == (0, Counter(ask=1))


async def test_an_answer_that_nobody_asked_for_lets_nothing_pass(at: House) -> None:
    mark, alice = nonce(), at.person()
    asked(await alice.call("up__note", {"words": mark}, responses=yes()))
    told = refusal(await alice.call("up__pay", {"words": mark}, responses=yes()))
    assert told["reason"] == "approval-required"
    assert at.sighted(mark) == 0


async def test_what_was_forbidden_meanwhile_stays_forbidden(at: House) -> None:
    mark, alice = nonce(), at.person()
    approval_id = refusal(await alice.call("up__pay", {"words": mark}))["approval"]["id"]
    _, state = asked(await alice.call("up__note", {"words": mark}))
    await at.decide(approval_id, grant=True)
    forbids = """@id("stop") forbid (principal, action in [Action::"up/pay", Action::"up/note"], resource)
    when { context.args has words };"""
    async with at.ruled(forbids):
        for edge in (0, 1):
            assert refusal(await alice.call("up__pay", {"words": mark}, at=edge))["reason"] == "forbidden-by-rule"
            answered = await alice.call("up__note", {"words": mark}, at=edge, state=state, responses=yes())
            assert refusal(answered)["reason"] == "forbidden-by-rule"
        assert at.sighted(mark) == 0
    assert mark in (await alice.call("up__pay", {"words": mark})).text  # it was not used up
    assert at.sighted(mark) == 1


async def test_a_stricter_rule_is_asked_about_anew(at: House) -> None:
    mark, alice = nonce(), at.person()
    _, state = asked(await alice.call("up__note", {"words": mark}))
    stricter = """@id("two") @effect("ask") @approver("other") @reason("Two must know.")
    forbid (principal, action == Action::"up/note", resource);"""
    async with at.ruled(stricter):
        told = refusal(await alice.call("up__note", {"words": mark}, state=state, responses=yes()))
        assert (told["reason"], told["approval"]["approver"]) == ("approval-required", "other")
    assert at.sighted(mark) == 0


async def test_who_is_quarantined_meanwhile_gets_nothing(at: House) -> None:
    mark, alice = nonce(), at.person("carol@example.com")
    approval_id = refusal(await alice.call("up__pay", {"words": mark}))["approval"]["id"]
    await at.decide(approval_id, grant=True)
    async with at.quarantined("subject", alice.subject_id):
        assert refusal(await alice.call("up__pay", {"words": mark}))["reason"] == "quarantined"
    assert at.sighted(mark) == 0
    assert mark in (await alice.call("up__pay", {"words": mark})).text


async def test_what_is_masked_is_shown_to_nobody_and_bound_all_the_same(at: House) -> None:
    mark, alice = nonce(), at.person()
    question, state = asked(await alice.call("up__note", {"words": f"{mark} {SECRET}"}))
    assert SECRET not in question["message"]
    other = SECRET[:-1] + "X"
    _, another = asked(await alice.call("up__note", {"words": f"{mark} {other}"}))
    wrong = await alice.call("up__note", {"words": f"{mark} {other}"}, state=state, responses=yes())
    assert wrong.status == 400
    assert (await alice.call("up__note", {"words": f"{mark} {other}"}, state=another, responses=yes())).status == 200
    assert at.sighted(mark) == 1
    assert at.sighted(SECRET) == at.sighted(other) == 0
    for edge in at.edges:
        assert SECRET.encode() not in await edge.place.shown()


async def test_what_is_sent_in_full_and_kept_masked_is_shown_to_who_asked_as_it_is_sent(at: House) -> None:
    mark, alice, address = nonce(), at.person(), "thief@watched.example"
    question, state = asked(await alice.call("up__note", {"words": mark, "to": address}))
    assert address in question["message"]
    assert "[masked" not in question["message"]
    assert (await alice.call("up__note", {"words": mark, "to": address}, state=state, responses=yes())).status == 200
    (call,) = [one for one in at.up.calls("note") if mark.encode() in one.body]
    assert call.params["arguments"] == {"words": mark, "to": address}
    for edge in at.edges:
        assert address.encode() not in await edge.place.shown()


async def test_nobody_else_approves_what_is_kept_masked_and_sent_in_full(at: House) -> None:
    mark, alice, address = nonce(), at.person(), "thief@watched.example"
    told = refusal(await alice.call("up__pay", {"words": mark, "to": address}))
    assert (told["reason"], "approval" in told) == ("approval-arguments-masked", False)
    answer = await alice.call("up__note", {"words": mark, "to": address}, can=NONE)
    known = at.known(refusal(answer)["approval"]["id"])
    assert known is not None
    assert known.masked
    assert "Nobody else can approve it" in answer.text
    assert "tidegate approvals approve" not in answer.text
    masked_by_both = refusal(await alice.call("up__pay", {"words": f"{mark} {SECRET}"}))
    shown = at.known(masked_by_both["approval"]["id"])
    assert shown is not None
    assert not shown.masked, "what is masked where it is sent is kept as it is sent"
    assert at.sighted(mark) == 0


async def test_an_approval_is_for_what_was_decided_on_fixed_arguments_and_masked_values_included(at: House) -> None:
    mark, alice = nonce(), at.person()
    fixed = "/mcp/sets/fixed"
    told = refusal(await alice.call("pay", {"words": f"{mark} {SECRET}"}, path=fixed))
    await at.decide(told["approval"]["id"], grant=True)
    another = {"words": f"{mark} {SECRET[:-1]}X"}  # is masked to the same
    assert refusal(await alice.call("pay", another, path=fixed))["approval"]["id"] != told["approval"]["id"]
    assert (
        refusal(await alice.call("up__pay", {"words": f"{mark} {SECRET}"}))["approval"]["id"] != told["approval"]["id"]
    )
    assert at.sighted(mark) == 0
    same = {"words": f"{mark} {SECRET}", "to": "the-landlord"}  # by any door
    assert "the-landlord" in (await alice.call("up__pay", same, at=1)).text
    assert at.sighted(mark) == 1


async def test_what_may_not_be_sent_is_refused_and_nobody_is_asked(at: House) -> None:
    mark, alice = nonce(), at.person()
    told = refusal(await alice.call("up__note", {"words": f"{mark} forbidden-word-1234"}))
    assert (told["reason"], "approval" in told) == ("arguments-blocked", False)


async def test_a_resource_is_asked_about_in_its_own_way(at: House) -> None:
    alice = at.person()
    uri = await alice.uri_of("plans")
    refused = await alice.call(uri, None, can=NONE, method="resources/read")
    about = refused.error["data"]["tidegate/decision"]
    assert (refused.error["code"], about["decision"], about["reason"]) == (-32010, "ask", "approval-required")
    question, state = asked(await alice.call(uri, None, at=1, method="resources/read"))
    assert "read the resource doc://plans of the server up" in question["message"]
    answer = await alice.call(uri, None, state=state, responses=yes(), method="resources/read")
    assert answer.result["contents"][0]["text"] == "the plans"
    assert await at.steps(about["approval"]["id"]) == ["Requested", "Granted", "Consumed"]
    assert sum(one.method == "resources/read" for one in at.up.seen) == 1


async def test_a_prompt_is_asked_about_with_its_arguments(at: House) -> None:
    mark, alice = nonce(), at.person()
    refused = await alice.call("up__draft", {"about": mark}, can=NONE, method="prompts/get")
    about = refused.error["data"]["tidegate/decision"]
    assert (refused.error["code"], about["reason"]) == (-32010, "approval-required")
    await at.decide(about["approval"]["id"], grant=True)
    other, _ = asked(await alice.call("up__draft", {"about": f"{mark} too"}, method="prompts/get"))
    assert "get the prompt draft of the server up" in other["message"]
    answer = await alice.call("up__draft", {"about": mark}, at=1, can=NONE, method="prompts/get")
    assert mark in answer.result["messages"][0]["content"]["text"]
    assert at.sighted(mark) == 1


async def test_a_question_that_is_past_its_time_is_asked_anew(at: House) -> None:
    mark, alice = nonce(), at.person()
    brief = """@id("brief") @effect("ask") @expires("1s") @reason("Quickly!")
    forbid (principal, action == Action::"up/echo", resource);"""
    async with at.ruled(brief):
        told = refusal(await alice.call("up__echo", {"words": mark}, can=NONE))
        _, state = asked(await alice.call("up__echo", {"words": mark}))
        await until(lambda: at.is_over(told["approval"]["expires_us"]))
        late = await alice.call("up__echo", {"words": mark}, state=state, responses=yes())
        assert late.status == 400 or late.result["resultType"] == "input_required"
        anew = refusal(await alice.call("up__echo", {"words": mark}, can=NONE))
        assert anew["approval"]["id"] != told["approval"]["id"]
    assert at.sighted(mark) == 0
