"""The catalogue: what is read of servers' definitions, and what of it is found behind which door."""

import json
from typing import Any

import pytest

from tidegate.policy.labels import tool_labels
from tidegate.settings import Naming, SetTool, Toolset
from tidegate_edge.catalog import Catalog, Plan, Shelf, renamed, shelve
from tidegate_edge.upstream.port import Definitions

OBJECT = {"type": "object"}


def raws(definitions: Any) -> tuple[bytes, ...]:
    return tuple(one if isinstance(one, bytes) else json.dumps(one).encode() for one in definitions)


def shelf(*tools: Any, server: str = "up", **labels: tuple[str, ...]) -> Shelf:
    return shelve(server, Definitions(raws(tools)), labels, ())


def server(name: str, own: tuple[str, ...] = (), capabilities: Any = None, **lists: Any) -> Shelf:
    whole: dict[str, Any] = {kind: raws(given) for kind, given in lists.items()}
    return shelve(name, Definitions(**whole, capabilities=json.dumps(capabilities or {}).encode()), {}, own)


def catalog(*shelves: Shelf, **plan: Any) -> Catalog:
    return Catalog({one.server: one for one in shelves}, Plan(**plan))


def tool(name: str, **more: Any) -> Any:
    return {"name": name, "inputSchema": OBJECT, **more}


def resource(uri: str) -> Any:
    return {"name": "r", "uri": uri}


def template(uri: str) -> Any:
    return {"name": "t", "uriTemplate": uri}


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
        b'{"name":"prompts/get","inputSchema":{"type":"object"}}',
        b'{"name":"resources/read","inputSchema":{"type":"object"}}',
    ],
)
def test_an_invalid_definition_is_left_out_and_the_others_stay(raw: bytes) -> None:
    found = shelf(raw, {"name": "good", "inputSchema": OBJECT})
    assert [tool.name for tool in found.tools] == ["good"]
    (told,) = found.left_out
    assert told.startswith("a tool is left out: ")
    assert len(told) < 400


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


@pytest.mark.parametrize(
    ("annotations", "operator", "labels"),
    [
        ({"openWorldHint": True}, (), ("egress", "open-world", "returns-untrusted")),
        ({"openWorldHint": True, "readOnlyHint": True}, (), ("open-world", "returns-untrusted")),
        ({"openWorldHint": True, "readOnlyHint": "yes"}, (), ("egress", "open-world", "returns-untrusted")),
        ({"openWorldHint": False, "readOnlyHint": True}, (), ()),
        ({}, (), ()),  # the specification's defaults are not the server's word
        ({"openWorldHint": True}, ("-egress",), ("open-world", "returns-untrusted")),
        ({"openWorldHint": True}, ("read-private",), ("read-private",)),
        (
            {"openWorldHint": True, "destructiveHint": True},
            ("-open-world", "-egress"),
            ("destructive", "returns-untrusted"),
        ),
        ({}, ("-egress",), ()),
    ],
)
def test_what_a_server_suggests_stands_until_the_operator_says_otherwise(
    annotations: dict[str, object], operator: tuple[str, ...], labels: tuple[str, ...]
) -> None:
    definition = {"name": "x", "inputSchema": OBJECT, "annotations": annotations}
    assert shelf(definition, x=operator).tools[0].labels == labels


def test_what_is_taken_away_for_a_server_is_for_all_its_tools() -> None:
    hinted = {"annotations": {"openWorldHint": True}}
    assert tool_labels(hinted, ("sensitive", "-egress"), ()) == ("open-world", "returns-untrusted", "sensitive")
    assert tool_labels(hinted, ("egress", "-egress"), ()) == ("egress", "open-world", "returns-untrusted")


def test_the_first_of_two_tools_with_one_name_stands() -> None:
    twice = [{"name": "x", "inputSchema": OBJECT, "title": title} for title in ("one", "two")]
    (tool,) = shelf(*twice).tools
    assert bytes(tool.fields["title"]) == b'"one"'


@pytest.mark.parametrize("bad", [{}, {"name": 1}, {"name": ""}, {"name": "a\nb"}, [], b"{"])
def test_an_invalid_prompt_is_left_out_and_the_others_stay(bad: Any) -> None:
    assert [one.name for one in server("up", prompts=[bad, {"name": "good"}]).prompts] == ["good"]


@pytest.mark.parametrize(
    "bad", [{"name": "x"}, {"uri": "x://y"}, {"name": "x", "uri": ""}, {"name": "x", "uri": "a\rb"}]
)
def test_an_invalid_resource_is_left_out_and_the_others_stay(bad: Any) -> None:
    assert [one.name for one in server("up", resources=[bad, resource("x://good")]).resources] == ["x://good"]
    bad = {("uriTemplate" if key == "uri" else key): value for key, value in bad.items()}
    assert [one.name for one in server("up", templates=[bad, template("x://{y}")]).templates] == ["x://{y}"]


def test_prompts_and_resources_are_decided_on_as_actions_of_their_server() -> None:
    shelf = server(
        "up", ("sensitive",), prompts=[{"name": "p"}], resources=[resource("x://y")], templates=[template("x://{z}")]
    )
    assert [(one.action, one.labels) for one in (*shelf.prompts, *shelf.resources, *shelf.templates)] == [
        ("prompts/get", ("prompt", "sensitive")),
        ("resources/read", ("resource", "sensitive")),
        ("resources/read", ("resource", "sensitive")),
    ]


# what is behind a door


def test_a_tool_is_found_by_the_name_of_the_door() -> None:
    here = catalog(shelf(tool("echo")), shelf(tool("echo"), server="other"))
    found = here.find("", "up__echo")
    assert found is not None
    assert (found.server, found.name, found.exposed, found.action) == ("up", "echo", "up__echo", "echo")
    assert [one and one.server for one in (here.find("up", "echo"), here.find("other", "echo"))] == ["up", "other"]
    for door, name in (("", "echo"), ("up", "up__echo"), ("none", "echo"), ("sets/x", "echo")):
        assert here.find(door, name) is None


def test_prompts_are_named_as_tools_are() -> None:
    here = catalog(
        server("up", prompts=[{"name": "p"}]),
        server("other", prompts=[{"name": "p"}, {"name": "q"}]),
        naming=Naming(prefix="collision"),
    )
    assert [(name, one.server) for name, one in here.door("").prompts.items()] == [
        ("other__p", "other"),
        ("q", "other"),
        ("up__p", "up"),
    ]
    assert here.find_prompt("up", "p") is not None
    assert here.find_prompt("", "p") is None


def test_a_name_that_another_server_keeps_is_said_to_be_missing() -> None:
    naming, order = Naming(prefix="none"), ("up", "other")
    here = catalog(shelf(tool("echo")), shelf(tool("echo"), server="other"), naming=naming, order=order)
    found = here.find("", "echo")
    assert found is not None
    assert found.server == "up"
    assert list(here.troubles) == ["tool other/echo"]
    assert here.find("other", "echo") is not None


def found(here: Catalog, door: str, uri: str) -> Any:
    one = here.find_resource(door, uri)
    return one and (one[0].server, one[0].kind, one[1])


def test_resources_keep_their_uris_where_no_two_servers_share_them() -> None:
    here = catalog(
        server("a", resources=[resource("x://a")], templates=[template("t://a/{id}")]),
        server("b", resources=[resource("x://b")], templates=[template("t://{kind}/{id}")]),
    )
    assert list(here.door("").resources) == ["x://a", "x://b"]
    assert found(here, "", "x://a") == ("a", "resource", "x://a")
    assert found(here, "", "t://a/1") == ("a", "template", "t://a/1")  # the more exact one
    assert found(here, "", "t://c/1") == ("b", "template", "t://c/1")
    assert found(here, "", "y://unlisted") is None
    assert found(here, "nowhere", "x://a") is None


def test_what_two_servers_share_is_shown_with_a_mark_and_found_by_it_alone() -> None:
    both: dict[str, Any] = {"resources": [resource("ui://app/x")], "templates": [template("t://{id}")]}
    here = catalog(server("a", **both), server("b", **both))
    assert list(here.door("").resources) == ["ui://a~app/x", "ui://b~app/x"]
    assert list(here.door("").templates) == ["t://a~{id}", "t://b~{id}"]
    assert found(here, "", "ui://b~app/x") == ("b", "resource", "ui://app/x")
    assert found(here, "", "t://b~7") == ("b", "template", "t://7")
    assert found(here, "", "y://b~unlisted") == ("b", "resource", "y://unlisted")
    for bare in ("ui://app/x", "t://7", "ui://c~app/x"):
        assert found(here, "", bare) is None
    assert found(here, "b", "ui://app/x") == ("b", "resource", "ui://app/x")


def test_a_uri_that_looks_marked_gets_a_mark_of_its_own() -> None:
    here = catalog(
        server("a", resources=[resource("x://b~y"), resource("x://y")]), server("b", resources=[resource("x://y")])
    )
    assert list(here.door("").resources) == ["x://a~b~y", "x://a~y", "x://b~y"]
    assert found(here, "", "x://a~b~y") == ("a", "resource", "x://b~y")
    assert found(here, "", "x://b~y") == ("b", "resource", "x://y")


def test_where_one_server_has_resources_every_uri_is_its_own() -> None:
    here = catalog(shelf(tool("echo")), server("b", ("sensitive",), {"resources": {}}))
    one = here.find_resource("", "any://thing")
    assert one is not None
    assert (one[0].server, one[0].action, one[0].labels) == ("b", "resources/read", ("resource", "sensitive"))
    assert found(here, "up", "any://thing") is None


# sets

SCHEMA = (
    b'{"type":"object","properties":{"path":{"type":"string"},"mode":{"enum":[1.50]}},'
    b'"required":["path","mode"],"$defs":{"a": 1}}'
)


def a_set(**more: Any) -> Catalog:
    raw = b'{"name":"read","inputSchema":' + SCHEMA + b"}"
    chosen = Toolset(
        tools=(
            SetTool(server="files", tool="read", name="read_log", arguments={"path": "/var/log/x", "deep": {"a": [1]}}),
            SetTool(server="files", tool="read"),
            SetTool(server="files", tool="gone"),
            SetTool(server="late", tool="x"),
        ),
        **more,
    )
    both: dict[str, Any] = {"prompts": [{"name": "p"}], "resources": [resource("x://y")]}
    return catalog(server("files", tools=[raw, tool("other")], **both), server("wiki", **both), sets={"ops": chosen})


def test_a_set_has_what_it_names_and_says_what_is_missing() -> None:
    here = a_set()
    assert list(here.door("sets/ops").tools) == ["read", "read_log"]
    assert here.find("sets/ops", "other") is None
    assert sorted(here.troubles) == ["tool files/gone of set ops", "tool late/x of set ops"]
    assert not here.door("sets/ops").prompts
    assert found(here, "sets/ops", "x://y") is None


def test_fixed_arguments_are_not_in_the_schema_and_all_else_is() -> None:
    one = a_set().find("sets/ops", "read_log")
    assert one is not None
    assert (one.server, one.name, one.action) == ("files", "read", "read")
    assert bytes(one.fields["inputSchema"]) == (
        b'{"type":"object","properties":{"mode":{"enum":[1.50]}},"required":["mode"],"$defs":{"a": 1}}'
    )
    assert {key: json.loads(bytes(value)) for key, value in one.fixed.items()} == {
        "path": "/var/log/x",
        "deep": {"a": [1]},
    }
    plain = a_set().find("sets/ops", "read")
    assert plain is not None
    assert bytes(plain.fields["inputSchema"]) == SCHEMA
    assert not plain.fixed


def test_the_last_required_argument_that_is_fixed_takes_the_list_with_it() -> None:
    raw = {"type": "object", "properties": {"a": {"type": "string", "x-mcp-header": "A"}}, "required": ["a"]}
    chosen = Toolset(tools=(SetTool(server="up", tool="x", arguments={"a": "1"}),))
    one = catalog(shelf({"name": "x", "inputSchema": raw}), sets={"s": chosen}).find("sets/s", "x")
    assert one is not None
    assert json.loads(bytes(one.fields["inputSchema"])) == {"type": "object", "properties": {}}
    assert one.input_schema is None  # the client sends no header for it
    assert one.param_headers == {("a",): "A"}  # the upstream still gets it


def test_a_set_may_have_whole_servers_prompts_and_resources() -> None:
    here = a_set(prompts=("files", "wiki"), resources=("wiki",))
    assert list(here.door("sets/ops").prompts) == ["files__p", "wiki__p"]
    assert found(here, "sets/ops", "x://y") == ("wiki", "resource", "x://y")
    assert here.door("sets/ops").servers == ("files", "wiki")
