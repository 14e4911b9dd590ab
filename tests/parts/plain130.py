# mypy: ignore-errors
"""A server of the handshake era on FastMCP of the Python SDK 1.30, as most are: no event store, so that its streams
cannot be come back to. `python plain130.py PORT sse|streamable-http`, in the environment of sdk130.py.
"""

import sys

from mcp.server.fastmcp import Context, FastMCP
from pydantic import BaseModel

PORT, TRANSPORT = int(sys.argv[1]), sys.argv[2]
server = FastMCP("plain", host="127.0.0.1", port=PORT)


class Name(BaseModel):
    name: str


@server.tool()
async def greet(context: Context) -> str:
    """Asks for a name, then greets."""
    answer = await context.elicit("Who are you?", Name)
    return f"Hello {answer.data.name}" if answer.action == "accept" else f"Nobody: {answer.action}"


@server.tool()
async def count(context: Context) -> str:
    """Reports progress three times."""
    for done in (1, 2, 3):
        await context.report_progress(done, 3)
    return "counted"


server.run(TRANSPORT)
