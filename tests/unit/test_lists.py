"""What a principal is shown: lists in pages, capabilities, instructions. What is listed can be called."""

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.claims import Principal
from tidegate.ids import SubjectId
from tidegate.inspection.rules import load_inspection
from tidegate.inspection.scanner import Scanner
from tidegate.limits import INSTRUCTIONS_CHARS_MAX, Limits
from tidegate.policy.bundle import bundle_of
from tidegate.policy.engine import Engine
from tidegate.sealing import Sealer, SealingKey
from tidegate.settings import SetTool, Toolset
from tidegate_edge import lists
from tidegate_edge.catalog import Catalog, Item, Plan, Shelf, shelve
from tidegate_edge.cursors import BadCursor
from tidegate_edge.looking_ahead import AT_ONCE, look_ahead
from tidegate_edge.messages import encode
from tidegate_edge.releases import facts_of
from tidegate_edge.ruling import Ruling
from tidegate_edge.upstream.port import Definitions

OBJECT = {"type": "object"}
EVERYTHING = '@id("all") permit (principal, action, resource);'
SEALER = Sealer([SealingKey.generate()])


def shelf(
    server: str, tools: Any = (), prompts: Any = (), resources: Any = (), templates: Any = (), **said: Any
) -> Shelf:
    found = Definitions(
        tools=tuple(encode(one if isinstance(one, dict) else {"name": one, "inputSchema": OBJECT}) for one in tools),
        prompts=tuple(encode({"name": one}) for one in prompts),
        resources=tuple(encode({"name": "r", "uri": one}) for one in resources),
        templates=tuple(encode({"name": "t", "uriTemplate": one}) for one in templates),
        capabilities=encode(said.get("capabilities", {})),
        instructions=said.get("instructions", ""),
    )
    return shelve(server, found)


def ruling_of(*shelves: Shelf, rules: str = EVERYTHING, **plan: Any) -> Ruling:
    catalog = Catalog({one.server: one for one in shelves}, Plan(**plan))
    files = {"manifest.json": b'{"v": 1, "name": "x"}', "policies/p.cedar": rules.encode()}
    engine = Engine.build(bundle_of(files), facts_of(catalog), dict.fromkeys(catalog.shelves, ()))
    return Ruling(engine, Scanner(load_inspection(b"")), catalog, number=1, digest="d")


def principal(*groups: str, subject: str = "s") -> Principal:
    return Principal(
        tenant="t", issuer="i", subject=subject, subject_id=SubjectId(subject), user=subject, login="", agent="bot",
        agent_source="", actors=(), groups=groups, scopes=(), token_id="", sid="", issued_us=0, expires_us=0,
        key=f"{subject}|{','.join(groups)}",
    )  # fmt: skip


def edge_of(page_size: int = 500, **troubles: str) -> Any:
    limits = Limits(list_page_size=page_size)
    return SimpleNamespace(discovery=SimpleNamespace(troubles=troubles), sealer=SEALER, limits=limits)


def listed(
    ruling: Ruling, kind: Any = "tool", door: str = "", *, modern: bool = True, cursor: str | None = None,
    who: Principal | None = None, edge: Any = None,
) -> Any:  # fmt: skip
    raw = lists.listed(edge or edge_of(), ruling, who or principal(), door, kind, modern, cursor)
    return json.loads(raw)


# lists


def test_lists_are_sorted_by_server_and_name_and_named_for_the_door() -> None:
    ruling = ruling_of(shelf("b", ("z", "a"), ("p",)), shelf("a", ("x",), (), ("u://1",), ("u://{x}",)))
    assert [one["name"] for one in listed(ruling)["tools"]] == ["a__x", "b__a", "b__z"]
    assert [one["name"] for one in listed(ruling, door="b")["tools"]] == ["a", "z"]
    assert listed(ruling, "prompt")["prompts"] == [{"name": "b__p"}]
    assert listed(ruling, "resource")["resources"] == [{"name": "r", "uri": "u://1"}]
    assert listed(ruling, "template", "a")["resourceTemplates"] == [{"name": "t", "uriTemplate": "u://{x}"}]
    assert listed(ruling, door="unknown")["tools"] == []


def test_a_modern_list_says_how_long_and_for_whom_and_a_legacy_one_does_not() -> None:
    ruling = ruling_of(shelf("a", ("x",)))
    modern = listed(ruling)
    assert (modern["resultType"], modern["ttlMs"], modern["cacheScope"]) == ("complete", 5_000, "private")
    assert modern["_meta"]["io.modelcontextprotocol/serverInfo"]["name"] == "tidegate"
    assert listed(ruling, modern=False).keys() == {"tools"}


def test_while_a_server_is_in_trouble_a_list_that_it_is_in_holds_shortly() -> None:
    ruling, edge = ruling_of(shelf("a", ("x",)), shelf("b", ("y",))), edge_of(b="away")
    assert listed(ruling, edge=edge)["ttlMs"] == listed(ruling, door="b", edge=edge)["ttlMs"] == 1_000
    assert listed(ruling, door="a", edge=edge)["ttlMs"] == 5_000
    assert len(listed(ruling, edge=edge)["tools"]) == 2
    assert listed(ruling)["ttlMs"] == 5_000
    assert listed(ruling, edge=edge_of(unseen="away"))["ttlMs"] == 1_000
    chosen = Toolset(tools=(SetTool(server="a", tool="x"), SetTool(server="unseen", tool="x")))
    in_set = ruling_of(shelf("a", ("x",)), sets={"one": chosen})
    assert listed(in_set, door="sets/one", edge=edge_of(unseen="away"))["ttlMs"] == 1_000
    assert listed(in_set, door="sets/one", edge=edge_of(b="away"))["ttlMs"] == 5_000


def test_what_speaks_of_the_tasks_of_2025_is_shown_to_that_era_alone() -> None:
    raw = {"name": "x", "inputSchema": OBJECT, "execution": {"taskSupport": "optional"}, "x-own": {"n": 1.5}}
    ruling = ruling_of(shelf("a", (raw,)))
    assert listed(ruling, modern=False)["tools"] == [{**raw, "name": "a__x"}]
    assert listed(ruling)["tools"] == [{"name": "a__x", "inputSchema": OBJECT, "x-own": {"n": 1.5}}]


def test_a_tools_user_interface_is_shown_by_the_uri_that_leads_there() -> None:
    tools = ({"name": "x", "inputSchema": OBJECT, "_meta": {"ui": {"resourceUri": "ui://x"}}},)
    ruling = ruling_of(shelf("a", tools, resources=("ui://x",)), shelf("b", tools, resources=("ui://x",)))
    shown = {one["name"]: one["_meta"]["ui"]["resourceUri"] for one in listed(ruling)["tools"]}
    assert shown == {"a__x": "ui://a~x", "b__x": "ui://b~x"}
    assert listed(ruling, door="a")["tools"][0]["_meta"]["ui"]["resourceUri"] == "ui://x"
    assert [one["uri"] for one in listed(ruling, "resource")["resources"]] == ["ui://a~x", "ui://b~x"]


# pages


@pytest.mark.parametrize("modern", [True, False])
def test_pages_hold_everything_once_in_order(modern: bool) -> None:
    names = [f"t{number:02}" for number in range(7)]
    ruling, edge = ruling_of(shelf("a", names)), edge_of(3)
    found, cursor, pages = [], None, 0
    while pages == 0 or cursor is not None:
        page = listed(ruling, door="a", modern=modern, cursor=cursor, edge=edge)
        found += [one["name"] for one in page["tools"]]
        assert ("ttlMs" in page) is modern
        cursor, pages = page.get("nextCursor"), pages + 1
    assert (found, pages) == (names, 3)


def test_a_cursor_is_good_for_its_principal_and_its_list_at_every_edge() -> None:
    ruling = ruling_of(shelf("a", ("x", "y"), ("p", "q")), shelf("b", ("z",)))
    cursor = listed(ruling, edge=edge_of(1))["nextCursor"]
    again = ruling_of(shelf("b", ("z",)), shelf("a", ("x", "y"), ("p", "q")))  # another edge's
    assert listed(again, cursor=cursor, edge=edge_of(1))["tools"][0]["name"] == "a__y"
    prompts = listed(ruling, "prompt", edge=edge_of(1))["nextCursor"]
    foreign: list[dict[str, Any]] = [
        {"cursor": cursor, "who": principal(subject="other")},
        {"cursor": cursor, "door": "a"},
        {"cursor": cursor, "kind": "prompt"},
        {"cursor": prompts},
        {"cursor": cursor[:-1]},
        {"cursor": ""},
        {"cursor": "1"},
    ]
    for one in foreign:
        with pytest.raises(BadCursor, match="invalid cursor"):
            listed(ruling, **{"edge": edge_of(1), **one})


def test_a_cursor_ends_when_its_list_changes_and_not_when_another_does() -> None:
    cursor = listed(ruling_of(shelf("a", ("x", "y"))), edge=edge_of(1))["nextCursor"]
    same = ruling_of(shelf("a", ("x", "y"), ("new",)))
    assert listed(same, cursor=cursor, edge=edge_of(1))["tools"][0]["name"] == "a__y"
    with pytest.raises(BadCursor):
        listed(ruling_of(shelf("a", ("x", "y", "z"))), cursor=cursor, edge=edge_of(1))


def test_a_page_is_bounded_in_bytes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists, "LIST_PAGE_BYTES_MAX", 100)
    tools = [{"name": name, "inputSchema": OBJECT, "description": "d" * 50} for name in "abc"]
    assert len(listed(ruling_of(shelf("a", tools)))["tools"]) == 1


def test_rendered_lists_that_are_kept_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    ruling = ruling_of(shelf("a", ("x",)))
    monkeypatch.setattr(lists, "LISTS_KEPT_MAX", 3)
    for number in range(10):
        assert listed(ruling, who=principal(subject=f"s{number}"))["tools"]
        assert len(ruling.lists) <= 3
    monkeypatch.setattr(lists, "LISTS_KEPT_BYTES_MAX", 1)
    for number in range(10):
        assert listed(ruling, who=principal(subject=f"r{number}"))["tools"]
        assert len(ruling.lists) == 1


# what is listed is what can be called

GROUPS = ("eng", "ops")
SERVERS = ("aa", "bb")
SHELVES = tuple(shelf(name, ("one", "two"), ("p", "q"), ("u://1", "u://2"), ("u://{x}/y",)) for name in SERVERS)
ACTIONS = ("one", "two", "prompts/get", "resources/read")
heads = st.tuples(
    st.sampled_from(["permit", "permit", "forbid"]),
    st.sampled_from(["principal", *(f'principal in Group::"{group}"' for group in GROUPS)]),
    st.sampled_from(
        ["action", 'action in Action::"call"', 'action in Action::"prompt"', 'action in Action::"resource"']
        + [f'action == Action::"{server}/{action}"' for server in SERVERS for action in ACTIONS]
    ),
    st.sampled_from(["resource", *(f'resource == Server::"{server}"' for server in SERVERS)]),
    st.sampled_from(
        [
            "",
            'when { context.args has path && context.args.path like "/srv/*" }',
            'when { context.args has uri && context.args.uri like "u://1*" }',
            'when { context.args has name && context.args.name == "p" }',
            'when { context.agent.id == "bot" }',
            "when { false }",
        ]
    ),
)
policies = st.lists(heads, min_size=1, max_size=5)
ARGUMENTS: tuple[dict[str, Any], ...] = ({}, {"path": "/srv/a"}, {"path": "/etc"})


def text_of(rules: Any) -> str:
    return "\n".join(
        f'@id("r{number}") {effect} ({who}, {what}, {where}) {when};'
        for number, (effect, who, what, where, when) in enumerate(rules)
    )


@settings(max_examples=120, deadline=None)
@given(policies, st.sampled_from([(), ("eng",), ("eng", "ops")]), st.sampled_from(["", *SERVERS]), st.booleans())
def test_a_listed_tool_is_callable_and_a_callable_tool_is_listed(
    rules: Any, groups: tuple[str, ...], door: str, modern: bool
) -> None:
    # A forbid on arguments may leave nothing: no partial look can tell.
    rules = [rule for rule in rules if rule[0] == "permit" or "args" not in rule[4]]
    ruling, who = ruling_of(*SHELVES, rules=text_of(rules)), principal(*groups)
    found = {one["name"] for one in listed(ruling, door=door, modern=modern, who=who)["tools"]}
    callable_names = {
        name
        for name, tool in ruling.catalog.door(door).tools.items()
        if any(ruling.decide(who, tool, arguments).effect != "deny" for arguments in ARGUMENTS)
    }
    assert callable_names <= found
    if not any("args" in when for *_, when in rules):  # conditions on arguments may exclude each other
        assert found == callable_names
    assert all(ruling.catalog.find(door, name) is not None for name in found)


@settings(max_examples=120, deadline=None)
@given(policies, st.sampled_from([(), ("eng",), ("eng", "ops")]), st.sampled_from(["", *SERVERS]))
def test_a_prompt_or_resource_is_listed_where_it_may_be_had(rules: Any, groups: tuple[str, ...], door: str) -> None:
    ruling, who = ruling_of(*SHELVES, rules=text_of(rules)), principal(*groups)
    here = ruling.catalog.door(door)

    def is_had(item: Item) -> bool:
        facts = {"name": item.name, "arguments": {}} if item.kind == "prompt" else {"uri": item.name}
        return ruling.decide(who, item, facts).effect != "deny"

    assert {one["name"] for one in listed(ruling, "prompt", door, who=who)["prompts"]} == {
        name for name, item in here.prompts.items() if is_had(item)
    }
    assert {one["uri"] for one in listed(ruling, "resource", door, who=who)["resources"]} == {
        uri for uri, item in here.resources.items() if is_had(item)
    }
    useful = {
        item.server
        for items in (here.prompts, here.resources, here.templates)
        for item in items.values()
        if is_had(item)
    } | {
        item.server
        for item in here.tools.values()
        if any(ruling.decide(who, item, args).effect != "deny" for args in ARGUMENTS)
    }
    assert useful <= lists.visible_servers(ruling, who, door)


# what is said of a door

FULL = {
    "tools": {},
    "prompts": {"listChanged": True},
    "resources": {"subscribe": True},
    "completions": {},
    "logging": {},
    "tasks": {"list": {}},
    "extensions": {"io.modelcontextprotocol/ui": {"a": 1}, "io.modelcontextprotocol/tasks": {}},
    "experimental": {"x": {}},
}


def said(ruling: Ruling | None, door: str = "", who: Principal | None = None) -> Any:
    modern = json.loads(lists.discovered(ruling, who or principal(), door))
    version, raw = lists.initialized(ruling, who or principal(), door, "2025-06-18")
    legacy = json.loads(raw)
    assert (version, legacy["protocolVersion"]) == ("2025-06-18", "2025-06-18")
    modern_only = modern["capabilities"].get("extensions", {}).pop(lists.TASKS, None)
    assert modern["capabilities"] == legacy["capabilities"]
    if modern_only is not None:
        modern["capabilities"]["extensions"][lists.TASKS] = modern_only
    assert modern.get("instructions") == legacy.get("instructions")
    assert "2026-07-28" in modern["supportedVersions"]
    assert {"resultType", "ttlMs", "cacheScope", "_meta"} <= modern.keys()
    assert legacy["serverInfo"]["name"] == "tidegate"
    return modern


def test_capabilities_are_those_of_the_servers_at_the_door_as_far_as_they_work() -> None:
    ruling = ruling_of(shelf("full", ("x",), capabilities=FULL), shelf("bare", ("y",)))
    every = {
        "tools": {"listChanged": True},
        "prompts": {"listChanged": True},
        "resources": {"subscribe": True, "listChanged": True},
        "completions": {},
        "logging": {},
        "extensions": {"io.modelcontextprotocol/ui": {"a": 1}, "io.modelcontextprotocol/tasks": {}},
    }
    assert said(ruling)["capabilities"] == said(ruling, "full")["capabilities"] == every
    assert said(ruling, "bare")["capabilities"] == {"tools": {"listChanged": True}}
    assert said(None)["capabilities"] == {"tools": {"listChanged": True}}


def test_a_server_of_prompts_alone_promises_no_tools() -> None:
    ruling = ruling_of(shelf("p", (), ("q",), capabilities={"prompts": {}}))
    assert said(ruling)["capabilities"] == {"prompts": {"listChanged": True}}


def test_capabilities_of_a_server_that_a_principal_may_not_use_are_not_its() -> None:
    rules = '@id("r") permit (principal, action, resource == Server::"bare");'
    ruling = ruling_of(shelf("full", ("x",), capabilities=FULL, instructions="i"), shelf("bare", ("y",)), rules=rules)
    assert lists.visible_servers(ruling, principal(), "") == {"bare"}
    assert said(ruling)["capabilities"] == {"tools": {"listChanged": True}}
    assert "instructions" not in said(ruling)


def test_instructions_are_a_servers_own_at_its_door_and_sections_at_the_others() -> None:
    long = "long " * 2_000
    ruling = ruling_of(shelf("b", ("x",), instructions="Be kind."), shelf("a", ("y",), instructions=long))
    assert said(ruling, "a")["instructions"] == long
    merged = said(ruling)["instructions"]
    assert merged.startswith("## a\n\nlong long")
    assert merged.endswith("…\n\n## b\n\nBe kind.")
    assert len(merged) <= INSTRUCTIONS_CHARS_MAX


def test_merged_instructions_are_bounded_over_many_servers() -> None:
    ruling = ruling_of(*(shelf(f"s{number}", ("x",), instructions="i" * 4_000) for number in range(10)))
    assert len(said(ruling)["instructions"]) == INSTRUCTIONS_CHARS_MAX


def test_a_set_speaks_for_itself_and_promises_what_is_in_it() -> None:
    tools = (SetTool(server="full", tool="x", name="do"),)
    sets = {
        "one": Toolset(tools=tools, description="For trials.", instructions="Use do."),
        "two": Toolset(tools=tools, description="For trials.", prompts=("full",)),
    }
    ruling = ruling_of(shelf("full", ("x",), capabilities=FULL, instructions="Be kind."), sets=sets)
    assert [one["name"] for one in listed(ruling, door="sets/one")["tools"]] == ["do"]
    assert said(ruling, "sets/one")["instructions"] == "Use do."
    assert said(ruling, "sets/two")["instructions"] == "For trials.\n\n## full\n\nBe kind."
    assert said(ruling, "sets/one")["capabilities"].keys() == {"tools", "logging", "extensions"}
    assert said(ruling, "sets/two")["capabilities"].keys() == {
        "tools",
        "prompts",
        "completions",
        "logging",
        "extensions",
    }


async def test_what_a_principal_may_see_is_found_out_a_few_things_at_a_time_and_once() -> None:
    ruling, turns = ruling_of(shelf("a", [f"t{number}" for number in range(10 * AT_ONCE)], ("p",))), 0

    async def take_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    others = asyncio.create_task(take_turns())
    await look_ahead(ruling, principal(), "")
    assert 10 <= turns < 20
    before = turns
    await look_ahead(ruling, principal(), "")
    assert turns == before, "it is known"
    others.cancel()
    assert len(listed(ruling)["tools"]) == 10 * AT_ONCE
