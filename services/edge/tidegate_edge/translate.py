"""Between the eras: a request's params for the upstream, a result or an error for the client. Pure; what is not named
here stays byte for byte.
"""

from functools import lru_cache
from typing import Any, Final

import msgspec
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from tidegate import __version__
from tidegate_edge.calls import Ongoing
from tidegate_edge.messages import (
    CLIENT_CAPABILITIES_META,
    CLIENT_INFO_META,
    INTERNAL_ERROR,
    INVALID_PARAMS,
    LOG_LEVEL_META,
    META_PREFIX,
    PROTOCOL_VERSION_META,
    RESOURCE_NOT_FOUND,
    RpcError,
    decode_fields,
    encode,
    with_field,
)

CLIENT_INFO: Final = {"name": "tidegate", "version": __version__}
MODERN: Final = MODERN_PROTOCOL_VERSIONS[-1]
NAMED: Final = frozenset({"tools/call", "prompts/get"})
"""Methods with `name` and `arguments`; of all others `Ongoing.arguments` holds the params themselves."""
_MODERN_RESULT: Final = ("resultType", "ttlMs", "cacheScope")
COMPLETE: Final = b'"complete"'
_UNCACHED: Final = b'{"resultType":"complete","ttlMs":0,"cacheScope":"private"'
_RESERVED_CODES: Final = range(-32099, -32019)  # of the modern revisions alone


def params_for_upstream(call: Ongoing, upstream_modern: bool) -> bytes:
    """The params, as decided and inspected, under the upstream's own name and in its era. What the protocol does not
    have beside them stays here: neither rules nor whoever approves a call have seen it. So does `task` (2025-11-25),
    which asks for what is not offered.
    """
    members, item = call.members, call.item
    assert item is not None
    fields: dict[str, msgspec.Raw]
    if call.method in NAMED:
        fields = {"name": item.raw_name}
        if "arguments" in members or item.fixed:
            fields["arguments"] = msgspec.Raw(call.arguments)
    else:
        fields = decode_fields(call.arguments)
    inputs = call.inputs
    if inputs is not None and upstream_modern:
        if inputs.responses:
            fields["inputResponses"] = msgspec.Raw(encode(inputs.responses))
        if inputs.state is not None:
            fields["requestState"] = msgspec.Raw(encode(inputs.state))
    meta = _meta(call, upstream_modern)
    if meta is not None:
        fields["_meta"] = meta
    return encode(fields)


def progress_token(call: Ongoing) -> str:
    """The token under which the upstream reports progress: unique over all edges, for a session is shared by many."""
    meta = call.request.params.get("_meta")
    return call.call_id if isinstance(meta, dict) and meta.get("progressToken") is not None else ""


def _meta(call: Ongoing, upstream_modern: bool) -> msgspec.Raw | None:
    given = call.members.get("_meta")
    modern, token = call.request.modern, progress_token(call)
    if modern is upstream_modern and not token:
        return given
    meta = decode_fields(given) if given is not None else {}
    if token:
        meta["progressToken"] = msgspec.Raw(encode(token))
    if modern and not upstream_modern:
        meta = _without_protocol(meta)
    elif upstream_modern and not modern:
        meta = {**_without_protocol(meta), **_modern_meta(call.abilities.declared, call.log_level)}
    return msgspec.Raw(encode(meta)) if meta else None


def _without_protocol(meta: dict[str, msgspec.Raw]) -> dict[str, msgspec.Raw]:
    """Members that mean something in the other era are not a client's to set."""
    return {key: value for key, value in meta.items() if not key.startswith(META_PREFIX)}


@lru_cache(1024)
def _modern_meta(declared: bytes, log_level: str) -> dict[str, msgspec.Raw]:
    meta = {
        PROTOCOL_VERSION_META: msgspec.Raw(encode(MODERN)),
        CLIENT_CAPABILITIES_META: msgspec.Raw(declared),
        CLIENT_INFO_META: msgspec.Raw(encode(CLIENT_INFO)),
    }
    if log_level:
        meta[LOG_LEVEL_META] = msgspec.Raw(encode(log_level))
    return meta


def result_for_client(result: bytes, client_modern: bool, method: str) -> bytes:
    """A result in the client's era: a modern one needs `resultType`; a legacy one must not see modern members."""
    if b'"resultType"' not in result:
        return _completed(result, method) if client_modern else result
    fields = decode_fields(result)
    if client_modern:
        return result if "resultType" in fields else _completed(result, method)
    if "resultType" not in fields:
        return result
    for gone in _MODERN_RESULT:
        fields.pop(gone, None)
    structured = fields.get("structuredContent")
    if structured is not None and not bytes(structured).lstrip().startswith(b"{"):
        del fields["structuredContent"]  # any value since 2026-07-28, an object before; the text beside it says it, too
    return encode(fields)


def _completed(result: bytes, method: str) -> bytes:
    """With what the modern schema requires. Nothing is known about how long a legacy server's resource stays fresh."""
    if method != "resources/read":
        return with_field(result, "resultType", COMPLETE)
    fields = decode_fields(result)
    for gone in _MODERN_RESULT:
        fields.pop(gone, None)
    rest = encode(fields)[1:]
    return _UNCACHED + (b"}" if rest == b"}" else b"," + rest)


def error_for_client(error: RpcError, call: Ongoing) -> RpcError:
    """An upstream's error with a code that the client's era knows, as far as the upstream's own era allows to tell."""
    if call.request.modern and error.code == RESOURCE_NOT_FOUND:
        data: Any = error.data if isinstance(error.data, dict) else {}
        return RpcError(INVALID_PARAMS, error.message, {"uri": call.request.params.get("uri"), **data})
    if call.request.modern is not call.upstream_modern and error.code in _RESERVED_CODES:
        return RpcError(INTERNAL_ERROR, error.message, error.data)
    return error
