"""A resource spelled otherwise: what is forbidden or stopped is so in every spelling, and what is sent is what was
decided on.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from mcp.shared.inbound import encode_header_value
from tests.parts.edge import Answer, RunningEdge, Speaker, running_edge
from tests.parts.scripted import Scripted, Seen, http, result, scripted

from tidegate.events import CallRequested, QuarantineImposed
from tidegate.ids import now_us, uuid7

FORBIDDEN = "docs://payroll"
SPELLINGS = (
    "DOCS://payroll",
    "docs://PayRoll",
    "docs://%70ayroll",
    "docs://x/../payroll/../../payroll",
    "docs://payroll?",
    "docs://payroll:",
)
MALFORMED = (
    "docs://pay\troll",
    "docs://pay\nroll",
    " docs://payroll",
    "docs:\\\\payroll",
    "docs://@payroll",
    "payroll",
)
LISTED = ("docs://handbook", "docs://me@hand book", "docs://me@payroll notes")
BUNDLE = {
    "manifest.json": '{"v":1,"name":"x"}',
    "policies/p.cedar": """
@id("all") permit (principal, action in Action::"call", resource);
@id("no-payroll") forbid (principal, action == Action::"docs/resources/read", resource)
when { context.args.uri like "docs://payroll*" || context.args.uri like "docs://x/payroll*"
  || context.args.uri like "docs://me@payroll*" };
""",
}


async def offer(server: Scripted, seen: Seen, writer: asyncio.StreamWriter) -> None:
    uri = seen.params.get("uri")
    answers: dict[str, dict[str, Any]] = {
        "resources/list": {"resources": [{"uri": one, "name": "r"} for one in LISTED]},
        "resources/templates/list": {"resourceTemplates": [{"uriTemplate": "docs://{+name}", "name": "t"}]},
        "resources/read": {"contents": [{"uri": uri, "text": f"of {uri}"}]},
        "completion/complete": {"completion": {"values": ["a"]}},
    }
    found = {**answers[seen.method], "resultType": "complete", "ttlMs": 1, "cacheScope": "private"}
    writer.write(http(result(seen, found)))


METHODS = ("resources/list", "resources/templates/list", "resources/read", "completion/complete")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def docs() -> AsyncIterator[Scripted]:
    capabilities: dict[str, Any] = {"resources": {"subscribe": True}, "completions": {}}
    async with scripted(tools=[], capabilities=capabilities, behaviours=dict.fromkeys(METHODS, offer)) as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def edge(docs: Scripted, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningEdge]:
    async with running_edge(tmp_path_factory.mktemp("spelling"), {"docs": {"url": docs.url}}, bundle=BUNDLE) as running:
        yield running


@pytest.fixture
def speaker(edge: RunningEdge) -> Speaker:
    return edge.place.speaker()


pytestmark = pytest.mark.asyncio(loop_scope="module")


async def read(speaker: Speaker, uri: str) -> Answer:
    return await speaker.ask(
        speaker.modern("resources/read", {"uri": uri}, headers={"Mcp-Name": encode_header_value(uri)})
    )


def sent(docs: Scripted, method: str = "resources/read") -> list[Any]:
    """The URIs that the server was asked for."""
    params = [seen.params for seen in docs.seen if seen.method == method]
    return [one["ref"]["uri"] if "ref" in one else one["uri"] for one in params]


async def last(edge: RunningEdge) -> CallRequested:
    calls = [one for one in await edge.place.events("calls") if isinstance(one, CallRequested)]
    return calls[-1]


@pytest.mark.parametrize("uri", [FORBIDDEN, *SPELLINGS])
async def test_no_spelling_passes_a_forbid(edge: RunningEdge, speaker: Speaker, docs: Scripted, uri: str) -> None:
    before = len(sent(docs))
    answer = await read(speaker, uri)
    assert answer.error["data"]["tidegate/decision"]["rules"] == ["no-payroll"]
    assert len(sent(docs)) == before


@pytest.mark.parametrize("uri", MALFORMED)
async def test_what_is_no_uri_is_refused_precisely_and_recorded(
    edge: RunningEdge, speaker: Speaker, docs: Scripted, uri: str
) -> None:
    before = len(sent(docs))
    answer = await read(speaker, uri)
    assert answer.error["code"] == -32602
    assert "malformed" in answer.error["message"]
    assert len(sent(docs)) == before
    call = await last(edge)
    assert (call.decision, call.stage, call.reason, call.target) == ("deny", "admission", "uri-malformed", uri)


async def test_what_was_decided_on_is_what_is_sent(edge: RunningEdge, speaker: Speaker, docs: Scripted) -> None:
    for given, goes_on in (
        ("DOCS://Hand%62ook/%7e/../ü", "docs://Handbook/%C3%BC"),
        ("docs://Alice", "docs://Alice"),
        *((uri, uri) for uri in LISTED[:2]),
    ):
        assert "result" in (await read(speaker, given)).json
        assert sent(docs)[-1] == goes_on
        assert (await last(edge)).target == goes_on


async def test_a_hidden_odd_spelling_is_told_like_one_that_nobody_has(speaker: Speaker) -> None:
    hidden = (await read(speaker, LISTED[2])).error
    unknown = (await read(speaker, "docs://me@no notes")).error
    assert "decision" in str(hidden)  # a forbid on some resources hides none of them
    assert unknown["code"] == -32602


async def test_a_quarantine_of_a_resource_holds_in_every_spelling(
    edge: RunningEdge, speaker: Speaker, docs: Scripted
) -> None:
    quarantines = edge.edge.quarantines_of("acme")
    for value in ("docs/docs://handbook", "docs/DOCS://Hand%62ook"):
        at_us = now_us()
        event = QuarantineImposed(
            id=uuid7(at_us), time_us=at_us, tenant="acme", region="local", quarantine_id=uuid7(at_us), scope="tool",
            value=value, reason="leaks", actor="root",
        )  # fmt: skip
        quarantines.apply(event)
        before = len(sent(docs))
        for uri in ("docs://handbook", "DOCS://handbook", "docs://HANDBOOK", "docs://hand%62ook"):
            assert (await read(speaker, uri)).error["data"]["tidegate/decision"]["reason"] == "quarantined"
        assert len(sent(docs)) == before
        quarantines.drop(event.quarantine_id)
        assert "result" in (await read(speaker, "docs://handbook")).json


async def test_completion_and_subscriptions_take_the_same_way(speaker: Speaker, docs: Scripted) -> None:
    def completing(uri: str) -> bytes:
        ref = {"type": "ref/resource", "uri": uri}
        return speaker.modern("completion/complete", {"ref": ref, "argument": {"name": "name", "value": "a"}})

    assert "result" in (await speaker.ask(completing("docs://{+name}"))).json
    assert sent(docs, "completion/complete") == ["docs://{+name}"]
    assert (await speaker.ask(completing("DOCS://payroll"))).error["data"]["tidegate/decision"]["rules"]
    assert (await speaker.ask(completing("docs://pay\troll"))).error["code"] == -32602
    await speaker.initialize()
    for uri, code in (("DOCS://payroll", -32010), ("docs://pay\troll", -32602)):
        for method in ("resources/subscribe", "resources/unsubscribe"):
            answer = await speaker.ask(speaker.legacy(method, {"uri": uri}))
            assert answer.error["code"] == code
    assert len(sent(docs, "completion/complete")) == 1
