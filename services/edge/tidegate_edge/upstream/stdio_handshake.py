"""How speaking with a server process begins: `server/discover` for 2026-07-28, else `initialize`. The first of the two
that a process accepts settles its era for good, so one process speaks one era; a server that speaks both is run as two
(`stdio_eras.py`).
"""

import asyncio
from typing import Any, Final, Literal

import msgspec
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS, MODERN_PROTOCOL_VERSIONS

from tidegate.errors import UpstreamFault
from tidegate_edge import messages
from tidegate_edge.messages import (
    CLIENT_CAPABILITIES_META,
    CLIENT_INFO_META,
    PROTOCOL_VERSION_META,
    SERVER_INFO_META,
    encode,
)
from tidegate_edge.translate import CLIENT_INFO, MODERN
from tidegate_edge.upstream.answers import error_message
from tidegate_edge.upstream.port import Answer
from tidegate_edge.upstream.stdio_session import StdioSession

EraChoice = Literal["auto", "modern", "legacy"]
LEGACY: Final = "2025-11-25"
PROBE_S: Final = 2.0  # a legacy server may leave a method that it does not know unanswered
START_S: Final = 60.0
ANYTHING: Final = b'{"elicitation":{"form":{},"url":{}},"roots":{},"sampling":{}}'
"""What a shared process is told: it serves clients of all kinds, and gets an error where one is not able."""
_UNSUPPORTED_VERSION: Final = -32022
_MODERN_ONLY: Final = (-32020, -32021, _UNSUPPORTED_VERSION)


class Spoken(msgspec.Struct, frozen=True):
    """What a process said of itself."""

    modern: bool
    capabilities: bytes = b"{}"
    server_info: bytes = b"null"
    instructions: str = ""
    life: str = ""  # another one after each start


class _Discovered(msgspec.Struct):
    supportedVersions: list[str] = []
    capabilities: msgspec.Raw = msgspec.Raw(b"{}")
    instructions: str | None = None
    meta: dict[str, msgspec.Raw] = msgspec.field(default_factory=dict, name="_meta")


class _Initialized(msgspec.Struct):
    protocolVersion: str = LEGACY
    capabilities: msgspec.Raw = msgspec.Raw(b"{}")
    serverInfo: msgspec.Raw = msgspec.Raw(b"null")
    instructions: str | None = None


_decode_discovered: Final = messages.careful(msgspec.json.Decoder(_Discovered).decode)
_decode_initialized: Final = messages.careful(msgspec.json.Decoder(_Initialized).decode)


def own_meta() -> dict[str, Any]:
    return {PROTOCOL_VERSION_META: MODERN, CLIENT_CAPABILITIES_META: {}, CLIENT_INFO_META: CLIENT_INFO}


async def shake_hands(session: StdioSession, era: EraChoice, capabilities: bytes, start_s: float = START_S) -> Spoken:
    """`start_s`: so long `initialize` is waited for. Raises UpstreamFault: the process ended, answered with an error,
    or speaks no revision that is spoken here.
    """
    if era == "legacy":
        try:
            return await _initialize(session, capabilities, start_s)
        except _Modern as refusal:
            raise UpstreamFault(
                f"{session.name}: does not speak {LEGACY}; see servers.{session.name}.era", sent=False
            ) from refusal
    probe = session.begin("server/discover", encode({"_meta": own_meta()}))
    try:
        wait_s = START_S if era == "modern" else PROBE_S
        await asyncio.wait([probe.turn], timeout=wait_s)
        if probe.turn.done():
            spoken = _discovered(_answered(probe.turn))
            if spoken is not None:
                return spoken
        if era == "modern":
            raise UpstreamFault(f"{session.name}: does not speak {MODERN}; see servers.{session.name}.era", sent=False)
        try:
            return await _initialize(session, capabilities, start_s)
        except _Modern:  # slow to begin: it had read the probe before
            return await _discover_late(session, probe.turn)
    finally:
        session.forget(probe)


async def _discover_late(session: StdioSession, turn: "asyncio.Future[Answer | None]") -> Spoken:
    await asyncio.wait([turn], timeout=PROBE_S)
    spoken = _discovered(_answered(turn)) if turn.done() else None
    if spoken is None:
        spoken = _discovered(await session.ask("server/discover", encode({"_meta": own_meta()}), START_S))
    if spoken is None:
        raise UpstreamFault(f"{session.name}: speaks neither {MODERN} nor {LEGACY}", sent=False)
    return spoken


class _Modern(Exception):
    """A refusal of `initialize` that only a modern server gives."""


async def _initialize(session: StdioSession, capabilities: bytes, start_s: float) -> Spoken:
    params = {"protocolVersion": LEGACY, "capabilities": msgspec.Raw(capabilities), "clientInfo": CLIENT_INFO}
    opening = session.begin("initialize", encode(params))
    try:
        await asyncio.wait([opening.turn], timeout=start_s)
    finally:
        session.forget(opening)
    if not opening.turn.done():
        raise UpstreamFault(f"{session.name}: no answer to initialize within {start_s:g} s", sent=False)
    answer = _answered(opening.turn)
    if answer.error:
        if _code(answer.error) == _UNSUPPORTED_VERSION:
            raise _Modern
        said = error_message(answer.error)
        raise UpstreamFault(f"{session.name}: initialize failed: {said}", sent=False)
    try:
        told = _decode_initialized(answer.result)
    except msgspec.DecodeError as error:
        raise UpstreamFault(
            f"{session.name}: the answer to initialize is malformed: {error}", code="upstream-malformed", sent=False
        ) from error
    if told.protocolVersion not in HANDSHAKE_PROTOCOL_VERSIONS:
        raise UpstreamFault(
            f"{session.name}: chose the protocol revision {told.protocolVersion[:32]!r}, which is not spoken here",
            sent=False,
        )
    session.notify("notifications/initialized", b"{}")
    return Spoken(False, bytes(told.capabilities), bytes(told.serverInfo), told.instructions or "")


def _discovered(answer: Answer) -> Spoken | None:
    """None: not a modern server's answer."""
    if answer.error:
        return Spoken(True) if _code(answer.error) in _MODERN_ONLY else None
    try:
        told = _decode_discovered(answer.result)
    except msgspec.DecodeError:
        return None
    if not set(MODERN_PROTOCOL_VERSIONS) & set(told.supportedVersions):
        return None
    info = bytes(told.meta.get(SERVER_INFO_META, b"null"))
    return Spoken(True, bytes(told.capabilities), info, told.instructions or "")


def _answered(turn: "asyncio.Future[Answer | None]") -> Answer:
    answer = turn.result()
    assert answer is not None, "the gateway's own requests do not pause"
    return answer


def _code(error: bytes) -> int:
    try:
        return messages.decode_error(error).code
    except msgspec.DecodeError:
        return 0
