"""URIs in what servers send, as a door shows them: marked where they would lead elsewhere, untouched where not."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate_edge import rewrite
from tidegate_edge.catalog import Catalog, Shelf, shelve
from tidegate_edge.messages import encode
from tidegate_edge.upstream.port import Definitions


def shelf(server: str, uris: tuple[str, ...] = (), templates: tuple[str, ...] = ()) -> Shelf:
    return shelve(
        server,
        Definitions(
            resources=tuple(encode({"name": "r", "uri": uri}) for uri in uris),
            templates=tuple(encode({"name": "t", "uriTemplate": template}) for template in templates),
            capabilities=b'{"tools":{},"resources":{}}',
        ),
    )


def catalog(*shelves: Shelf) -> Catalog:
    return Catalog({one.server: one for one in shelves})


SHARED = catalog(shelf("a", ("ui://x", "f://a"), ("t://{id}",)), shelf("b", ("ui://x", "f://b"), ("t://{id}",)))
APART = catalog(shelf("a", ("f://a",)), shelf("b", ("f://b",)))
ALONE = catalog(shelf("a", ("f://a",)), shelve("c", Definitions(capabilities=b'{"tools":{}}')))


def link(uri: str) -> Any:
    return {"type": "resource_link", "uri": uri, "name": "n", "x": 1.5}


def embedded(uri: str) -> Any:
    return {"type": "resource", "resource": {"uri": uri, "text": "ui://x"}}


@pytest.mark.parametrize(
    ("method", "wrap"),
    [
        ("tools/call", lambda uri: {"content": [{"type": "text", "text": "ui://x"}, link(uri), embedded(uri)], "k": 1}),
        (
            "prompts/get",
            lambda uri: {"messages": [{"role": "user", "content": link(uri)}, {"content": [embedded(uri)]}]},
        ),
        ("resources/read", lambda uri: {"contents": [{"uri": uri, "text": "ui://x"}, {"uri": uri, "blob": ""}]}),
        ("notifications/resources/updated", lambda uri: {"uri": uri, "_meta": {"k": "ui://x"}}),
        ("tasks/get", lambda uri: {"taskId": "1", "result": {"content": [link(uri)]}}),
    ],
)
@pytest.mark.parametrize("uri", ["ui://x", "t://5"])
def test_a_shared_uri_gets_its_servers_mark_wherever_it_may_stand(method: str, wrap: Any, uri: str) -> None:
    shown = {"ui://x": "ui://b~x", "t://5": "t://b~5"}[uri]
    assert json.loads(rewrite.result(SHARED, "", "b", method, encode(wrap(uri)))) == wrap(shown)


def test_all_that_holds_no_such_uri_stays_byte_for_byte() -> None:
    raw = b'{ "x" : 1.50, "content":[{"type":"text","n":1e2},{"uri":"ui://x","type":"resource_link" }], "z":"\\u00e9"}'
    assert rewrite.result(SHARED, "", "a", "tools/call", raw) == (
        b'{"x":1.50,"content":[{"type":"text","n":1e2},{"uri":"ui://a~x","type":"resource_link"}],"z":"\\u00e9"}'
    )


@pytest.mark.parametrize(
    ("here", "door", "server", "method", "value"),
    [
        (ALONE, "", "a", "tools/call", {"content": [link("f://unlisted")]}),  # one server has resources: all lead to it
        (ALONE, "", "c", "tools/call", {"content": [link("f://a")]}),  # a server without any
        (SHARED, "b", "b", "tools/call", {"content": [link("ui://x")]}),  # its own door
        (APART, "", "a", "tools/call", {"content": [{"type": "text", "text": "x"}]}),
        (APART, "", "a", "tools/call", {"content": [link("f://a"), embedded("made://up")]}),
        (SHARED, "", "a", "tools/call", {"content": [embedded("made://up")], "structuredContent": link("ui://x")}),
        (APART, "", "a", "resources/read", {"contents": [{"uri": "f://a"}]}),
        (SHARED, "", "a", "completion/complete", {"uri": "ui://x"}),
        (SHARED, "", "a", "notifications/progress", {"uri": "ui://x"}),
        (SHARED, "nowhere", "a", "tools/call", {"content": [link("ui://x")]}),
    ],
)
def test_where_nothing_needs_a_mark_the_same_bytes_come_back(
    here: Catalog, door: str, server: str, method: str, value: Any
) -> None:
    raw = encode(value)
    assert rewrite.result(here, door, server, method, raw) is raw


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"null",
        b"1",
        b'{"content":1}',
        b'{"content":["resource_link",null,1,[]]}',
        b'{"content":[{"uri":1}]}',
    ]
    + [b'{"content":[{"type":"resource_link","uri":%b}]}' % bad for bad in (b"1", b"null", b"{}", b'"\\ud800"', b'""')],
)
def test_what_has_another_shape_is_left_to_the_client(raw: bytes) -> None:
    assert json.loads(rewrite.result(SHARED, "", "a", "tools/call", raw) or b"0") == json.loads(raw or b"0")


def test_an_unlisted_link_can_be_followed_and_what_is_read_there_has_the_same_uri() -> None:
    shown = rewrite.uri(APART, "", "b", "dyn://1")
    assert shown == "dyn://b~1"
    found = APART.find_resource("", shown)
    assert found is not None
    assert (found[0].server, found[1]) == ("b", "dyn://1")
    read = rewrite.result(APART, "", "b", "resources/read", b'{"contents":[{"uri":"dyn://1"}]}')
    assert json.loads(read) == {"contents": [{"uri": "dyn://b~1"}]}


uris = st.sampled_from(["ui://x", "ui://a~x", "ui://b~x", "t://5", "t://5/6", "f://a", "f://b", "urn:x", "urn:a~x"])


@given(st.lists(st.tuples(st.sampled_from("abc"), uris), max_size=8), st.sampled_from("abc"), uris)
def test_a_shown_uri_always_leads_back_to_its_server(listed: list[tuple[str, str]], server: str, uri: str) -> None:
    templates = {"a": ("t://{id}",), "b": ("t://{+id}", "urn:{x}"), "c": ()}
    here = catalog(*(shelf(name, tuple(u for s, u in listed if s == name), templates[name]) for name in "abc"))
    found = here.find_resource("", rewrite.uri(here, "", server, uri))
    assert found is not None
    assert (found[0].server, found[1]) == (server, uri)


@pytest.mark.parametrize(
    ("meta", "shown"),
    [
        ({"ui": {"resourceUri": "ui://x", "csp": 1}, "k": 1}, {"ui": {"resourceUri": "ui://b~x", "csp": 1}, "k": 1}),
        ({"ui/resourceUri": "ui://x"}, {"ui/resourceUri": "ui://b~x"}),
        ({"ui": {"resourceUri": "ui://unlisted"}}, {"ui": {"resourceUri": "ui://b~unlisted"}}),
        ({"ui": {"resourceUri": "f://b"}}, {"ui": {"resourceUri": "f://b"}}),
        ({"ui": "resourceUri"}, {"ui": "resourceUri"}),
        ({"ui": {"resourceUri": 1}}, {"ui": {"resourceUri": 1}}),
        ({"other": "ui://x"}, {"other": "ui://x"}),
    ],
)
def test_a_tools_user_interface_is_found_at_its_server(meta: Any, shown: Any) -> None:
    assert json.loads(bytes(rewrite.tool_meta(SHARED, "", "b", msgspec.Raw(encode(meta))))) == shown
