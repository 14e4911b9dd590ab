"""What a caller may try so that a person approves what they did not see, or so that others cannot be asked."""

import asyncio
import json
import random
import re
import time
import urllib.parse
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from tests.parts.approving import FORM, NONE, PAGE, House, Person, asked, house, nonce, refusal, yes
from tests.parts.edge import Answer
from tests.parts.scripted import Scripted, Seen, http, result

from tidegate.ids import now_us, uuid7
from tidegate.limits import APPROVALS_PENDING_MAX, APPROVALS_PER_SUBJECT_MAX
from tidegate.policy.approvals import Approval, Decision

pytestmark = pytest.mark.asyncio(loop_scope="module")

BOTH: dict[str, Any] = {"elicitation": {"form": {}, "url": {}}}
TOO_LONG = "nobody approves what was cut"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def at(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    async with house(tmp_path_factory.mktemp("attacks")) as running:
        yield running


async def fetched(at: House, url: str, form: dict[str, str] | None = None) -> Answer:
    """The page, at the other edge."""
    speaker = at.person().speakers[1]
    body = urllib.parse.urlencode(form).encode() if form is not None else b""
    kind = {"Content-Type": "application/x-www-form-urlencoded", "Authorization": ""}
    path = urllib.parse.urlsplit(url).path
    return await speaker.ask(speaker.request(body, path, "GET" if form is None else "POST", kind))


async def test_arguments_that_nobody_can_read_are_refused_at_once_and_hold_nobody_up(at: House) -> None:
    mark, alice = nonce(), at.person()
    body = {"words": mark, "a": ["x" * 10] * 250_000}
    began = time.process_time()
    for can in (FORM, NONE, PAGE, BOTH):
        for tool in ("up__note", "up__pay"):
            told = refusal(await alice.call(tool, body, can=can))
            assert (told["decision"], told["reason"]) == ("deny", "approval-arguments-too-large")
    assert time.process_time() - began < 20  # of eight requests of 3.5 MB, their making included
    assert at.sighted(mark) == 0


async def test_the_refusal_says_how_much_can_be_asked_about(at: House) -> None:
    answer = await at.person().call("up__note", {"words": "x" * 70_000})
    told = answer.result["content"][0]["text"]
    assert re.search(r"Its arguments have 7001\d bytes, and a person can be asked about 65536 at most", told), told


async def test_filler_hides_nothing_in_a_form(at: House) -> None:
    mark, alice = nonce(), at.person()
    arguments = {f"a{number}": "x" * 290 for number in range(8)} | {"zz_command": f"rm -rf / {mark}"}
    question, state = asked(await alice.call("up__note", arguments))
    assert f"rm -rf / {mark}" in question["message"]
    await alice.call("up__note", arguments, state=state, responses=yes())
    assert at.sighted(mark) == 1


@pytest.mark.parametrize("filler", [{f"a{number}": "x" * 290 for number in range(20)}, {"a": "x" * 5_000}])
async def test_what_a_form_cannot_show_is_asked_on_a_page_that_shows_all_of_it(
    at: House, filler: dict[str, str]
) -> None:
    mark, alice = nonce(), at.person()
    arguments = filler | {"zz_command": f"rm -rf / {mark}"}
    question, state = asked(await alice.call("up__note", arguments, can=BOTH))
    assert question["mode"] == "url"
    page = (await fetched(at, question["url"])).body.decode()
    assert f"rm -rf / {mark}" in page
    assert all(value in page for value in filler.values())
    assert (await fetched(at, question["url"], {"decision": "approve"})).status == 200
    accepted = {"approval": {"action": "accept"}}
    answer = await alice.call("up__note", arguments, can=BOTH, state=state, responses=accepted)
    assert not answer.result.get("isError")
    assert at.sighted(mark) == 1


async def test_what_neither_shows_is_for_whoever_sees_it_all(at: House) -> None:
    mark, alice = nonce(), at.person()
    arguments = {"words": mark, "noise": random.Random(7).randbytes(20_000).hex()}
    for can in (FORM, PAGE, BOTH):
        answer = await alice.call("up__note", arguments, can=can)
        told = refusal(answer)
        assert (told["decision"], told["reason"]) == ("ask", "approval-required")
        assert TOO_LONG in answer.result["content"][0]["text"]
    assert refusal(await alice.call("up__note", arguments, responses=yes()))["reason"] == "approval-required"
    assert TOO_LONG not in (await alice.call("up__note", arguments, can=NONE)).result["content"][0]["text"]
    await at.decide(told["approval"]["id"], grant=True)
    await alice.call("up__note", arguments)
    assert at.sighted(mark) == 1


async def test_what_nobody_sees_is_written_out(at: House) -> None:
    hidden = "\u3164\ufe0f\U000e0100\u034f\u115f\uffa0\u17b4\u180b\u2800"
    question, _ = asked(await at.person().call("up__note", {"words": nonce(), "to": f"AC{hidden}ME"}))
    assert r"AC\u3164\ufe0f\ue0100\u034f\u115f\uffa0\u17b4\u180b\u2800ME" in question["message"]


async def paying(who: Person, mark: str, digits: str, **beside: Any) -> Answer:
    """The amount as it is written; the client would write the nearest number."""
    speaker = who.speakers[0]
    meta = {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {"elicitation": {"form": {}}},
        "io.modelcontextprotocol/clientInfo": {"name": "tests", "version": "1"},
    }
    params = {"_meta": meta, "name": "up__pay", "arguments": {"words": mark, "amount": 77777}, **beside}
    head, _, body = speaker.modern("tools/call", params).partition(b"\r\n\r\n")
    body = body.replace(b"77777", digits.encode())
    head = re.sub(rb"(?i)content-length: \d+", b"Content-Length: %d" % len(body), head)
    return await speaker.ask(head + b"\r\n\r\n" + body, 30)


async def test_a_yes_is_for_every_digit(at: House) -> None:
    mark, alice = nonce(), at.person()

    async def pays(digits: str) -> Answer:
        return await paying(alice, mark, digits)

    told = refusal(await pays("0.1"))
    await at.decide(told["approval"]["id"], grant=True)
    for other in ("0.1000000000000000000000000000000000000000000001", "0.10", "1e-1"):
        assert refusal(await pays(other))["approval"]["id"] != told["approval"]["id"]
    assert at.sighted(mark) == 0
    assert not (await pays("0.1")).result.get("isError")
    assert at.sighted(mark) == 1


async def asking(server: Scripted, seen: Seen, writer: Any) -> None:
    """Asks one thing, and does the work when it comes again."""
    question = {"method": "elicitation/create", "params": {"message": "Which account?", "requestedSchema": SCHEMA}}
    if "requestState" in seen.params:
        writer.write(http(result(seen, {"content": [{"type": "text", "text": "paid"}]})))
    else:
        needed = {"resultType": "input_required", "inputRequests": {"q": question}, "requestState": "s"}
        writer.write(http(result(seen, needed)))


SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}
ACCOUNT = {"q": {"action": "accept", "content": {"a": "x"}}}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("0.1", "0.1000000000000000000000000000000000000000000001"),
        ("9007199254740992.0", "9007199254740993.0"),
        ("1.0", "1.00000000000000001"),
        ("100", "100.0"),
        ("5", "6"),
    ],
)
async def test_a_further_round_brings_the_digits_that_were_approved(at: House, first: str, second: str) -> None:
    mark, alice = nonce(), at.person()
    at.up.behaviours["pay"] = asking
    try:
        told = refusal(await paying(alice, mark, first))
        await at.decide(told["approval"]["id"], grant=True)
        state = (await paying(alice, mark, first)).result["requestState"]
        sighted = at.sighted(mark)
        other = await paying(alice, mark, second, requestState=state, inputResponses=ACCOUNT)
        assert other.error["data"] == {"reason": "invalid_request_state"}
        assert at.sighted(mark) == sighted
        same = await paying(alice, mark, first, requestState=state, inputResponses=ACCOUNT)
        assert same.result["content"][0]["text"] == "paid"
    finally:
        del at.up.behaviours["pay"]


async def test_nothing_goes_along_with_an_approved_call_that_its_approver_did_not_see(at: House) -> None:
    mark, alice = nonce(), at.person()
    beside = {"overrides": {"amount": 1_000_000}, "inputResponses": {"confirm": {"action": "accept"}}}
    told = refusal(await paying(alice, mark, "1"))
    await at.decide(told["approval"]["id"], grant=True)
    assert not (await paying(alice, mark, "1", **beside)).result.get("isError")
    sent = at.up.calls("pay")[-1].params
    assert set(sent) <= {"name", "arguments", "_meta"}
    assert sent["arguments"]["words"] == mark


def past(subject_id: str, number: int) -> Approval:
    at_us = now_us()
    return Approval(
        approval_id=uuid7(at_us),
        tenant="acme",
        binding=f"{subject_id}{number}",
        subject_id=subject_id,
        agent="tests",
        session_id="s",
        method="tools/call",
        server="up",
        target="note",
        call_id="c",
        requested_us=at_us,
        asked_until_us=at_us + 3_600_000_000,
        denied=Decision(at_us, subject_id, "form"),
    )


async def test_who_declines_their_own_questions_without_end_is_asked_no_more_and_others_are(at: House) -> None:
    mallory, alice = at.person("mallory@example.com"), at.person("alma@example.com")
    book = at.edges[0].edge.approvals
    for number in range(APPROVALS_PER_SUBJECT_MAX):
        book.learn(past(mallory.subject_id, number))
    answer = await mallory.call("up__note", {"words": nonce()})
    assert refusal(answer)["reason"] == "approvals-too-many"
    assert f"{APPROVALS_PER_SUBJECT_MAX} approvals of yours" in answer.result["content"][0]["text"]
    asked(await alice.call("up__note", {"words": nonce()}))


async def test_many_questions_at_once_are_no_more_than_one_after_the_other(at: House) -> None:
    hasty = at.person("hasty@example.com")
    answers = await asyncio.gather(
        *[hasty.call("up__pay", {"words": nonce()}) for _ in range(APPROVALS_PENDING_MAX + 20)]
    )
    reasons = [refusal(answer)["reason"] for answer in answers]
    assert reasons.count("approval-required") == APPROVALS_PENDING_MAX
    assert reasons.count("approvals-too-many") == 20
    kept = at.edges[0].edge.approvals.of("acme")
    assert kept.pending_of(hasty.subject_id, now_us()) == APPROVALS_PENDING_MAX


async def test_a_page_s_address_passes_any_proxy_and_holds_nothing_readable(at: House) -> None:
    mark = nonce()
    question, _ = asked(await at.person().call("up__note", {"words": mark, "a": "word " * 4_000}, can=PAGE))
    assert len(question["url"]) <= 8_000
    assert mark not in json.dumps(question)
    with pytest.raises(msgspec.DecodeError):
        msgspec.json.decode(question["url"].encode())
