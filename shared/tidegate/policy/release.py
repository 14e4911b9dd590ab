"""Releases: a signed pointer of a ring to a bundle, and its records in the log. Counterpart: `obey.py` folds them.

On `policy-state`: `tenant|ring` holds the signed release; `tenant|digest|n|m` the n-th of m chunks of canonical bytes
(a key of its own each, or compaction would keep one chunk only), appended again with every release, so that a reader
needs no memory of old bundles. Numbers strictly increase within a ring; a roll-back is a new release of an old
digest.
"""

import base64
import binascii
import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from tidegate.chain import Chain
from tidegate.errors import BundleFault, ConfigFault
from tidegate.events import BundleReleased
from tidegate.ids import uuid7
from tidegate.limits import BUNDLE_BYTES_MAX, BUNDLE_CHUNK_BYTES
from tidegate.log.port import Record
from tidegate.policy.bundle import Bundle

RING = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
DIGEST = re.compile(r"[0-9a-f]{64}")
POINTER_BYTES_MAX = 4_096
STATE_TOPIC = "policy-state"
_PURPOSE = b"tidegate release v1\n"  # in front of what is signed: the key's signatures mean nothing elsewhere


class Release(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is signed. `not_before_us`: edges hold it back until then."""

    v: Literal[1] = 1
    tenant: str
    ring: str
    number: int
    digest: str
    previous: str
    not_before_us: int = 0


class SignedRelease(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A release byte for byte, with the Ed25519 signature (base64) over it and the id of the key that made it."""

    release: msgspec.Raw
    signature: str
    key_id: str


Trust = Mapping[str, Ed25519PublicKey]
"""Public keys by their id."""


@dataclass(frozen=True)
class SigningKey:
    """The policy service's private key. Never printed."""

    private: Ed25519PrivateKey

    def __repr__(self) -> str:
        return f"SigningKey({self.key_id})"

    @property
    def public(self) -> str:
        """The public key as `trust.bundle_keys` takes it: base64 of its 32 bytes."""
        return base64.b64encode(self.private.public_key().public_bytes_raw()).decode()

    @property
    def key_id(self) -> str:
        return key_id_of(self.private.public_key())

    def sign(self, release: Release) -> bytes:
        """The signed release as it is stored."""
        body = msgspec.json.encode(release)
        signature = base64.b64encode(self.private.sign(_PURPOSE + body)).decode()
        return msgspec.json.encode(SignedRelease(release=msgspec.Raw(body), signature=signature, key_id=self.key_id))


def load_signing_key(path: Path) -> SigningKey:
    """The key in a PEM file. Raises ConfigFault."""
    try:
        private = load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigFault(f"signing.key_file: {path}: no readable Ed25519 private key in PEM form ({error})") from error
    if not isinstance(private, Ed25519PrivateKey):
        raise ConfigFault(
            f"signing.key_file: {path} holds another kind of key; make one with `openssl genpkey -algorithm ed25519`"
        )
    return SigningKey(private)


def ensure_signing_key(path: Path) -> SigningKey:
    """The key in this file, made now (readable by its owner only) where there is none. Raises ConfigFault."""
    if path.exists():
        return load_signing_key(path)
    pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    fresh = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())
        os.link(fresh, path)  # whole or not at all, and never over another's key
    except FileExistsError:
        pass
    finally:
        fresh.unlink(missing_ok=True)
    return load_signing_key(path)


def key_id_of(key: Ed25519PublicKey) -> str:
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:16]


def trusted_keys(public: Iterable[str]) -> Trust:
    """`trust.bundle_keys` by key id. Raises ConfigFault."""
    keys: dict[str, Ed25519PublicKey] = {}
    for text in public:
        try:
            key = Ed25519PublicKey.from_public_bytes(base64.b64decode(text, validate=True))
        except (ValueError, binascii.Error) as error:
            raise ConfigFault(
                f"trust.bundle_keys: '{text[:60]}' is not the base64 of an Ed25519 public key's 32 bytes"
            ) from error
        keys[key_id_of(key)] = key
    return keys


def open_release(signed: bytes, trust: Trust, tenant: str) -> Release:
    """The release in its stored form, verified. Raises BundleFault whose code is the reason for the refusal."""
    if len(signed) > POINTER_BYTES_MAX:
        raise BundleFault(f"a release has at most {POINTER_BYTES_MAX} bytes", code="release-malformed")
    try:
        outer = msgspec.json.decode(signed, type=SignedRelease)
        signature = base64.b64decode(outer.signature, validate=True)
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
        raise BundleFault(
            f"the release is not {{release, signature, key_id}}: {error}", code="release-malformed"
        ) from error
    key = trust.get(outer.key_id)
    if key is None:
        raise BundleFault(
            f"nobody here trusts the key '{outer.key_id[:32]}'; see trust.bundle_keys", code="key-unknown"
        )
    body = bytes(outer.release)
    try:
        key.verify(signature, _PURPOSE + body)
    except InvalidSignature:
        raise BundleFault("the release's signature does not fit it", code="signature-invalid") from None
    try:
        release = msgspec.json.decode(body, type=Release)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BundleFault(f"the signed release cannot be read: {error}", code="release-malformed") from error
    if release.tenant != tenant:
        raise BundleFault(f"the release is for another tenant than '{tenant}'", code="tenant-foreign")
    return release


def pointer_key(tenant: str, ring: str) -> bytes:
    return f"{tenant}|{ring}".encode()


def chunk_records(tenant: str, bundle: Bundle) -> list[Record]:
    """The bundle's canonical bytes as records of `policy-state`."""
    starts = range(0, len(bundle.canonical), BUNDLE_CHUNK_BYTES)
    return [
        Record(
            STATE_TOPIC,
            f"{tenant}|{bundle.digest}|{number}|{len(starts)}".encode(),
            bundle.canonical[start : start + BUNDLE_CHUNK_BYTES],
        )
        for number, start in enumerate(starts)
    ]


def records_for_release(
    chain: Chain,
    signed: bytes,
    bundle: Bundle,
    *,
    region: str,
    actor: str,
    cause: Literal["published", "rolled-back"],
    now_us: int,
) -> list[Record]:
    """What a release appends, all in one append: the history's event, the bundle's bytes, the ring's pointer."""
    release = msgspec.json.decode(bytes(msgspec.json.decode(signed, type=SignedRelease).release), type=Release)
    event = BundleReleased(
        id=uuid7(now_us),
        time_us=now_us,
        tenant=release.tenant,
        region=region,
        ring=release.ring,
        number=release.number,
        digest=release.digest,
        previous=release.previous,
        cause=cause,
        actor=actor,
        release=msgspec.Raw(signed),
    )
    pointer = Record(STATE_TOPIC, pointer_key(release.tenant, release.ring), signed)
    return [chain.seal(event), *chunk_records(release.tenant, bundle), pointer]


class Chunks:
    """Bundles as they arrive, chunk by chunk, in any order. Bounded: the oldest leaves first, the wanted one never."""

    def __init__(self, bytes_max: int = 4 * BUNDLE_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._parts: dict[tuple[str, int], dict[int, bytes]] = {}

    def add(self, digest: str, number: int, count: int, content: bytes, wanted: str) -> None:
        """Keep a chunk; `wanted` is the digest that is waited for."""
        fits = 0 <= number < count and count * BUNDLE_CHUNK_BYTES < BUNDLE_BYTES_MAX + BUNDLE_CHUNK_BYTES
        if not fits or not DIGEST.fullmatch(digest) or len(content) > BUNDLE_CHUNK_BYTES:
            return
        parts = self._parts.setdefault((digest, count), {})
        self._bytes += len(content) - len(parts.get(number, b""))
        parts[number] = content
        for key in list(self._parts):
            if self._bytes <= self._bytes_max:
                break
            if key[0] not in (wanted, digest):
                self._forget(key)

    def whole(self, digest: str) -> bytes | None:
        """The bytes, once all chunks are there."""
        for (name, count), parts in self._parts.items():
            if name == digest and len(parts) == count:
                return b"".join(parts[number] for number in range(count))
        return None

    def forget(self, digest: str) -> None:
        for key in [key for key in self._parts if key[0] == digest]:
            self._forget(key)

    def _forget(self, key: tuple[str, int]) -> None:
        self._bytes -= sum(map(len, self._parts.pop(key).values()))
