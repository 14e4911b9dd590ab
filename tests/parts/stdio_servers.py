"""Servers over stdio, as processes of their own: `python -m tests.parts.stdio_servers KIND DIRECTORY`.

`sdk` is the official SDK's, and so is `dual`, which asks. `raw` speaks by hand and misbehaves on request: its tools are
named after what they do. It writes its pid, its child's pid and every line it reads into DIRECTORY. The others are
`Talker`: well behaved, told apart by how they answer the question which era they speak.
"""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Annotated, Any

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


def dual(directory: Path) -> None:
    """Asks in the way of the era that it is spoken to in. Every start is a line of DIRECTORY/pids."""
    from mcp.server.mcpserver import Context, MCPServer
    from mcp.server.mcpserver.resolve import Elicit, Resolve
    from pydantic import BaseModel

    class Seat(BaseModel):
        row: int

    def which_row(name: str) -> Elicit[Seat]:
        return Elicit(f"Which row for {name}?", Seat)

    async def ask(name: str, ctx: Context) -> str:
        """Ask mid-call, which only the handshake era can."""
        await ctx.info(f"looking for {name}")
        answer = await ctx.elicit(message=f"Which row for {name}?", schema=Seat)
        return f"{name} sits in row {answer.data.row}" if answer.action == "accept" else answer.action

    async def book(name: str, seat: Annotated[Seat, Resolve(which_row)]) -> str:
        """Ask in either era."""
        return f"{name} sits in row {seat.row}"

    def who() -> int:
        """The process that serves."""
        return os.getpid()

    with (directory / "pids").open("a") as file:
        file.write(f"{os.getpid()}\n")
    server = MCPServer("dual")
    for tool in (ask, book, who):
        server.tool()(tool)
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


class Talker:
    """Speaks one era, `both` that of the first message; asks, tells and waits as its tools are called.

    Every start is a line of DIRECTORY/pids.
    """

    tools = ("echo", "who", "progress", "log", "ask", "hold", "change", "touch", "greeting", "crash")

    def __init__(self, kind: str, directory: Path) -> None:
        self.modern = kind in ("modern", "slow-modern", "modern-mute", "modern-once", "later-both")
        self.kind = kind
        self.directory = directory
        self.greeting: Any = None
        self.calls = 0
        self.asked: dict[Any, tuple[threading.Event, list[Any]]] = {}
        self.listening: dict[Any, Any] = {}

    def run(self) -> None:
        with (self.directory / "pids").open("a") as file:
            file.write(f"{os.getpid()}\n")
        lives = len((self.directory / "pids").read_text().split())
        if self.kind == "updated":  # the first life is a legacy one
            self.modern = lives > 1
        if self.kind == "later-both" and lives > 2:
            self.kind = "both"
        if self.kind == "modern-once" and lives > 1:  # as one that cannot run twice
            os._exit(1)
        if self.kind == "slow-modern":
            time.sleep(2.3)  # longer than a question for the era waits
        while line := sys.stdin.readline():
            with (self.directory / "heard").open("a") as file:
                file.write(line)
            message = json.loads(line)
            if "method" not in message:
                event, box = self.asked.pop(message["id"])
                box.append(message.get("result") or {"error": message.get("error")})
                event.set()
            elif "id" in message:
                self.serve(message)

    def serve(self, request: Any) -> None:
        method, modern_meta = request["method"], "io.modelcontextprotocol/protocolVersion"
        offer = {"tools": {"listChanged": True}, "resources": {"subscribe": True}, "logging": {}}
        info = {"name": "talker", "version": "1"}
        if self.kind == "both":
            self.kind, self.modern = "spoken to", method == "server/discover"
        if self.kind == "modern-mute" and method == "initialize":
            return
        if method == "server/discover" and not self.modern:
            if self.kind == "dies":
                os._exit(1)
            if self.kind != "mute":
                self.refuse(request, -32601, "what?")
        elif method == "server/discover":
            meta = {"io.modelcontextprotocol/serverInfo": info}
            self.answer(
                request,
                {"supportedVersions": ["2026-07-28"], "capabilities": offer, "instructions": "Talk.", "_meta": meta},
            )
        elif method == "initialize" and self.modern:
            self.refuse(request, -32022, "too old", {"supported": ["2026-07-28"]})
        elif method == "initialize":
            self.greeting = request["params"]
            told = {"protocolVersion": "2025-11-25", "capabilities": offer, "serverInfo": info, "instructions": "Talk."}
            self.answer(request, told)
        elif self.modern != (modern_meta in request.get("params", {}).get("_meta", {})):
            self.refuse(request, -32602, "of the other era")
        elif method == "tools/list":
            self.answer(request, {"tools": [{"name": name, "inputSchema": {"type": "object"}} for name in self.tools]})
        elif method == "resources/list":
            self.answer(request, {"resources": []})
        elif method == "subscriptions/listen":
            self.listening[request["id"]] = request["params"]["notifications"]
            self.tell_listener(request["id"], "notifications/subscriptions/acknowledged", {})
        elif method == "tools/call":
            threading.Thread(target=self.call, args=(request,), daemon=True).start()
        elif method in ("logging/setLevel", "resources/subscribe", "resources/unsubscribe"):
            self.answer(request, {})
        else:
            self.refuse(request, -32601, "what?")

    def answer(self, request: Any, result: Any) -> None:
        say({"jsonrpc": "2.0", "id": request["id"], "result": result})

    def refuse(self, request: Any, code: int, words: str, data: Any = None) -> None:
        say({"jsonrpc": "2.0", "id": request["id"], "error": {"code": code, "message": words, "data": data}})

    def tell(self, method: str, params: Any) -> None:
        say({"jsonrpc": "2.0", "method": method, "params": params})

    def tell_listener(self, number: Any, method: str, params: Any) -> None:
        self.tell(method, {**params, "_meta": {"io.modelcontextprotocol/subscriptionId": number}})

    def call(self, request: Any) -> None:
        params = request["params"]
        name, given = params["name"], params.get("arguments", {})
        told: Any = given
        self.calls += 1
        if name == "who":
            told = {"pid": os.getpid(), "calls": self.calls}
        elif name == "progress":
            token = params["_meta"]["progressToken"]
            for number in range(given["times"]):
                self.tell("notifications/progress", {"progressToken": token, "progress": number})
        elif name == "log":
            self.tell("notifications/message", {"level": "info", "data": given["words"]})
        elif name == "ask":
            told = self.ask(given)
        elif name == "hold":
            while not (self.directory / given["until"]).exists():
                time.sleep(0.005)
        elif name == "change":
            for number, wanted in self.listening.items():
                if wanted.get("toolsListChanged"):
                    self.tell_listener(number, "notifications/tools/list_changed", {})
            if not self.modern:
                self.tell("notifications/tools/list_changed", {})
        elif name == "touch":
            self.tell("notifications/resources/updated", {"uri": given["uri"]})
        elif name == "greeting":
            told = self.greeting
        elif name == "crash":
            print("the last words", file=sys.stderr, flush=True)
            os._exit(3)
        answer(request, json.dumps(told, sort_keys=True))

    def ask(self, given: Any) -> list[Any]:
        """Questions at once, or after what is under way elsewhere; the answers in their order."""
        if "after" in given:
            while not (self.directory / given["after"]).exists():
                time.sleep(0.005)
        waiting = []
        for number in range(given.get("times", 1)):
            event: tuple[threading.Event, list[Any]] = (threading.Event(), [])
            key = f"{given.get('nonce', '')}-{number}"
            self.asked[key] = event
            params = {"message": given.get("words", "?"), "requestedSchema": {"type": "object", "properties": {}}}
            method = given.get("method", "elicitation/create")
            say({"jsonrpc": "2.0", "id": key, "method": method, "params": params})
            waiting.append(event)
        for event in waiting:
            event[0].wait()
        return [box[0] for _, box in waiting]


if __name__ == "__main__":
    if sys.argv[1] == "sdk":
        sdk()
    elif sys.argv[1] == "dual":
        dual(Path(sys.argv[2]))
    elif sys.argv[1] == "raw":
        raw(Path(sys.argv[2]))
    else:
        Talker(sys.argv[1], Path(sys.argv[2])).run()
