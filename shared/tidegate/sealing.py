"""Seals: authenticated, encrypted values that clients carry for us (session ids, cursors, request states).

AES-256-GCM under a key ring: the first key seals, every key opens. A seal opens only for the purpose and the binding
(whose it is) that it was made with. Format 1: base64url of version | kid | nonce | ciphertext and tag. Nonces are
random, so rotate before 2**32 seals have been made with one key.
"""

import binascii
import os
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tidegate.errors import ConfigFault
from tidegate.limits import SEALED_CHARS_MAX, SEALING_KEYS_MAX

_VERSION = b"\x01"
_KID_BYTES, _NONCE_BYTES, _TAG_BYTES = 4, 12, 16
_HEAD_BYTES = len(_VERSION) + _KID_BYTES
_LEAST_BYTES = _HEAD_BYTES + _NONCE_BYTES + _TAG_BYTES


class SealingKey(NamedTuple):
    """A key of the ring; `kid` is 4 public bytes that name it."""

    kid: bytes
    key: bytes

    @classmethod
    def generate(cls) -> "SealingKey":
        return cls(secrets.token_bytes(_KID_BYTES), secrets.token_bytes(32))

    def __repr__(self) -> str:
        return f"SealingKey({self.kid.hex()})"


class Sealer:
    """Seals and opens. Safe to share between tasks and threads."""

    def __init__(self, keys: Sequence[SealingKey]) -> None:
        if not 0 < len(keys) <= SEALING_KEYS_MAX:
            raise ConfigFault(f"a sealing key ring holds 1 to {SEALING_KEYS_MAX} keys, not {len(keys)}")
        if any(len(key.kid) != _KID_BYTES or len(key.key) != 32 for key in keys):
            raise ConfigFault("a sealing key is 32 bytes, its kid 4 bytes")
        self._ring = {key.kid: AESGCM(key.key) for key in keys}
        if len(self._ring) != len(keys):
            raise ConfigFault("two sealing keys have the same kid")
        self._kid = keys[0].kid

    def seal(self, purpose: str, payload: bytes, bound_to: bytes) -> str:
        """A URL- and header-safe text that opens only with the same purpose and binding. It hides the payload.

        Raises ValueError when the seal would exceed `SEALED_CHARS_MAX`.
        """
        head = _VERSION + self._kid
        nonce = os.urandom(_NONCE_BYTES)
        sealed = self._ring[self._kid].encrypt(nonce, payload, _associated(head, purpose, bound_to))
        text = urlsafe_b64encode(head + nonce + sealed).rstrip(b"=").decode()
        if len(text) > SEALED_CHARS_MAX:
            raise ValueError(f"a seal of {len(payload)} bytes is longer than {SEALED_CHARS_MAX} characters")
        return text

    def unseal(self, purpose: str, token: str, bound_to: bytes) -> bytes | None:
        """The payload, or None: altered, foreign, of another purpose or binding, or of a key that has left the ring."""
        raw = _decode(token)
        if raw is None or len(raw) < _LEAST_BYTES or raw[:1] != _VERSION:
            return None
        head, nonce = raw[:_HEAD_BYTES], raw[_HEAD_BYTES : _HEAD_BYTES + _NONCE_BYTES]
        key = self._ring.get(head[len(_VERSION) :])
        if key is None:
            return None
        try:
            return key.decrypt(nonce, raw[_HEAD_BYTES + _NONCE_BYTES :], _associated(head, purpose, bound_to))
        except InvalidTag:
            return None


def _associated(head: bytes, purpose: str, bound_to: bytes) -> bytes:
    """Lengths in front, so that no two (purpose, binding) pairs give the same bytes."""
    name = purpose.encode()
    return b"%b%d:%b%b" % (head, len(name), name, bound_to)


def _decode(token: str) -> bytes | None:
    """Strict: only the text that `seal` writes for these bytes, so a value has one spelling."""
    if len(token) > SEALED_CHARS_MAX:
        return None
    try:
        raw = urlsafe_b64decode(token + "=" * (-len(token) % 4))
    except (binascii.Error, ValueError):
        return None
    return raw if urlsafe_b64encode(raw).rstrip(b"=").decode() == token else None
