"""A server of both eras for the conformance suite, on the official Python SDK 2.x: `python everything_py.py PORT`.

Counterparts: everything_ts.mjs and everything_130.py, which answer the same (`everything.json`). Legacy clients are
asked by requests of the server, modern ones by `input_required`, from one description.
"""

import sys
from collections import deque
from pathlib import Path
from typing import Any

import anyio
import mcp_types as types
import uvicorn
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.lowlevel.server import NotificationOptions
from mcp.server.models import InitializationOptions
from mcp.server.request_state import RequestStateBoundary, RequestStateSecurity
from mcp.server.streamable_http import EventCallback, EventMessage, EventStore
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler, PromptsListChanged, ToolsListChanged
from mcp.shared.exceptions import MCPError
from mcp.shared.message import ServerMessageMetadata
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

sys.path.insert(0, str(Path(__file__).parent))
from facts import (  # type: ignore[import-not-found]  # beside this script
    FACTS,
    NEEDED,
    PAUSE_S,
    completed,
    content_of,
    filled,
    told,
)

Context = ServerRequestContext[Any, Any]
BUS = InMemorySubscriptionBus()
SCHEMAS = {tool["name"]: tool["inputSchema"] for tool in FACTS["tools"]}
_REQUESTS: dict[str, tuple[type[Any], type[Any]]] = {
    "elicitation/create": (types.ElicitRequest, types.ElicitResult),
    "sampling/createMessage": (types.CreateMessageRequest, types.CreateMessageResult),
    "roots/list": (types.ListRootsRequest, types.ListRootsResult),
}


class KeptEvents(EventStore):
    """The last events of all streams, in memory."""

    def __init__(self) -> None:
        self._events: deque[tuple[int, str, Any]] = deque(maxlen=4096)
        self._last = 0

    async def store_event(self, stream_id: str, message: Any) -> str:
        self._last += 1
        self._events.append((self._last, stream_id, message))
        return str(self._last)

    async def replay_events_after(self, last_event_id: str, send_callback: EventCallback) -> str | None:
        after = int(last_event_id)
        stream = next((stream for number, stream, _ in self._events if number == after), None)
        for number, of, message in list(self._events):
            if of == stream and number > after and message is not None:
                await send_callback(EventMessage(message, str(number)))
        return stream


class Everything(Server[Any]):
    """Says at the handshake, too, that its lists may change."""

    def create_initialization_options(self, *_: Any, **__: Any) -> InitializationOptions:
        return super().create_initialization_options(NotificationOptions(prompts_changed=True, tools_changed=True))


async def call_tool(
    context: Context, params: types.CallToolRequestParams
) -> types.CallToolResult | types.InputRequiredResult:
    name = params.name
    if name not in SCHEMAS:
        raise MCPError(types.INVALID_PARAMS, f"There is no tool {name}.")
    if (answer := FACTS["answers"].get(name)) is not None:
        return types.CallToolResult.model_validate(answer)
    if (asking := FACTS["asks"].get(name)) is not None:
        asked = await ask(context, asking, params, filled(asking["rounds"], params.arguments or {}))
        return asked if isinstance(asked, types.InputRequiredResult) else said(told(asking["prefix"], asked))
    await act(context, name)
    return said(f"{name} is done")


async def act(context: Context, name: str) -> None:
    """What a tool does beside answering."""
    session = context.session
    for number, line in enumerate(FACTS["logs"].get(name, [])):
        await anyio.sleep(PAUSE_S if number else 0)
        await session.send_log_message("info", line, "everything", context.request_id)
    match name:
        case "test_tool_with_progress":
            for done in (0, 50, 100):
                await anyio.sleep(PAUSE_S if done else 0)
                await session.report_progress(done, 100)
        case "test_reconnection" if context.close_sse_stream is not None:
            await anyio.sleep(PAUSE_S)  # so that the stream has begun
            await context.close_sse_stream()
            await anyio.sleep(PAUSE_S * 2)
        case "test_trigger_tool_change":
            await BUS.publish(ToolsListChanged())
            if not is_modern(context):
                await session.send_tool_list_changed()
        case "test_trigger_prompt_change":
            await BUS.publish(PromptsListChanged())
            if not is_modern(context):
                await session.send_prompt_list_changed()


async def ask(
    context: Context,
    asking: dict[str, Any],
    params: types.CallToolRequestParams | types.GetPromptRequestParams,
    rounds: list[dict[str, Any]],
) -> dict[str, Any] | types.InputRequiredResult:
    """All answers; or, to a modern client, what is asked next."""
    declared = context.session.client_capabilities
    has = set(declared.model_dump(by_alias=True, exclude_none=True)) if declared is not None else set()
    rounds = [{key: want for key, want in wants.items() if NEEDED[want["method"]] in has} for wants in rounds]
    if not asking.get("optional") and rounds != filled(asking["rounds"], getattr(params, "arguments", None) or {}):
        missing = {NEEDED[want["method"]] for wants in asking["rounds"] for want in wants.values()} - has
        raise MCPError(
            types.MISSING_REQUIRED_CLIENT_CAPABILITY if is_modern(context) else types.INVALID_REQUEST,
            f"This needs a client with {', '.join(sorted(missing))}.",
            {"requiredCapabilities": {name: {} for name in sorted(missing)}},
        )
    if not is_modern(context):
        return {key: await answer_of(context, want) for wants in rounds for key, want in wants.items()}
    number = int(params.request_state or 0) if asking.get("stateful") else 0
    given = {
        key: answer.model_dump(by_alias=True, mode="json") for key, answer in (params.input_responses or {}).items()
    }
    if rounds[number].keys() <= given.keys():
        number += 1
    if number == len(rounds):
        return {key: given[key] for key in rounds[-1]}
    state = str(number) if asking.get("stateful") else None
    return types.InputRequiredResult.model_validate({"inputRequests": rounds[number], "requestState": state})


async def answer_of(context: Context, want: dict[str, Any]) -> dict[str, Any]:
    request, result = _REQUESTS[want["method"]]
    related = ServerMessageMetadata(related_request_id=context.request_id)
    answer = await context.session.send_request(request.model_validate(want), result, metadata=related)
    plain: dict[str, Any] = answer.model_dump(by_alias=True, mode="json")
    return plain


async def get_prompt(
    context: Context, params: types.GetPromptRequestParams
) -> types.GetPromptResult | types.InputRequiredResult:
    if (asking := FACTS["asks"].get(params.name)) is not None:
        asked = await ask(context, asking, params, asking["rounds"])
        if isinstance(asked, types.InputRequiredResult):
            return asked
        messages = [{"role": "user", "content": {"type": "text", "text": told(asking["prefix"], asked)}}]
    elif (messages := filled(FACTS["messages"].get(params.name), params.arguments or {})) is None:
        raise MCPError(types.INVALID_PARAMS, f"There is no prompt {params.name}.")
    return types.GetPromptResult.model_validate({"messages": messages})


async def read_resource(context: Context, params: types.ReadResourceRequestParams) -> types.ReadResourceResult:
    content = content_of(str(params.uri))
    if content is None:
        code = types.INVALID_PARAMS if is_modern(context) else -32002
        raise MCPError(code, "Resource not found", {"uri": str(params.uri)})
    return types.ReadResourceResult.model_validate({"contents": [content]})


async def list_tools(_: Context, __: Any) -> types.ListToolsResult:
    return types.ListToolsResult.model_validate({"tools": FACTS["tools"]})


async def list_prompts(_: Context, __: Any) -> types.ListPromptsResult:
    return types.ListPromptsResult.model_validate({"prompts": FACTS["prompts"]})


async def list_resources(_: Context, __: Any) -> types.ListResourcesResult:
    return types.ListResourcesResult.model_validate({"resources": FACTS["resources"]})


async def list_templates(_: Context, __: Any) -> types.ListResourceTemplatesResult:
    return types.ListResourceTemplatesResult.model_validate({"resourceTemplates": FACTS["templates"]})


async def complete(_: Context, params: types.CompleteRequestParams) -> types.CompleteResult:
    return types.CompleteResult.model_validate({"completion": completed(params.argument.value)})


async def agree(_: Context, __: Any) -> types.EmptyResult:
    return types.EmptyResult()


def said(text: str) -> types.CallToolResult:
    return types.CallToolResult(content=[types.TextContent(type="text", text=text)])


def is_modern(context: Context) -> bool:
    return context.protocol_version in MODERN_PROTOCOL_VERSIONS


def server() -> Server[Any]:
    made = Everything(
        "everything-py",
        version="1.0.0",
        get_tool_input_schema=SCHEMAS.get,
        on_list_tools=list_tools,
        on_call_tool=call_tool,
        on_list_prompts=list_prompts,
        on_get_prompt=get_prompt,
        on_list_resources=list_resources,
        on_list_resource_templates=list_templates,
        on_read_resource=read_resource,
        on_subscribe_resource=agree,
        on_unsubscribe_resource=agree,
        on_subscriptions_listen=ListenHandler(BUS),
        on_completion=complete,
        on_set_logging_level=agree,
    )
    made.middleware.append(RequestStateBoundary(RequestStateSecurity.ephemeral(), default_audience="everything-py"))
    return made


if __name__ == "__main__":
    app = server().streamable_http_app(event_store=KeptEvents(), retry_interval=50)
    # httptools would keep the spaces around a header's value, which the suite sends.
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", http="h11")
