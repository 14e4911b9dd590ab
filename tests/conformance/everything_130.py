# mypy: ignore-errors
"""A server of the handshake era alone for the conformance suite, on the official Python SDK 1.30:
`python everything_130.py PORT`, in the environment of tests/parts/sdk130.py.

Counterparts: everything_py.py and everything_ts.mjs, which answer the same (`everything.json`). What only a modern
client can ask for is not there.
"""

import contextlib
import sys
from collections import deque
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import uvicorn
from mcp import types
from mcp.server.fastmcp.server import StreamableHTTPASGIApp
from mcp.server.lowlevel import NotificationOptions, Server
from mcp.server.streamable_http import EventMessage, EventStore
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.server.transport_security import TransportSecuritySettings
from mcp.shared.exceptions import McpError
from mcp.shared.message import ServerMessageMetadata
from starlette.applications import Starlette
from starlette.routing import Route

sys.path.insert(0, str(Path(__file__).parent))
from facts import FACTS, NEEDED, PAUSE_S, completed, content_of, filled, told

_REQUESTS = {
    "elicitation/create": (types.ElicitRequest, types.ElicitResult),
    "sampling/createMessage": (types.CreateMessageRequest, types.CreateMessageResult),
    "roots/list": (types.ListRootsRequest, types.ListRootsResult),
}


class KeptEvents(EventStore):
    """The last events of all streams, in memory."""

    def __init__(self) -> None:
        self._events = deque(maxlen=4096)
        self._last = 0

    async def store_event(self, stream_id, message) -> str:
        self._last += 1
        self._events.append((self._last, stream_id, message))
        return str(self._last)

    async def replay_events_after(self, last_event_id, send_callback):
        after = int(last_event_id)
        stream = next((stream for number, stream, _ in self._events if number == after), None)
        for number, of, message in list(self._events):
            if of == stream and number > after and message is not None:
                await send_callback(EventMessage(message, str(number)))
        return stream


class Everything(Server):
    """Says what the SDK leaves out by itself: lists may change, resources may be subscribed to."""

    def create_initialization_options(self, *_, **__):
        made = super().create_initialization_options(NotificationOptions(prompts_changed=True, tools_changed=True))
        made.capabilities.resources.subscribe = True
        return made


server = Everything("everything-130", version="1.0.0")


def answers(request_type):
    """Register the function as what answers requests of this type."""

    def register(function):
        async def answer(request):
            return types.ServerResult(await function(request.params))

        server.request_handlers[request_type] = answer
        return function

    return register


@answers(types.ListToolsRequest)
async def list_tools(_):
    return types.ListToolsResult.model_validate({"tools": FACTS["tools"]})


@answers(types.CallToolRequest)
async def call_tool(params):
    name = params.name
    if all(tool["name"] != name for tool in FACTS["tools"]):
        raise McpError(types.ErrorData(code=types.INVALID_PARAMS, message=f"There is no tool {name}."))
    if (answer := FACTS["answers"].get(name)) is not None:
        return types.CallToolResult.model_validate(answer)
    if (asking := FACTS["asks"].get(name)) is not None:
        return said(told(asking["prefix"], await ask(asking, filled(asking["rounds"], params.arguments or {}))))
    await act(name)
    return said(f"{name} is done")


async def act(name) -> None:
    context = server.request_context
    session = context.session
    for number, line in enumerate(FACTS["logs"].get(name, [])):
        await anyio.sleep(PAUSE_S if number else 0)
        await session.send_log_message("info", line, "everything", context.request_id)
    match name:
        case "test_tool_with_progress":
            token = context.meta.progressToken if context.meta else None
            for done in (0, 50, 100):
                await anyio.sleep(PAUSE_S if done else 0)
                if token is not None:
                    await session.send_progress_notification(token, done, 100, None, context.request_id)
        case "test_reconnection" if context.close_sse_stream is not None:
            await anyio.sleep(PAUSE_S)  # so that the stream has begun
            await context.close_sse_stream()
            await anyio.sleep(PAUSE_S * 2)
        case "test_trigger_tool_change":
            await session.send_tool_list_changed()
        case "test_trigger_prompt_change":
            await session.send_prompt_list_changed()


async def ask(asking, rounds):
    """All answers of the client, each to a request of ours."""
    context = server.request_context
    declared = context.session.client_params.capabilities.model_dump(exclude_none=True)
    given = {}
    for key, want in (pair for wants in rounds for pair in wants.items()):
        if (needed := NEEDED[want["method"]]) in declared:
            request, result = _REQUESTS[want["method"]]
            sent = types.ServerRequest(request.model_validate(want))
            related = ServerMessageMetadata(related_request_id=context.request_id)
            answer = await context.session.send_request(sent, result, metadata=related)
            given[key] = answer.model_dump(by_alias=True, mode="json")
        elif not asking.get("optional"):
            words = f"This needs a client with {needed}."
            raise McpError(types.ErrorData(code=types.INVALID_REQUEST, message=words))
    return given


@answers(types.ListPromptsRequest)
async def list_prompts(_):
    return types.ListPromptsResult.model_validate({"prompts": FACTS["prompts"]})


@answers(types.GetPromptRequest)
async def get_prompt(params):
    if (asking := FACTS["asks"].get(params.name)) is not None:
        text = told(asking["prefix"], await ask(asking, asking["rounds"]))
        messages = [{"role": "user", "content": {"type": "text", "text": text}}]
    elif (messages := filled(FACTS["messages"].get(params.name), params.arguments or {})) is None:
        raise McpError(types.ErrorData(code=types.INVALID_PARAMS, message=f"There is no prompt {params.name}."))
    return types.GetPromptResult.model_validate({"messages": messages})


@answers(types.ListResourcesRequest)
async def list_resources(_):
    return types.ListResourcesResult.model_validate({"resources": FACTS["resources"]})


@answers(types.ListResourceTemplatesRequest)
async def list_templates(_):
    return types.ListResourceTemplatesResult.model_validate({"resourceTemplates": FACTS["templates"]})


@answers(types.ReadResourceRequest)
async def read_resource(params):
    content = content_of(str(params.uri))
    if content is None:
        raise McpError(types.ErrorData(code=-32002, message="Resource not found", data={"uri": str(params.uri)}))
    return types.ReadResourceResult.model_validate({"contents": [content]})


@answers(types.CompleteRequest)
async def complete(params):
    return types.CompleteResult.model_validate({"completion": completed(params.argument.value)})


@answers(types.SetLevelRequest)
@answers(types.SubscribeRequest)
@answers(types.UnsubscribeRequest)
async def agree(_):
    return types.EmptyResult()


def said(text):
    return types.CallToolResult(content=[types.TextContent(type="text", text=text)])


def application() -> Starlette:
    hosts = ["127.0.0.1:*", "localhost:*", "[::1]:*"]
    security = TransportSecuritySettings(allowed_hosts=hosts, allowed_origins=[f"http://{host}" for host in hosts])
    manager = StreamableHTTPSessionManager(server, KeptEvents(), security_settings=security, retry_interval=50)

    @contextlib.asynccontextmanager
    async def life(_: Starlette) -> AsyncIterator[None]:
        async with manager.run():
            yield

    return Starlette(routes=[Route("/mcp", StreamableHTTPASGIApp(manager))], lifespan=life)


if __name__ == "__main__":
    uvicorn.run(application(), host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", http="h11")
