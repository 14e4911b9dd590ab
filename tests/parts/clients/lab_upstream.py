"""The bench's upstream in other manners, for tests: legacy revisions only, and answers that take a while.

`--legacy` knows no modern revision: sessions are minted and insisted on. `--delay-ms` holds back the answer of a tool
call that has already been carried out, so that a gateway can be killed in between. `GET /seen` tells, beside the
nonces, the session that each call came in and how many sessions were opened. Counterpart: bench/upstream.py.
"""

import argparse
import asyncio
import contextlib
import json
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import uvloop
from bench.processes import listening
from bench.upstream import Arguments, Connection, McpServer, Message, Params, reply

CALLS_KEPT_MAX: Final = 200_000
_decode_arguments = msgspec.json.Decoder(Arguments).decode


class LabServer(McpServer):
    """As `McpServer`; remembers which session each nonce came in."""

    def __init__(self, *, legacy: bool, seen_max: int) -> None:
        super().__init__(sessions=legacy, seen_max=seen_max)
        self._legacy_only = legacy
        self._initialized = 0
        self._came: list[tuple[str, str]] = []  # (nonce, session)

    def answer(self, verb: bytes, path: bytes, headers: Mapping[bytes, bytes], body: bytes) -> bytes:
        if path == b"/seen" and verb == b"GET":
            return reply(200, msgspec.json.encode({"calls": self._came, "initialized": self._initialized}))
        if self._legacy_only:
            headers = {name: value for name, value in headers.items() if name != b"mcp-protocol-version"}
        return super().answer(verb, path, headers, body)

    def _legacy(self, message: Message, params: Params, headers: Mapping[bytes, bytes], request_id: bytes) -> bytes:
        done = super()._legacy(message, params, headers, request_id)
        self._initialized += message.method == "initialize"
        self._note(message, params, headers)
        return done

    def _modern(self, message: Message, params: Params, headers: Mapping[bytes, bytes], request_id: bytes) -> bytes:
        done = super()._modern(message, params, headers, request_id)
        self._note(message, params, headers)
        return done

    def _note(self, message: Message, params: Params, headers: Mapping[bytes, bytes]) -> None:
        if message.method == "tools/call" and len(self._came) < CALLS_KEPT_MAX:
            nonce = _decode_arguments(params.arguments).nonce
            self._came.append((nonce, headers.get(b"mcp-session-id", b"").decode("latin-1")))


class LabConnection(Connection):
    """Answers calls late. A gateway sends one request at a time on a connection, so order does not matter."""

    def __init__(self, server: McpServer, delay_s: float) -> None:
        super().__init__(server)
        self._delay_s = delay_s

    def on_message_complete(self) -> None:
        if not self._delay_s or b'"tools/call"' not in self._body:
            super().on_message_complete()
            return
        answer = self._server.answer(self._parser.get_method(), self._path.split(b"?", 1)[0], self._headers, self._body)
        asyncio.get_running_loop().call_later(self._delay_s, self._transport.write, answer)


async def serve(server: McpServer, delay_s: float) -> None:
    """Until SIGTERM or SIGINT."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    listener = await loop.create_server(lambda: LabConnection(server, delay_s), "127.0.0.1", 0, backlog=1024)
    base = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    print(json.dumps({"url": f"{base}/mcp", "seen": f"{base}/seen"}), flush=True)
    await ended.wait()
    listener.close()


@contextlib.contextmanager
def running_upstream(directory: Path, *options: str) -> Iterator[dict[str, Any]]:
    """A lab upstream in a process of its own: its `url` and its `seen` address."""
    own = directory / f"upstream-{len(list(directory.glob('upstream-*')))}"
    own.mkdir(parents=True)
    with listening("tests.parts.clients.lab_upstream", *options, directory=own) as (_, told):
        yield told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--legacy", action="store_true", help="no modern revision; sessions")
    parser.add_argument("--delay-ms", type=int, default=0, help="of a tool call's answer")
    options = parser.parse_args()
    server = LabServer(legacy=options.legacy, seen_max=CALLS_KEPT_MAX)
    uvloop.run(serve(server, options.delay_ms / 1000))


if __name__ == "__main__":
    main()
