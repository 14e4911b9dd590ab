"""Handing messages from other edges to whoever takes them. Used by both buses."""

import logging
from collections.abc import Callable

from tidegate.errors import OurFault
from tidegate.limits import BUS_MESSAGE_BYTES_MAX

_log = logging.getLogger(__name__)


class Takers:
    """Who takes which kind of message. A taker that fails is logged, and harms nobody else."""

    def __init__(self) -> None:
        self._takers: dict[bytes, Callable[[bytes], None]] = {}

    def on_message(self, kind: str, take: Callable[[bytes], None]) -> None:
        self._takers[kind.encode()] = take

    def take(self, message: bytes) -> None:
        kind, _, rest = message.partition(b"\n")
        if (taker := self._takers.get(kind)) is None:
            return  # of a newer edge
        try:
            taker(rest)
        except Exception:  # the loop that hears is owned elsewhere and must go on
            _log.exception("sessions: a message of kind %r from another edge was not taken", kind)


def check_message(message: bytes) -> None:
    if len(message) > BUS_MESSAGE_BYTES_MAX:
        raise OurFault(
            f"a message of {len(message)} bytes for another edge is larger than {BUS_MESSAGE_BYTES_MAX}; send less",
            code="message-too-large",
        )
