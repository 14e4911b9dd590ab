"""Payments as an MCP server over stdio, on the official SDK. Nothing is paid: the ledger is a list in memory."""

from typing import Literal

from mcp.server.mcpserver import MCPServer

PAYMENTS_MAX = 1_000

server = MCPServer("payments")
_paid: list[str] = []


@server.tool()
def pay(to: str, amount: float, currency: Literal["EUR", "USD"] = "EUR", memo: str = "") -> str:
    """Pay an amount to an account."""
    if len(_paid) >= PAYMENTS_MAX:
        del _paid[0]
    _paid.append(f"{amount:.2f} {currency} to {to}" + (f" ({memo})" if memo else ""))
    return f"Paid {_paid[-1]}."


@server.tool()
def list_payments() -> str:
    """What was paid so far."""
    return "\n".join(_paid) or "Nothing was paid."


if __name__ == "__main__":
    server.run("stdio")
