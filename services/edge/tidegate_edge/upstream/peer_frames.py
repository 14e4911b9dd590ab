"""What edges say to each other: one request, then a stream of frames. Pure. Counterparts: `peers.py` here (who asks)
and `tidegate_edge/peers.py` (who is asked).

Every request is sealed with AES-256-GCM under a key made for its nonce alone, and bound to its path and time; frames
are sealed in their order, so none can be altered, left out or moved. Within version 1, fields may be added and frames
of unknown kinds are passed over, so that an edge and the next version of it understand each other.
"""

import hashlib
import hmac
import os
from collections.abc import Mapping
from typing import Final, NamedTuple

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tidegate_edge.upstream.port import Answer, Asked, Caller, Wanted

PATH: Final = "/internal/v1/upstream/"
WINDOW_S: Final = 30
NONCE_BYTES: Final = 16
FRAME_HEAD: Final = 4  # bytes, big endian: the sealed frame's length
_TAG_BYTES: Final = 16


class PeerCall(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One request to another edge; what its path names says which fields count."""

    v: int = 1
    to: str  # the bus address of the edge that is meant
    server: str
    call: str = ""  # by which answers find the call they belong to
    caller: Caller = Caller("", "", "")
    method: str = ""
    params: bytes = b"{}"
    modern: bool = False
    timeout_s: float = 0.0
    progress_token: str = ""
    log_level: str = ""
    pausable: bool = False
    ticket: bytes = b""
    answers: Mapping[str, Answer] = {}
    wanted: Wanted = Wanted()
    number: int = 0
    answer: Answer = Answer()
    second: bool = False  # of the server's two processes, the one for legacy clients is meant


class Frame(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """kinds: alive, notified, asked, rested; the last one is answer, paused, done or fault."""

    kind: str
    v: int = 1
    method: str = ""
    params: bytes = b""
    number: int = 0  # of a question
    retry_ms: int = 0
    answer: Answer = Answer()
    asked: dict[str, Asked] = {}
    ticket: bytes = b""
    edge: str = ""
    code: str = ""
    sentence: str = ""
    sent: bool = True


LAST: Final = frozenset({"answer", "paused", "done", "fault"})
ALIVE: Final = Frame(kind="alive")
encode_call: Final = msgspec.msgpack.Encoder().encode
decode_call: Final = msgspec.msgpack.Decoder(PeerCall).decode
_encode_frame: Final = msgspec.msgpack.Encoder().encode
_decode_frame: Final = msgspec.msgpack.Decoder(Frame).decode


class Proof(NamedTuple):
    """What a request's headers carry beside it."""

    at_s: int
    nonce: bytes
    proof: bytes  # over path, time, nonce and length: a stranger's body is not even read


class PeerSeal:
    """Seals and opens with the key that the edges of one cluster share."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def seal_call(self, path: str, call: bytes, at_s: int) -> tuple[Proof, bytes]:
        nonce = os.urandom(NONCE_BYTES)
        body = AESGCM(self._derived(b"request", nonce)).encrypt(_number(0), call, _bound(path, at_s, nonce))
        return Proof(at_s, nonce, self._proof(path, at_s, nonce, len(body))), body

    def proves(self, path: str, proof: Proof, length: int, now_s: float) -> bool:
        """Whether an edge of this cluster has just asked for this path, with a body of this length."""
        wanted = self._proof(path, proof.at_s, proof.nonce, length)
        return hmac.compare_digest(wanted, proof.proof) and abs(now_s - proof.at_s) <= WINDOW_S

    def open_call(self, path: str, proof: Proof, body: bytes) -> bytes | None:
        """None: altered, or meant for another path or time."""
        cipher = AESGCM(self._derived(b"request", proof.nonce))
        try:
            return cipher.decrypt(_number(0), body, _bound(path, proof.at_s, proof.nonce))
        except InvalidTag:
            return None

    def frames_of(self, nonce: bytes) -> "FrameSeal":
        return FrameSeal(self._derived(b"reply", nonce))

    def _proof(self, path: str, at_s: int, nonce: bytes, length: int) -> bytes:
        return hmac.digest(self._key, b"proof|%d|%b" % (length, _bound(path, at_s, nonce)), hashlib.sha256)

    def _derived(self, purpose: bytes, nonce: bytes) -> bytes:
        return hmac.digest(self._key, purpose + b"|" + nonce, hashlib.sha256)


class FrameSeal:
    """The frames of one reply, in one direction and in their order."""

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)
        self._count = 0

    def seal(self, frame: Frame) -> bytes:
        """With its length in front."""
        sealed = self._cipher.encrypt(self._next(), _encode_frame(frame), None)
        return len(sealed).to_bytes(FRAME_HEAD) + sealed

    def open(self, sealed: bytes) -> Frame | None:
        """None: not the next frame of this reply."""
        try:
            return _decode_frame(self._cipher.decrypt(self._next(), sealed, None))
        except (InvalidTag, msgspec.DecodeError):
            return None

    def _next(self) -> bytes:
        self._count += 1
        return _number(self._count)


def _number(count: int) -> bytes:
    """A nonce; keys are used for one request, or one reply, alone."""
    return count.to_bytes(12)


def _bound(path: str, at_s: int, nonce: bytes) -> bytes:
    return b"v1|POST|%b|%d|%b" % (path.encode(), at_s, nonce)
