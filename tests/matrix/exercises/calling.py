"""Tool calls: results, errors, what goes along with them and what is heard meanwhile.

Each exercise asserts what the client hears and what the server saw, and returns None where the feature works, or the
key of the rule by which it is refused. Counterparts: ../offer.py (what is offered), ../features.py (the rules).
"""

import json
from collections.abc import Callable
from typing import Final

from tests.matrix.cells import Cell
from tests.matrix.driving import RpcFailed, StepFailed, Wire
from tests.matrix.exercises.asserting import INVALID_PARAMS, Outcome, expected_meta, failing, same, text
from tests.matrix.offer import NOTE, PIXEL, SOUND, TOOLS, UNKNOWN

HEADER_MISMATCH: Final = -32020
TRACE: Final = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def calling(cell: Cell) -> Outcome:
    nonce = cell.nonce()
    assert text(await cell.call("echo", text="grüße \U0001f600", nonce=nonce)) == "grüße \U0001f600"
    call = await cell.seen.call(nonce)
    assert call["tool"] == "echo"
    assert call["arguments"] == {"text": "grüße \U0001f600", "nonce": nonce}
    assert call["modern"] is cell.modern
    return None


async def structured(cell: Cell) -> Outcome:
    await cell.items("tools")  # an SDK holds a result against the schema that it was shown
    result = await cell.call("add", a=2, b=3)
    assert text(result) == "5"
    same(result["structuredContent"], {"sum": 5})
    return None


async def structured_list(cell: Cell) -> Outcome:
    if not cell.modern:
        return "not-offered"
    await cell.items("tools")
    result = await cell.call("numbers")
    assert json.loads(text(result)) == [1, 2, 3]
    if cell.client.modern:
        same(result["structuredContent"], [1, 2, 3])
    else:
        assert isinstance(result.get("structuredContent", {}), dict)
    return None


async def contents(cell: Cell) -> Outcome:
    image, audio, link, embedded, blob = (await cell.call("pictures"))["content"]
    assert (image["data"], image["mimeType"], image["annotations"]) == (PIXEL, "image/png", {"audience": ["user"]})
    assert (audio["data"], audio["mimeType"]) == (SOUND, "audio/wav")
    note = cell.uri(NOTE, "note")
    assert (link["type"], link["uri"], link["name"]) == ("resource_link", note, "note")
    assert embedded["resource"] == {"uri": note, "mimeType": "text/plain", "text": "hello world"}
    assert blob["resource"]["blob"] == PIXEL
    return None


async def header_argument(cell: Cell) -> Outcome:
    """A client that has not listed the tool since the list changed is told so, lists and calls again."""
    if not cell.modern:
        return "not-offered"
    for _ in range(3):
        await cell.items("tools")
        try:
            assert text(await cell.call("regional", region="Zürich West")) == "in Zürich West"
            return None
        except RpcFailed as failure:
            if failure.code != HEADER_MISMATCH:
                raise
    raise AssertionError("refused again and again")


async def tool_error(cell: Cell) -> Outcome:
    result = await cell.call("fail")
    assert result["isError"]
    assert result["content"][0]["text"] == "it did not work"
    return None


async def request_error(cell: Cell) -> Outcome:
    with failing() as failure:
        await cell.call("explode")
    assert failure.code == -31999
    assert "it exploded" in failure.message
    assert failure.data == {"why": "matrix"}
    return None


async def unknown_names(cell: Cell) -> Outcome:
    with failing() as failure:
        result = await cell.call("nowhere")
        if result.get("isError"):
            raise RpcFailed(INVALID_PARAMS, "as a result", None)
    assert failure.code == INVALID_PARAMS
    with failing() as failure:
        await cell.full.do("get", name=cell.name("nowhere"), arguments={})
    assert failure.code == INVALID_PARAMS
    return None


async def unknown_members(cell: Cell) -> Outcome:
    listed = await cell.full.do("raw", method="tools/list", params={})
    add = next((one for one in listed["tools"] if one["name"] == cell.name("add")), None)
    if add is not None:  # on a later page where several servers share the door
        same(add["x-matrix"], UNKNOWN)
        same(add["_meta"], expected_meta(cell, TOOLS[0]))
    result = await cell.full.do("raw", method="tools/call", params={"name": cell.name("echo"), "arguments": {}})
    same(result["x-matrix"], UNKNOWN)
    same(result["_meta"]["example.com/more"], UNKNOWN)
    same(result["content"][0]["_meta"], {"example.com/part": 1})
    return None


async def request_meta(cell: Cell) -> Outcome:
    nonce = cell.nonce()
    meta = {"traceparent": TRACE, "tracestate": "a=1", "baggage": "b=2", "example.com/client": UNKNOWN}
    result = await cell.call("echo", nonce=nonce, meta=meta)
    seen = (await cell.seen.call(nonce))["meta"]
    assert seen["tracestate"] == "a=1"
    assert seen["baggage"] == "b=2"
    assert seen["traceparent"].split("-")[1] == TRACE.split("-")[1], "another trace"
    same(seen["example.com/client"], UNKNOWN)
    assert not [name for name in seen if name.startswith("io.modelcontextprotocol/")], "words of another era"
    assert result["_meta"]["example.com/heard"]["tracestate"] == "a=1"
    return None


async def progress(cell: Cell) -> Outcome:
    running = cell.full.calling(cell.name("count"))
    assert text(await running.result()) == "counted"
    await cell.full.hears("progress", lambda told: told["progress"] == 3, by=running.number)
    heard = [one.params for one in cell.full.heard if one.by == running.number]
    assert [(one["progress"], one["total"], one["message"]) for one in heard] == [
        (n, 3, f"step {n}") for n in (1, 2, 3)
    ]
    return None


async def logging(cell: Cell) -> Outcome:
    """From `info` upwards, as asked for: by request in the modern era, by session before."""
    silent, nonce = cell.nonce(), cell.nonce()
    if cell.client.modern:
        await cell.call("chatter", nonce=silent)
    else:
        await cell.full.do("level", level="info")
    await cell.call("chatter", nonce=nonce, level="info" if cell.client.modern else "")
    await cell.full.hears("notifications/message", lambda told: told["data"] == {"said": "error", "nonce": nonce})
    heard = [one.params for one in cell.full.heard if one.method == "notifications/message"]
    assert [(one["level"], one["logger"]) for one in heard if one["data"]["nonce"] == nonce] == [
        ("info", "matrix"),
        ("error", "matrix"),
    ]
    assert not any(one["data"]["nonce"] == silent for one in heard), "of a request that wanted none"
    return None


async def cancelling(cell: Cell) -> Outcome:
    nonce = cell.nonce()
    running = cell.full.calling(cell.name("slow"), nonce=nonce)

    def state(wanted: str) -> Callable[[Wire], bool]:
        return lambda line: line["what"] == "slow" and line["nonce"] == nonce and line["state"] == wanted

    await cell.seen.find(state("started"))
    await cell.full.hears("progress", by=running.number)
    cell.full.cancel(running)
    with failing(StepFailed):
        await running.result()
    await cell.seen.find(state("cancelled"))
    return None
