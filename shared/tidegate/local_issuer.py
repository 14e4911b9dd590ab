"""The local token issuer: signs access tokens for trials and tests, and writes the JWKS file by which edges verify
them.

Its key is an RSA key under {data}/keys/, mode 0600. Counterparts: `identity.TokenVerifier`, `tidegate token`. It is
an issuer like any other: nothing is accepted from it that would not be accepted from a corporate one.
"""

import base64
import contextlib
import hashlib
import os
import stat
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import jwt
import msgspec
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tidegate.errors import ConfigFault
from tidegate.secrets import write_private
from tidegate.settings import Issuer, Settings

ALGORITHM: Final = "RS256"
_RSA_BITS: Final = 2048
_TTL_S_MAX: Final = 366 * 24 * 3600


class LocalIssuer:
    """Mints tokens. `url` is Tidegate's public base URL; the issuer's name is `{url}/local`."""

    def __init__(self, key: rsa.RSAPrivateKey, url: str, jwks_file: Path) -> None:
        self._key = key
        self.issuer = issuer_name(url)
        self.jwks_file = jwks_file
        self._public = _public_jwk(key)

    @classmethod
    def open(cls, data_dir: Path, url: str) -> "LocalIssuer":
        """Read the key, or make it; write the JWKS file when it differs. Raises ConfigFault."""
        path = data_dir / "keys" / "local-issuer.pem"
        if not path.exists():
            _create_key(path)
        issuer = cls(_load_key(path), url, jwks_path(data_dir))
        issuer._publish()
        return issuer

    def jwks(self) -> dict[str, Any]:
        """The public keys (RFC 7517), for `/.well-known/jwks.json`."""
        return {"keys": [self._public]}

    def mint(
        self,
        user: str,
        agent: str,
        groups: Iterable[str],
        ttl_s: int,
        audiences: Iterable[str],
        now_s: int,
        *,
        scopes: Iterable[str] = (),
        sid: str = "",
    ) -> str:
        """An access token (RFC 9068 §2.2). `sid` defaults to a new one: the token's modern calls share a session.

        Raises ConfigFault when `user` or `agent` is empty, or the time to live is not 1 second to 366 days.
        """
        if not user or not agent:
            raise ConfigFault("a token needs a user and an agent; give --user and --agent")
        if not 0 < ttl_s <= _TTL_S_MAX:
            raise ConfigFault(f"a token lives 1 to {_TTL_S_MAX} seconds, not {ttl_s}; change --ttl")
        claims: dict[str, Any] = {
            "iss": self.issuer,
            "sub": user,
            "client_id": agent,
            "groups": sorted(set(groups)),
            "aud": list(audiences),
            "iat": now_s,
            "exp": now_s + ttl_s,
            "jti": str(uuid.uuid4()),
            "sid": sid or str(uuid.uuid4()),
        }
        if "@" in user.strip("@"):
            claims["email"] = user
        if scope := " ".join(scopes):
            claims["scope"] = scope
        return jwt.encode(claims, self._key, ALGORITHM, {"typ": "at+jwt", "kid": self._public["kid"]})

    def __repr__(self) -> str:
        return f"LocalIssuer({self.issuer!r})"

    def _publish(self) -> None:
        content = msgspec.json.format(msgspec.json.encode(self.jwks())) + b"\n"
        with contextlib.suppress(FileNotFoundError):
            if self.jwks_file.read_bytes() == content:
                return
        draft = self.jwks_file.with_name(f".{self.jwks_file.name}.{os.getpid()}")
        draft.write_bytes(content)
        draft.replace(self.jwks_file)


def issuer_name(url: str) -> str:
    return f"{url.rstrip('/')}/local"


def jwks_path(data_dir: Path) -> Path:
    return data_dir / "keys" / "local-issuer.jwks.json"


def open_local_issuer(settings: Settings) -> LocalIssuer:
    return LocalIssuer.open(settings.data_dir, settings.url)


def settings_issuer(settings: Settings) -> Issuer:
    """The entry that makes edges trust the local issuer; add it to the issuers when `settings.local_issuer` is on."""
    return Issuer(
        issuer=issuer_name(settings.url),
        jwks_file=str(jwks_path(settings.data_dir)),
        tenant=settings.tenant,
        algorithms=(ALGORITHM,),
    )


def _create_key(path: Path) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=_RSA_BITS)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    with contextlib.suppress(FileExistsError):  # another process was faster: its key stands
        write_private(path, pem)


def _load_key(path: Path) -> rsa.RSAPrivateKey:
    hint = "delete it to have a new one made (tokens signed with it stop working)"
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigFault(f"{path}: the local issuer's key cannot be read ({type(error).__name__}); {hint}") from None
    if mode & 0o077:
        raise ConfigFault(f"{path}: the local issuer's key is open to others (mode {mode:o}); run `chmod 600 {path}`")
    if not isinstance(key, rsa.RSAPrivateKey):
        raise ConfigFault(f"{path}: the local issuer's key is not an RSA key; {hint}")
    return key


def _public_jwk(key: rsa.RSAPrivateKey) -> dict[str, Any]:
    numbers = key.public_key().public_numbers()
    required = {"e": _number(numbers.e), "kty": "RSA", "n": _number(numbers.n)}
    # RFC 7638 §3: the thumbprint is over the required members, sorted, without white space.
    thumbprint = hashlib.sha256(msgspec.json.encode(required)).digest()
    return {**required, "kid": _base64url(thumbprint), "alg": ALGORITHM, "use": "sig"}


def _number(value: int) -> str:
    return _base64url(value.to_bytes((value.bit_length() + 7) // 8, "big"))


def _base64url(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()
