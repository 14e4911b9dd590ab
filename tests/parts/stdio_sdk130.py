"""A server over stdio on the official SDK of the handshake era (run by `sdk130.python()`): asks, tells and reports."""

from mcp.server.fastmcp import Context, FastMCP
from pydantic import BaseModel

server = FastMCP("old")


class Seat(BaseModel):
    row: int


@server.tool()
async def book(name: str, ctx: Context) -> str:
    """Book a seat."""
    await ctx.info("looking for " + name)
    await ctx.report_progress(1, 2)
    answer = await ctx.elicit(message="Which row for " + name + "?", schema=Seat)
    if answer.action != "accept":
        return answer.action
    return name + " sits in row " + str(answer.data.row)


server.run("stdio")
