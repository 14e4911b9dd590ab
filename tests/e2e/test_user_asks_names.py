"""What users of gateways suffer from with names and lists: names that are too long or change, lists that are empty and
say so with 200. One edge in this process. `docs/user-asks.md` names the complaints.
"""

from pathlib import Path
from typing import Any

import pytest
from tests.parts.edge import Answer, RunningEdge, Speaker, running_edge, until
from tests.parts.restless import restless
from tests.parts.scripted import tool

LENGTH_MAX = 64  # what model APIs take
LONG = ["t" * 50, "t" * 60, "t" * 100, "a-very-long-name-that-says-all-about-what-it-does-twice", "x" * 128]
LONGER = [f"{'search_all_documents_of_the_whole_organisation_by_keyword_v'}{number}" for number in range(20)]
NAMES = ["echo", *LONG, *LONGER]


async def listed(speaker: Speaker, *, modern: bool = True) -> Answer:
    if modern:
        return await speaker.ask(speaker.modern("tools/list"))
    await speaker.initialize()
    return await speaker.ask(speaker.legacy("tools/list"))


async def names_of(speaker: Speaker, *, modern: bool = True) -> list[str]:
    return [one["name"] for one in (await listed(speaker, modern=modern)).result["tools"]]


@pytest.mark.parametrize("modern", [True, False])
async def test_no_name_is_longer_than_models_take_and_each_leads_to_its_tool(tmp_path: Path, modern: bool) -> None:
    with restless("modern", tools=[tool(name) for name in NAMES]) as server:
        servers = {"abcdefghijkl": {"url": server.url}, "b": {"url": server.url}}
        async with running_edge(tmp_path, servers) as edge:
            speaker = edge.place.speaker()
            names = await names_of(speaker, modern=modern)
            assert len(names) == len(set(names)) == 2 * len(NAMES)
            assert max(map(len, names)) <= LENGTH_MAX
            for number, name in enumerate(names):
                assert (await speaker.call(name, {"nonce": str(number)})).status == 200
            called = [seen.params["name"] for seen in server.calls()]
            assert sorted(called) == sorted(2 * NAMES)


async def test_a_server_that_is_added_renames_nothing_that_was_there(tmp_path: Path) -> None:
    with restless("modern", tools=[tool(name) for name in NAMES]) as server:
        lists = []
        for number, added in enumerate(({}, {"aa": {"url": server.url}}, {"zz": {"url": server.url}})):
            root = tmp_path / str(number)
            root.mkdir()
            async with running_edge(root, {"files": {"url": server.url}, **added}) as edge:
                lists.append(set(await names_of(edge.place.speaker())))
    assert lists[0] < lists[1]
    assert lists[0] < lists[2]
    assert len(lists[1]) == len(lists[2]) == 2 * len(lists[0])


@pytest.mark.parametrize("separator", ["__", "_", "-", "."])
async def test_the_separator_is_the_operator_s_and_the_bound_holds(tmp_path: Path, separator: str) -> None:
    with restless("modern", tools=[tool(name) for name in NAMES]) as server:
        servers = {"files": {"url": server.url}}
        async with running_edge(tmp_path, servers, naming={"separator": separator}) as edge:
            names = await names_of(edge.place.speaker())
            assert f"files{separator}echo" in names
            assert max(map(len, names)) <= LENGTH_MAX
            assert all(name.startswith(f"files{separator}") for name in names)


# ---- lists that are not empty


STRANGE: list[dict[str, str]] = [
    {"X-Mcp-Servers": "nothing"},
    {"x-mcp-allowed-tools": "none"},
    {"X-Forwarded-For": "10.0.0.1", "X-Forwarded-Proto": "https", "X-Forwarded-Host": "elsewhere.example"},
    {"Mcp-Param-Server": "x"},
    {"Cookie": "session=1"},
    {"MCP-Client-Name": "anything", "X-Request-Id": "1"},
    {"Mcp-Session-Id": "some-session"},
]


@pytest.mark.parametrize("headers", STRANGE, ids=lambda headers: next(iter(headers)))
async def test_a_header_more_does_not_change_the_list(tmp_path: Path, headers: dict[str, str]) -> None:
    with restless("modern") as server:
        async with running_edge(tmp_path, {"up": {"url": server.url}}) as edge:
            speaker = edge.place.speaker()
            plain = await speaker.ask(speaker.modern("tools/list"))
            strange = await speaker.ask(speaker.modern("tools/list", headers=headers))
            assert (strange.status, strange.body) == (200, plain.body)
            assert len(plain.result["tools"]) > 3


@pytest.mark.parametrize("status", [500, 401, 403, 404, 503])
async def test_a_server_that_will_not_list_is_named_and_the_other_s_tools_are_there(
    tmp_path: Path, status: int
) -> None:
    with restless("sessions", status=status) as bad, restless("modern") as good:
        servers = {"bad": {"url": bad.url, "timeout_s": 3}, "good": {"url": good.url}}
        async with running_edge(tmp_path, servers, waits=("good",)) as edge:
            await until(lambda: "bad" in edge.edge.discovery.troubles)
            names = await names_of(edge.place.speaker())
            assert "good__echo" in names
            assert not [name for name in names if name.startswith("bad")]
            told = edge.edge.discovery.troubles["bad"]
            assert "bad" in told
            assert str(status) in told or (status in (401, 403) and "credential" in told), told
            assert "tools of bad" in edge.edge.discovery.degraded


async def test_when_no_server_lists_the_client_is_told_so_and_not_shown_an_empty_list(tmp_path: Path) -> None:
    with restless("sessions", list_status=500) as bad:
        async with running_edge(tmp_path, {"bad": {"url": bad.url, "timeout_s": 3}}, waits=()) as edge:
            await until(lambda: "bad" in edge.edge.discovery.troubles)
            for modern in (True, False):
                answer = await listed(edge.place.speaker(), modern=modern)
                assert "error" in answer.json, answer.body
                assert answer.error["message"]
            assert "tools of bad" in edge.edge.discovery.degraded
            bad.list_status = 200

            async def is_listed() -> bool:
                answer = await listed(edge.place.speaker())
                return "result" in answer.json and len(answer.result["tools"]) > 3

            await until(is_listed, 15)


async def test_a_server_s_credential_that_has_expired_is_named_and_its_tools_stay(tmp_path: Path) -> None:
    """401 amid a session: told as what it is, on each call, and nothing vanishes from the list."""
    with restless("sessions") as server:
        header = {"Authorization": "Bearer upstream-secret-4711"}
        async with running_edge(tmp_path, {"up": {"url": server.url, "headers": header, "timeout_s": 3}}) as edge:
            speaker = edge.place.speaker()
            assert (await speaker.call("up__echo")).status == 200
            before = await names_of(speaker)
            server.status = 401
            for _ in range(2):
                answer = await speaker.call("up__echo", {"nonce": "expired"})
                assert answer.result["isError"] is True
                assert answer.result["_meta"]["tidegate/decision"]["reason"] == "upstream-unauthorized", answer.body
                assert "credential" in answer.text
                assert b"upstream-secret-4711" not in answer.body
            assert await names_of(speaker) == before
            server.status = 200
            await until(works(speaker))
            assert "expired" not in server.nonces()


def works(speaker: Speaker) -> Any:
    async def fact() -> bool:
        answer = await speaker.call("up__echo")
        return not answer.result.get("isError")

    return fact


# ---- who we are


async def test_the_resource_metadata_names_the_gateway_and_never_a_server_behind_it(tmp_path: Path) -> None:
    with restless("modern") as server:
        async with running_edge(tmp_path, {"up": {"url": server.url}}) as edge:
            for path in ("/mcp", "/mcp/up"):
                told = await metadata(edge, path)
                assert told.json["resource"] == f"{edge.settings.url}{path}"
                assert str(server.port).encode() not in told.body


async def metadata(edge: RunningEdge, path: str) -> Answer:
    speaker = edge.place.speaker()
    refused = await speaker.ask(speaker.request(b"{}", path, headers={"Authorization": ""}))
    assert refused.status == 401
    where = refused.headers["www-authenticate"].partition('resource_metadata="')[2].partition('"')[0]
    assert where.startswith(edge.settings.url)
    return await speaker.ask(speaker.request(b"", where.removeprefix(edge.settings.url), "GET"))
