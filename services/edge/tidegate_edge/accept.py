"""accept: the bytes of one HTTP request to the MCP path → a `Request`, or the reply that refuses it. Pure, total,
fuzzed.

Sources: MCP 2026-07-28 basic/transports/streamable-http and basic/index (modern), 2025-11-25 basic/transports (legacy).
"""

from typing import Any, Final

import msgspec
from mcp.shared.inbound import (
    ERROR_CODE_HTTP_STATUS,
    NAME_BEARING_METHODS,
    InboundLadderRejection,
    classify_inbound_request,
)
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS, MODERN_PROTOCOL_VERSIONS

from tidegate.limits import BATCH_MEMBERS_MAX
from tidegate.turns import Turns
from tidegate_edge import messages, strict_json
from tidegate_edge.messages import (
    CLIENT_CAPABILITIES_META,
    CLIENT_INFO_META,
    INVALID_REQUEST,
    PARSE_ERROR,
    PROTOCOL_VERSION_META,
    Reply,
    RequestId,
    error_body,
)

LEGACY_VERSIONS: Final = frozenset(HANDSHAKE_PROTOCOL_VERSIONS) - {"2024-11-05"}
MODERN_VERSIONS: Final = frozenset(MODERN_PROTOCOL_VERSIONS)
VERSION_WITHOUT_HEADER: Final = "2025-03-26"  # 2025-11-25 basic/transports: assumed where the header is absent
BATCH_VERSION: Final = "2025-03-26"
SINGLE_HEADERS: Final = frozenset(
    {
        b"authorization",
        b"host",
        b"origin",
        b"content-type",
        b"mcp-session-id",
        b"mcp-protocol-version",
        b"mcp-method",
        b"mcp-name",
    }
)
_ROUTING_HEADERS: Final = (
    ("mcp-protocol-version", b"mcp-protocol-version"),
    ("mcp-method", b"mcp-method"),
    ("mcp-name", b"mcp-name"),
)


_BY_TASK: Final = frozenset({"tasks/get", "tasks/update", "tasks/cancel"})  # SEP-2663: Mcp-Name is params.taskId
PARAM_HEADER: Final = b"mcp-param-"


class Request(msgspec.Struct, frozen=True):
    """One JSON-RPC message that may be served. `id` is None for a notification."""

    method: str
    id: RequestId | None
    params: dict[str, Any]  # decoded
    raw_params: bytes  # the same, byte for byte
    modern: bool
    version: str  # protocol revision; for `initialize` the header's or the assumed one
    session: str = ""  # MCP-Session-Id as sent (legacy only)
    client_info: Any = None
    headers: dict[bytes, bytes] = {}  # of a modern request: Mcp-Param-* are judged once the tool is known
    in_batch: bool = False


class Response(msgspec.Struct, frozen=True):
    """A legacy client's answer to a request that a server put to it. One of `result` and `error` is not empty."""

    id: RequestId
    session: str
    result: bytes = b""
    error: bytes = b""


class Batch(msgspec.Struct, frozen=True):
    """A JSON-RPC batch; revision 2025-03-26 alone, which is checked again once the session is known."""

    members: tuple["Request | Response | Reply", ...]


def accept(headers: dict[bytes, bytes], body: bytes) -> Request | Response | Batch | Reply:
    """Read one POST. `headers`: lower-case names, values stripped of SP and HTAB, no duplicates of SINGLE_HEADERS."""
    if (refused := _unfit(headers)) is not None:
        return refused
    try:
        value = strict_json.read(body)
    except strict_json.NotStrictJson as error:
        return _not_strict(error)
    return _of_value(value, headers, body)


def accepting(headers: dict[bytes, bytes], body: bytes) -> Turns[Request | Response | Batch | Reply]:
    """As `accept`, for a large body: in turns with other work."""
    if (refused := _unfit(headers)) is not None:
        return refused
    try:
        value = yield from strict_json.reading(body, keep=True)
    except strict_json.NotStrictJson as error:
        return _not_strict(error)
    return _of_value(value, headers, body)


def _unfit(headers: dict[bytes, bytes]) -> Reply | None:
    if headers.get(b"content-type", b"").split(b";", 1)[0].strip().lower() != b"application/json":
        return refuse(415, INVALID_REQUEST, "content-type must be application/json")
    if not _accepts_json(headers.get(b"accept")):
        return refuse(406, INVALID_REQUEST, "accept must allow application/json and text/event-stream")
    return None


def _not_strict(error: strict_json.NotStrictJson) -> Reply:
    return refuse(400, PARSE_ERROR, f"the body is refused: {error}")


def _of_value(value: Any, headers: dict[bytes, bytes], body: bytes) -> Request | Response | Batch | Reply:
    version_header = headers.get(b"mcp-protocol-version", b"").decode("latin-1")
    if isinstance(value, dict):
        return _message(value, body, headers, version_header)
    if isinstance(value, list):
        return _batch(value, body, headers, version_header)
    return refuse(400, INVALID_REQUEST, "expected a JSON-RPC object")


def refuse(status: int, code: int, message: str, request_id: RequestId | None = None, data: Any = None) -> Reply:
    """A refusal as an HTTP status with a JSON-RPC error body."""
    return Reply(status, error_body(request_id, code, message, data), refused=True)


def _accepts_json(accept_header: bytes | None) -> bool:
    if accept_header is None or accept_header == b"application/json, text/event-stream":
        return True
    kinds = {part.split(b";", 1)[0].strip().lower() for part in accept_header.split(b",")}
    return bool(kinds & {b"application/json", b"application/*", b"*/*"})


def _batch(value: list[Any], body: bytes, headers: dict[bytes, bytes], version: str) -> Batch | Reply:
    if version not in ("", BATCH_VERSION):
        return refuse(400, INVALID_REQUEST, f"batches exist on revision {BATCH_VERSION} only")
    if not 0 < len(value) <= BATCH_MEMBERS_MAX:
        return refuse(400, INVALID_REQUEST, f"a batch has 1 to {BATCH_MEMBERS_MAX} members, got {len(value)}")
    raw_members = msgspec.json.decode(body, type=list[msgspec.Raw])
    members: list[Request | Response | Reply] = []
    for member, raw in zip(value, raw_members, strict=True):
        if not isinstance(member, dict):
            members.append(refuse(400, INVALID_REQUEST, "expected a JSON-RPC object"))
        elif member.get("method") == "initialize":
            members.append(refuse(400, INVALID_REQUEST, "initialize must not be part of a batch", _id_of(member)))
        else:
            read = _message(member, bytes(raw), headers, version)
            members.append(msgspec.structs.replace(read, in_batch=True) if isinstance(read, Request) else read)
    return Batch(tuple(members))


def _message(
    value: dict[str, Any], body: bytes, headers: dict[bytes, bytes], version: str
) -> Request | Response | Reply:
    request_id = _id_of(value)
    if value.get("jsonrpc") != "2.0":
        return refuse(400, INVALID_REQUEST, 'expected "jsonrpc":"2.0"', request_id)
    method = value.get("method")
    if not isinstance(method, str):
        return _response(value, body, headers, version)
    if "id" in value and request_id is None:
        return refuse(400, INVALID_REQUEST, "id must be a string or an integer")
    params = value.get("params", {})
    if not isinstance(params, dict):
        return refuse(400, messages.INVALID_PARAMS, "params must be an object", request_id)
    if version in MODERN_VERSIONS or _has_modern_envelope(params):
        return _modern(value, params, request_id, body, headers)
    return _legacy(method, params, request_id, body, headers, version)


def _response(value: dict[str, Any], body: bytes, headers: dict[bytes, bytes], version: str) -> Response | Reply:
    request_id = _id_of(value)
    if version in MODERN_VERSIONS:  # 2026-07-28 basic/transports: clients answer by sending the request again
        return refuse(400, INVALID_REQUEST, "method is missing; responses are not taken on this revision", request_id)
    if request_id is None or "method" in value or ("result" in value) == ("error" in value):
        return refuse(400, INVALID_REQUEST, "expected a method, or an id with one of result and error", request_id)
    session = headers.get(b"mcp-session-id", b"").decode("latin-1")
    if not session:
        return refuse(400, INVALID_REQUEST, "Mcp-Session-Id is missing: send initialize first", request_id)
    wire = messages.decode_wire(body)
    if wire.result is not msgspec.UNSET:
        return Response(request_id, session, result=bytes(wire.result))
    assert wire.error is not msgspec.UNSET
    return Response(request_id, session, error=bytes(wire.error))


def _modern(
    value: dict[str, Any],
    params: dict[str, Any],
    request_id: RequestId | None,
    body: bytes,
    headers: dict[bytes, bytes],
) -> Request | Reply:
    if request_id is None:
        return Reply(
            202
        )  # the core protocol defines no client notification on this wire: acknowledged, nothing to act on
    if not _is_plainly_modern(value, params, headers):
        routing = {name: headers[key].decode("latin-1") for name, key in _ROUTING_HEADERS if key in headers}
        route = classify_inbound_request(value, headers=routing)
        if isinstance(route, InboundLadderRejection):
            status = ERROR_CODE_HTTP_STATUS.get(route.code, 400)
            return refuse(status, route.code, route.message, request_id, route.data)
    if value["method"] in _BY_TASK and not _is_plain_name(headers.get(b"mcp-name", b""), params.get("taskId")):
        return refuse(400, messages.HEADER_MISMATCH, "Mcp-Name must be the task's id", request_id)
    meta = params["_meta"]
    version, client_info = meta[PROTOCOL_VERSION_META], meta.get(CLIENT_INFO_META)
    return Request(value["method"], request_id, params, _raw_params(body), True, version, "", client_info, headers)


def _is_plainly_modern(value: dict[str, Any], params: dict[str, Any], headers: dict[bytes, bytes]) -> bool:
    """True where every rung of the ladder holds by plain equality; anything less plain is for the ladder to judge."""
    meta = params.get("_meta")
    method = value["method"]
    named = NAME_BEARING_METHODS.get(method)
    try:
        return (
            type(meta) is dict
            and meta[PROTOCOL_VERSION_META] in MODERN_VERSIONS
            and CLIENT_CAPABILITIES_META in meta
            and headers[b"mcp-protocol-version"] == meta[PROTOCOL_VERSION_META].encode()
            and headers[b"mcp-method"] == method.encode()
            and (named is None or _is_plain_name(headers[b"mcp-name"], params[named]))
        )
    except (KeyError, TypeError, UnicodeEncodeError):
        return False


def _is_plain_name(header: bytes, name: Any) -> bool:
    return type(name) is str and header == name.encode("ascii", "replace") and not header.startswith(b"=?")


def _legacy(
    method: str,
    params: dict[str, Any],
    request_id: RequestId | None,
    body: bytes,
    headers: dict[bytes, bytes],
    version: str,
) -> Request | Reply:
    if version and version not in LEGACY_VERSIONS:
        supported = ", ".join(sorted(LEGACY_VERSIONS | MODERN_VERSIONS))
        return refuse(400, INVALID_REQUEST, f"unsupported MCP-Protocol-Version; supported: {supported}", request_id)
    session = headers.get(b"mcp-session-id", b"").decode("latin-1")
    if not session and method != "initialize":
        return refuse(400, INVALID_REQUEST, "Mcp-Session-Id is missing: send initialize first", request_id)
    return Request(method, request_id, params, _raw_params(body), False, version or VERSION_WITHOUT_HEADER, session)


def _raw_params(body: bytes) -> bytes:
    params = messages.decode_wire(body).params
    return b"{}" if params is msgspec.UNSET else bytes(params)


def _id_of(value: dict[str, Any]) -> RequestId | None:
    request_id = value.get("id")
    if isinstance(request_id, bool) or not isinstance(request_id, int | str):
        return None
    return request_id


def _has_modern_envelope(params: dict[str, Any]) -> bool:
    meta = params.get("_meta")
    return isinstance(meta, dict) and (PROTOCOL_VERSION_META in meta or CLIENT_INFO_META in meta)
