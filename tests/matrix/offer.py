"""What the matrix's servers offer, in the words of the wire, and what their tools do: the same at either era.

Runs in two environments (mcp 1.30 and 2.3), so it imports neither. Counterparts: legacy_server.py and modern_server.py,
which bring the transport, and features.py, which knows what must come out.
"""

import asyncio
import base64
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final, Protocol

Wire = dict[str, Any]

PAGE_ITEMS: Final = 7
SLOW_S: Final = 20.0
INSTRUCTIONS: Final = "Matrix: call `add` before anything else."
UNKNOWN: Final[Wire] = {
    "text": "ä€\U0001f600\\u0041",
    "big": 9007199254740991,
    "float": 0.1,
    "list": [True, {"z": 1, "a": 2}],
}
"""A member that no revision knows."""
APPS: Final = "io.modelcontextprotocol/ui"
APPS_SETTINGS: Final[Wire] = {"mimeTypes": ["text/html;profile=mcp-app"]}
PIXEL: Final = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
SOUND: Final = base64.b64encode(b"RIFF\x24\x00\x00\x00WAVE").decode()
ICONS: Final = [{"src": "https://example.com/icon.png", "mimeType": "image/png", "sizes": ["48x48"]}]
NAMES: Final = ("Ada", "Alan", "Grace")


class Refusal(Exception):
    """A JSON-RPC error, as it is to be sent."""

    def __init__(self, code: int, message: str, data: Any = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.data = data


class Turn(Protocol):
    """One request as a tool meets it."""

    modern: bool
    meta: Wire  # params._meta without what belongs to the revision itself
    capabilities: Wire  # as the client declared them

    async def ask(self, key: str, method: str, params: Wire) -> Wire:
        """What the client answers. Raises Refusal where it answers with an error."""
        ...

    async def progress(self, progress: float, total: float, message: str) -> None: ...

    async def log(self, level: str, data: Any) -> None: ...

    async def changed(self, kind: str) -> None:
        """Tell every client that the list of this kind is another one."""
        ...

    async def updated(self, uri: str) -> None:
        """Tell every client that subscribed."""
        ...

    async def visited(self, elicitation_id: str) -> None:
        """Tell the client that what it was sent to is done; silence in the modern era, which knows no such word."""
        ...


def schema(**properties: Any) -> Wire:
    return {"type": "object", "properties": properties}


STRING: Final = {"type": "string"}
NUMBER: Final = {"type": "number"}


def _tool(name: str, description: str, /, **properties: Any) -> Wire:
    return {"name": name, "description": description, "inputSchema": schema(**properties)}


TOOLS: Final[list[Wire]] = [
    {
        **_tool("add", "Adds two numbers.", a=NUMBER, b=NUMBER, nonce=STRING),
        "title": "Addition",
        "outputSchema": {**schema(sum=NUMBER), "required": ["sum"]},
        "annotations": {"title": "Add", "readOnlyHint": True},
        "icons": ICONS,
        "_meta": {"ui": {"resourceUri": "ui://matrix/add", "visibility": ["model", "app"]}, "example.com/cost": 1.5},
        "x-matrix": UNKNOWN,
    },
    {
        **_tool("shapes", "A schema with words beyond the common ones."),
        "inputSchema": {
            "type": "object",
            "properties": {"at": {"$ref": "#/$defs/point"}, "kind": {"enum": ["circle", "square"]}},
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "$defs": {"point": {"$anchor": "point", "type": "array", "prefixItems": [NUMBER, NUMBER]}},
            "allOf": [{"if": {"properties": {"kind": {"const": "circle"}}}, "then": {"required": ["at"]}}],
            "additionalProperties": False,
        },
    },
    _tool("echo", "Says what it was told, and which `_meta` came with it.", text=STRING, nonce=STRING),
    _tool("pictures", "An image, a sound, a link and two embedded resources."),
    _tool("fail", "Fails in the tool's own way.", nonce=STRING),
    _tool("explode", "Fails as a request."),
    _tool("count", "Tells its progress.", nonce=STRING),
    _tool("chatter", "Logs at three levels.", nonce=STRING),
    _tool("slow", "Takes long, and minds being cancelled.", nonce=STRING),
    _tool("ask-name", "Asks the user for a name.", topic=STRING, nonce=STRING),
    _tool("ask-url", "Sends the user to a page.", nonce=STRING),
    _tool("ask-model", "Asks the client's model.", topic=STRING, nonce=STRING),
    _tool("ask-roots", "Asks for the client's roots.", nonce=STRING),
    _tool("ask-twice", "Asks, then asks again about the answer.", topic=STRING, nonce=STRING),
    _tool("ask-both", "Asks for two things at once.", topic=STRING, nonce=STRING),
    _tool("ask-anyway", "Asks the user whether or not the client can be asked.", topic=STRING, nonce=STRING),
    _tool("must-visit", "Refuses until a page has been visited.", nonce=STRING),
    _tool("ping-back", "Asks whether the client is still there."),
    _tool("grow", "Adds a tool, a prompt or a resource.", kind=STRING, called=STRING),
    _tool("touch", "Changes a resource.", uri=STRING),
]
MODERN_TOOLS: Final[list[Wire]] = [
    {
        **_tool("numbers", "A list, which is no object."),
        "outputSchema": {"type": "array", "items": NUMBER},
    },
    _tool("regional", "Wants an argument in a header, too.", region={"type": "string", "x-mcp-header": "Region"}),
]
"""Only the revision of 2026-07-28 has words for these."""

PROMPTS: Final[list[Wire]] = [
    {"name": "plain", "description": "No arguments."},
    {
        "name": "greet",
        "title": "Greeting",
        "description": "Greets someone.",
        "arguments": [{"name": "name", "description": "Whom", "required": True}, {"name": "language"}],
        "icons": ICONS,
        "_meta": {"example.com/kind": "greeting"},
    },
    {"name": "pictured", "description": "An image and a resource."},
    {"name": "ask-prompt", "description": "Asks the user first.", "arguments": [{"name": "topic"}]},
    *({"name": f"filler-{number}"} for number in range(6)),
]
NOTE: Final = "matrix://note"
RESOURCES: Final[list[Wire]] = [
    {
        "uri": NOTE,
        "name": "note",
        "title": "A note",
        "mimeType": "text/plain",
        "size": 11,
        "annotations": {"audience": ["user"], "priority": 0.5},
        "icons": ICONS,
        "_meta": {"example.com/kind": "note"},
    },
    {"uri": "matrix://picture", "name": "picture", "mimeType": "image/png"},
    {"uri": "matrix://asking", "name": "asking"},
    {"uri": "ui://matrix/add", "name": "app", "mimeType": "text/html;profile=mcp-app"},
    *({"uri": f"matrix://watched/{number}", "name": f"watched-{number}"} for number in range(6)),
]
TEMPLATES: Final[list[Wire]] = [
    {"uriTemplate": "matrix://user/{id}", "name": "user", "title": "A user", "mimeType": "application/json"},
    *({"uriTemplate": f"matrix://filler-{number}/{{id}}", "name": f"filler-{number}"} for number in range(8)),
]


class Offer:
    """One server's lists, which can grow, and its book of what it has seen: one JSON object a line."""

    def __init__(self, seen: Path) -> None:
        self._seen = seen.open("a", buffering=1)
        self.lists: dict[str, list[Wire]] = {
            "tools": list(TOOLS),
            "prompts": list(PROMPTS),
            "resources": list(RESOURCES),
            "templates": list(TEMPLATES),
        }
        self.visited: set[str] = set()

    def see(self, what: str, **more: Any) -> None:
        self._seen.write(json.dumps({"what": what, **more}) + "\n")

    def page(self, kind: str, cursor: str | None, *, modern: bool) -> Wire:
        """One page. Raises Refusal for a cursor that was never given."""
        items = [*(MODERN_TOOLS if modern and kind == "tools" else []), *self.lists[kind]]  # what grows is last
        try:
            start = 0 if cursor is None else int(cursor.removeprefix("page-"))
        except ValueError:
            raise Refusal(-32602, "no such cursor") from None
        member = "resourceTemplates" if kind == "templates" else kind
        end = start + PAGE_ITEMS
        found: Wire = {member: items[start:end], "_meta": {"example.com/page": start}}
        if end < len(items):
            found["nextCursor"] = f"page-{end}"
        return found

    def grow(self, kind: str, name: str) -> None:
        made: dict[str, Wire] = {
            "tools": _tool(name, "Grown."),
            "prompts": {"name": name},
            "resources": {"uri": f"matrix://{name}", "name": name},
        }
        self.lists[kind].append(made[kind])

    async def call(self, turn: Turn, name: str, arguments: Mapping[str, Any]) -> Wire:
        """A CallToolResult. Raises Refusal."""
        self.see(
            "call", tool=name, arguments=arguments, meta=turn.meta, capabilities=turn.capabilities, modern=turn.modern
        )
        tool = _BEHAVIOURS.get(name)
        if tool is not None:
            return await tool(self, turn, dict(arguments))
        if any(one["name"] == name for one in self.lists["tools"]):
            return _text(f"{name} has grown")
        raise Refusal(-32602, f"Unknown tool: {name}")

    async def get(self, turn: Turn, name: str, arguments: Mapping[str, str]) -> Wire:
        """A GetPromptResult. Raises Refusal."""
        self.see("get", prompt=name, arguments=arguments, meta=turn.meta)
        if not any(one["name"] == name for one in self.lists["prompts"]):
            raise Refusal(-32602, f"Unknown prompt: {name}")
        if name == "ask-prompt":
            told = await _ask_name(turn, "prompt", arguments.get("topic", ""))
            return _prompt({"type": "text", "text": told})
        if name == "greet":
            return {"description": "A greeting", **_prompt({"type": "text", "text": f"Hello {arguments['name']}!"})}
        if name == "pictured":
            link = {"uri": NOTE, "mimeType": "text/plain", "text": "hello world"}
            return _prompt(
                {"type": "image", "data": PIXEL, "mimeType": "image/png"}, {"type": "resource", "resource": link}
            )
        return _prompt({"type": "text", "text": name})

    async def read(self, turn: Turn, uri: str) -> Wire:
        """A ReadResourceResult. Raises Refusal."""
        self.see("read", uri=uri, meta=turn.meta)
        if uri == "matrix://picture":
            return {"contents": [{"uri": uri, "mimeType": "image/png", "blob": PIXEL}]}
        if uri == "matrix://asking":
            return {"contents": [{"uri": uri, "text": await _ask_name(turn, "resource", "resource")}]}
        if uri.startswith("matrix://user/"):
            text = json.dumps({"id": uri.rpartition("/")[2]})
            return {"contents": [{"uri": uri, "mimeType": "application/json", "text": text}]}
        if uri == NOTE:
            one = {"uri": uri, "mimeType": "text/plain", "text": "hello world", "_meta": {"example.com/read": True}}
            return {"contents": [one], "_meta": {"example.com/result": UNKNOWN}}
        if any(one["uri"] == uri for one in self.lists["resources"]):
            return {"contents": [{"uri": uri, "text": uri}]}
        raise Refusal(-32602 if turn.modern else -32002, "Resource not found", {"uri": uri})

    def complete(self, ref: Wire, argument: Mapping[str, str], context: Mapping[str, str]) -> Wire:
        """A CompleteResult: what was asked about comes back with each value."""
        about = ref.get("name") or ref.get("uri")
        self.see("complete", about=about, argument=argument, context=context)
        wanted = [one for one in NAMES if one.lower().startswith(argument["value"].lower())]
        values = [f"{one} {context['language']}" if "language" in context else one for one in wanted]
        return {
            "completion": {
                "values": values if about in ("greet", "matrix://user/{id}") else [],
                "total": len(values),
                "hasMore": False,
            }
        }


def _text(text: str, **more: Any) -> Wire:
    return {"content": [{"type": "text", "text": text}], **more}


def _prompt(*contents: Wire) -> Wire:
    return {"messages": [{"role": "user", "content": one} for one in contents]}


async def _add(offer: Offer, turn: Turn, arguments: Wire) -> Wire:
    total = arguments["a"] + arguments["b"]
    return _text(str(total), structuredContent={"sum": total})


async def _echo(offer: Offer, turn: Turn, arguments: Wire) -> Wire:
    annotated = {"type": "text", "text": arguments.get("text", ""), "annotations": {"priority": 0.25}}
    known = {"example.com/heard": turn.meta, "example.com/more": UNKNOWN}
    return {"content": [{**annotated, "_meta": {"example.com/part": 1}}], "_meta": known, "x-matrix": UNKNOWN}


async def _pictures(offer: Offer, turn: Turn, arguments: Wire) -> Wire:
    return {
        "content": [
            {"type": "image", "data": PIXEL, "mimeType": "image/png", "annotations": {"audience": ["user"]}},
            {"type": "audio", "data": SOUND, "mimeType": "audio/wav"},
            {"type": "resource_link", "uri": NOTE, "name": "note", "mimeType": "text/plain"},
            {"type": "resource", "resource": {"uri": NOTE, "mimeType": "text/plain", "text": "hello world"}},
            {"type": "resource", "resource": {"uri": "matrix://picture", "mimeType": "image/png", "blob": PIXEL}},
        ]
    }


async def _fail(offer: Offer, turn: Turn, arguments: Wire) -> Wire:
    return _text("it did not work", isError=True)


async def _explode(offer: Offer, turn: Turn, arguments: Wire) -> Wire:
    raise Refusal(-31999, "it exploded", {"why": "matrix"})


async def _count(offer: Offer, turn: Turn, arguments: Wire) -> Wire:
    for step in (1, 2, 3):
        await turn.progress(step, 3, f"step {step}")
    return _text("counted")


async def _chatter(offer: Offer, turn: Turn, arguments: Wire) -> Wire:
    for level in ("debug", "info", "error"):
        await turn.log(level, {"said": level, "nonce": arguments["nonce"]})
    return _text("logged")


async def _slow(offer: Offer, turn: Turn, arguments: Wire) -> Wire:
    offer.see("slow", nonce=arguments["nonce"], state="started")
    end = time.monotonic() + SLOW_S
    try:
        while time.monotonic() < end:
            await turn.progress(SLOW_S - (end - time.monotonic()), SLOW_S, "still here")
            await asyncio.sleep(0.2)
    except asyncio.CancelledError:
        offer.see("slow", nonce=arguments["nonce"], state="cancelled")
        raise
    offer.see("slow", nonce=arguments["nonce"], state="finished")
    return _text("at last")


def _question(topic: str) -> Wire:
    return {
        "mode": "form",
        "message": f"Which name, {topic}",
        "requestedSchema": {**schema(name=STRING), "required": ["name"]},
    }


async def _ask_name(turn: Turn, key: str, topic: str) -> str:
    answer = await turn.ask(key, "elicitation/create", _question(topic))
    return f"hello {answer['content']['name']}" if answer["action"] == "accept" else str(answer["action"])


async def _ask_once(offer: Offer, turn: Turn, arguments: Wire) -> Wire:
    return _text(await _ask_name(turn, "name", arguments["topic"]))


async def _ask_url(offer: Offer, turn: Turn, arguments: Wire) -> Wire:
    page: Wire = {"mode": "url", "message": "Please visit", "url": f"https://example.com/{arguments['nonce']}"}
    if not turn.modern:
        page["elicitationId"] = arguments["nonce"]
    answer = await turn.ask("page", "elicitation/create", page)
    await turn.visited(arguments["nonce"])
    return _text(str(answer["action"]))


async def _ask_model(offer: Offer, turn: Turn, arguments: Wire) -> Wire:
    message = {"role": "user", "content": {"type": "text", "text": arguments["topic"]}}
    params = {"messages": [message], "maxTokens": 50, "systemPrompt": "Be brief.", "temperature": 0.5}
    answer = await turn.ask("model", "sampling/createMessage", params)
    return _text(f"{answer['model']}: {answer['content']['text']}")


async def _ask_roots(offer: Offer, turn: Turn, arguments: Wire) -> Wire:
    answer = await turn.ask("roots", "roots/list", {})
    return _text(" ".join(root["uri"] for root in answer["roots"]))


async def _ask_twice(offer: Offer, turn: Turn, arguments: Wire) -> Wire:
    first = await _ask_name(turn, "first", arguments["topic"])
    return _text(await _ask_name(turn, "second", first.removeprefix("hello ")))


async def _ask_both(offer: Offer, turn: Turn, arguments: Wire) -> Wire:
    """Both questions are on their way before either is answered."""
    asked = asyncio.gather(
        turn.ask("name", "elicitation/create", _question(arguments["topic"])),
        turn.ask("roots", "roots/list", {}),
        return_exceptions=True,
    )
    for answer in await asked:
        if isinstance(answer, BaseException):
            raise answer
    named, roots = (dict(answer) for answer in asked.result() if not isinstance(answer, BaseException))
    return _text(f"{named['content']['name']} {len(roots['roots'])}")


async def _ask_anyway(offer: Offer, turn: Turn, arguments: Wire) -> Wire:
    try:
        return _text(await _ask_name(turn, "anyway", arguments["topic"]))
    except Refusal as refusal:
        offer.see("anyway", nonce=arguments["nonce"], code=refusal.code)
        return _text(f"refused: {refusal.code}", isError=True)


async def _must_visit(offer: Offer, turn: Turn, arguments: Wire) -> Wire:
    nonce = arguments["nonce"]
    page = {"mode": "url", "message": "Please sign in", "url": f"https://example.com/sign-in/{nonce}"}
    if turn.modern:
        await turn.ask("page", "elicitation/create", page)
    elif nonce not in offer.visited:
        offer.visited.add(nonce)
        raise Refusal(-32042, "Sign in first", {"elicitations": [{**page, "elicitationId": nonce}]})
    return _text("signed in")


async def _ping_back(offer: Offer, turn: Turn, arguments: Wire) -> Wire:
    await turn.ask("ping", "ping", {})
    return _text("still there")


async def _grow(offer: Offer, turn: Turn, arguments: Wire) -> Wire:
    offer.grow(arguments["kind"], arguments["called"])
    await turn.changed(arguments["kind"])
    return _text("grown")


async def _touch(offer: Offer, turn: Turn, arguments: Wire) -> Wire:
    await turn.updated(arguments["uri"])
    return _text("touched")


async def _numbers(offer: Offer, turn: Turn, arguments: Wire) -> Wire:
    return _text("[1, 2, 3]", structuredContent=[1, 2, 3])


async def _regional(offer: Offer, turn: Turn, arguments: Wire) -> Wire:
    return _text(f"in {arguments['region']}")


async def _shapes(offer: Offer, turn: Turn, arguments: Wire) -> Wire:
    return _text(json.dumps(arguments))


_BEHAVIOURS: Final[dict[str, Callable[[Offer, Turn, Wire], Awaitable[Wire]]]] = {
    "add": _add,
    "shapes": _shapes,
    "echo": _echo,
    "pictures": _pictures,
    "fail": _fail,
    "explode": _explode,
    "count": _count,
    "chatter": _chatter,
    "slow": _slow,
    "ask-name": _ask_once,
    "ask-url": _ask_url,
    "ask-model": _ask_model,
    "ask-roots": _ask_roots,
    "ask-twice": _ask_twice,
    "ask-both": _ask_both,
    "ask-anyway": _ask_anyway,
    "must-visit": _must_visit,
    "ping-back": _ping_back,
    "grow": _grow,
    "touch": _touch,
    "numbers": _numbers,
    "regional": _regional,
}
