"""The official Python SDK of both eras, mcp 2.3, as a client: `mode` of a connection is auto or legacy.

Counterparts: lines.py, py130.py.
"""

import asyncio
import warnings
from collections.abc import Awaitable
from contextlib import AsyncExitStack
from typing import Any

import mcp_types as types
from mcp.client import Client, advertise
from mcp.client.streamable_http import streamable_http_client
from mcp.shared._httpx_utils import create_mcp_http_client
from mcp.shared.exceptions import MCPError
from pydantic import TypeAdapter
from tests.matrix.clients.lines import Hear, RpcFailed, Wire, answer, serve
from tests.matrix.offer import APPS, APPS_SETTINGS

_request_of: TypeAdapter[Any] = TypeAdapter(types.ClientRequest)
_any_of: TypeAdapter[Wire] = TypeAdapter(Wire)


def dumped(model: Any) -> Any:
    return model.model_dump(mode="json", by_alias=True, exclude_none=True)


class Connection:
    def __init__(self, args: Wire, hear: Hear) -> None:
        self._url = args["url"]
        self._token = args["token"]
        self._capable = args["capable"]
        self._mode = args["mode"]
        self._hear = hear
        self._client: Client
        self._listening: AsyncExitStack = AsyncExitStack()
        self._stop = asyncio.Event()
        self._listener: asyncio.Task[None] | None = None

    async def run(self, ready: "asyncio.Future[Wire]", ended: asyncio.Event) -> None:
        http = create_mcp_http_client({"Authorization": f"Bearer {self._token}"} if self._token else {})
        asked: Wire = (
            {
                "elicitation_callback": self._elicit,
                "sampling_callback": self._sample,
                "list_roots_callback": self._roots,
                "extensions": [advertise(APPS, APPS_SETTINGS)],
            }
            if self._capable
            else {}
        )
        transport = streamable_http_client(self._url, http_client=http)
        async with http, Client(transport, mode=self._mode, message_handler=self._heard, **asked) as client:
            self._client = client
            ready.set_result(
                {
                    "protocolVersion": client.protocol_version,
                    "capabilities": dumped(client.server_capabilities),
                    "instructions": client.instructions,
                }
            )
            await ended.wait()
            if self._listener is not None:
                await self.unlisten(0)

    async def _heard(self, message: Any) -> None:
        if isinstance(message, Exception):
            return
        told = dumped(message)
        self._hear(told["method"], told.get("params"), 0)

    async def _elicit(self, context: Any, params: Any) -> Any:
        self._hear("elicitation/create", dumped(params), 0)
        return types.ElicitResult.model_validate(answer("elicitation/create", dumped(params)))

    async def _sample(self, context: Any, params: Any) -> Any:
        self._hear("sampling/createMessage", dumped(params), 0)
        return types.CreateMessageResult.model_validate(answer("sampling/createMessage", dumped(params)))

    async def _roots(self, context: Any) -> Any:
        self._hear("roots/list", {}, 0)
        return types.ListRootsResult.model_validate(answer("roots/list", {}))

    async def _told(self, asking: Awaitable[Any]) -> Any:
        try:
            told = await asking
        except MCPError as error:
            raise RpcFailed(error.error.code, error.error.message, error.error.data) from None
        return told if isinstance(told, dict) else dumped(told)

    async def page(self, by: int, kind: str, cursor: str | None) -> Any:
        listing: Any = {
            "tools": self._client.list_tools,
            "prompts": self._client.list_prompts,
            "resources": self._client.list_resources,
            "templates": self._client.list_resource_templates,
        }[kind]
        return await self._told(listing(cursor=cursor, cache_mode="refresh"))

    async def call(self, by: int, name: str, arguments: Wire, meta: Wire, level: str) -> Any:
        async def progressed(progress: float, total: float | None, message: str | None) -> None:
            self._hear("progress", {"progress": progress, "total": total, "message": message}, by)

        wanted = {"io.modelcontextprotocol/logLevel": level} if level else {}
        given: Any = {**meta, **wanted} or None
        return await self._told(self._client.call_tool(name, arguments, progress_callback=progressed, meta=given))

    async def get(self, by: int, name: str, arguments: dict[str, str]) -> Any:
        return await self._told(self._client.get_prompt(name, arguments))

    async def read(self, by: int, uri: str) -> Any:
        return await self._told(self._client.read_resource(uri, cache_mode="refresh"))

    async def complete(self, by: int, ref: Wire, argument: dict[str, str], context: dict[str, str]) -> Any:
        made = types.PromptReference if ref["type"] == "ref/prompt" else types.ResourceTemplateReference
        return await self._told(self._client.complete(made.model_validate(ref), argument, context or None))

    async def ping(self, by: int) -> Any:
        return await self._told(self._client.send_ping())

    async def level(self, by: int, level: Any) -> Any:
        return await self._told(self._client.set_logging_level(level))

    async def subscribe(self, by: int, uri: str) -> Any:
        return await self._told(self._client.subscribe_resource(uri))

    async def unsubscribe(self, by: int, uri: str) -> Any:
        return await self._told(self._client.unsubscribe_resource(uri))

    async def roots_changed(self, by: int) -> None:
        await self._client.send_roots_list_changed()

    async def listen(self, by: int, filter: Wire) -> Any:
        """What is honoured. A second one takes the first one's place, as there is no changing a filter."""
        if self._listener is not None:
            await self.unlisten(by)
        honoured: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._stop = asyncio.Event()
        self._listener = asyncio.create_task(self._listen(filter, honoured, self._stop))
        await asyncio.wait((honoured, self._listener), return_when=asyncio.FIRST_COMPLETED)
        if not honoured.done():
            return await self._told(self._listener)
        return honoured.result()

    async def _listen(self, filter: Wire, honoured: "asyncio.Future[Any]", stop: asyncio.Event) -> None:
        opening = self._client.listen(
            tools_list_changed=filter.get("toolsListChanged", False),
            prompts_list_changed=filter.get("promptsListChanged", False),
            resources_list_changed=filter.get("resourcesListChanged", False),
            resource_subscriptions=filter.get("resourceSubscriptions", ()),
        )
        async with opening as subscription:
            honoured.set_result(dumped(subscription.honored))
            await stop.wait()

    async def unlisten(self, by: int) -> None:
        self._stop.set()
        listener, self._listener = self._listener, None
        if listener is not None:
            await listener

    async def raw(self, by: int, method: str, params: Wire) -> Any:
        request = _request_of.validate_python({"method": method, "params": params})
        return await self._told(self._client.session.send_request(request, _any_of))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    serve(Connection)
