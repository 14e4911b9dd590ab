"""The official SDK, `mcp==2.3.*`, driven line by line: steps come on stdin as JSON, their outcomes go to stdout.

`python sdk23_client.py auto|legacy`; the first line is {"url", "token", "elicits"}, of which the last is how it answers
forms. Counterparts: driving.py, sdk130_client.py.
"""

import json
import sys
from typing import Any

import anyio
import anyio.to_thread
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared._httpx_utils import create_mcp_http_client
from mcp.shared.exceptions import MCPError
from mcp_types import ElicitResult


async def main(mode: str) -> None:
    opening = json.loads(await anyio.to_thread.run_sync(sys.stdin.readline))
    http = create_mcp_http_client({"Authorization": f"Bearer {opening['token']}"})
    sessions: list[str] = []
    asked: list[str] = []

    async def elicit(context: Any, params: Any) -> ElicitResult:
        asked.append(params.message)
        return ElicitResult(**opening["elicits"])

    async def note_session(response: Any) -> None:
        if "mcp-session-id" in response.headers:
            sessions.append(response.headers["mcp-session-id"])

    http.event_hooks = {"response": [note_session]}

    async def step(client: Client, do: str, arguments: list[Any]) -> Any:
        match do:
            case "list":
                listed = await client.list_tools(cache_mode="refresh")
                return [tool.name for tool in listed.tools]
            case "call":
                result = await client.call_tool(*arguments)
                return result.model_dump(mode="json", by_alias=True, exclude_none=True)
            case "ping":
                return (await client.send_ping()).model_dump(mode="json", exclude_none=True)
            case "end":
                headers = {"Mcp-Session-Id": sessions[-1], "MCP-Protocol-Version": client.protocol_version}
                return (await http.delete(opening["url"], headers=headers)).status_code
            case "asked":
                return asked
            case "answer":
                opening["elicits"] = arguments[0]
                return None
            case "about":
                return {
                    "protocol": client.protocol_version,
                    "server": client.server_info.name if client.server_info else "",
                    "session": sessions[-1] if sessions else "",
                }
            case _:
                raise ValueError(do)

    transport = streamable_http_client(opening["url"], http_client=http)
    answers = elicit if opening.get("elicits") else None
    async with http, Client(transport, mode=mode, elicitation_callback=answers) as client:
        while line := await anyio.to_thread.run_sync(sys.stdin.readline):
            do, *arguments = json.loads(line)
            try:
                told = {"ok": await step(client, do, arguments)}
            except MCPError as error:
                told = {"error": {"code": error.code, "message": error.message}}
            print(json.dumps(told), flush=True)


if __name__ == "__main__":
    anyio.run(main, sys.argv[1])
