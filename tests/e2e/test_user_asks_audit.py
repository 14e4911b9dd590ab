"""What users of gateways suffer from with audit and policy: refusals that nobody finds, errors recorded as success,
rules that deny everything without a word. One edge in this process. `docs/user-asks.md` names the complaints.
"""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from tests.parts.edge import BUNDLE, LEGACY, SECRET, Answer, RunningEdge, Speaker, running_edge, until
from tests.parts.restless import Restless, restless

from tidegate.events import CallCompleted, CallRequested, RequestRefused
from tidegate.policy.bundle import bundle_of
from tidegate.policy.check import check_bundle

pytestmark = pytest.mark.asyncio(loop_scope="module")
CREDENTIAL = "upstream-credential-4711"
SCHEMA = """
entity Group in [Group];
entity User in [Group];
entity Server { labels: Set<String> };
action "call";
action "up/echo" in ["call"] appliesTo {
  principal: [User], resource: [Server],
  context: { agent: { id: String }, args: { text: String, path?: String } }
};
"""


@pytest.fixture(scope="module")
def servers() -> Any:
    with restless("modern") as new, restless("sessions") as old:
        yield {"up": new, "old": old}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def edge(servers: dict[str, Restless], tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningEdge]:
    given = {
        name: {"url": server.url, "headers": {"Authorization": f"Bearer {CREDENTIAL}"}, "timeout_s": 3}
        for name, server in servers.items()
    }
    async with running_edge(tmp_path_factory.mktemp("audit"), given) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def speaker(edge: RunningEdge) -> Speaker:
    found = edge.place.speaker()
    await found.initialize()
    return found


async def said(speaker: Speaker, name: str, arguments: dict[str, Any], *, modern: bool) -> Answer:
    if modern:
        return await speaker.call(name, arguments)
    return await speaker.ask(speaker.legacy("tools/call", {"name": name, "arguments": arguments}))


async def recorded(edge: RunningEdge, nonce: str) -> tuple[CallRequested, list[CallCompleted]]:
    asked, ended = await edge.place.calls(nonce)
    assert len(asked) == 1, asked
    return asked[0], ended


@pytest.mark.parametrize("modern", [True, False])
@pytest.mark.parametrize("server", ["up", "old"])
async def test_a_denial_is_in_the_log_with_its_reason_rule_and_sentence(
    edge: RunningEdge, speaker: Speaker, servers: dict[str, Restless], server: str, modern: bool
) -> None:
    nonce = f"denied {server} {modern}"
    answer = await said(speaker, f"{server}__echo", {"path": "/etc/shadow", "nonce": nonce}, modern=modern)
    assert answer.result["isError"] is True
    asked, ended = await recorded(edge, nonce)
    assert not ended
    assert (asked.decision, asked.stage, asked.rules) == ("deny", "policy", ("not-etc",))
    assert asked.message == "Nothing below /etc may be read."
    assert asked.message in answer.text
    assert (asked.method, asked.server, asked.target) == ("tools/call", server, "echo")
    assert asked.sealed.login == "alice@example.com"
    assert answer.result["_meta"]["tidegate/decision"]["id"] == asked.call_id
    assert nonce not in servers[server].nonces()


@pytest.mark.parametrize("modern", [True, False])
async def test_a_tool_that_may_not_be_known_is_refused_in_the_log_too(
    edge: RunningEdge, speaker: Speaker, modern: bool
) -> None:
    nonce = f"hidden {modern}"
    answer = await said(speaker, "up__secret-tool", {"nonce": nonce}, modern=modern)
    assert "Unknown tool" in answer.error["message"]
    asked, ended = await recorded(edge, nonce)
    assert (asked.decision, asked.target, asked.rules, ended) == ("deny", "secret-tool", ("hidden",), [])


@pytest.mark.parametrize("modern", [True, False])
@pytest.mark.parametrize("server", ["up", "old"])
async def test_a_tool_that_says_it_failed_is_recorded_as_failed_with_what_it_said(
    edge: RunningEdge, speaker: Speaker, server: str, modern: bool
) -> None:
    nonce = f"fails {server} {modern}"
    answer = await said(speaker, f"{server}__fail", {"nonce": nonce}, modern=modern)
    assert answer.result["isError"] is True
    asked, (ended,) = await recorded(edge, nonce)
    assert asked.decision == "allow"
    assert ended.outcome == "tool-error"
    assert (ended.method, ended.server, ended.target) == ("tools/call", server, "fail")
    assert json.loads(bytes(ended.sealed.result))["content"][0]["text"] == "It went wrong."


@pytest.mark.parametrize("server", ["up", "old"])
async def test_a_call_that_a_server_did_not_answer_is_recorded_whole(
    edge: RunningEdge, speaker: Speaker, servers: dict[str, Restless], server: str
) -> None:
    nonce = f"fault {server}"
    assert not (await speaker.call(f"{server}__echo", {})).result.get("isError")
    servers[server].status = 503
    try:
        answer = await speaker.call(f"{server}__echo", {"nonce": nonce})
    finally:
        servers[server].status = 200
    assert answer.result["isError"] is True
    asked, (ended,) = await recorded(edge, nonce)
    assert ended.outcome == "upstream-failed"
    assert ended.reason == answer.result["_meta"]["tidegate/decision"]["reason"]
    assert (ended.method, ended.server, ended.target) == (asked.method, server, "echo")
    assert ended.message


async def test_every_refusal_of_a_known_caller_is_an_event_whatever_its_status(
    edge: RunningEdge, speaker: Speaker
) -> None:
    before = len([one for one in await edge.place.events("calls", "sessions") if isinstance(one, RequestRefused)])
    speaker.session = "none-of-mine"
    refused = [
        await speaker.ask(speaker.request(b"not json")),
        await speaker.ask(speaker.legacy("tools/list")),
        await speaker.ask(speaker.modern("no/such/method")),
        await speaker.ask(speaker.modern("tools/list", headers={"Mcp-Method": "tools/call"})),
        await speaker.ask(speaker.modern("tools/list", {"cursor": "made up"})),
    ]
    assert [answer.status for answer in refused] == [400, 404, 404, 400, 400]
    found = [one for one in await edge.place.events("calls", "sessions") if isinstance(one, RequestRefused)]
    assert len(found) - before == len(refused)
    assert all(one.subject_id and one.message for one in found)


async def test_no_error_body_holds_a_token_or_a_server_s_credential(
    edge: RunningEdge, speaker: Speaker, servers: dict[str, Restless]
) -> None:
    token = speaker.auth
    signature = token.rpartition(".")[2]
    pasted = edge.place.token(user="pasted@example.com")  # into places where no token belongs
    foreign = edge.place.token(audience="https://elsewhere.example/mcp")
    bodies: list[bytes] = []
    for request in (
        speaker.request(pasted.encode()),
        speaker.modern(pasted),
        speaker.modern("tools/call", {"name": pasted[:200], "arguments": {}}),
        speaker.modern("tools/call", {"name": "up__echo", "arguments": pasted}),
        speaker.modern("tools/list", {"cursor": pasted}),
        speaker.request(b"{}", f"/mcp/{pasted}"),
        speaker.request(b"{}", headers={"Authorization": f"Bearer {foreign}"}),
        speaker.request(b"{}", headers={"Authorization": f"Bearer {token[:-4]}"}),
        speaker.request(b"{}", headers={"Authorization": f"Basic {token}"}),
        speaker.request(b"{}", headers={"Host": "elsewhere.example"}),
        speaker.request(b"", verb="GET", headers={"Mcp-Session-Id": pasted}),
    ):
        answer = await speaker.ask(request)
        assert answer.status >= 400 or "error" in answer.json or answer.result.get("isError"), answer
        bodies.append(answer.body + repr(answer.headers).encode())
    for status in (401, 403, 500):
        for server in servers.values():
            server.status = status
        for name in servers:
            bodies.append((await speaker.call(f"{name}__echo")).body)
    for server in servers.values():
        server.status = 200
    for body in bodies:
        assert signature.encode() not in body
        assert pasted.rpartition(".")[2].encode() not in body
        assert foreign.rpartition(".")[2].encode() not in body
        assert CREDENTIAL.encode() not in body
    for file in edge.settings.data_dir.rglob("*"):
        if file.is_file() and "keys" not in file.parts:
            assert signature.encode() not in file.read_bytes(), file


# ---- rules that do not do what they seem to


def problems(rules: str, schema: str = SCHEMA) -> list[str]:
    files = {
        "manifest.json": '{"v": 1, "name": "asks"}',
        "policies/p.cedar": rules,
        **({"schema.cedarschema": schema} if schema else {}),
    }
    found = check_bundle(bundle_of({path: content.encode() for path, content in files.items()}))
    return [problem.sentence for problem in found if problem.fatal]


PERMIT = '@id("all") permit (principal, action in Action::"call", resource);'


async def test_a_rule_on_an_argument_that_may_be_missing_fails_at_the_check_with_its_name() -> None:
    rule = '@id("p") forbid (principal, action == Action::"up/echo", resource) when { context.args.%s == "x" };'
    (optional,) = problems(PERMIT + rule % "path")
    assert "path" in optional
    (unknown,) = problems(PERMIT + rule % "pth")
    assert "pth" in unknown
    assert not problems(PERMIT + rule.replace("context.args.%s", "context.args has path && context.args.path"))


async def test_a_rule_that_cannot_be_evaluated_denies_and_says_which_and_why(
    servers: dict[str, Restless], tmp_path: Path
) -> None:
    """Without a schema nobody can know before the call; then the call says it, to the model and in the log."""
    rules = (
        PERMIT
        + '@id("needs-path") forbid (principal, action == Action::"up/echo", resource)'
        + 'when { context.args.path == "x" };'
    )
    bundle = {**BUNDLE, "policies/p.cedar": rules}
    async with running_edge(tmp_path, {"up": {"url": servers["up"].url}}, bundle=bundle) as edge:
        speaker = edge.place.speaker()
        names = [one["name"] for one in (await speaker.ask(speaker.modern("tools/list"))).result["tools"]]
        assert {"up__echo", "up__note"} <= set(names), "it is listed: other arguments would do"
        assert not (await speaker.call("up__note", {"nonce": "beside"})).result.get("isError")
        assert not (await speaker.call("up__echo", {"path": "y"})).result.get("isError")
        answer = await speaker.call("up__echo", {"nonce": "without a path"})
        decision = answer.result["_meta"]["tidegate/decision"]
        assert (decision["decision"], decision["reason"]) == ("deny", "evaluation-error")
        assert "path" in answer.text
        asked, ended = await recorded(edge, "without a path")
        assert (asked.decision, asked.reason, ended) == ("deny", "evaluation-error", [])
        assert "needs-path" in asked.rules
        assert "path" in asked.message


async def test_rules_that_only_forbid_permit_nothing_and_say_so(servers: dict[str, Restless], tmp_path: Path) -> None:
    rules = '@id("one") forbid (principal, action == Action::"up/note", resource);'
    bundle = {**BUNDLE, "policies/p.cedar": rules}
    async with running_edge(tmp_path, {"up": {"url": servers["up"].url}}, bundle=bundle) as edge:
        speaker = edge.place.speaker()
        assert "error" in (await speaker.call("up__echo", {"nonce": "only forbidden"})).json
        asked, _ = await recorded(edge, "only forbidden")
        assert asked.decision == "deny"
        assert asked.reason == "tool-not-granted"
        (answer,) = await speaker.say(speaker.modern("tools/list"))
        assert answer.result["tools"] == []


async def test_a_secret_in_a_refused_call_is_masked_where_the_refusal_is_found(
    edge: RunningEdge, speaker: Speaker
) -> None:
    await speaker.call("up__echo", {"path": "/etc/x", "nonce": "masked refusal", "key": SECRET})
    asked, _ = await recorded(edge, "masked refusal")
    assert SECRET.encode() not in bytes(asked.sealed.arguments)
    assert asked.decision == "deny"


async def test_a_session_of_2025_is_recorded_with_the_protocol_that_it_speaks(
    edge: RunningEdge, speaker: Speaker
) -> None:
    await said(speaker, "up__echo", {"nonce": "protocol legacy"}, modern=False)
    await said(speaker, "up__echo", {"nonce": "protocol modern"}, modern=True)
    legacy, (done,) = await recorded(edge, "protocol legacy")
    assert (legacy.protocol, bool(legacy.protocol_session_id), done.outcome) == (LEGACY, True, "ok")
    modern, (done,) = await recorded(edge, "protocol modern")
    assert (modern.protocol, modern.protocol_session_id, done.outcome) == ("2026-07-28", "", "ok")
    assert modern.session_id
    await until(lambda: edge.edge.calls_in_flight == 0)
