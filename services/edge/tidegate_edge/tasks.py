"""Tasks (extension io.modelcontextprotocol/tasks of 2026-07-28): a tool that answers later, asked about by a handle.

The server knows the gateway alone, not the principal behind a call; so the handle that a client gets is sealed: it says
which server and tool, and serves nobody but the principal whose call it was. Between modern sides only.
"""

from typing import Final

import msgspec

from tidegate_edge.accept import Request
from tidegate_edge.calls import Ongoing
from tidegate_edge.edge import Edge
from tidegate_edge.messages import careful, decode_fields, encode
from tidegate_edge.targets import TASKS as METHODS
from tidegate_edge.targets import Handle
from tidegate_edge.visit import Visit

PURPOSE: Final = "task"


_decode_handle: Final = msgspec.json.Decoder(Handle).decode
_decode_text: Final = careful(msgspec.json.Decoder(str).decode)


def open_handle(edge: Edge, visit: Visit, request: Request) -> Handle | None:
    """The handle that a client sent; None where it is not this principal's."""
    given = request.params.get("taskId")
    opened = edge.sealer.unseal(PURPOSE, given, _binding(visit)) if isinstance(given, str) else None
    return None if opened is None else _decode_handle(opened)


def arguments(handle: Handle) -> bytes:
    """The params of a request about the task, as its server knows it."""
    return encode({"taskId": handle.task})


def own_id(arguments: bytes) -> str:
    """The server's own task id in what `arguments` made."""
    return _decode_text(decode_fields(arguments)["taskId"])


def shown(edge: Edge, call: Ongoing, result: bytes) -> bytes:
    """A result with the handle in the place of the server's task id: the one that the client uses, or a new one.

    Raises ValueError: too long to seal.
    """
    fields = decode_fields(result)
    raw = fields.get("taskId")
    if raw is None:
        return result
    if call.method in METHODS:
        handle = call.request.params["taskId"]
    else:
        made = Handle(call.server, call.target, _decode_text(raw), call.root)
        handle = edge.sealer.seal(PURPOSE, encode(made), _binding(call.visit))
    fields["taskId"] = msgspec.Raw(encode(handle))
    return encode(fields)


def _binding(visit: Visit) -> bytes:
    principal = visit.principal
    return f"{principal.tenant}|{principal.subject_id}|{principal.agent}".encode()
