"""A busy morning: forty clerks' agents pay some bills each, through the gateway that runs on the configuration given.

Stands in for real agents. Their tokens come from the local issuer, which is for trials.
"""

import json
import os
import time
from collections import Counter
from pathlib import Path

from tidegate.local_issuer import open_local_issuer
from tidegate_cli.gateway import exchange
from tidegate_cli.options import live_settings

CLERKS, BILLS = 40, 6
REVISION = "2026-07-28"


def pay(url: str, token: str, amount: int) -> str:
    """One call: "paid", or why not."""
    meta = {"protocolVersion": REVISION, "clientCapabilities": {}, "clientInfo": {"name": "traffic", "version": "1"}}
    params = {
        "name": "payments__pay",
        "arguments": {"to": "supplier-ink", "amount": amount},
        "_meta": {f"io.modelcontextprotocol/{key}": value for key, value in meta.items()},
    }
    headers = {
        "Authorization": f"Bearer {token}",
        "Content-Type": "application/json",
        "Accept": "application/json, text/event-stream",
        "MCP-Protocol-Version": REVISION,
        "Mcp-Method": "tools/call",
        "Mcp-Name": "payments__pay",
    }
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}).encode()
    _, answer = exchange("POST", url, headers, body, 30)
    result = json.loads(answer)["result"]
    return str(result["_meta"]["tidegate/decision"]["reason"]) if result.get("isError") else "paid"


def main() -> None:
    settings = live_settings(Path(os.environ["TIDEGATE_CONFIG"]))
    issuer, url, seen = open_local_issuer(settings), f"{settings.url}/mcp", Counter[str]()
    for clerk in range(CLERKS):
        who = f"clerk-{clerk}@example.com"
        token = issuer.mint(who, "bill-payer", ["clerks"], 600, list(settings.audiences), int(time.time()))
        seen.update(pay(url, token, 20 + 60 * bill) for bill in range(BILLS))  # 20, 80, 140, …
    told = ", ".join(f"{count} {what}" for what, count in sorted(seen.items(), reverse=True))
    print(f"{CLERKS} agents, {CLERKS * BILLS} calls: {told}")


if __name__ == "__main__":
    main()
