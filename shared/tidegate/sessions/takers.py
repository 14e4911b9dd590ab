"""Handing what other edges say to whoever takes it. Whoever fails is logged and harms nobody else: the loop that hears
must go on.
"""

import logging
from collections.abc import Callable, Iterable
from typing import TypeVarTuple

from tidegate.errors import OurFault
from tidegate.limits import BUS_MESSAGE_BYTES_MAX

Ts = TypeVarTuple("Ts")

_log = logging.getLogger(__name__)


class Takers:
    """Who takes which kind of message."""

    def __init__(self) -> None:
        self._takers: dict[bytes, Callable[[bytes], None]] = {}

    def on_message(self, kind: str, take: Callable[[bytes], None]) -> None:
        self._takers[kind.encode()] = take

    def take(self, message: bytes) -> None:
        kind, _, rest = message.partition(b"\n")
        if (taker := self._takers.get(kind)) is None:
            return  # of a newer edge
        tell([taker], rest)


def tell(listeners: Iterable[Callable[[*Ts], object]], *what: *Ts) -> None:
    for listener in listeners:
        try:
            listener(*what)
        except Exception:  # whatever it is
            _log.exception("sessions: what another edge said was not taken")


def check_message(message: bytes) -> None:
    if len(message) > BUS_MESSAGE_BYTES_MAX:
        raise OurFault(
            f"a message of {len(message)} bytes for another edge is larger than {BUS_MESSAGE_BYTES_MAX}; send less",
            code="message-too-large",
        )
