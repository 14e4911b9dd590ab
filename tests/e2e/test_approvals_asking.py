"""How a person is asked: on the stream of a legacy client, on a page; and answers of all kinds."""

import asyncio
import json
import urllib.parse
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.e2e.test_streams_edge import streaming
from tests.parts.approving import NONE, PAGE, House, asked, house, nonce, refusal
from tests.parts.clients.driving import KINDS, Kind, sdk_client
from tests.parts.edge import Answer, Client, Speaker, until

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def at(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    async with house(tmp_path_factory.mktemp("asking")) as running:
        yield running


async def opened(at: House, version: str, capabilities: dict[str, Any]) -> list[Speaker]:
    """One legacy client in one session, at each edge."""
    speakers = at.person().speakers
    assert (await speakers[0].initialize(version, capabilities)).status == 200
    speakers[1].session = speakers[0].session
    return speakers


async def next_json(client: Client) -> Any:
    """The next message; a priming event is none."""
    while (event := await client.event()) is not None:
        if event.data:
            return event.json
    pytest.fail("the stream ended")


def posted(speaker: Speaker, request_id: Any, version: str, result: Any) -> bytes:
    raw = json.dumps({"jsonrpc": "2.0", "id": request_id, "result": result}).encode()
    return speaker.request(raw, headers={"Mcp-Session-Id": speaker.session, "MCP-Protocol-Version": version})


def calling(speaker: Speaker, version: str, mark: str, name: str = "up__note") -> bytes:
    params = {"name": name, "arguments": {"words": mark}}
    body = json.dumps({"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": params}).encode()
    return speaker.request(body, headers={"MCP-Protocol-Version": version, "Mcp-Session-Id": speaker.session})


@pytest.mark.parametrize("version", ["2025-06-18", "2025-11-25"])
@pytest.mark.parametrize(
    ("answer", "passes", "reason"),
    [
        ({"action": "accept", "content": {"approve": True}}, True, ""),
        ({"action": "accept", "content": {"approve": False}}, False, "approval-denied"),
        ({"action": "decline"}, False, "approval-denied"),
        ({"action": "cancel"}, False, "approval-required"),
        ({"action": "accept"}, False, "approval-required"),
    ],
)
async def test_a_legacy_client_is_asked_on_its_stream_and_answers_at_the_other_edge(
    at: House, version: str, answer: Any, passes: bool, reason: str
) -> None:
    mark = nonce()
    speakers = await opened(at, version, {"elicitation": {}})
    async with streaming(speakers[0], calling(speakers[0], version, mark)) as client:
        question = await next_json(client)
        assert question["method"] == "elicitation/create"
        assert mark in question["params"]["message"]
        assert at.sighted(mark) == 0
        assert (await speakers[1].ask(posted(speakers[1], question["id"], version, answer))).status == 202
        told = (await next_json(client))["result"]
    assert bool(told.get("isError")) is not passes
    assert at.sighted(mark) == int(passes)
    assert at.sighted("inputResponses") == 0
    if not passes:
        assert told["_meta"]["tidegate/decision"]["reason"] == reason
    second = "allow" if passes else "deny" if reason == "approval-denied" else "ask"
    assert await at.decisions(mark) == Counter(["ask", second])


async def test_a_member_of_a_batch_is_told_how(at: House) -> None:
    mark = nonce()
    (speaker, _) = await opened(at, "2025-03-26", {"elicitation": {}})
    member = {"jsonrpc": "2.0", "method": "tools/call", "params": {"name": "up__note", "arguments": {"words": mark}}}
    body = json.dumps([{**member, "id": number} for number in (1, 2)]).encode()
    answer = await speaker.ask(speaker.request(body, headers={"Mcp-Session-Id": speaker.session}))
    told = [one["result"]["_meta"]["tidegate/decision"]["approval"]["id"] for one in answer.json]
    assert len(told) == 2
    assert len(set(told)) == 1  # one question for both
    assert at.sighted(mark) == 0


async def test_an_answer_from_another_session_counts_for_nothing(at: House) -> None:
    mark = nonce()
    speakers = await opened(at, "2025-11-25", {"elicitation": {}})
    strangers = await opened(at, "2025-11-25", {"elicitation": {}})
    accepted = {"action": "accept", "content": {"approve": True}}
    async with streaming(speakers[0], calling(speakers[0], "2025-11-25", mark)) as client:
        question = await next_json(client)
        for stranger in strangers:
            await stranger.ask(posted(stranger, question["id"], "2025-11-25", accepted))
        assert at.sighted(mark) == 0
        await speakers[0].ask(posted(speakers[0], question["id"], "2025-11-25", {"action": "decline"}))
        assert (await next_json(client))["result"]["isError"]
    assert at.sighted(mark) == 0


async def test_a_question_that_nobody_answers_ends_with_its_time(at: House) -> None:
    mark = nonce()
    brief = """@id("brief") @effect("ask") @expires("1s") @reason("Quickly!")
    forbid (principal, action == Action::"up/echo", resource);"""
    async with at.ruled(brief):
        (speaker, _) = await opened(at, "2025-11-25", {"elicitation": {}})
        async with streaming(speaker, calling(speaker, "2025-11-25", mark, "up__echo")) as client:
            question = await next_json(client)
            withdrawn = await next_json(client)
            assert withdrawn["method"] == "notifications/cancelled"
            assert withdrawn["params"]["requestId"] == question["id"]
            told = (await next_json(client))["result"]
            assert "Nobody decided in time" in told["content"][0]["text"]
            late = {"action": "accept", "content": {"approve": True}}
            await speaker.ask(posted(speaker, question["id"], "2025-11-25", late))
    assert at.sighted(mark) == 0


# pages


async def fetched(at: House, url: str, edge: int, form: dict[str, str] | None = None) -> Answer:
    """The page at an edge, whatever the address says."""
    speaker = at.person().speakers[edge]
    path = urllib.parse.urlsplit(url).path
    body = urllib.parse.urlencode(form).encode() if form is not None else b""
    kind = {"Content-Type": "application/x-www-form-urlencoded", "Authorization": ""}
    return await speaker.ask(speaker.request(body, path, "GET" if form is None else "POST", kind))


async def test_a_client_that_can_open_pages_is_sent_to_one_that_any_edge_serves(at: House) -> None:
    mark, alice = nonce(), at.person()
    question, state = asked(await alice.call("up__note", {"words": f"<b>{mark}</b>"}, can=PAGE))
    assert question["mode"] == "url"
    assert mark not in question["url"]
    page = await fetched(at, question["url"], 1)
    assert page.status == 200
    assert f"&lt;b&gt;{mark}&lt;/b&gt;" in page.body.decode()
    assert "<b>" not in page.body.decode()
    for header, value in (
        ("cache-control", "no-store"),
        ("referrer-policy", "no-referrer"),
        ("x-frame-options", "DENY"),
    ):
        assert page.headers[header] == value
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "set-cookie" not in page.headers
    accepted = {"approval": {"action": "accept"}}
    retry = asyncio.create_task(
        alice.call("up__note", {"words": f"<b>{mark}</b>"}, can=PAGE, state=state, responses=accepted)
    )
    decided = await fetched(at, question["url"], 1, {"decision": "approve", "reason": "read it"})
    assert (decided.status, "is approved" in decided.body.decode()) == (200, True)
    assert not (await retry).result.get("isError")
    assert at.sighted(mark) == 1
    again = await fetched(at, question["url"], 0, {"decision": "deny"})
    assert (again.status, "was approved, and made" in again.body.decode()) == (409, True)


async def test_a_page_that_was_not_answered_yet_is_asked_for_again(at: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidegate_edge.approvals.PAGE_WAIT_S", 0.05)
    mark, alice = nonce(), at.person()
    question, state = asked(await alice.call("up__note", {"words": mark}, can=PAGE))
    accepted = {"approval": {"action": "accept"}}
    for _ in range(7):
        question, state = asked(
            await alice.call("up__note", {"words": mark}, can=PAGE, state=state, responses=accepted)
        )
    told = await alice.call("up__note", {"words": mark}, can=PAGE, state=state, responses=accepted)
    assert refusal(told)["reason"] == "approval-required"  # and not for ever
    await fetched(at, question["url"], 0, {"decision": "deny"})
    denied = await alice.call("up__note", {"words": mark}, at=1, can=PAGE, state=state, responses=accepted)
    assert refusal(denied)["reason"] == "approval-denied"
    assert at.sighted(mark) == 0


async def test_a_legacy_client_that_opens_pages_waits_for_the_person(at: House) -> None:
    mark = nonce()
    speakers = await opened(at, "2025-11-25", PAGE)
    async with streaming(speakers[0], calling(speakers[0], "2025-11-25", mark)) as client:
        question = await next_json(client)
        assert question["params"]["elicitationId"]
        await speakers[0].ask(posted(speakers[0], question["id"], "2025-11-25", {"action": "accept"}))
        await fetched(at, question["params"]["url"], 1, {"decision": "approve"})
        done = await next_json(client)
        assert done["method"] == "notifications/elicitation/complete"
        assert done["params"] == {"elicitationId": question["params"]["elicitationId"]}
        assert not (await next_json(client))["result"].get("isError")
    assert at.sighted(mark) == 1


async def test_what_happens_while_a_page_is_open_counts(at: House) -> None:
    mark, alice = nonce(), at.person("dave@example.com")
    question, state = asked(await alice.call("up__note", {"words": mark}, can=PAGE))
    accepted = {"approval": {"action": "accept"}}
    retry = asyncio.create_task(alice.call("up__note", {"words": mark}, can=PAGE, state=state, responses=accepted))
    approval_id = refusal(await alice.call("up__note", {"words": mark}, can=NONE))["approval"]["id"]
    await until(lambda: at.edges[0].edge.approvals.is_awaited(approval_id))
    async with at.quarantined("subject", alice.subject_id):
        await fetched(at, question["url"], 1, {"decision": "approve"})
        assert refusal(await retry)["reason"] == "quarantined"
    assert at.sighted(mark) == 0


@pytest.mark.parametrize(
    "form", [{}, {"decision": "perhaps"}, {"reason": "x" * 9_000}, {"decision": "approve" * 1_000}, {"x": "\x00"}]
)
async def test_what_a_page_is_sent_and_is_no_answer_decides_nothing(at: House, form: dict[str, str]) -> None:
    mark, alice = nonce(), at.person()
    question, _ = asked(await alice.call("up__note", {"words": mark}, can=PAGE))
    assert (await fetched(at, question["url"], 0, form)).status == 400
    wrong = question["url"][:-8] + "AAAAAAAA"
    assert (await fetched(at, wrong, 0)).status == 404
    assert (await fetched(at, wrong, 0, {"decision": "approve"})).status == 404
    approval_id = refusal(await alice.call("up__note", {"words": mark}, can=NONE))["approval"]["id"]
    assert await at.steps(approval_id) == ["Requested"]


# answers of all kinds

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
NEARLY = st.fixed_dictionaries(
    {},
    optional={
        "action": st.sampled_from(["accept", "decline", "cancel", "Accept", "", 1, None]),
        "content": st.fixed_dictionaries(
            {}, optional={"approve": st.sampled_from([False, "true", 1, None, [True], {"approve": True}])}
        )
        | ANYTHING,
    },
)


def is_a_yes(answer: Any) -> bool:
    content = answer.get("content") if isinstance(answer, dict) else None
    return isinstance(content, dict) and answer.get("action") == "accept" and content.get("approve") is True


async def test_nothing_but_a_plain_yes_lets_a_call_pass(at: House) -> None:
    loop = asyncio.get_running_loop()
    alice = at.person()

    async def tried(answer: Any) -> None:
        mark = nonce()
        _, state = asked(await alice.call("up__note", {"words": mark}))
        told = await alice.call("up__note", {"words": mark}, at=1, state=state, responses={"approval": answer})
        assert told.status in (200, 400)
        assert at.sighted(mark) == 0

    @given(answer=(ANYTHING | NEARLY).filter(lambda one: not is_a_yes(one)))
    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    def all_of_them(answer: Any) -> None:
        asyncio.run_coroutine_threadsafe(tried(answer), loop).result(30)

    await asyncio.to_thread(all_of_them)


# the official clients

YES = {"action": "accept", "content": {"approve": True}}
NOT = {"action": "decline"}


@pytest.mark.parametrize("kind", KINDS)
async def test_the_official_clients_ask_their_person_and_bring_the_answer(at: House, kind: Kind) -> None:
    alice = at.person()
    url, token = f"http://{alice.speakers[0].listen}/mcp", alice.speakers[0].auth

    def drive() -> None:
        mark = nonce()
        with sdk_client(kind, url, token, YES) as client:
            assert mark in client.call("up__note", words=mark)["content"][0]["text"]
            (told,) = client.do("asked")
            assert "wants to call the tool note of the server up" in told
            assert mark in client.call("up__note", words=mark)["content"][0]["text"]  # and is asked each time
            assert len(client.do("asked")) == 2
            assert at.sighted(mark) == 2
            client.do("answer", NOT)
            mark = nonce()
            refused = client.call("up__note", words=mark)
            assert refused["isError"]
            assert refused["_meta"]["tidegate/decision"]["reason"] == "approval-denied"
        assert at.sighted(mark) == 0

    await asyncio.to_thread(drive)


async def test_an_official_client_that_cannot_ask_is_told_how_a_person_decides(at: House) -> None:
    mark, alice = nonce(), at.person()

    def drive() -> str:
        with sdk_client("auto", f"http://{alice.speakers[0].listen}/mcp", alice.speakers[0].auth) as client:
            return str(client.call("up__note", words=mark)["content"][0]["text"])

    assert "tidegate approvals approve" in await asyncio.to_thread(drive)
    assert at.sighted(mark) == 0
