"""What an upstream says and asks while it works on a request, brought to the client that made the request.

Everything is inspected like a result, at one go: what is too large for that is dropped and counted. Progress goes under
the client's own token; log messages at the level it asked for. Counterparts: `upstream/port.Talk`, `asking.py` for
questions.
"""

from typing import Any, Final

import msgspec

from tidegate import json_values
from tidegate.limits import NOTIFICATION_BYTES_MAX
from tidegate_edge import asking, rewrite, strict_json
from tidegate_edge.calls import Ongoing
from tidegate_edge.edge import Edge
from tidegate_edge.messages import careful, decode_fields, encode, notification
from tidegate_edge.upstream.port import Answer

LEVELS: Final = ("debug", "info", "notice", "warning", "error", "critical", "alert", "emergency")
LIST_CHANGES: Final = {
    "notifications/tools/list_changed": "tools",
    "notifications/prompts/list_changed": "prompts",
    "notifications/resources/list_changed": "resources",
}
_SWALLOWED: Final = frozenset({"notifications/cancelled", "notifications/initialized"})
_LEGACY_ALONE: Final = frozenset({"notifications/elicitation/complete", "notifications/resources/updated"})


class _Levelled(msgspec.Struct):
    """Of a log message, all that is looked at here."""

    level: Any = None


_decode_any: Final = careful(json_values.decode)
_decode_levelled: Final = careful(msgspec.json.Decoder(_Levelled).decode)


class Conversation:
    """The talk of one call."""

    __slots__ = ("_call", "_edge")

    def __init__(self, edge: Edge, call: Ongoing) -> None:
        self._edge = edge
        self._call = call

    @property
    def pausable(self) -> bool:
        """A modern client is asked by `input_required`; one that can answer nothing is not asked at all."""
        return self._call.request.modern and bool(self._call.abilities.names)

    def notified(self, method: str, params: bytes) -> None:
        call = self._call
        if method in LIST_CHANGES:
            self._edge.discovery.heard(call.server, LIST_CHANGES[method])
            return  # told where list changes are told
        if method in _SWALLOWED or not method.startswith("notifications/"):
            return
        if len(params) > NOTIFICATION_BYTES_MAX:
            self._edge.counters.refused_requests["notification-too-large"] += 1
            return
        if call.request.modern and method in _LEGACY_ALONE:
            return
        if method == "notifications/progress":
            shown = self._progress(params)
        elif method == "notifications/message":
            shown = params if is_loud_enough(params, call.log_level, silent_by_default=call.request.modern) else None
        else:
            shown = params
        if shown is not None and (clean := self._inspected(method, shown)) is not None:
            message = notification(method, clean)
            if call.tainting is not None:
                call.tainting.say(message)
            else:
                call.visit.outlet.send(message)

    def _progress(self, params: bytes) -> bytes | None:
        """Under the token that the client gave; None where it gave none or the token is another's."""
        meta = self._call.request.params.get("_meta")
        token = meta.get("progressToken") if isinstance(meta, dict) else None
        try:
            fields = decode_fields(params)
            named = _decode_any(fields["progressToken"])
        except (msgspec.DecodeError, KeyError):
            return None
        if token is None or named != self._call.call_id:
            return None
        return encode({**fields, "progressToken": token})

    def _inspected(self, method: str, params: bytes) -> bytes | None:
        call = self._call
        assert call.ruling is not None
        if not strict_json.is_strict(params):  # what is inspected is what the client reads
            return None
        scan = call.ruling.scanner.scan(params, "result")
        if scan.blocked is not None:
            self._edge.counters.refused_requests["notification-blocked"] += 1
            return None
        clean = params if scan.masked is None else scan.masked
        return rewrite.result(call.ruling.catalog, call.visit.door, call.server, method, clean)

    async def asked(self, method: str, params: bytes) -> Answer:
        return await asking.ask(self._edge, self._call, method, params)

    def rested(self, retry_ms: int) -> None:
        self._call.visit.outlet.rest(retry_ms)


def is_loud_enough(params: bytes, level: str, *, silent_by_default: bool) -> bool:
    """Whether a log message is at least as severe as what was asked for. 2026-07-28 server/utilities/logging: without
    a level in the request there must be none; before, a server decides by itself.
    """
    if level not in LEVELS:
        return not silent_by_default
    try:
        return LEVELS.index(_decode_levelled(params).level) >= LEVELS.index(level)
    except (msgspec.DecodeError, ValueError):
        return False
