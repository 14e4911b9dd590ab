"""The official SDK of the handshake era, `mcp==1.30.*`, driven line by line; runs in the environment of sdk130.py.

The first line on stdin is {"url", "token", "elicits"}, the last of which is how it answers forms; each further line is
a step. Counterparts: driving.py, sdk23_client.py.
"""

import json
import sys
from typing import Any

import anyio
import anyio.to_thread
from mcp import ClientSession, McpError  # type: ignore[attr-defined]  # checked against 2.x, run with 1.30
from mcp import types as wire
from mcp.client.streamable_http import streamable_http_client
from mcp.shared._httpx_utils import create_mcp_http_client


async def main() -> None:
    opening = json.loads(await anyio.to_thread.run_sync(sys.stdin.readline))
    asked: list[str] = []

    async def elicit(context: Any, params: Any) -> Any:
        asked.append(params.message)
        return wire.ElicitResult(**opening["elicits"])

    http = create_mcp_http_client({"Authorization": f"Bearer {opening['token']}"})

    async def step(session: ClientSession, about: dict[str, str], do: str, arguments: list[Any]) -> Any:
        match do:
            case "list":
                return [tool.name for tool in (await session.list_tools()).tools]
            case "call":
                result = await session.call_tool(*arguments)
                return result.model_dump(mode="json", by_alias=True, exclude_none=True)
            case "ping":
                return (await session.send_ping()).model_dump(mode="json", exclude_none=True)
            case "end":
                headers = {"Mcp-Session-Id": about["session"], "MCP-Protocol-Version": about["protocol"]}
                return (await http.delete(opening["url"], headers=headers)).status_code
            case "about":
                return about
            case "asked":
                return asked
            case "answer":
                opening["elicits"] = arguments[0]
                return None
            case _:
                raise ValueError(do)

    async with (
        http,
        streamable_http_client(opening["url"], http_client=http) as (read, write, session_id),  # type: ignore[misc]
        ClientSession(read, write, elicitation_callback=elicit if opening.get("elicits") else None) as session,
    ):
        opened = await session.initialize()
        about = {
            "protocol": str(opened.protocolVersion),  # type: ignore[attr-defined]
            "server": opened.serverInfo.name,  # type: ignore[attr-defined]
            "session": session_id() or "",
        }
        while line := await anyio.to_thread.run_sync(sys.stdin.readline):
            do, *arguments = json.loads(line)
            try:
                told = {"ok": await step(session, about, do, arguments)}
            except McpError as error:
                told = {"error": {"code": error.error.code, "message": error.error.message}}
            print(json.dumps(told), flush=True)


if __name__ == "__main__":
    anyio.run(main)
