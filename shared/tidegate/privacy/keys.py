"""Data keys of subjects: what seals and opens the personal part of an event, and how a key itself is kept.

An event's personal part is sealed under a key of its (tenant, subject); the key is kept wrapped under its tenant's
wrapping key, which is derived from a master. Whoever destroys every copy of a data key has erased what it sealed,
while the stored bytes and their chains stay as they are. Pure, but for random numbers. Counterparts: `ring.py` folds
the published keys, `master.py` reads the masters. Keys are in no error, log line or `repr`.
"""

import binascii
import hashlib
import hmac
import os
import secrets
from base64 import b64decode, b64encode
from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tidegate.errors import ConfigFault, KeyFault
from tidegate.events import Sealed
from tidegate.limits import MASTER_KEYS_MAX, TENANTS_CACHED_MAX

KEY_BYTES: Final = 32
VERSION: Final = 1
_NONCE_BYTES: Final = 12
_TAG_BYTES: Final = 16
_NOTHING: Final = b"{}"

_encode = msgspec.json.Encoder().encode
_decode_plain = msgspec.json.Decoder(Sealed).decode


class SubjectKey(NamedTuple):
    """A data key. `kid` (32 hex digits, random) names it everywhere; `key` is 32 secret bytes."""

    kid: str
    tenant: str
    subject_id: str
    created_us: int
    key: bytes

    @classmethod
    def generate(cls, tenant: str, subject_id: str, now_us: int) -> "SubjectKey":
        return cls(secrets.token_hex(16), tenant, subject_id, now_us, secrets.token_bytes(KEY_BYTES))

    def __repr__(self) -> str:
        return f"SubjectKey({self.kid})"


class Published(msgspec.Struct, frozen=True, kw_only=True):
    """A data key as the topic `subject-keys` holds it; under the key `topic_key`."""

    v: int
    kid: str
    tenant: str
    subject_id: str
    created_us: int
    wrapped: str  # base64 of nonce | AES-256-GCM ciphertext | tag
    wrapping: str  # names the master whose tenant key wraps it


_decode_published = msgspec.json.Decoder(Published).decode


def topic_key(tenant: str, subject_id: str, kid: str) -> bytes:
    """The log key of a data key."""
    return f"{tenant}|{subject_id}|{kid}".encode()


def named_by(key: bytes) -> tuple[str, str, str] | None:
    """(tenant, subject id, kid) of a log key; None where it names no data key."""
    try:
        tenant, subject_id, kid = key.decode().rsplit("|", 2)
    except ValueError:
        return None
    return (tenant, subject_id, kid) if tenant and subject_id and kid else None


def published(value: bytes) -> Published:
    """What a value of the topic says, without opening the key. Raises KeyFault (`key-malformed`)."""
    try:
        found = _decode_published(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise KeyFault("a record of a subject's key is malformed; it was not written by Tidegate") from None
    if found.v != VERSION:
        raise KeyFault(f"subject key {found.kid:.32}: version {found.v} is newer than this Tidegate; upgrade it")
    return found


class Lock:
    """A data key ready for use: making the cipher once costs less than a call's share of sealing."""

    __slots__ = ("_associated", "_cipher", "key")

    def __init__(self, key: SubjectKey) -> None:
        self.key = key
        self._cipher = AESGCM(key.key)
        self._associated = key.kid.encode()

    def seal(self, plain: Sealed) -> Sealed:
        """Only `kid` and `box` are set in it. What holds nothing, or is sealed already, is returned as it is."""
        if plain.kid:
            return plain
        content = _encode(plain)
        if content == _NOTHING:
            return plain
        nonce = os.urandom(_NONCE_BYTES)
        box = b64encode(nonce + self._cipher.encrypt(nonce, content, self._associated)).decode()
        return Sealed(kid=self.key.kid, box=box)

    def open(self, sealed: Sealed) -> Sealed:
        """What was sealed. Raises KeyFault (`box-altered`)."""
        box = _unboxed(sealed.box)
        if box is not None and sealed.kid == self.key.kid:
            try:
                return _decode_plain(self._cipher.decrypt(box[:_NONCE_BYTES], box[_NONCE_BYTES:], self._associated))
            except (InvalidTag, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                pass
        raise KeyFault(
            f"a personal part does not open under key {self.key.kid}: it was altered, or sealed under another; "
            "`tidegate verify` shows whether its record is the one that was written",
            code="box-altered",
        )


def seal(plain: Sealed, key: SubjectKey) -> Sealed:
    """See `Lock.seal`."""
    return Lock(key).seal(plain)


def open_sealed(sealed: Sealed, key: SubjectKey) -> Sealed:
    """See `Lock.open`; what is not sealed is returned as it is."""
    return Lock(key).open(sealed) if sealed.kid else sealed


class Wrapping:
    """The masters, each 32 bytes: the first wraps, all unwrap. Tenants never share a derived key."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        if not 0 < len(keys) <= MASTER_KEYS_MAX:
            raise ConfigFault(f"there are 1 to {MASTER_KEYS_MAX} master keys, not {len(keys)}")
        if any(len(key) != KEY_BYTES for key in keys):
            raise ConfigFault(f"a master key has {KEY_BYTES} bytes")
        self._masters = {_master_id(key): key for key in keys}
        if len(self._masters) != len(keys):
            raise ConfigFault("two master keys are the same")
        self.current = _master_id(keys[0])
        self._derived: dict[tuple[str, str], AESGCM] = {}

    def wrap(self, key: SubjectKey) -> bytes:
        """The value under which the topic keeps it."""
        nonce = os.urandom(_NONCE_BYTES)
        bound = _bound_to(key.tenant, key.subject_id, key.kid, key.created_us)
        wrapped = nonce + self._cipher(self.current, key.tenant).encrypt(nonce, key.key, bound)
        return _encode(
            Published(
                v=VERSION,
                kid=key.kid,
                tenant=key.tenant,
                subject_id=key.subject_id,
                created_us=key.created_us,
                wrapped=b64encode(wrapped).decode(),
                wrapping=self.current,
            )
        )

    def unwrap(self, value: bytes) -> SubjectKey:
        """Raises KeyFault: `key-malformed`, `wrapping-unknown` (of a master that is not here), `key-altered`."""
        found = published(value)
        if found.wrapping not in self._masters:
            raise KeyFault(
                f"subject key {found.kid:.32} is wrapped by the master {found.wrapping:.16}, which is not in "
                "privacy.key_file; add the line that was there when the key was made",
                code="wrapping-unknown",
            )
        wrapped = _unboxed(found.wrapped)
        bound = _bound_to(found.tenant, found.subject_id, found.kid, found.created_us)
        try:
            if wrapped is None:
                raise InvalidTag
            cipher = self._cipher(found.wrapping, found.tenant)
            key = cipher.decrypt(wrapped[:_NONCE_BYTES], wrapped[_NONCE_BYTES:], bound)
        except InvalidTag:
            raise KeyFault(
                f"subject key {found.kid:.32} was altered since it was wrapped; what it sealed cannot be read",
                code="key-altered",
            ) from None
        return SubjectKey(found.kid, found.tenant, found.subject_id, found.created_us, key)

    def is_current(self, value: bytes) -> bool:
        """Whether the first master wraps it. Raises KeyFault."""
        return published(value).wrapping == self.current

    def _cipher(self, master: str, tenant: str) -> AESGCM:
        cipher = self._derived.get((master, tenant))
        if cipher is None:
            if len(self._derived) >= TENANTS_CACHED_MAX:
                self._derived.clear()
            cipher = self._derived[master, tenant] = AESGCM(tenant_key(self._masters[master], tenant))
        return cipher

    def __repr__(self) -> str:
        return f"Wrapping({', '.join(self._masters)})"


def tenant_key(master: bytes, tenant: str) -> bytes:
    """HKDF-SHA256 (RFC 5869) of a master, for one tenant."""
    info = b"tidegate subject keys|" + tenant.encode()
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=info).derive(master)


def _bound_to(tenant: str, subject_id: str, kid: str, created_us: int) -> bytes:
    """A wrapped key opens as what it was published as alone: a later time would have it outlive an erasure."""
    return topic_key(tenant, subject_id, kid) + b"|%d" % created_us


def _master_id(key: bytes) -> str:
    """Public, and says nothing of the key."""
    return hmac.digest(key, b"tidegate wrapping id", hashlib.sha256)[:8].hex()


def _unboxed(text: str) -> bytes | None:
    try:
        raw = b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return raw if len(raw) >= _NONCE_BYTES + _TAG_BYTES else None
