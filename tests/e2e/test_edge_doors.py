"""One endpoint before many servers, and its other doors: names, URIs, pages, sets; real requests to real servers."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from tests.parts.edge import Answer, RunningEdge, Speaker, running_edge, until
from tests.parts.scripted import Scripted, Seen, Stream, http, result, scripted, tool

pytestmark = pytest.mark.asyncio(loop_scope="module")
Writer = asyncio.StreamWriter
CAPABILITIES = {"tools": {"listChanged": True}, "prompts": {}, "resources": {}}
GREETING = {"role": "user", "content": {"type": "resource_link", "uri": "ui://app", "name": "a"}}
READ = tool(
    "read",
    inputSchema={
        "type": "object",
        "properties": {"path": {"type": "string"}, "n": {"type": "integer"}},
        "required": ["path"],
    },
)
SETS: dict[str, Any] = {
    "ops": {
        "instructions": "Read logs.",
        "tools": [
            {"server": "aa", "tool": "read", "name": "read_log", "arguments": {"path": "/var/log/x"}},
            {"server": "bb", "tool": "echo"},
        ],
        "resources": ["bb"],
    }
}


async def offer(server: Scripted, seen: Seen, writer: Writer) -> None:
    """Lists of one prompt, one resource and one template; what is read says who was asked for what."""
    answers: dict[str, dict[str, Any]] = {
        "prompts/list": {"prompts": [{"name": "greet"}]},
        "prompts/get": {"messages": [GREETING]},
        "resources/list": {"resources": [{"uri": "ui://app", "name": "app", "x": 1.5}]},
        "resources/templates/list": {
            "resourceTemplates": [{"uriTemplate": f"row://{server.url[-6:-4]}/{{id}}", "name": "row"}]
        },
        "resources/read": {"contents": [{"uri": seen.params.get("uri"), "text": f"of {server.url}"}]},
    }
    found = answers[seen.method]
    writer.write(http(result(seen, {**found, "resultType": "complete", "ttlMs": 1, "cacheScope": "private"})))


async def tell_changes(server: Scripted, seen: Seen, writer: Writer) -> None:
    """subscriptions/listen: acknowledge, then tell of each tool that is added."""
    subscribed = {"_meta": {"io.modelcontextprotocol/subscriptionId": seen.message["id"]}}
    stream, known = Stream(writer), len(server.tools)
    wanted = {"notifications": seen.params["notifications"], **subscribed}
    await stream.send({"jsonrpc": "2.0", "method": "notifications/subscriptions/acknowledged", "params": wanted})
    while not seen.is_gone:
        if len(server.tools) != known:
            known = len(server.tools)
            await stream.send({"jsonrpc": "2.0", "method": "notifications/tools/list_changed", "params": subscribed})
        await asyncio.sleep(0.01)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ups() -> AsyncIterator[dict[str, Scripted]]:
    methods = ("prompts/list", "prompts/get", "resources/list", "resources/templates/list", "resources/read")
    behaviours: dict[str, Any] = {**dict.fromkeys(methods, offer), "subscriptions/listen": tell_changes}
    async with contextlib.AsyncExitStack() as stack:
        yield {
            name: await stack.enter_async_context(
                scripted(tools=[READ, tool("echo")], capabilities=dict(CAPABILITIES), behaviours=dict(behaviours))
            )
            for name in ("aa", "bb")
        }


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def edge(ups: dict[str, Scripted], tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningEdge]:
    servers = {name: {"url": up.url, "timeout_s": 5.0} for name, up in ups.items()}
    more: dict[str, Any] = {"limits": {"list_page_size": 3}, "sets": SETS, "naming": {"names": {"bb/echo": "shout"}}}
    async with running_edge(tmp_path_factory.mktemp("doors"), servers, **more) as running:
        yield running


@pytest.fixture
def speaker(edge: RunningEdge) -> Speaker:
    return edge.place.speaker()


async def listed(speaker: Speaker, method: str, member: str, path: str = "/mcp", *, modern: bool = True) -> list[Any]:
    """All pages."""
    found: list[Any] = []
    cursor: str | None = None
    for _ in range(30):
        params = {} if cursor is None else {"cursor": cursor}
        ask = speaker.modern if modern else speaker.legacy
        answer = await speaker.ask(ask(method, params, path=path))
        if cursor is not None and "the list has changed" in answer.json.get("error", {}).get("message", ""):
            found, cursor = [], None
            continue
        page = answer.result
        assert len(page[member]) <= 3
        found += page[member]
        cursor = page.get("nextCursor")
        if cursor is None:
            return found
    raise AssertionError("the pages do not end")


async def read(speaker: Speaker, uri: str, path: str = "/mcp") -> Answer:
    return await speaker.ask(speaker.modern("resources/read", {"uri": uri}, path=path, headers={"Mcp-Name": uri}))


@pytest.mark.parametrize("modern", [True, False])
async def test_all_servers_tools_are_listed_in_pages_under_their_names(speaker: Speaker, modern: bool) -> None:
    if not modern:
        await speaker.initialize()
    found = await listed(speaker, "tools/list", "tools", modern=modern)
    assert [one["name"] for one in found][:4] == ["aa__echo", "aa__read", "shout", "bb__read"]
    assert found[1] == {**READ, "name": "aa__read"}
    assert (await speaker.call("shout", {"a": 1})).text == '{"a": 1}'


async def test_a_cursor_of_another_principal_is_refused(edge: RunningEdge, speaker: Speaker) -> None:
    cursor = (await speaker.ask(speaker.modern("tools/list"))).result["nextCursor"]
    other = edge.place.speaker(user="bob@example.com")
    for one, given in ((other, cursor), (speaker, cursor + "x"), (speaker, "")):
        answer = await one.ask(one.modern("tools/list", {"cursor": given}))
        assert (answer.status, answer.error["code"]) == (400, -32602)


async def test_a_resource_that_two_servers_have_is_read_where_its_shown_uri_leads(
    speaker: Speaker, ups: dict[str, Scripted]
) -> None:
    found = await listed(speaker, "resources/list", "resources")
    assert found == [{"uri": f"ui://{name}~app", "name": "app", "x": 1.5} for name in ("aa", "bb")]
    for name, up in ups.items():
        answer = await read(speaker, f"ui://{name}~app")
        assert answer.result["contents"] == [{"uri": f"ui://{name}~app", "text": f"of {up.url}"}]
        asked = next(one for one in reversed(up.seen) if one.method == "resources/read")
        assert (asked.params["uri"], asked.headers["mcp-name"]) == ("ui://app", "ui://app")
    own = await read(speaker, "ui://app", "/mcp/bb")
    assert own.result["contents"][0]["uri"] == "ui://app"
    ambiguous = await read(speaker, "ui://app")
    assert ambiguous.error["code"] == -32602


async def test_a_template_leads_to_its_server(speaker: Speaker, ups: dict[str, Scripted]) -> None:
    for template in await listed(speaker, "resources/templates/list", "resourceTemplates"):
        uri = template["uriTemplate"].replace("{id}", "7")
        (content,) = (await read(speaker, uri)).result["contents"]
        assert content["uri"] == uri


async def test_a_prompts_link_leads_back_to_its_server(speaker: Speaker) -> None:
    assert [one["name"] for one in await listed(speaker, "prompts/list", "prompts")] == ["aa__greet", "bb__greet"]
    answer = await speaker.ask(speaker.modern("prompts/get", {"name": "bb__greet"}))
    assert answer.result["messages"][0]["content"]["uri"] == "ui://bb~app"


async def test_capabilities_are_those_of_the_door(speaker: Speaker) -> None:
    whole = (await speaker.ask(speaker.modern("server/discover"))).result
    assert whole["capabilities"].keys() == {"tools", "prompts", "resources"}
    one_set = (await speaker.ask(speaker.modern("server/discover", path="/mcp/sets/ops"))).result
    assert one_set["capabilities"].keys() == {"tools", "resources"}
    assert one_set["instructions"] == "Read logs."


async def test_a_sets_tool_is_called_with_its_fixed_arguments(
    edge: RunningEdge, speaker: Speaker, ups: dict[str, Scripted]
) -> None:
    found = await listed(speaker, "tools/list", "tools", "/mcp/sets/ops")
    assert [one["name"] for one in found] == ["read_log", "echo"]
    assert found[0]["inputSchema"] == {"type": "object", "properties": {"n": {"type": "integer"}}}
    answer = await speaker.call("read_log", {"n": 2, "path": "/etc/passwd"}, path="/mcp/sets/ops")
    assert json.loads(answer.text) == {"n": 2, "path": "/var/log/x"}
    assert ups["aa"].calls("read")[-1].params["arguments"] == {"n": 2, "path": "/var/log/x"}
    assert (await speaker.call("read", {}, path="/mcp/sets/ops")).error["code"] == -32602


async def test_policy_decides_on_a_sets_tool_with_its_fixed_arguments(edge: RunningEdge, speaker: Speaker) -> None:
    refused = await speaker.call("aa__read", {"path": "/etc/passwd"})
    assert refused.result["isError"]
    allowed = await speaker.call("read_log", {"path": "/etc/passwd"}, path="/mcp/sets/ops")
    assert not allowed.result.get("isError")


async def test_a_set_has_an_audience_and_metadata_of_its_own(edge: RunningEdge) -> None:
    at = f"{edge.settings.url}/mcp/sets/ops"
    here = edge.place.speaker(audience=at)
    assert (await here.ask(here.modern("tools/list", path="/mcp/sets/ops"))).status == 200
    assert (await here.ask(here.modern("tools/list", path="/mcp/sets/ops/"))).status == 200
    elsewhere = await here.ask(here.modern("tools/list", path="/mcp"))
    assert elsewhere.status == 401
    challenge = (await here.ask(here.modern("tools/list", path="/mcp/aa"))).headers["www-authenticate"]
    assert 'resource_metadata="' in challenge
    stranger = await here.ask(here.request(b"{}", "/mcp/sets/ops", headers={"Authorization": ""}))
    assert "/.well-known/oauth-protected-resource/mcp/sets/ops" in stranger.headers["www-authenticate"]
    document = await here.ask(here.request(b"", "/.well-known/oauth-protected-resource/mcp/sets/ops", "GET"))
    assert document.json["resource"] == at
    for path in ("/mcp/sets/none", "/mcp/sets", "/mcp/none", "/.well-known/oauth-protected-resource/mcp/sets/none"):
        assert (await here.ask(here.request(b"{}", path, "GET"))).status == 404


async def test_a_tool_that_a_server_adds_is_listed_as_soon_as_it_says_so(
    speaker: Speaker, ups: dict[str, Scripted]
) -> None:
    await until(lambda: ups["bb"].count("subscriptions/listen") > 0)
    ups["bb"].tools.append(tool("zz-new"))

    async def is_listed() -> bool:
        return "bb__zz-new" in [one["name"] for one in await listed(speaker, "tools/list", "tools")]

    await until(is_listed, 5)
