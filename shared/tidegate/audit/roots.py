"""Signed roots: what is signed, the audit key that signs, and the check of a series of roots.

A root states: since the root before, the log took these records and no others, up to these positions. Its series is a
chain of its own, so that a root can neither change nor be left out. The key is not the one that signs releases.
"""

import base64
import binascii
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from tidegate.audit.merkle import root_of
from tidegate.errors import ConfigFault, Fault
from tidegate.events import Leaf, RootSealed
from tidegate.policy.signing import ensure_signing_key, key_id_of, load_signing_key
from tidegate.settings import Settings

LEAVES_MAX = 2_000  # of one root, so that its event fits into the log
ROOT_BYTES_MAX = 64 * 1024
_PURPOSE = b"tidegate audit root v1\n"  # in front of what is signed: the key's signatures mean nothing elsewhere

Trust = Mapping[str, Ed25519PublicKey]
"""Public audit keys by their id."""


class RootFault(Fault):
    """A root cannot be believed; the code says why."""

    code = "root-malformed"


class Root(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is signed."""

    v: Literal[1] = 1
    sealer: str
    number: int  # from 1, without a gap
    previous: str  # SHA-256, hex, of the signed struct of the root before; "" at the first
    tree: str  # root, hex, of the Merkle tree over the leaves
    leaves: int
    events: int
    sealed_us: int
    positions: dict[str, int]  # "topic/partition" of the log: the first offset that no root of this series covers yet


class Signed(NamedTuple):
    root: bytes
    signature: str
    key_id: str


class Opened(NamedTuple):
    """A root that was verified, with its leaves."""

    root: Root
    digest: str
    leaves: tuple[Leaf, ...]


class AuditKey:
    """The sealer's private key. Never printed."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.key_id = key_id_of(private.public_key())

    def __repr__(self) -> str:
        return f"AuditKey({self.key_id})"

    @property
    def public(self) -> str:
        """As `trust.audit_keys` takes it: base64 of the 32 bytes."""
        return base64.b64encode(self._private.public_key().public_bytes_raw()).decode()

    def sign(self, root: Root) -> Signed:
        body = msgspec.json.encode(root)
        return Signed(body, base64.b64encode(self._private.sign(_PURPOSE + body)).decode(), self.key_id)


def open_audit_key(settings: Settings) -> AuditKey | None:
    """The key that `audit.roots.key_file` names; in local mode one that is made in the data directory; else None.

    Raises ConfigFault where it cannot be read, or is the one that signs releases.
    """
    named = settings.audit.roots.key_file
    if not named and not settings.is_local:
        return None
    try:
        key = load_signing_key(settings.path(named)) if named else ensure_signing_key(_local_key_file(settings))
    except ConfigFault as fault:
        raise ConfigFault(fault.sentence.replace("signing.key_file", "audit.roots.key_file", 1)) from None
    if key.public in _release_keys(settings):
        raise ConfigFault("audit.roots.key_file: this key signs releases; make another, whoever holds one has not both")
    return AuditKey(key.private)


def trusted_audit_keys(public: Iterable[str]) -> dict[str, Ed25519PublicKey]:
    """`trust.audit_keys` by key id. Raises ConfigFault."""
    keys: dict[str, Ed25519PublicKey] = {}
    for text in public:
        try:
            key = Ed25519PublicKey.from_public_bytes(base64.b64decode(text.strip(), validate=True))
        except (ValueError, binascii.Error) as error:
            raise ConfigFault(
                f"trust.audit_keys: '{text[:60]}' is not the base64 of an Ed25519 public key's 32 bytes"
            ) from error
        keys[key_id_of(key)] = key
    return keys


def entry_of(leaf: Leaf) -> bytes:
    """The leaf as an entry of the root's tree: its canonical JSON."""
    return msgspec.json.encode(leaf)


def tree_of(leaves: Sequence[Leaf]) -> str:
    return root_of(map(entry_of, leaves)).hex()


def digest_of(signed_root: bytes) -> str:
    return hashlib.sha256(signed_root).hexdigest()


def open_signed(signed: Signed, trust: Trust) -> Root:
    """The root, its signature verified. Raises RootFault."""
    if len(signed.root) > ROOT_BYTES_MAX:
        raise RootFault(f"a signed root has at most {ROOT_BYTES_MAX} bytes")
    key = trust.get(signed.key_id)
    if key is None:
        raise RootFault(
            f"nobody here trusts the audit key '{signed.key_id[:32]}'; see trust.audit_keys", code="root-key-unknown"
        )
    try:
        key.verify(base64.b64decode(signed.signature, validate=True), _PURPOSE + signed.root)
    except (InvalidSignature, ValueError):
        raise RootFault("the signature does not fit the root", code="root-signature-invalid") from None
    try:
        return msgspec.json.decode(signed.root, type=Root)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RootFault(f"the signed root cannot be read: {error}") from error


def open_root(event: RootSealed, trust: Trust) -> Opened:
    """The root of an event with its leaves, all of it verified. Raises RootFault."""
    body = bytes(event.root)
    root = open_signed(Signed(body, event.signature, event.key_id), trust)
    if (root.sealer, root.number) != (event.sealer, event.number):
        raise RootFault(f"the event says root {event.number} of '{event.sealer}', its signed root another one")
    if root.leaves != len(event.leaves) or root.tree != tree_of(event.leaves):
        raise RootFault("the leaves are not those that were signed", code="root-leaves-changed")
    return Opened(root, digest_of(body), event.leaves)


def follows(root: Root, before: Opened) -> str:
    """Why `root` cannot come after the one before it; "" where it does."""
    if root.number != before.root.number + 1:
        return f"after root {before.root.number} of '{root.sealer}' comes root {root.number}: roots are missing between"
    if root.previous != before.digest:
        return f"root {root.number} of '{root.sealer}' continues another root {before.root.number} than the one here"
    return ""


def _local_key_file(settings: Settings) -> Path:
    return settings.data_dir / "keys" / "audit.pem"


def _release_keys(settings: Settings) -> set[str]:
    """Public keys of releases that this process can know of."""
    own = settings.path(settings.signing.key_file) if settings.signing.key_file else None
    known = set(settings.trust.bundle_keys)
    if own is not None and own.is_file():
        known.add(load_signing_key(own).public)
    return known
