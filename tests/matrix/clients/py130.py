"""The official Python SDK of the handshake era, mcp 1.30, as a client. Runs in the environment of sdk130.py.

Counterparts: lines.py, py23.py.
"""
# mypy: ignore-errors
# It would be checked against 2.x, and runs with 1.30.

import asyncio
from typing import Any

import mcp.types as types
from mcp import ClientSession, McpError
from mcp.client.streamable_http import streamable_http_client
from mcp.shared._httpx_utils import create_mcp_http_client
from tests.matrix.clients.lines import Hear, RpcFailed, Wire, answer, serve


def dumped(model: Any) -> Any:
    return model.model_dump(mode="json", by_alias=True, exclude_none=True)


class Connection:
    def __init__(self, args: Wire, hear: Hear) -> None:
        self._url = args["url"]
        self._token = args["token"]
        self._capable = args["capable"]
        self._hear = hear
        self._session: ClientSession

    async def run(self, ready: "asyncio.Future[Wire]", ended: asyncio.Event) -> None:
        http = create_mcp_http_client({"Authorization": f"Bearer {self._token}"} if self._token else {})
        asked = (
            {
                "elicitation_callback": self._elicit,
                "sampling_callback": self._sample,
                "list_roots_callback": self._roots,
            }
            if self._capable
            else {}
        )
        async with (
            http,
            streamable_http_client(self._url, http_client=http) as (read, write, _),
            ClientSession(read, write, message_handler=self._heard, **asked) as session,
        ):
            self._session = session
            ready.set_result(dumped(await session.initialize()))
            await ended.wait()

    async def _heard(self, message: Any) -> None:
        if isinstance(message, types.ServerNotification):
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

    async def _told(self, asking: Any) -> Any:
        try:
            return dumped(await asking)
        except McpError as error:
            raise RpcFailed(error.error.code, error.error.message, error.error.data) from None

    async def page(self, by: int, kind: str, cursor: str | None) -> Wire:
        params = types.PaginatedRequestParams(cursor=cursor)
        listing = {
            "tools": self._session.list_tools,
            "prompts": self._session.list_prompts,
            "resources": self._session.list_resources,
            "templates": self._session.list_resource_templates,
        }
        return await self._told(listing[kind](params=params))

    async def call(self, by: int, name: str, arguments: Wire, meta: Wire, level: str) -> Wire:
        async def progressed(progress: float, total: float | None, message: str | None) -> None:
            self._hear("progress", {"progress": progress, "total": total, "message": message}, by)

        number = self._session._request_id
        try:
            calling = self._session.call_tool(name, arguments, progress_callback=progressed, meta=meta or None)
            return await self._told(calling)
        except asyncio.CancelledError:  # this generation leaves saying so to its user
            params = types.CancelledNotificationParams(requestId=number, reason="the user changed their mind")
            notification = types.ClientNotification(types.CancelledNotification(params=params))
            await asyncio.shield(self._session.send_notification(notification))
            raise

    async def get(self, by: int, name: str, arguments: dict[str, str]) -> Wire:
        return await self._told(self._session.get_prompt(name, arguments))

    async def read(self, by: int, uri: str) -> Wire:
        return await self._told(self._session.read_resource(uri))

    async def complete(self, by: int, ref: Wire, argument: dict[str, str], context: dict[str, str]) -> Wire:
        made = types.PromptReference if ref["type"] == "ref/prompt" else types.ResourceTemplateReference
        return await self._told(self._session.complete(made.model_validate(ref), argument, context or None))

    async def ping(self, by: int) -> Wire:
        return await self._told(self._session.send_ping())

    async def level(self, by: int, level: str) -> Wire:
        return await self._told(self._session.set_logging_level(level))

    async def subscribe(self, by: int, uri: str) -> Wire:
        return await self._told(self._session.subscribe_resource(uri))

    async def unsubscribe(self, by: int, uri: str) -> Wire:
        return await self._told(self._session.unsubscribe_resource(uri))

    async def roots_changed(self, by: int) -> None:
        await self._session.send_roots_list_changed()

    async def raw(self, by: int, method: str, params: Wire) -> Wire:
        request = types.ClientRequest.model_validate({"method": method, "params": params})
        return await self._told(self._session.send_request(request, types.EmptyResult))


if __name__ == "__main__":
    serve(Connection)
