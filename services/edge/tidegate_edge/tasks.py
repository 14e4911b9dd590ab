"""Tasks (extension io.modelcontextprotocol/tasks of 2026-07-28): a tool that answers later, asked about by a handle.

The server knows the gateway alone, not the principal behind a call; so the handle that a client gets is sealed: it says
which server and tool, and serves nobody but the principal whose call it was. What goes to the server and comes from it
by `tasks/get` and `tasks/update` is decided as the call that began the task would be decided now, so the handle has its
arguments, too, as far as they have room. `tasks/cancel` is always possible, and carries nothing. Between modern sides
only.
"""

from typing import Any, Final

import msgspec

from tidegate_edge.accept import Request
from tidegate_edge.calls import Ongoing
from tidegate_edge.catalog import Item
from tidegate_edge.edge import Edge
from tidegate_edge.lists import TASKS as EXTENSION
from tidegate_edge.messages import (
    CLIENT_CAPABILITIES_META,
    CLIENT_INFO_META,
    PROTOCOL_VERSION_META,
    careful,
    decode_fields,
    encode,
)
from tidegate_edge.ruling import Ruling
from tidegate_edge.targets import TASKS as METHODS
from tidegate_edge.targets import Found, Handle
from tidegate_edge.targets import arguments as arguments_of
from tidegate_edge.translate import CLIENT_INFO, MODERN
from tidegate_edge.upstream.port import Outgoing, Routing
from tidegate_edge.visit import Visit

PURPOSE: Final = "task"
KEPT_BYTES_MAX: Final = 2_048  # of arguments within a handle: it travels in a header, and proxies take few KiB there
LEFT_OUT_BYTES_MAX: Final = 512  # of the names of the others
NOT_KEPT_REASON: Final = "task-arguments-not-kept"
CANCELLED: Final = b'{"resultType":"complete"}'
_CANCELLING_META: Final[dict[str, Any]] = {
    PROTOCOL_VERSION_META: MODERN,
    CLIENT_CAPABILITIES_META: {"extensions": {EXTENSION: {}}},
    CLIENT_INFO_META: CLIENT_INFO,
}
_UNREADABLE: Final = frozenset({"argument-not-representable", "arguments-unlike-schema"})

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


def decide(call: Ongoing, ruling: Ruling, item: Item, handle: Handle) -> None:
    """As the call that began the task would be decided now. Where rules need more of its arguments than is known, it
    is denied. Nobody is asked about a task: the approval of its call holds for it.
    """
    principal = call.principal
    call.hidden = not ruling.is_visible(principal, item)
    if (
        handle.arguments is None
        and not call.hidden
        and ruling.engine.needs_arguments(principal, item.server, item.action)
    ):
        call.refuse("policy", NOT_KEPT_REASON, _not_kept(call))
        return
    verdict = ruling.decide(principal, item, handle.known, call.facts)
    call.decision, call.rules = verdict.effect, verdict.rules
    call.reason, call.message = verdict.reason, verdict.told
    if handle.left_out and verdict.reason in _UNREADABLE:
        call.reason, call.message = NOT_KEPT_REASON, _not_kept(call)
    if verdict.effect == "ask":
        _go_on_approved(call, handle, verdict.approver)


def _go_on_approved(call: Ongoing, handle: Handle, approver: str) -> None:
    if handle.approved is not None and handle.approved.serves(approver, call.rules):
        call.approved = handle.approved
        call.decision, call.reason, call.message = "allow", "approved", ""
    else:
        told = f"The rules changed since the task was begun. {call.message} Call the tool again, from the start."
        call.refuse("policy", "approval-required", told)


def _not_kept(call: Ongoing) -> str:
    return (
        f"A rule for {call.server}/{call.target} looks at arguments of the call that began this task, and they are not "
        f"known any more: a task's id has room for {KEPT_BYTES_MAX} bytes of them. The task can still be cancelled."
    )


def cancelling(call: Ongoing, routing: Routing, modern: bool, timeout_s: float) -> Outgoing:
    """The request that stops a task. It says which, and nothing else of the client's: it was not permitted anything."""
    params = encode({"taskId": own_id(call.arguments), "_meta": _CANCELLING_META})
    caller = call.visit.caller(call.abilities.declared)
    return Outgoing(call.method, params, caller, modern, timeout_s, routing)


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
        kept, left_out = _kept(_decided_on(call))
        task, approved = _decode_text(raw), call.approval_held
        made = Handle(call.server, call.target, task, call.root, arguments=kept, left_out=left_out, approved=approved)
        handle = edge.sealer.seal(PURPOSE, encode(made), _binding(call.visit))
    fields["taskId"] = msgspec.Raw(encode(handle))
    return encode(fields)


def _decided_on(call: Ongoing) -> dict[str, msgspec.Raw]:
    """The call's arguments before anything was masked in them."""
    assert call.item is not None
    return decode_fields(arguments_of(call.members, call.request, Found(call.item, call.target)))


def _kept(given: dict[str, msgspec.Raw]) -> tuple[dict[str, msgspec.Raw] | None, tuple[str, ...]]:
    """What a handle has of a call's arguments: the smallest, and the names of the others."""
    kept: dict[str, msgspec.Raw] = {}
    room = KEPT_BYTES_MAX
    for name in sorted(given, key=lambda name: len(name) + len(bytes(given[name]))):
        room -= len(encode(name)) + len(bytes(given[name])) + 2
        if room < 0:
            break
        kept[name] = given[name]
    left_out = tuple(name for name in given if name not in kept)
    return (None, ()) if sum(map(len, map(encode, left_out))) > LEFT_OUT_BYTES_MAX else (kept, left_out)


def _binding(visit: Visit) -> bytes:
    principal = visit.principal
    return f"{principal.tenant}|{principal.subject_id}|{principal.agent}".encode()
