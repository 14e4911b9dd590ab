"""Which revisions a server speaks: found by asking it, remembered for a while, mirrored for each client.

`server/discover` tells modern from legacy; 401, 403, 429, 5xx and network faults tell nothing. A modern server is
asked for a handshake once, when the first legacy client comes. Pure; `http.py` asks.
"""

from collections.abc import Callable
from typing import Final, Literal

import msgspec
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS, MODERN_PROTOCOL_VERSIONS

from tidegate.errors import UpstreamFault
from tidegate_edge.messages import careful
from tidegate_edge.upstream.answers import answer_in, error_code, read_wire
from tidegate_edge.upstream.connection import Response
from tidegate_edge.upstream.port import Answer

Era = Literal["auto", "modern", "legacy"]
LEGACY_KEPT_S: Final = 24 * 3_600.0
DOUBTFUL_ERRORS: Final = (-32022, -32600)
"""What a legacy server says to a modern request."""
_MODERN_ERRORS: Final = (-32020, -32021, -32022)


class Found(msgspec.Struct, frozen=True):
    """What server/discover tells. `result` is empty unless it is a DiscoverResult."""

    modern: bool
    legacy: bool = False  # named beside the modern ones; not named means: not known
    result: bytes = b""


class Eras:
    """What is known of one server."""

    def __init__(self, era: Era, clock: Callable[[], float]) -> None:
        self._fixed = {"auto": None, "modern": True, "legacy": False}[era]
        self._clock = clock
        self._modern: bool | None = None
        self._legacy: bool | None = None
        self._legacy_until_s = 0.0

    def known(self, client_modern: bool) -> bool | None:
        """Whether clients of this era are served in the modern one; None: not known."""
        if self._fixed is not None:
            return self._fixed
        if not self._modern:
            return self._modern if self._clock() < self._legacy_until_s else None
        if client_modern:
            return True
        return None if self._legacy is None else not self._legacy

    @property
    def is_modern(self) -> bool:
        """Whether it speaks the modern era, as far as is known."""
        return bool(self._modern if self._fixed is None else self._fixed)

    def found(self, found: Found) -> None:
        if found.legacy or not found.modern:
            self._legacy = True
        elif not self._modern:
            self._legacy = None  # what it was before says nothing of what it is now
        self._modern = found.modern
        self._legacy_until_s = self._clock() + LEGACY_KEPT_S

    def found_handshake(self, speaks: bool) -> None:
        self._legacy = speaks

    def forget(self) -> None:
        """It does not behave as what it was taken for."""
        self._modern = self._legacy = None


class _Discovered(msgspec.Struct):
    supportedVersions: list[str] = []


_decode_discovered: Final = careful(msgspec.json.Decoder(_Discovered).decode)


def read_discovery(name: str, response: Response, request_id: int) -> Found:
    """The verdict. Raises UpstreamFault where there is none."""
    if response.status in (401, 403, 408, 429) or response.status >= 500:
        raise UpstreamFault(
            f"{name}: answered {response.status} to server/discover; check its URL and credential (servers.{name})",
            code="upstream-unauthorized" if response.status in (401, 403) else "upstream-failed",
        )
    wire = None if response.answer is not None else read_wire(response.body)
    answer = response.answer if wire is None else answer_in(wire, request_id)
    return Found(False) if answer is None else _found(answer)


def _found(answer: Answer) -> Found:
    """Modern iff a DiscoverResult names a modern version, or an error is one that only a modern server gives."""
    if answer.error:
        return Found(error_code(answer) in _MODERN_ERRORS)
    try:
        versions = set(_decode_discovered(answer.result).supportedVersions)
    except msgspec.DecodeError:
        return Found(False)
    modern = not versions.isdisjoint(MODERN_PROTOCOL_VERSIONS)
    return Found(modern, not versions.isdisjoint(HANDSHAKE_PROTOCOL_VERSIONS), answer.result if modern else b"")


def doubtful(status: int) -> bool:
    """Whether this answer to a modern request suggests that the server is not a modern one any more."""
    return 400 <= status < 500 and status not in (401, 403, 408, 429)
