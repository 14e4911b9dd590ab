"""The secrets that every process of a cluster shares: pepper, fingerprint key, sealing key ring.

One JSON file, mode 0600. Local mode makes it at its first start; a cluster gets it from `tidegate secrets init`, the
same file for every edge. Tenants never share a derived key. Counterparts: `ids.subject_id`, `sealing.Sealer`, the
edge's fingerprints.
"""

import contextlib
import hashlib
import hmac
import os
import secrets
import stat
from base64 import b64decode, b64encode
from pathlib import Path

import msgspec

from tidegate.errors import ConfigFault
from tidegate.limits import SEALING_KEYS_MAX, SECRETS_BYTES_MAX
from tidegate.sealing import Sealer, SealingKey
from tidegate.settings import Settings

_KEY_BYTES = 32
_INIT = "run `tidegate secrets init --config FILE` once and give every edge the same file"


class _StoredKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    kid: str  # 4 bytes, hex
    key: str  # 32 bytes, base64

    def __repr__(self) -> str:
        return f"_StoredKey(kid={self.kid!r})"


class _Stored(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    v: int = 1
    pepper: str  # 32 bytes, base64
    fingerprint: str
    sealing: tuple[_StoredKey, ...]  # the first seals, all open

    def __repr__(self) -> str:
        return "_Stored(…)"


class ClusterSecrets:
    """Shared keys in memory. Never printed: `repr` shows only which sealing keys there are."""

    __slots__ = ("_fingerprint", "_pepper", "sealing_keys")

    def __init__(self, pepper: bytes, fingerprint: bytes, sealing_keys: tuple[SealingKey, ...]) -> None:
        if len(pepper) != _KEY_BYTES or len(fingerprint) != _KEY_BYTES:
            raise ConfigFault(f"pepper and fingerprint key are {_KEY_BYTES} bytes each; {_INIT}")
        self._pepper = pepper
        self._fingerprint = fingerprint
        self.sealing_keys = sealing_keys

    @classmethod
    def generate(cls) -> "ClusterSecrets":
        return cls(secrets.token_bytes(_KEY_BYTES), secrets.token_bytes(_KEY_BYTES), (SealingKey.generate(),))

    def pepper(self, tenant: str) -> bytes:
        """The tenant's own pepper, for `ids.subject_id`."""
        return _derive(self._pepper, "subject-pepper", tenant)

    def fingerprint_key(self, tenant: str) -> bytes:
        """The tenant's own key for content fingerprints."""
        return _derive(self._fingerprint, "content-fingerprint", tenant)

    def peer_key(self) -> bytes:
        """With which the edges of a cluster know each other."""
        return _derive(self._fingerprint, "edge-to-edge", "")

    def kept_key(self) -> bytes:
        """With which an edge knows again what it kept on its disk."""
        return _derive(self._fingerprint, "kept-at-edge", "")

    def sealer(self) -> Sealer:
        return Sealer(self.sealing_keys)

    def with_spare_key(self) -> "ClusterSecrets":
        """First step of a rotation: a new last key, which opens and does not seal yet. Roll it out to every edge."""
        ring = (*self.sealing_keys[: SEALING_KEYS_MAX - 1], SealingKey.generate())
        return ClusterSecrets(self._pepper, self._fingerprint, ring)

    def with_last_key_first(self) -> "ClusterSecrets":
        """Second step: the last key seals from now on. Drop the older ones when what they sealed has expired."""
        ring = (self.sealing_keys[-1], *self.sealing_keys[:-1])
        return ClusterSecrets(self._pepper, self._fingerprint, ring)

    def encode(self) -> bytes:
        """The file's content. Secret."""
        ring = tuple(_StoredKey(key.kid.hex(), _text(key.key)) for key in self.sealing_keys)
        stored = _Stored(pepper=_text(self._pepper), fingerprint=_text(self._fingerprint), sealing=ring)
        return msgspec.json.format(msgspec.json.encode(stored)) + b"\n"

    @classmethod
    def decode(cls, content: bytes, where: str) -> "ClusterSecrets":
        """Raises ConfigFault, which names the field and never its value."""
        try:
            stored = msgspec.json.decode(content, type=_Stored)
            if stored.v != 1:
                raise ConfigFault(f"{where}: version {stored.v} is newer than this Tidegate; upgrade it, or {_INIT}")
            ring = tuple(
                SealingKey(bytes.fromhex(key.kid), b64decode(key.key, validate=True)) for key in stored.sealing
            )
            found = cls(b64decode(stored.pepper, validate=True), b64decode(stored.fingerprint, validate=True), ring)
            Sealer(ring)
        except msgspec.DecodeError as error:
            raise ConfigFault(f"{where}: is not a secrets file ({error}); {_INIT}") from None
        except ValueError:
            raise ConfigFault(f"{where}: a key is not valid hex or base64; {_INIT}") from None
        except ConfigFault as fault:
            raise ConfigFault(fault.sentence if where in fault.sentence else f"{where}: {fault.sentence}") from None
        return found

    def __repr__(self) -> str:
        return f"ClusterSecrets(sealing=[{', '.join(key.kid.hex() for key in self.sealing_keys)}])"


def secrets_path(settings: Settings) -> Path:
    return settings.path(settings.secrets_file) if settings.secrets_file else settings.data_dir / "secrets.json"


def open_secrets(settings: Settings) -> ClusterSecrets:
    """Read the file; in local mode make it when it is missing. Raises ConfigFault."""
    path = secrets_path(settings)
    if not path.exists():
        if not settings.is_local:
            raise ConfigFault(f"$.secrets_file: {path} does not exist; {_INIT}")
        return create_secrets(path)
    return load_secrets(path)


def create_secrets(path: Path) -> ClusterSecrets:
    """Make the file with new secrets, whole or not at all; where another process was faster, its file stands."""
    with contextlib.suppress(FileExistsError):
        write_private(path, ClusterSecrets.generate().encode())
    return load_secrets(path)


def load_secrets(path: Path) -> ClusterSecrets:
    """Raises ConfigFault when it cannot be read, is readable by everybody, too large or malformed."""
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            content = file.read(SECRETS_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigFault(f"$.secrets_file: {path} cannot be read ({error.strerror}); {_INIT}") from error
    if mode & 0o007:
        raise ConfigFault(f"$.secrets_file: {path} is open to everybody (mode {mode:o}); run `chmod 600 {path}`")
    if len(content) > SECRETS_BYTES_MAX:
        raise ConfigFault(f"$.secrets_file: {path} is larger than {SECRETS_BYTES_MAX} bytes; it is not a secrets file")
    return ClusterSecrets.decode(content, str(path))


def write_private(path: Path, content: bytes) -> None:
    """Create `path` with mode 0600 and the whole content, durably. Raises FileExistsError; never replaces."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.link(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _derive(key: bytes, purpose: str, tenant: str) -> bytes:
    """HKDF-Expand (RFC 5869 §2.3) for one block; the key is uniformly random, so Extract is not needed."""
    return hmac.digest(key, b"tidegate/v1/" + purpose.encode() + b"/" + tenant.encode() + b"\x01", hashlib.sha256)


def _text(key: bytes) -> str:
    return b64encode(key).decode()
