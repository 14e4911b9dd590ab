"""The baseline, frozen: an ASGI app on uvicorn, uvloop and httptools with one pooled aiohttp session behind it.

It forwards POST bodies and end-to-end headers both ways and governs nothing. Rule: do not improve it; figures of
different months are compared through it. Prints one line of JSON, {"url"}, when it listens.
"""

import argparse
import json
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Final

import aiohttp
import uvicorn
from yarl import URL

Send = Callable[[dict[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[dict[str, Any]]]

BODY_BYTES_MAX: Final = 8 * 1024 * 1024
CONNECTIONS_MAX: Final = 256
HOP_BY_HOP: Final = frozenset(
    {b"connection", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade", b"proxy-connection"}
)
"""RFC 9110 §7.6.1. `host` and `content-length` are written anew by either side's library."""
_NOT_FORWARDED: Final = HOP_BY_HOP | {b"host", b"content-length"}


class Passthrough:
    """The ASGI app."""

    def __init__(self, upstream: str) -> None:
        self._upstream = URL(upstream)
        self._session: aiohttp.ClientSession

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            await self._forward(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        connector = aiohttp.TCPConnector(limit=CONNECTIONS_MAX)
        async with aiohttp.ClientSession(
            connector=connector, auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar()
        ) as self._session:
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})

    async def _forward(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":
            return await _answer(send, 405, [], b"")
        body = await _read(receive)
        if len(body) > BODY_BYTES_MAX:
            return await _answer(send, 413, [], b"")
        headers = {
            name.decode("latin-1"): value.decode("latin-1")
            for name, value in scope["headers"]
            if name not in _NOT_FORWARDED
        }
        async with self._session.post(self._upstream, data=body, headers=headers, allow_redirects=False) as response:
            answer = await response.read()
        kept = [(name.lower(), value) for name, value in response.raw_headers if name.lower() not in _NOT_FORWARDED]
        return await _answer(send, response.status, kept, answer)


async def _read(receive: Receive) -> bytes:
    body = b""
    while len(body) <= BODY_BYTES_MAX:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    return body


async def _answer(send: Send, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upstream", required=True, help="the URL that every POST is forwarded to")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one (default)")
    options = parser.parse_args()
    config = uvicorn.Config(
        Passthrough(options.upstream), loop="uvloop", http="httptools", access_log=False, log_level="warning"
    )
    with socket.create_server(("127.0.0.1", options.port), backlog=1024) as listener:
        print(json.dumps({"url": f"http://127.0.0.1:{listener.getsockname()[1]}/mcp"}), flush=True)
        uvicorn.Server(config).run([listener])


if __name__ == "__main__":
    main()
