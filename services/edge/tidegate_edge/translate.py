"""Between the eras: a request's params for the upstream, a result for the client. Pure; what is not named here stays
byte for byte.
"""

from typing import Final

import msgspec
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from tidegate import __version__
from tidegate_edge.accept import Request
from tidegate_edge.messages import (
    CLIENT_CAPABILITIES_META,
    CLIENT_INFO_META,
    META_PREFIX,
    PROTOCOL_VERSION_META,
    decode_fields,
    encode,
    with_field,
)

CLIENT_INFO: Final = {"name": "tidegate", "version": __version__}
MODERN: Final = MODERN_PROTOCOL_VERSIONS[-1]
MODERN_META: Final = {
    PROTOCOL_VERSION_META: msgspec.Raw(encode(MODERN)),
    CLIENT_CAPABILITIES_META: msgspec.Raw(b"{}"),
    CLIENT_INFO_META: msgspec.Raw(encode(CLIENT_INFO)),
}
BESIDE_ARGUMENTS: Final = ("_meta", "inputResponses", "requestState")
"""The other params that may go on; what this gateway does not know, it neither inspects nor forwards."""
_MODERN_RESULT: Final = ("resultType", "ttlMs", "cacheScope")
COMPLETE: Final = b'"complete"'


def params_for_upstream(
    request: Request, members: dict[str, msgspec.Raw], name: msgspec.Raw, arguments: bytes, upstream_modern: bool
) -> bytes:
    """The params (`members`, as inspected) with the upstream's own name and the arguments as decided and inspected.

    Input responses and request states exist between a modern client and a modern upstream alone.
    """
    fields = {"name": name}
    if "arguments" in members:
        fields["arguments"] = msgspec.Raw(arguments)
    if request.modern and upstream_modern:
        return encode(fields | {key: members[key] for key in BESIDE_ARGUMENTS if key in members})
    meta = _without_token(decode_fields(members["_meta"])) if "_meta" in members else {}
    kept = (
        {**meta, **MODERN_META}
        if upstream_modern
        else {key: value for key, value in meta.items() if not key.startswith(META_PREFIX)}
    )
    if kept:
        fields["_meta"] = msgspec.Raw(encode(kept))
    return encode(fields)


def _without_token(meta: dict[str, msgspec.Raw]) -> dict[str, msgspec.Raw]:
    """An upstream session is shared by many callers: a progress token of one must not be heard as another's."""
    return {key: value for key, value in meta.items() if key != "progressToken"}


def result_for_client(result: bytes, client_modern: bool) -> bytes:
    """A result in the client's era: a modern one needs `resultType`; a legacy one must not see modern members."""
    if b'"resultType"' not in result:
        return with_field(result, "resultType", COMPLETE) if client_modern else result
    fields = decode_fields(result)
    if client_modern:
        return result if "resultType" in fields else with_field(result, "resultType", COMPLETE)
    for gone in _MODERN_RESULT:
        fields.pop(gone, None)
    return encode(fields)


def asks_for_input(result: bytes) -> bool:
    """True for a modern upstream's `input_required`."""
    return b'"input_required"' in result and decode_fields(result).get("resultType") == msgspec.Raw(b'"input_required"')
