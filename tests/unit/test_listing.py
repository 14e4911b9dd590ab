"""All lists of an upstream, page by page: what is whole, what is not, and what never ends."""

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tidegate.errors import UpstreamFault
from tidegate.limits import TOOLS_PER_SERVER_MAX
from tidegate_edge.upstream import listing
from tidegate_edge.upstream.listing import drain
from tidegate_edge.upstream.port import Answer

ALL = b'{"tools":{},"prompts":{"listChanged":true},"resources":{}}'
Fetch = Callable[[str, str | None], Awaitable[Answer]]


def page(member: str, names: list[str], following: str | None = None) -> Answer:
    body: dict[str, Any] = {member: [{"name": name, "uri": name, "uriTemplate": name} for name in names]}
    return Answer(result=json.dumps({**body, **({} if following is None else {"nextCursor": following})}).encode())


def refusal(code: int) -> Answer:
    return Answer(error=json.dumps({"code": code, "message": "no"}).encode())


def serving(pages: dict[tuple[str, str | None], Answer]) -> tuple[Fetch, list[tuple[str, str | None]]]:
    asked: list[tuple[str, str | None]] = []

    async def fetch(method: str, cursor: str | None) -> Answer:
        asked.append((method, cursor))
        return pages.get((method, cursor), refusal(-32601))

    return fetch, asked


def names(raws: tuple[bytes, ...]) -> list[str]:
    return [json.loads(raw)["name"] for raw in raws]


async def test_all_pages_of_all_lists_are_fetched_and_an_empty_cursor_is_one() -> None:
    fetch, _ = serving(
        {
            ("tools/list", None): page("tools", ["a"], ""),
            ("tools/list", ""): page("tools", ["b"], "2"),
            ("tools/list", "2"): page("tools", ["c"]),
            ("prompts/list", None): page("prompts", ["p"]),
            ("resources/list", None): page("resources", ["r"]),
            ("resources/templates/list", None): page("resourceTemplates", ["t"]),
        }
    )
    found = await drain("up", fetch, capabilities=ALL, server_info=b'{"name":"x"}', instructions="be kind")
    assert [names(raws) for raws in (found.tools, found.prompts, found.resources, found.templates)] == [
        ["a", "b", "c"],
        ["p"],
        ["r"],
        ["t"],
    ]
    assert (found.partial, found.capabilities, found.instructions) == ({}, ALL, "be kind")


@pytest.mark.parametrize(
    ("capabilities", "methods"),
    [
        (b'{"tools":{}}', ["tools/list"]),
        (b'{"prompts":{}}', ["prompts/list"]),
        (b'{"resources":{}}', ["resources/list", "resources/templates/list"]),
        (b"{}", ["tools/list"]),
        (b"nonsense", ["tools/list"]),
        (b'{"tools":null,"prompts":{}}', ["prompts/list"]),
    ],
)
async def test_only_what_a_server_offers_is_asked_for(capabilities: bytes, methods: list[str]) -> None:
    fetch, asked = serving({(method, None): page("tools", []) for method in listing.METHODS.values()})
    await drain("up", fetch, capabilities=capabilities)
    assert [method for method, _ in asked] == methods


async def test_a_server_of_resources_without_templates_is_whole() -> None:
    fetch, _ = serving({("resources/list", None): page("resources", ["r"])})
    found = await drain("up", fetch, capabilities=b'{"resources":{}}')
    assert (names(found.resources), found.partial) == (["r"], {})


async def test_one_list_that_fails_leaves_the_others_whole() -> None:
    async def fetch(method: str, cursor: str | None) -> Answer:
        if method == "prompts/list":
            raise UpstreamFault("up: timed out")
        if method == "resources/list":
            return refusal(-32603)
        return page("tools" if method == "tools/list" else "resourceTemplates", ["a"])

    found = await drain("up", fetch, capabilities=ALL)
    assert (names(found.tools), names(found.templates)) == (["a"], ["a"])
    assert set(found.partial) == {"prompts", "resources"}
    assert "timed out" in found.partial["prompts"]
    assert "resources/list failed" in found.partial["resources"]


@pytest.mark.parametrize("answer", [refusal(-32601), Answer(result=b'{"tools":1}'), Answer(result=b"[]"), Answer(b"x")])
async def test_where_no_list_can_be_had_the_server_has_failed(answer: Answer) -> None:
    fetch, _ = serving({("tools/list", None): answer})
    with pytest.raises(UpstreamFault, match="up: tools/list"):
        await drain("up", fetch, capabilities=b'{"tools":{}}')


@pytest.mark.parametrize(
    "pages",
    [
        {None: page("tools", ["a"], "x"), "x": page("tools", ["b"], "x")},
        {None: page("tools", ["a"], "x"), "x": page("tools", ["b"], "y"), "y": page("tools", ["c"], "x")},
    ],
)
async def test_a_circle_of_cursors_ends_and_what_was_seen_stays(pages: dict[str | None, Answer]) -> None:
    fetch, _ = serving({("tools/list", cursor): answer for cursor, answer in pages.items()})
    found = await drain("up", fetch)
    assert names(found.tools) == ["a", "b", "c"][: len(pages)]
    assert "circle" in found.partial["tools"]


async def test_the_first_page_for_ever_ends_and_what_was_seen_stays() -> None:
    numbers = iter(range(10**6))

    async def fetch(method: str, cursor: str | None) -> Answer:
        return page("tools", ["a", "b"], str(next(numbers)))

    found = await drain("up", fetch)
    assert set(names(found.tools)) == {"a", "b"}
    assert "more than" in found.partial["tools"]


@pytest.mark.parametrize("per_page", [1, 500])
async def test_an_endless_list_is_cut(per_page: int) -> None:
    numbers = iter(range(10**6))

    async def fetch(method: str, cursor: str | None) -> Answer:
        return page("tools", [str(next(numbers)) for _ in range(per_page)], str(next(numbers)))

    found = await drain("up", fetch)
    assert len(found.tools) <= TOOLS_PER_SERVER_MAX
    assert "more than" in found.partial["tools"]


async def test_a_list_of_too_many_bytes_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "LIST_BYTES_MAX", 100)
    fetch, _ = serving({("tools/list", None): page("tools", ["a" * 10, "b" * 10, "c" * 10])})
    found = await drain("up", fetch)
    assert names(found.tools) == ["a" * 10]
    assert "bytes" in found.partial["tools"]


@pytest.mark.parametrize("sign", ["a name comes again", "the cursor is refused"])
async def test_a_list_that_changes_while_it_is_paged_is_fetched_again(sign: str) -> None:
    """At first [a, b | c]; then z is put in front, which moves b to the second page."""
    asked: list[str | None] = []

    async def fetch(method: str, cursor: str | None) -> Answer:
        asked.append(cursor)
        if len(asked) == 1:
            return page("tools", ["a", "b"], "2")
        if cursor is None:
            return page("tools", ["z", "a"], "2")
        if len(asked) == 2 and sign == "the cursor is refused":
            return refusal(-32602)
        return page("tools", ["b", "c"])

    found = await drain("up", fetch)
    assert names(found.tools) == ["z", "a", "b", "c"]
    assert found.partial == {}
    assert asked == [None, "2", None, "2"]


async def test_a_server_that_never_honours_its_cursors_keeps_its_first_page() -> None:
    fetch, asked = serving({("tools/list", None): page("tools", ["a"], "x")})
    found = await drain("up", fetch)
    assert names(found.tools) == ["a"]
    assert "refuses the cursors" in found.partial["tools"]
    assert len(asked) == 4
