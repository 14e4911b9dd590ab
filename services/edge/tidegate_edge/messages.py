"""JSON-RPC messages on the wire, and the values that pass between the steps of the spine. Nothing here does I/O."""

from collections.abc import Callable
from typing import Any, Final, TypeVar

import msgspec

PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
METHOD_NOT_FOUND: Final = -32601
INVALID_PARAMS: Final = -32602
INTERNAL_ERROR: Final = -32603
HEADER_MISMATCH: Final = -32020
MISSING_CAPABILITY: Final = -32021
URL_ELICITATION_REQUIRED: Final = -32042  # 2025-11-25 alone
RESOURCE_NOT_FOUND: Final = -32002  # the handshake revisions; -32602 since
NOT_PERMITTED: Final = -32010  # ours: a request that is no tool call was refused; its `data` says why

PROTOCOL_VERSION_META: Final = "io.modelcontextprotocol/protocolVersion"
CLIENT_INFO_META: Final = "io.modelcontextprotocol/clientInfo"
CLIENT_CAPABILITIES_META: Final = "io.modelcontextprotocol/clientCapabilities"
SERVER_INFO_META: Final = "io.modelcontextprotocol/serverInfo"
LOG_LEVEL_META: Final = "io.modelcontextprotocol/logLevel"
META_PREFIX: Final = "io.modelcontextprotocol/"

encode: Final = msgspec.json.Encoder().encode

RequestId = int | str
T = TypeVar("T")


class Wire(msgspec.Struct):
    """A message as it came; `params` byte for byte."""

    jsonrpc: str = ""
    method: str | msgspec.UnsetType = msgspec.UNSET
    id: int | str | float | msgspec.UnsetType | None = msgspec.UNSET
    params: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    result: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    error: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class RpcError(msgspec.Struct, frozen=True, omit_defaults=True):
    """The `error` of a response."""

    code: int
    message: str
    data: Any = None


class ResultHead(msgspec.Struct, frozen=True):
    """What the gateway must know of a tool's result; the rest stays bytes."""

    isError: bool = False
    resultType: str | None = None


class Reply(msgspec.Struct, frozen=True):
    """What goes back to the client: an HTTP status, a body (JSON unless empty) and extra header lines, each ending in
    CRLF.
    """

    status: int
    body: bytes = b""
    headers: bytes = b""
    close: bool = False
    recorded: bool = False  # the log holds a call with this answer; other refusals are recorded by the desk
    refused: bool = False  # an error, whatever the status: legacy clients get theirs with 200


def careful(decode: Callable[[bytes], T]) -> Callable[[bytes], T]:
    """What a peer sends may be anything: all that can be wrong with it is a DecodeError."""

    def decoded(raw: bytes) -> T:
        try:
            return decode(raw)
        except (UnicodeDecodeError, RecursionError) as error:
            raise msgspec.DecodeError(str(error)) from error

    return decoded


decode_wire: Final = careful(msgspec.json.Decoder(Wire).decode)
decode_fields: Final = careful(msgspec.json.Decoder(dict[str, msgspec.Raw]).decode)
decode_text: Final = careful(msgspec.json.Decoder(str).decode)
decode_result_head: Final = careful(msgspec.json.Decoder(ResultHead).decode)
decode_error: Final = careful(msgspec.json.Decoder(RpcError).decode)


def result_body(request_id: RequestId, result: bytes) -> bytes:
    """A JSON-RPC response around the bytes of a result."""
    return b'{"jsonrpc":"2.0","id":%b,"result":%b}' % (encode(request_id), result)


def error_body(request_id: RequestId | None, code: int, message: str, data: Any = None) -> bytes:
    """A JSON-RPC error response; `id` is null where the request's could not be read."""
    error = encode(RpcError(code, message, data))
    return b'{"jsonrpc":"2.0","id":%b,"error":%b}' % (encode(request_id), error)


def request_body(request_id: RequestId, method: str, params: bytes) -> bytes:
    """A JSON-RPC request around the bytes of its params."""
    return b'{"jsonrpc":"2.0","id":%b,"method":%b,"params":%b}' % (encode(request_id), encode(method), params)


def notification(method: str, params: bytes) -> bytes:
    """A JSON-RPC notification around the bytes of its params."""
    return b'{"jsonrpc":"2.0","method":%b,"params":%b}' % (encode(method), params)


def with_field(raw: bytes, name: str, value: bytes) -> bytes:
    """The JSON object `raw` with one more member in front. `raw` must be an object without that key."""
    rest = raw[1:].lstrip()
    return b"{%b:%b%b%b" % (encode(name), value, b"" if rest == b"}" else b",", rest)
