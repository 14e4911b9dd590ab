"""Resources, prompts, completion, and what changes of them.

Each exercise asserts what the client hears and what the server saw, and returns None where the feature works, or the
key of the rule by which it is refused. Counterparts: ../offer.py (what is offered), ../features.py (the rules).
"""

import json
from typing import Any

from tests.matrix.cells import Cell, Kind
from tests.matrix.driving import Connection, RpcFailed, StepFailed, Wire
from tests.matrix.exercises.asserting import INVALID_PARAMS, METHOD_NOT_FOUND, Outcome, failing, same, text
from tests.matrix.offer import NOTE, PIXEL, UNKNOWN


async def reading(cell: Cell) -> Outcome:
    uri = cell.uri(NOTE, "note")
    read = await cell.full.do("read", uri=uri)
    one = {"uri": uri, "mimeType": "text/plain", "text": "hello world", "_meta": {"example.com/read": True}}
    assert read["contents"] == [one]
    same(read["_meta"]["example.com/result"], UNKNOWN)
    if cell.client.modern:
        assert read["ttlMs"] >= 0
    return None


async def reading_binary(cell: Cell) -> Outcome:
    read = await cell.full.do("read", uri=cell.uri("matrix://picture", "picture"))
    assert read["contents"][0]["blob"] == PIXEL
    return None


async def reading_template(cell: Cell) -> Outcome:
    uri = cell.uri("matrix://user/4711", "user")
    read = await cell.full.do("read", uri=uri)
    assert read["contents"][0]["uri"] == uri
    assert json.loads(read["contents"][0]["text"]) == {"id": "4711"}
    return None


async def not_found(cell: Cell) -> Outcome:
    uri = cell.uri("matrix://nowhere", "nowhere")
    with failing() as failure:
        await cell.full.do("read", uri=uri)
    assert failure.code == INVALID_PARAMS if cell.client.modern else failure.code in (-32002, INVALID_PARAMS)
    assert failure.data["uri"] == uri
    return None


async def _subscribe(cell: Cell, connection: Connection, *uris: str) -> None:
    if cell.client.modern:
        honoured = await connection.do("listen", filter={"resourceSubscriptions": list(uris)})
        assert sorted(honoured["resourceSubscriptions"]) == sorted(uris)
    else:
        for uri in uris:
            await connection.do("subscribe", uri=uri)


async def subscribing(cell: Cell) -> Outcome:
    """Updates of what is subscribed to, and of nothing else; in the modern era through subscriptions/listen."""
    first, second = (f"matrix://user/{cell.nonce()}" for _ in range(2))
    own = {uri: cell.uri(uri, "user") for uri in (first, second)}
    await _subscribe(cell, cell.bare, own[first], own[second])
    await cell.call("touch", uri=first)
    await cell.bare.hears("notifications/resources/updated", lambda told: told["uri"] == own[first])
    if cell.client.modern:
        await _subscribe(cell, cell.bare, own[second])
    else:
        await cell.bare.do("unsubscribe", uri=own[first])
    await cell.call("touch", uri=first)
    await cell.call("touch", uri=second)
    await cell.bare.hears("notifications/resources/updated", lambda told: told["uri"] == own[second])
    heard = [one.params["uri"] for one in cell.bare.heard if one.method == "notifications/resources/updated"]
    assert heard == [own[first], own[second]]
    return None


async def _grown(cell: Cell, kind: Kind) -> Outcome:
    method = f"notifications/{kind}/list_changed"
    name = f"extra-{cell.nonce()}"
    before = sum(one.method == method for one in cell.full.heard)
    await cell.call("grow", kind=kind, called=name)
    for more in range(1, 20):

        def later(_: Any, count: int = before + more) -> bool:
            return sum(one.method == method for one in cell.full.heard) >= count

        await cell.full.hears(method, later)
        if any(one["name"].removeprefix(cell.prefix) == name for one in await cell.items(kind)):
            return None
    raise AssertionError("told of many changes, but never of this one")


async def tools_changed(cell: Cell) -> Outcome:
    return await _grown(cell, "tools")


async def prompts_changed(cell: Cell) -> Outcome:
    return await _grown(cell, "prompts")


async def resources_changed(cell: Cell) -> Outcome:
    return await _grown(cell, "resources")


async def getting_prompts(cell: Cell) -> Outcome:
    plain = await cell.full.do("get", name=cell.name("plain"), arguments={})
    assert plain["messages"] == [{"role": "user", "content": {"type": "text", "text": "plain"}}]
    greeting = await cell.full.do("get", name=cell.name("greet"), arguments={"name": "Ada"})
    assert greeting["description"] == "A greeting"
    assert greeting["messages"][0]["content"]["text"] == "Hello Ada!"
    pictured = await cell.full.do("get", name=cell.name("pictured"), arguments={})
    image, embedded = (one["content"] for one in pictured["messages"])
    assert image["data"] == PIXEL
    assert embedded["resource"]["uri"] == cell.uri(NOTE, "note")
    return None


async def completing(cell: Cell) -> Outcome:
    async def values(ref: Wire, name: str, value: str, **context: str) -> list[str]:
        argument = {"name": name, "value": value}
        return list(
            (await cell.full.do("complete", ref=ref, argument=argument, context=context))["completion"]["values"]
        )

    prompt = {"type": "ref/prompt", "name": cell.name("greet")}
    assert await values(prompt, "name", "a") == ["Ada", "Alan"]
    assert await values(prompt, "name", "g", language="en") == ["Grace en"]
    template = {"type": "ref/resource", "uri": cell.uri("matrix://user/{id}", "user")}
    assert await values(template, "id", "al") == ["Alan"]
    return None


async def pinging(cell: Cell) -> Outcome:
    return await _removed(cell, "ping")


async def pinged(cell: Cell) -> Outcome:
    """A server's ping in the middle of a call."""
    if cell.modern:
        return "removed"
    assert text(await cell.call("ping-back")) == "still there"
    return None


async def setting_level(cell: Cell) -> Outcome:
    return await _removed(cell, "level", level="warning")


async def _removed(cell: Cell, step: str, **args: Any) -> Outcome:
    if not cell.client.modern:
        await cell.bare.do(step, **args)
        return None
    with failing(RpcFailed, StepFailed) as failure:
        await cell.bare.do(step, **args)
    assert isinstance(failure.error, StepFailed) or failure.code == METHOD_NOT_FOUND
    return "removed"
