"""Servers over stdio, as processes of their own: `python -m tests.parts.stdio_servers sdk|raw DIRECTORY`.

`sdk` is the official SDK's. `raw` speaks by hand and misbehaves on request: its tools are named after what they do. It
writes its pid, its child's pid and every line it reads into DIRECTORY.
"""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

TOOLS = ("echo", "slow", "crash", "junk", "long-line", "ask-me", "never", "silent-death", "secret-env", "deaf")
_turn = threading.Lock()


def sdk() -> None:
    from mcp.server.mcpserver import MCPServer

    server = MCPServer("sdk")

    @server.tool()
    def add(a: int, b: int) -> int:
        """Add two numbers."""
        return a + b

    server.run("stdio")


def say(message: Any) -> None:
    with _turn:
        sys.stdout.write(json.dumps(message) + "\n")
        sys.stdout.flush()


def answer(request: Any, words: str) -> None:
    say({"jsonrpc": "2.0", "id": request["id"], "result": {"content": [{"type": "text", "text": words}]}})


def called(request: Any, directory: Path) -> None:
    name, arguments = request["params"]["name"], request["params"].get("arguments", {})
    if name == "slow":
        time.sleep(arguments["s"])
    elif name == "crash":
        print("the last words", file=sys.stderr, flush=True)
        os._exit(3)
    elif name == "silent-death":
        os._exit(0)
    elif name == "junk":
        with _turn:
            sys.stdout.write('Listening on stdio…\n\n{"half":\n[]\n{"jsonrpc":"2.0","id":99999,"result":{}}\n')
            sys.stdout.flush()
    elif name == "long-line":
        with _turn:
            sys.stdout.write("x" * (9 * 1024 * 1024) + "\n")
            sys.stdout.flush()
    elif name == "ask-me":
        say({"jsonrpc": "2.0", "id": "mine", "method": "ping"})
        say({"jsonrpc": "2.0", "id": 7, "method": "sampling/createMessage", "params": {}})
        say({"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "info", "data": "x"}})
        answered = [json.loads(sys.stdin.readline()) for _ in range(2)]
        answer(request, json.dumps(answered, sort_keys=True))
        return
    elif name == "never":
        return
    elif name == "secret-env":
        answer(request, json.dumps(sorted(os.environ)))
        return
    answer(request, json.dumps(arguments, sort_keys=True))


def raw(directory: Path) -> None:
    child = subprocess.Popen(["sleep", "1000"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    with (directory / "pids").open("a") as file:
        file.write(f"{os.getpid()} {child.pid}\n")
    while line := sys.stdin.readline():
        with (directory / "heard").open("a") as file:
            file.write(line)
        request = json.loads(line)
        method = request.get("method")
        if method == "initialize":
            info = {"protocolVersion": "2025-11-25", "capabilities": {}, "serverInfo": {"name": "raw", "version": "1"}}
            say({"jsonrpc": "2.0", "id": request["id"], "result": info})
        elif method == "tools/list":
            tools = [{"name": name, "inputSchema": {"type": "object"}} for name in TOOLS]
            say({"jsonrpc": "2.0", "id": request["id"], "result": {"tools": tools}})
        elif method == "tools/call" and request["params"]["name"] == "ask-me":
            called(request, directory)
        elif method == "tools/call":
            threading.Thread(target=called, args=(request, directory), daemon=True).start()


if __name__ == "__main__":
    if sys.argv[1] == "sdk":
        sdk()
    else:
        raw(Path(sys.argv[2]))
