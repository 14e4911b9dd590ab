"""A fast MCP server to measure and to test against: one process, one file, streamable HTTP of both eras, JSON only.

Tools: `echo` (about 1 kB back), `note`, and with --results `fetch` (a file's bytes as the result). `GET /seen` tells,
in order and with repeats, the `nonce` arguments that tools/call brought, so that a test can balance the books with a
gateway's records. When it listens it prints one line of JSON: {"url", "seen"}.
Sources: MCP 2026-07-28 basic/transports/streamable-http; 2025-11-25 basic/transports.
"""

import argparse
import asyncio
import json
import secrets
import signal
from collections import OrderedDict, deque
from collections.abc import Mapping
from pathlib import Path
from typing import Final, cast

import httptools
import msgspec
import uvloop

BODY_BYTES_MAX: Final = 8 * 1024 * 1024
HEADERS_COUNT_MAX: Final = 200
SESSIONS_MAX: Final = 10_000
ECHO_TEXT_BYTES: Final = 900  # of text, so that the whole answer has about 1 kB
MODERN: Final = "2026-07-28"
LEGACY: Final = ("2025-11-25", "2025-06-18", "2025-03-26")
METHOD_NOT_FOUND, INVALID_PARAMS, INVALID_REQUEST, PARSE_ERROR = -32601, -32602, -32600, -32700
HEADER_MISMATCH, UNSUPPORTED_VERSION = -32020, -32022

_SERVER: Final = {"name": "bench-upstream", "version": "1"}
_FILLER: Final = "The quick brown fox jumps over the lazy dog while the gateway keeps its books. " * 12
_ARGUMENTS: Final = {
    "text": {"type": "string"},
    "path": {"type": "string"},
    "size": {"type": "integer"},
    "nonce": {"type": "string"},
}
TOOLS: Final = [
    {
        "name": "echo",
        "description": "Answer with the text, padded to about 1 kB.",
        "inputSchema": {"type": "object", "properties": _ARGUMENTS, "required": ["text"]},
        "annotations": {"readOnlyHint": True},
    },
    {
        "name": "note",
        "description": "Take a note.",
        "inputSchema": {"type": "object", "properties": _ARGUMENTS, "required": ["text"]},
    },
]
_FETCH: Final = {
    "name": "fetch",
    "description": "Answer with the result that is kept under `path`.",
    "inputSchema": {"type": "object", "properties": _ARGUMENTS, "required": ["path"]},
    "annotations": {"readOnlyHint": True},
}


class Message(msgspec.Struct):
    """One JSON-RPC message; `id` is b"" for a notification, and goes back byte for byte."""

    jsonrpc: str
    method: str = ""
    id: msgspec.Raw = msgspec.Raw(b"")
    params: msgspec.Raw = msgspec.Raw(b"{}")


class Arguments(msgspec.Struct):
    text: str
    path: str = ""
    size: int = 0
    nonce: str = ""


class Params(msgspec.Struct):
    """What any method's parameters may hold, as far as this server reads them."""

    name: str = ""
    arguments: msgspec.Raw = msgspec.Raw(b"{}")
    protocolVersion: str = ""
    meta: dict[str, msgspec.Raw] = msgspec.field(name="_meta", default_factory=dict)


_decode_message = msgspec.json.Decoder(Message).decode
_decode_params = msgspec.json.Decoder(Params).decode
_decode_arguments = msgspec.json.Decoder(Arguments).decode
_encode = msgspec.json.Encoder().encode

_MODERN_TAIL: Final = (
    b',"isError":false,"resultType":"complete","_meta":{"io.modelcontextprotocol/serverInfo":%b}}' % _encode(_SERVER)
)
_LEGACY_TAIL: Final = b',"isError":false}'
_REASONS: Final = {200: b"OK", 202: b"Accepted", 204: b"No Content", 400: b"Bad Request", 404: b"Not Found"}
_HEADS: Final = {
    status: b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: " % (status, reason)
    for status, reason in {**_REASONS, 405: b"Method Not Allowed", 413: b"Content Too Large"}.items()
}


class Refused(Exception):
    """The request is answered with a JSON-RPC error."""

    def __init__(self, status: int, code: int, sentence: str, data: object = None) -> None:
        super().__init__(sentence)
        self.status = status
        self.error = {"code": code, "message": sentence} | ({"data": data} if data is not None else {})


class McpServer:
    """Requests in, answers out: no sockets. Remembers legacy sessions and the nonces it saw, both bounded."""

    def __init__(self, *, sessions: bool, seen_max: int, results: Path | None = None) -> None:
        self._results = results
        self._tools = TOOLS if results is None else [*TOOLS, _FETCH]
        self._mints_sessions = sessions
        self._sessions: OrderedDict[bytes, None] = OrderedDict()
        self._seen: deque[str] = deque(maxlen=seen_max)
        self._calls = 0

    def answer(self, verb: bytes, path: bytes, headers: Mapping[bytes, bytes], body: bytes) -> bytes:
        """The whole HTTP answer to one HTTP request."""
        if path == b"/mcp":
            if verb == b"POST":
                return self._post(headers, body)
            return self._delete(headers) if verb == b"DELETE" and self._mints_sessions else reply(405)
        if path == b"/seen" and verb == b"GET":
            return reply(200, _encode({"calls": self._calls, "nonces": list(self._seen)}))
        return reply(404)

    def _delete(self, headers: Mapping[bytes, bytes]) -> bytes:
        session = headers.get(b"mcp-session-id", b"")
        return reply(204 if self._sessions.pop(session, False) is None else 404)

    def _post(self, headers: Mapping[bytes, bytes], body: bytes) -> bytes:
        request_id = b"null"
        try:
            message = _decode_message(body)
            request_id = bytes(message.id) or b"null"
            params = _decode_params(message.params)
            if headers.get(b"mcp-protocol-version") == MODERN.encode():
                return self._modern(message, params, headers, request_id)
            return self._legacy(message, params, headers, request_id)
        except msgspec.ValidationError as fault:
            refused = Refused(400, INVALID_PARAMS, str(fault))
        except msgspec.DecodeError as fault:
            refused = Refused(400, PARSE_ERROR, str(fault))
        except Refused as fault:
            refused = fault
        body = b'{"jsonrpc":"2.0","id":%b,"error":%b}' % (request_id, _encode(refused.error))
        return reply(refused.status, body)

    def _modern(self, message: Message, params: Params, headers: Mapping[bytes, bytes], request_id: bytes) -> bytes:
        if not message.id:
            return reply(202)
        _check_envelope(message, params, headers)
        match message.method:
            case "tools/call":
                result = self._call(params, _MODERN_TAIL)
            case "tools/list":
                listed = {"tools": self._tools, "resultType": "complete", "ttlMs": 60_000, "cacheScope": "public"}
                result = _encode(listed)
            case "server/discover":
                result = _DISCOVERED
            case method:
                raise Refused(404, METHOD_NOT_FOUND, f"no method '{method}'")
        return success(request_id, result)

    def _legacy(self, message: Message, params: Params, headers: Mapping[bytes, bytes], request_id: bytes) -> bytes:
        if message.method == "initialize":
            return self._initialize(params, request_id)
        if self._mints_sessions:
            self._check_session(headers.get(b"mcp-session-id", b""))
        if not message.id:
            return reply(202)
        match message.method:
            case "tools/call":
                result = self._call(params, _LEGACY_TAIL)
            case "tools/list":
                result = _encode({"tools": self._tools})
            case "ping":
                result = b"{}"
            case method:
                raise Refused(200, METHOD_NOT_FOUND, f"no method '{method}'")
        return success(request_id, result)

    def _initialize(self, params: Params, request_id: bytes) -> bytes:
        version = params.protocolVersion if params.protocolVersion in LEGACY else LEGACY[0]
        result = {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": _SERVER}
        return success(request_id, _encode(result), self._new_session() if self._mints_sessions else b"")

    def _new_session(self) -> bytes:
        session = secrets.token_hex(16).encode()
        self._sessions[session] = None
        if len(self._sessions) > SESSIONS_MAX:
            self._sessions.popitem(last=False)
        return b"mcp-session-id: %b\r\n" % session

    def _check_session(self, session: bytes) -> None:
        if not session:
            raise Refused(400, INVALID_REQUEST, "the Mcp-Session-Id header is missing; send initialize first")
        if session not in self._sessions:
            raise Refused(404, INVALID_REQUEST, "the session is unknown or was deleted; send initialize again")

    def _call(self, params: Params, tail: bytes) -> bytes:
        if params.name == "fetch" and self._results is not None:
            self._calls += 1
            return (self._results / Path(_decode_arguments(params.arguments).path).name).read_bytes()
        if params.name not in ("echo", "note"):
            raise Refused(200, INVALID_PARAMS, f"no tool '{params.name}'")
        arguments = _decode_arguments(params.arguments)
        self._calls += 1
        if arguments.nonce:
            self._seen.append(arguments.nonce)
        text = arguments.text if params.name == "echo" else "Noted."
        if params.name == "echo" and len(text) < ECHO_TEXT_BYTES:
            text += " " + _FILLER[: ECHO_TEXT_BYTES - len(text)]
        return b'{"content":[{"type":"text","text":%b}]%b' % (_encode(text), tail)


_DISCOVERED: Final = _encode(
    {
        "supportedVersions": [MODERN],
        "capabilities": {"tools": {}},
        "resultType": "complete",
        "ttlMs": 60_000,
        "cacheScope": "public",
        "_meta": {"io.modelcontextprotocol/serverInfo": _SERVER},
    }
)


def _check_envelope(message: Message, params: Params, headers: Mapping[bytes, bytes]) -> None:
    """ "Servers MUST reject" a request whose headers and body disagree (2026-07-28, streamable-http)."""
    version = params.meta.get("io.modelcontextprotocol/protocolVersion")
    if version is None or "io.modelcontextprotocol/clientCapabilities" not in params.meta:
        raise Refused(400, INVALID_PARAMS, "params._meta lacks protocolVersion or clientCapabilities")
    if bytes(version) != b'"%b"' % MODERN.encode():
        data = {"supported": [MODERN], "requested": msgspec.json.decode(version)}
        raise Refused(400, UNSUPPORTED_VERSION, "this server speaks 2026-07-28", data)
    if headers.get(b"mcp-method") != message.method.encode():
        raise Refused(400, HEADER_MISMATCH, "Mcp-Method does not match the body")
    if message.method == "tools/call" and headers.get(b"mcp-name") != params.name.encode():
        raise Refused(400, HEADER_MISMATCH, "Mcp-Name does not match the body")


def success(request_id: bytes, result: bytes, extra_header: bytes = b"") -> bytes:
    return reply(200, b'{"jsonrpc":"2.0","id":%b,"result":%b}' % (request_id, result), extra_header)


def reply(status: int, body: bytes = b"", extra_header: bytes = b"") -> bytes:
    """An HTTP/1.1 answer; a 204 has neither body nor length (RFC 9112 §6.3)."""
    if status == 204:
        return b"HTTP/1.1 204 No Content\r\n\r\n"
    return b"%b%d\r\n%b\r\n%b" % (_HEADS[status], len(body), extra_header, body)


class Connection(asyncio.Protocol):
    """One client connection. Answers are computed at once, so pipelined requests are answered in order."""

    def __init__(self, server: McpServer) -> None:
        self._server = server
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._transport.write(reply(400))
            self._transport.close()

    def on_message_begin(self) -> None:
        self._path = b""
        self._headers: dict[bytes, bytes] = {}
        self._body = b""

    def on_url(self, url: bytes) -> None:
        self._path += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(self._headers) >= HEADERS_COUNT_MAX:
            raise ValueError("too many headers")
        self._headers[name.lower()] = value.strip(b" \t")

    def on_body(self, body: bytes) -> None:
        self._body = self._body + body if self._body else body
        if len(self._body) > BODY_BYTES_MAX:
            raise ValueError("the body is too large")

    def on_message_complete(self) -> None:
        path = self._path.split(b"?", 1)[0]
        self._transport.write(self._server.answer(self._parser.get_method(), path, self._headers, self._body))
        if not self._parser.should_keep_alive():
            self._transport.close()


async def serve(server: McpServer, host: str, port: int) -> None:
    """Until SIGTERM or SIGINT."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    listener = await loop.create_server(lambda: Connection(server), host, port, backlog=1024)
    base = f"http://{host}:{listener.sockets[0].getsockname()[1]}"
    print(json.dumps({"url": f"{base}/mcp", "seen": f"{base}/seen"}), flush=True)
    await ended.wait()
    listener.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one (default)")
    parser.add_argument(
        "--sessions", action="store_true", help="mint Mcp-Session-Id for legacy clients and insist on it"
    )
    parser.add_argument("--seen-max", type=int, default=1_000_000, help="nonces remembered; the oldest go first")
    parser.add_argument("--results", type=Path, help="a directory with whole results, for the tool `fetch`")
    options = parser.parse_args()
    server = McpServer(sessions=options.sessions, seen_max=options.seen_max, results=options.results)
    uvloop.run(serve(server, options.host, options.port))


if __name__ == "__main__":
    main()
