"""Identifiers: UUIDv7 for events and calls, and the pseudonym under which a subject appears in plain columns."""

import hashlib
import hmac
import os
import time
from typing import NewType

Tenant = NewType("Tenant", str)
SubjectId = NewType("SubjectId", str)
CallId = NewType("CallId", str)


def now_us() -> int:
    """Microseconds since the epoch, UTC."""
    return time.time_ns() // 1000


def uuid7(time_us: int | None = None) -> str:
    """A UUIDv7 (RFC 9562 §5.7): 48 bits of milliseconds, 12 bits of sub-millisecond time (method 3), 62 random bits."""
    at_us = now_us() if time_us is None else time_us
    millis, micros = divmod(at_us, 1000)
    tail = int.from_bytes(os.urandom(8), "big") & 0x3FFFFFFFFFFFFFFF | 0x8000000000000000
    text = f"{(millis & 0xFFFFFFFFFFFF) << 16 | 0x7000 | (micros * 4096 // 1000):016x}{tail:016x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def subject_id(pepper: bytes, issuer: str, subject: str) -> SubjectId:
    """HMAC-SHA-256(pepper, issuer | subject), 128 bits in hex: the only subject in keys, indexes and plain columns."""
    return SubjectId(hmac.digest(pepper, f"{issuer}|{subject}".encode(), hashlib.sha256)[:16].hex())
