"""Lists, and what a connection says of itself.

Each exercise asserts what the client hears and what the server saw, and returns None where the feature works, or the
key of the rule by which it is refused. Counterparts: ../offer.py (what is offered), ../features.py (the rules).
"""

from tests.matrix.cells import LEGACY, MODERN, Cell, Kind
from tests.matrix.driving import Wire
from tests.matrix.exercises.asserting import INVALID_PARAMS, Outcome, expected_meta, failing
from tests.matrix.offer import INSTRUCTIONS, PROMPTS, RESOURCES, TEMPLATES, TOOLS


async def opening(cell: Cell) -> Outcome:
    about = cell.full.about
    assert about["protocolVersion"] == (MODERN if cell.client.modern else LEGACY)
    capabilities = about["capabilities"]
    assert capabilities["tools"]["listChanged"]
    assert capabilities["prompts"]["listChanged"]
    assert capabilities["resources"] == {"subscribe": True, "listChanged": True}
    assert "completions" in capabilities
    assert "logging" in capabilities
    assert INSTRUCTIONS in about["instructions"]
    return None


async def _listed(cell: Cell, kind: Kind, offered: list[Wire], *renamed: str) -> dict[str, Wire]:
    """The list holds what is offered, each member of it but those named, each name once."""
    items = await cell.own(kind)
    found = {one["name"].removeprefix(cell.prefix): one for one in items}
    assert len(found) == len(items), "a name is there twice"
    for one in offered:
        for member in one.keys() - {"x-matrix", *renamed}:
            expected = expected_meta(cell, one) if member == "_meta" else one[member]
            assert found[one["name"]].get(member) == expected, f"{one['name']}: {member}"
    return found


async def listing_tools(cell: Cell) -> Outcome:
    found = await _listed(cell, "tools", TOOLS, "name")
    if cell.modern:
        numbers = found["numbers"]
        if cell.client.modern:
            assert numbers["outputSchema"]["type"] == "array"
        else:
            assert numbers.get("outputSchema", {"type": "object"})["type"] == "object"
    return None


async def listing_prompts(cell: Cell) -> Outcome:
    await _listed(cell, "prompts", PROMPTS, "name")
    return None


async def listing_resources(cell: Cell) -> Outcome:
    found = await _listed(cell, "resources", RESOURCES, *(["uri"] if cell.prefix else []))
    assert found["app"]["uri"].startswith("ui://")
    return None


async def listing_templates(cell: Cell) -> Outcome:
    await _listed(cell, "templates", TEMPLATES, *(["uriTemplate"] if cell.prefix else []))
    return None


async def wrong_cursor(cell: Cell) -> Outcome:
    with failing() as failure:
        await cell.full.do("page", kind="tools", cursor="never given")
    assert failure.code == INVALID_PARAMS
    return None


async def era_words(cell: Cell) -> Outcome:
    """Results are in the client's era, whatever the server's is."""
    listed = await cell.full.do("raw", method="tools/list", params={})
    if cell.client.modern:
        assert listed["ttlMs"] >= 0
        assert listed["cacheScope"] in ("public", "private")
    else:
        assert not {"resultType", "ttlMs", "cacheScope"} & listed.keys()
    return None
