"""What a server asks of the client: elicitation, sampling, roots.

Each exercise asserts what the client hears and what the server saw, and returns None where the feature works, or the
key of the rule by which it is refused. Counterparts: ../offer.py (what is offered), ../features.py (the rules).
"""

import asyncio
from collections.abc import Callable

from tests.matrix.cells import Cell
from tests.matrix.driving import RpcFailed, StepFailed, Wire
from tests.matrix.exercises.asserting import Outcome, failing, text
from tests.matrix.offer import APPS, APPS_SETTINGS


async def _named(cell: Cell, topic: str) -> str:
    return text(await cell.call("ask-name", topic=topic))


def _asked_about(topic: str) -> Callable[[Wire], bool]:
    return lambda params: str(params.get("message", "")).endswith(f", {topic}")


async def elicitation(cell: Cell) -> Outcome:
    topic = cell.nonce()
    assert await _named(cell, topic) == f"hello {topic}!"
    asked = await cell.full.hears("elicitation/create", _asked_about(topic))
    assert asked["requestedSchema"]["properties"] == {"name": {"type": "string"}}
    assert asked["requestedSchema"]["required"] == ["name"]
    return None


async def elicitation_declined(cell: Cell) -> Outcome:
    assert await _named(cell, "decline") == "decline"
    assert await _named(cell, "cancel") == "cancel"
    return None


async def elicitation_at_once(cell: Cell) -> Outcome:
    """Several calls wait for their answers at the same time; each gets its own."""
    topics = [cell.nonce() for _ in range(5)]
    assert await asyncio.gather(*(_named(cell, topic) for topic in topics)) == [f"hello {topic}!" for topic in topics]
    return None


async def elicitation_url(cell: Cell) -> Outcome:
    nonce = cell.nonce()
    assert text(await cell.call("ask-url", nonce=nonce)) == "accept"
    url = f"https://example.com/{nonce}"
    asked = await cell.full.hears("elicitation/create", lambda params: params.get("url") == url)
    assert asked["mode"] == "url"
    if not cell.client.modern:
        assert asked["elicitationId"], "the handshake era has an id for each page"
        if not cell.modern:
            await cell.full.hears("notifications/elicitation/complete", lambda told: told["elicitationId"] == nonce)
    return None


async def url_required(cell: Cell) -> Outcome:
    nonce = cell.nonce()
    url = f"https://example.com/sign-in/{nonce}"
    if cell.modern or cell.client.modern:
        assert text(await cell.call("must-visit", nonce=nonce)) == "signed in"
        await cell.full.hears("elicitation/create", lambda params: params.get("url") == url)
        return None
    with failing() as failure:
        await cell.call("must-visit", nonce=nonce)
    assert failure.code == -32042
    assert failure.data["elicitations"][0]["url"] == url
    assert text(await cell.call("must-visit", nonce=nonce)) == "signed in"
    return "url-required"


async def elicitation_rounds(cell: Cell) -> Outcome:
    topic = cell.nonce()
    assert text(await cell.call("ask-twice", topic=topic)) == f"hello {topic}!!"
    return None


async def asked_together(cell: Cell) -> Outcome:
    topic = cell.nonce()
    assert text(await cell.call("ask-both", topic=topic)) == f"{topic}! 1"
    return None


async def sampling(cell: Cell) -> Outcome:
    topic = cell.nonce()
    assert text(await cell.call("ask-model", topic=topic)) == f"matrix-model: on {topic}"
    asked = await cell.full.hears(
        "sampling/createMessage", lambda params: params["messages"][0]["content"]["text"] == topic
    )
    assert (asked["maxTokens"], asked["systemPrompt"], asked["temperature"]) == (50, "Be brief.", 0.5)
    return None


async def roots(cell: Cell) -> Outcome:
    nonce = cell.nonce()
    assert text(await cell.call("ask-roots", nonce=nonce)) == "file:///matrix"
    if not cell.modern and not cell.client.modern:
        await cell.full.do("roots_changed")
        await cell.seen.find(lambda line: line["what"] == "roots-changed")
    return None


async def asking_prompt(cell: Cell) -> Outcome:
    topic = cell.nonce()
    prompt = await cell.full.do("get", name=cell.name("ask-prompt"), arguments={"topic": topic})
    assert prompt["messages"][0]["content"]["text"] == f"hello {topic}!"
    return None


async def asking_resource(cell: Cell) -> Outcome:
    read = await cell.full.do("read", uri=cell.uri("matrix://asking", "asking"))
    assert read["contents"][0]["text"] == "hello resource!"
    return None


async def declared(cell: Cell) -> Outcome:
    """The server is told of what the client can be asked for, no more and no less."""
    wanted = {"elicitation", "sampling", "roots"}
    for connection, expected in ((cell.full, wanted), (cell.bare, set[str]())):
        nonce = cell.nonce()
        await connection.call(cell.name("echo"), nonce=nonce)
        told = (await cell.seen.call(nonce))["capabilities"]
        assert told.keys() & wanted == expected
    return None


async def undeclared(cell: Cell) -> Outcome:
    with failing() as failure:
        result = await cell.bare.call(cell.name("ask-name"), topic="bare")
        assert result.get("isError"), result
        raise RpcFailed(0, "as a result", None)
    if cell.modern and cell.client.modern:
        assert failure.code == -32021
        assert "elicitation" in failure.data["requiredCapabilities"]
    else:
        assert not -32099 <= failure.code <= -32020, "a code of the modern era"
    assert not any(one.method == "elicitation/create" for one in cell.bare.heard)
    return "capability"


async def asked_unduly(cell: Cell) -> Outcome:
    """It may be told of an error or of a user who does not answer, but never gets what it asked for."""
    nonce = cell.nonce()
    with failing(RpcFailed, StepFailed):
        result = await cell.bare.call(cell.name("ask-anyway"), topic="bare", nonce=nonce)
        assert result.get("isError") or text(result) == "cancel", result
        raise RpcFailed(0, "as a result", None)
    if not cell.modern:
        await cell.seen.find(lambda line: line["what"] == "anyway" and line["nonce"] == nonce)
    assert not any(one.method == "elicitation/create" for one in cell.bare.heard)
    return "never-declared"


async def extensions(cell: Cell) -> Outcome:
    if cell.client.modern or cell.server != "dual":  # which is silent about them in a handshake
        assert cell.full.about["capabilities"]["extensions"] == {APPS: APPS_SETTINGS}
    nonce = cell.nonce()
    await cell.call("echo", nonce=nonce)
    told = (await cell.seen.call(nonce))["capabilities"]
    if cell.client.key != "py130":  # which has no way to declare any
        assert told["extensions"] == {APPS: APPS_SETTINGS}
    assert (await cell.full.do("read", uri=cell.uri("ui://matrix/add", "app")))["contents"][0]["uri"].startswith(
        "ui://"
    )
    return None
