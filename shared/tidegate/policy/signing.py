"""Signed releases: the Ed25519 key that makes them, the public keys that are trusted, and verification.

Counterpart: `release.py` puts a signed release and its bundle into the log and takes them out again.
"""

import base64
import binascii
import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import msgspec
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from tidegate.errors import BundleFault, ConfigFault
from tidegate.events import Role
from tidegate.settings import Settings

POINTER_BYTES_MAX = 4_096
_PURPOSE = b"tidegate release v1\n"  # in front of what is signed: the key's signatures mean nothing elsewhere


class Stage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """For whom a canary rules: whoever fits everything that is named. Empty: everybody."""

    percent: float = 100.0  # of principals: subject and agent, always the same ones for one digest
    regions: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    labels: dict[str, str] = {}  # of the edge


class Guard(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """By how much a release may be worse than what ruled before, or rules beside it; past that it is taken back."""

    denials: float | None = None  # share of calls denied, above the other's: 0.05 is five points
    errors: float | None = None  # share of calls denied because a rule could not be evaluated, above the other's
    slow: float | None = None  # share of decisions slower than `slow_us`
    slow_us: int = 5_000
    calls_min: int = 50  # before so many were decided by it, nothing is concluded
    watch_s: float = 600.0  # for how long a ruling release is watched; a canary always is


class Release(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What is signed. `not_before_us`: edges hold it back until then. A `digest` of "" ends a canary or shadow."""

    v: Literal[1] = 1
    tenant: str
    ring: str
    number: int
    digest: str
    previous: str
    not_before_us: int = 0
    role: Role = "ruling"
    stage: Stage | None = None  # of a canary
    guard: Guard | None = None


_PLAIN: Final = ("v", "tenant", "ring", "number", "digest", "previous", "not_before_us")


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
        body = _body(release)
        signature = base64.b64encode(self.private.sign(_PURPOSE + body)).decode()
        return msgspec.json.encode(SignedRelease(release=msgspec.Raw(body), signature=signature, key_id=self.key_id))


def _body(release: Release) -> bytes:
    """What is signed. A plain release has the bytes that it always had; what it need not say of roles is left out."""
    plain = {name: getattr(release, name) for name in _PLAIN}
    return msgspec.json.encode({**plain, **msgspec.to_builtins(release)})


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


def open_signing_key(settings: Settings) -> SigningKey:
    """The key that `signing.key_file` names; else, in local mode, one that is made in the data directory."""
    if settings.signing.key_file:
        return load_signing_key(settings.path(settings.signing.key_file))
    if settings.is_local:
        return ensure_signing_key(settings.data_dir / "keys" / "bundle.pem")
    raise ConfigFault("signing.key_file: the policy service signs releases; name an Ed25519 key in PEM form")
