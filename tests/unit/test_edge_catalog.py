"""The catalogue and what is made of it: names, definitions, lists, params and results of both eras."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.parts.edge import modern_body

from tidegate.claims import Principal
from tidegate.inspection.rules import load_inspection
from tidegate.inspection.scanner import Scanner
from tidegate.policy.bundle import bundle_of
from tidegate.policy.engine import Engine, ToolFacts
from tidegate_edge import lists, translate
from tidegate_edge.accept import Request
from tidegate_edge.catalog import NAME_MAX, Catalog, Shelf, exposed_name, renamed, shelve
from tidegate_edge.messages import decode_fields
from tidegate_edge.ruling import Ruling
from tidegate_edge.upstream.listing import drain_tools
from tidegate_edge.upstream.port import Answer

OBJECT = {"type": "object"}


def shelf(*definitions: Any, server: str = "up", **labels: tuple[str, ...]) -> Shelf:
    raw = [one if isinstance(one, bytes) else json.dumps(one).encode() for one in definitions]
    return shelve(server, raw, labels, ())


# names


def test_a_short_name_is_the_servers_and_the_tools() -> None:
    assert exposed_name("up", "echo") == "up__echo"


def test_a_long_name_keeps_its_beginning_and_a_stable_hash() -> None:
    name = "a" * 100
    assert len(exposed_name("up", name)) == NAME_MAX
    assert exposed_name("up", name) == exposed_name("up", name)
    assert exposed_name("up", name) != exposed_name("up", name + "a")


@given(st.from_regex(r"[a-z][a-z0-9-]{0,11}", fullmatch=True), st.text(min_size=1, max_size=128))
def test_an_exposed_name_is_within_the_budget_and_says_its_server(server: str, name: str) -> None:
    exposed = exposed_name(server, name)
    assert len(exposed) <= NAME_MAX
    assert exposed.startswith(f"{server}__")


@given(st.lists(st.text(min_size=1, max_size=128), max_size=6, unique=True))
def test_two_tools_of_a_server_never_share_an_exposed_name(names: list[str]) -> None:
    tools = shelf(*[{"name": name, "inputSchema": OBJECT} for name in names if name.isprintable()]).tools
    assert len({tool.exposed for tool in tools}) == len(tools)


# definitions


def test_a_definition_is_shown_byte_for_byte_but_for_its_name() -> None:
    raw = (
        '{"icons":[{"src":"x","n":1.50}],"name":"echo", "x-unknown" : {"b":1,"a":"é"},'
        '"inputSchema":{"type":"object"},"_meta":{"k":[1e2]}}'
    )
    (tool,) = shelf(raw.encode()).tools
    shown = renamed(tool, "up__echo")
    assert json.loads(shown) == {**json.loads(raw), "name": "up__echo"}
    for kept in ('[{"src":"x","n":1.50}]', '{"b":1,"a":"é"}', '{"k":[1e2]}'):
        assert kept.encode() in shown


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"1",
        b"null",
        b"{}",
        b'{"name":1}',
        b'{"name":""}',
        b'{"name":"a\\r\\nX-Evil: 1","inputSchema":{"type":"object"}}',
        b'{"name":"x"}',
        b'{"name":"x","inputSchema":{}}',
        b'{"name":"x","inputSchema":[]}',
        b'{"name":"x","inputSchema":{"type":"string"}}',
        b'{"name":"x","inputSchema":null}',
        b'{"name":"\xff","inputSchema":{"type":"object"}}',
        b'{"name":"\\ud800","inputSchema":{"type":"object"}}',
        b'{"name":"x","name":"y","inputSchema":{"type":"object"}}',
        b'{"name":"x","inputSchema":{"type":"object","properties":{"a":{},"a":{}}}}',
        b'{"name":"x","description":"\\udfff","inputSchema":{"type":"object"}}',
        b'{"name":"x","inputSchema":{"type":"object"},"deep":' + b"[" * 300 + b"]" * 300 + b"}",
        b'{"name":"x","inputSchema":{"type":"object"},"description":"' + b"x" * 300_000 + b'"}',
        b'{"name":"x","inputSchema":{"type":"object","properties":{"a":{"type":"object","x-mcp-header":"A"}}}}',
        b'{"name":"x","inputSchema":{"type":"object","properties":{"a":{"type":"string","x-mcp-header":"a b"}}}}',
        b'{"name":"' + b"n" * 129 + b'","inputSchema":{"type":"object"}}',
    ],
)
def test_an_invalid_definition_is_left_out_and_the_others_stay(raw: bytes) -> None:
    assert [tool.name for tool in shelf(raw, {"name": "good", "inputSchema": OBJECT}).tools] == ["good"]


def test_the_digest_tells_a_change_and_nothing_else() -> None:
    first = shelf(b'{"name":"x","inputSchema":{"type":"object"},"description":"d"}')
    same = shelf(b' {"description":"d","inputSchema":{ "type":"object"},"name":"x"} ')
    changed = shelf(b'{"name":"x","inputSchema":{"type":"object"},"description":"D"}')
    assert first.digest == same.digest != changed.digest


def test_a_server_may_warn_of_its_tools_and_never_call_them_read_only() -> None:
    definition = {"name": "x", "inputSchema": OBJECT, "annotations": {"readOnlyHint": True, "destructiveHint": "yes"}}
    assert shelf(definition).tools[0].labels == ()
    definition["annotations"] = {"readOnlyHint": True, "destructiveHint": True}
    assert shelf(definition).tools[0].labels == ("destructive",)
    assert shelf(definition, x=("read-only",)).tools[0].labels == ("read-only",)


def test_the_first_of_two_tools_with_one_name_stands() -> None:
    twice = [{"name": "x", "inputSchema": OBJECT, "title": title} for title in ("one", "two")]
    (tool,) = shelf(*twice).tools
    assert bytes(tool.fields["title"]) == b'"one"'


def test_no_two_tools_are_exposed_under_one_name() -> None:
    long = "n" * 80
    twin = exposed_name("up", long).removeprefix("up__")
    tools = shelf({"name": long, "inputSchema": OBJECT}, {"name": twin, "inputSchema": OBJECT}).tools
    assert [tool.name for tool in tools] == [long]


# lists of an upstream


@pytest.mark.parametrize(
    ("pages", "count", "partial"),
    [
        ({None: ([1, 2], "b"), "b": ([3], None)}, 3, False),
        ({None: ([1], "a"), "a": ([2], "a")}, 2, True),  # a cycle
        ({None: ([], None)}, 0, False),
    ],
)
async def test_all_pages_are_drained_and_a_cycle_is_noticed(pages: Any, count: int, partial: bool) -> None:
    async def fetch(cursor: str | None) -> Answer:
        tools, following = pages[cursor]
        return Answer(result=json.dumps({"tools": tools, "nextCursor": following}).encode())

    found = await drain_tools("up", fetch)
    assert (len(found.tools), bool(found.partial)) == (count, partial)


async def test_an_endless_list_is_cut() -> None:
    numbers = iter(range(10**6))

    async def fetch(cursor: str | None) -> Answer:
        return Answer(result=b'{"tools":[%b],"nextCursor":"%d"}' % (b",".join([b"{}"] * 500), next(numbers)))

    found = await drain_tools("up", fetch)
    assert len(found.tools) == 2_000
    assert found.partial


# what is listed is what can be called

SERVERS = ("aa", "bb")
TOOLS = ("one", "two")
GROUPS = ("eng", "ops")
heads = st.tuples(
    st.sampled_from(["permit", "forbid"]),
    st.sampled_from(["principal", *(f'principal in Group::"{group}"' for group in GROUPS)]),
    st.sampled_from(
        ["action", 'action in Action::"call"', *(f'action == Action::"{s}/{t}"' for s in SERVERS for t in TOOLS)]
    ),
    st.sampled_from(["resource", *(f'resource == Server::"{server}"' for server in SERVERS)]),
    st.sampled_from(
        [
            "",
            'when { context.args has path && context.args.path like "/srv/*" }',
            'when { context.agent.id == "bot" }',
            "when { false }",
        ]
    ),
)
policies = st.lists(
    heads, min_size=1, max_size=5
).map(  # a forbid on arguments may leave nothing: no partial look can tell
    lambda rules: [rule for rule in rules if rule[0] == "permit" or "args" not in rule[4]]
)
ARGUMENTS: tuple[dict[str, Any], ...] = ({}, {"path": "/srv/a"}, {"path": "/etc"})


def principal(groups: tuple[str, ...]) -> Principal:
    return Principal(
        tenant="t", issuer="i", subject="s", subject_id="sid", user="s", login="", agent="bot", agent_source="",
        actors=(), groups=groups, scopes=(), token_id="", sid="", issued_us=0, expires_us=0, key=",".join(groups),
    )  # type: ignore[arg-type]  # fmt: skip


@settings(max_examples=120, deadline=None)
@given(policies, st.sampled_from([(), ("eng",), ("eng", "ops")]), st.sampled_from(["", *SERVERS]), st.booleans())
def test_a_listed_tool_is_callable_and_a_callable_tool_is_listed(
    rules: Any, groups: tuple[str, ...], server: str, modern: bool
) -> None:
    texts = [
        f'@id("r{n}") {effect} ({who}, {what}, {where}) {when};'
        for n, (effect, who, what, where, when) in enumerate(rules)
    ]
    catalog = Catalog()
    for name in SERVERS:
        catalog = catalog.with_shelf(shelf(*[{"name": tool, "inputSchema": OBJECT} for tool in TOOLS], server=name))
    files = {"manifest.json": b'{"v": 1, "name": "x"}', "policies/p.cedar": "\n".join(texts).encode()}
    facts = [ToolFacts(tool.server, tool.name, tool.labels) for tool in catalog.tools]
    engine = Engine.build(bundle_of(files), facts, dict.fromkeys(SERVERS, ()))
    ruling = Ruling(engine, Scanner(load_inspection(b"")), catalog, number=1, digest="d")
    who = principal(groups)
    listed = {one["name"] for one in json.loads(lists.tools_listed(ruling, who, server, modern))["tools"]}
    callable_names = {
        tool.name if server else tool.exposed
        for tool in catalog.tools
        if server in ("", tool.server)
        and any(ruling.decide(who, tool, arguments).effect != "deny" for arguments in ARGUMENTS)
    }
    assert callable_names <= listed
    if not any(
        "args" in when for *_, when in rules
    ):  # conditions on arguments may exclude each other: no list can tell
        assert listed == callable_names
    for name in listed:
        assert catalog.find(server, name) is not None


# between the eras


def request(modern: bool, params: dict[str, Any]) -> Request:
    raw = json.dumps(params).encode()
    return Request("tools/call", 1, params, raw, modern, "2026-07-28" if modern else "2025-11-25")


def sent(modern_client: bool, modern_upstream: bool, params: dict[str, Any]) -> Any:
    one = request(modern_client, params)
    fields = decode_fields(one.raw_params)
    name, arguments = msgspec.Raw(b'"echo"'), b'{"as":"decided"}'
    return json.loads(translate.params_for_upstream(one, fields, name, arguments, modern_upstream))


PREFIX = "io.modelcontextprotocol/"
MODERN_META = json.loads(modern_body("x"))["params"]["_meta"]


@pytest.mark.parametrize("modern_client", [True, False])
@pytest.mark.parametrize("modern_upstream", [True, False])
def test_params_arrive_in_the_upstreams_era_with_the_arguments_as_decided(
    modern_client: bool, modern_upstream: bool
) -> None:
    meta = {**(MODERN_META if modern_client else {}), "progressToken": 1, "traceparent": "00-1"}
    params: dict[str, Any] = {"name": "up__echo", "arguments": {"a": 1}, "_meta": meta}
    if modern_client:
        params |= {"requestState": "s", "inputResponses": {}}
    got = sent(modern_client, modern_upstream, params)
    assert (got["name"], got["arguments"]) == ("echo", {"as": "decided"})
    assert got["_meta"]["traceparent"] == "00-1"
    assert (PREFIX + "protocolVersion" in got["_meta"]) == modern_upstream
    assert ("requestState" in got) == (modern_client and modern_upstream)
    if not (modern_client and modern_upstream):
        assert "progressToken" not in got["_meta"]


def test_params_without_arguments_stay_without() -> None:
    assert sent(False, False, {"name": "x"}) == {"name": "echo"}


@pytest.mark.parametrize(
    ("raw", "modern", "expected"),
    [
        (b"{}", True, {"resultType": "complete"}),
        (b"{ }", True, {"resultType": "complete"}),
        (b'{"content":[]}', True, {"resultType": "complete", "content": []}),
        (b'{"content":[],"resultType":"x"}', True, {"content": [], "resultType": "x"}),
        (b'{"content":["\\"resultType\\""]}', True, {"content": ['"resultType"'], "resultType": "complete"}),
        (b'{"content":[{"resultType":1}]}', True, {"content": [{"resultType": 1}], "resultType": "complete"}),
        (b'{"content":[]}', False, {"content": []}),
        (b'{"content":[],"resultType":"complete","ttlMs":1,"cacheScope":"x","k":1}', False, {"content": [], "k": 1}),
        (b'{"content":[{"resultType":1}],"ttlMs":5}', False, {"content": [{"resultType": 1}]}),
    ],
)
def test_results_go_out_in_the_clients_era(raw: bytes, modern: bool, expected: Any) -> None:
    assert json.loads(translate.result_for_client(raw, modern)) == expected


def test_a_result_of_the_clients_era_is_not_touched() -> None:
    legacy = b'{ "content" : [ ] , "x":1.50 }'
    assert translate.result_for_client(legacy, False) is legacy


@pytest.mark.parametrize(
    ("raw", "asks"),
    [
        (b'{"resultType":"input_required"}', True),
        (b'{"resultType" : "input_required"}', True),
        (b'{"a":"input_required"}', False),
        (b'{"a":{"resultType":"input_required"}}', False),
    ],
)
def test_a_request_for_input_is_recognised(raw: bytes, asks: bool) -> None:
    assert translate.asks_for_input(raw) == asks
