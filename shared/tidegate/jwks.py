"""Where an issuer's public keys come from: a JWKS file (re-read when it changes) or a URI (fetched, kept, refreshed).

Counterpart: `identity.TokenVerifier`. Keys come from configuration alone, never from a token's own `jku`, `x5u` or
`jwk`. The last good set rules when a new one cannot be had or read.
"""

import asyncio
import logging
import time
from collections.abc import Iterable
from ipaddress import ip_address
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Protocol, Self
from urllib.parse import urlsplit

import aiohttp
import jwt
import msgspec

from tidegate.errors import ConfigFault, OurFault
from tidegate.limits import JWKS_BYTES_MAX, JWKS_KEYS_MAX
from tidegate.settings import Issuer

_log = logging.getLogger(__name__)

ALGORITHMS_OF: Final = {
    ("RSA", ""): ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    ("EC", "P-256"): ("ES256",),
    ("EC", "P-384"): ("ES384",),
    ("EC", "P-521"): ("ES512",),
    ("OKP", "Ed25519"): ("EdDSA",),
}
"""Signature algorithms by (kty, crv). Symmetric ones are not here, so a public key can never serve as a secret."""

RSA_BITS_MIN: Final = 2048


class KeysUnavailable(OurFault):
    """An issuer's keys could not be had, and there is no earlier set."""

    code = "issuer-keys-unavailable"


class VerifyingKey(NamedTuple):
    kid: str
    algorithms: frozenset[str]
    key: Any  # a public key object of `cryptography`


class KeySource(Protocol):
    """The keys of one issuer."""

    async def find(self, kid: str, algorithm: str) -> VerifyingKey | None:
        """The key by its kid, if it serves the algorithm; "" finds the only one that does. Raises KeysUnavailable."""
        ...

    async def close(self) -> None: ...


class Keys:
    """A parsed JWKS (RFC 7517)."""

    def __init__(self, keys: Iterable[VerifyingKey]) -> None:
        self._keys = tuple(keys)
        self._by_kid: dict[str, list[VerifyingKey]] = {}
        for key in self._keys:
            self._by_kid.setdefault(key.kid, []).append(key)

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, kid: str, algorithm: str) -> VerifyingKey | None:
        candidates = self._by_kid.get(kid, []) if kid else self._keys
        fitting = [key for key in candidates if algorithm in key.algorithms]
        return fitting[0] if len(fitting) == 1 or (kid and fitting) else None


class _Jwk(msgspec.Struct):
    """The members that choose a key; what else is in it is read by the key's own algorithm."""

    kty: str
    crv: str = ""
    kid: str = ""
    alg: str = ""
    use: str = ""
    key_ops: tuple[str, ...] = ()


def parse_jwks(content: bytes, where: str) -> Keys:
    """The usable signature keys; others are skipped. Raises ValueError with a sentence when none is left."""
    if len(content) > JWKS_BYTES_MAX:
        raise ValueError(f"{where}: is larger than {JWKS_BYTES_MAX} bytes")
    try:
        document = msgspec.json.decode(content)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError(f"{where}: is not JSON ({error})") from None
    members = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(members, list) or len(members) > JWKS_KEYS_MAX:
        raise ValueError(f'{where}: expected {{"keys": […]}} with at most {JWKS_KEYS_MAX} keys')
    keys = Keys(key for member in members if (key := _verifying_key(member)) is not None)
    if not len(keys):
        raise ValueError(
            f"{where}: holds no usable signature key (RSA from {RSA_BITS_MIN} bits, EC P-256/384/521, Ed25519)"
        )
    return keys


def _verifying_key(member: Any) -> VerifyingKey | None:
    try:
        jwk = msgspec.convert(member, _Jwk)
    except msgspec.ValidationError:
        return None
    algorithms = ALGORITHMS_OF.get((jwk.kty, jwk.crv if jwk.kty != "RSA" else ""), ())
    if jwk.alg:
        algorithms = tuple(name for name in algorithms if name == jwk.alg)
    if not algorithms or jwk.use not in ("", "sig") or (jwk.key_ops and "verify" not in jwk.key_ops):
        return None
    public = {name: value for name, value in member.items() if name not in ("d", "p", "q", "dp", "dq", "qi", "oth")}
    try:
        key = jwt.PyJWK(public, algorithms[0]).key
    except (jwt.PyJWTError, ValueError, TypeError):
        return None
    if jwk.kty == "RSA" and key.key_size < RSA_BITS_MIN:
        return None
    return VerifyingKey(jwk.kid, frozenset(algorithms), key)


class FileKeys:
    """A JWKS file, read again when its identity, size or time of change differs."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None
        self._keys: Keys | None = None

    async def find(self, kid: str, algorithm: str) -> VerifyingKey | None:
        self._refresh()
        if self._keys is None:
            raise KeysUnavailable(f"{self._path}: holds no usable keys; write a JWKS there")
        return self._keys.find(kid, algorithm)

    async def close(self) -> None: ...

    def _refresh(self) -> None:
        try:
            status = self._path.stat()
            now_seen = (status.st_ino, status.st_size, status.st_mtime_ns)
            if now_seen == self._seen:
                return
            self._seen = now_seen  # a broken file is read, and complained of, once
            with self._path.open("rb") as file:
                self._keys = parse_jwks(file.read(JWKS_BYTES_MAX + 1), str(self._path))
        except (OSError, ValueError) as error:
            _log.warning("the keys in %s cannot be read, the earlier ones stay: %s", self._path, error)


class UriKeys:
    """A JWKS URI. At most one fetch at a time, and never two within the floor, whatever kids are asked for."""

    def __init__(
        self,
        uri: str,
        *,
        ttl_s: float = 3600.0,
        floor_s: float = 30.0,
        retry_s: float = 2.0,
        timeout_s: float = 5.0,
        session: "LazySession | None" = None,
    ) -> None:
        check_uri(uri)
        self._uri = uri
        self._ttl_s, self._floor_s, self._retry_s, self._timeout_s = ttl_s, floor_s, retry_s, timeout_s
        self._session = session or LazySession()
        self._lock = asyncio.Lock()
        self._keys: Keys | None = None
        self._fetched_at = -ttl_s  # monotonic; of the last good set
        self._next_try_at = 0.0
        self._problem = "not fetched yet"

    async def find(self, kid: str, algorithm: str) -> VerifyingKey | None:
        found = self._keys.find(kid, algorithm) if self._keys else None
        fresh = time.monotonic() - self._fetched_at < self._ttl_s
        if found is not None and fresh:
            return found
        await self._refresh()
        if self._keys is None:
            raise KeysUnavailable(
                f"the keys of {self._uri} cannot be had ({self._problem}); check jwks_uri and the network"
            )
        return self._keys.find(kid, algorithm)

    async def close(self) -> None:
        await self._session.close()

    async def _refresh(self) -> None:
        async with self._lock:
            if time.monotonic() < self._next_try_at:
                return
            try:
                self._keys = parse_jwks(await self._fetch(), self._uri)
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                self._problem = str(error) or type(error).__name__
                self._next_try_at = time.monotonic() + (self._retry_s if self._keys is None else self._floor_s)
                _log.warning("the keys of %s cannot be fetched, the earlier ones stay: %s", self._uri, self._problem)
            else:
                self._fetched_at = time.monotonic()
                self._next_try_at = self._fetched_at + self._floor_s

    async def _fetch(self) -> bytes:
        timeout = aiohttp.ClientTimeout(total=self._timeout_s)
        # A redirect could lead from https to anywhere: the address in the configuration is the one that is trusted.
        async with self._session.get().get(self._uri, timeout=timeout, allow_redirects=False) as response:
            if response.status != 200:
                raise ValueError(f"{self._uri}: answered {response.status}, expected 200")
            content = bytearray()
            async for chunk in response.content.iter_chunked(16 * 1024):
                content += chunk
                if len(content) > JWKS_BYTES_MAX:
                    raise ValueError(f"{self._uri}: is larger than {JWKS_BYTES_MAX} bytes")
            return bytes(content)


class LazySession:
    """One pooled aiohttp session, made at first use inside the running loop."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    def get(self) -> aiohttp.ClientSession:
        if self._session is None or self._session.closed:
            connector = aiohttp.TCPConnector(limit=8, limit_per_host=2)
            self._session = aiohttp.ClientSession(connector=connector, trust_env=True, raise_for_status=False)
        return self._session

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()


class IssuerKeys:
    """The key sources of all issuers, over one HTTP session. `async with`, or `close` at the end."""

    def __init__(self, issuers: Iterable[Issuer], root: Path) -> None:
        self._session = LazySession()
        self._sources: dict[str, KeySource] = {issuer.issuer: self._open(issuer, root) for issuer in issuers}

    def of(self, issuer: str) -> KeySource:
        return self._sources[issuer]

    async def close(self) -> None:
        await self._session.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _open(self, issuer: Issuer, root: Path) -> KeySource:
        if issuer.jwks_file:
            return FileKeys((root / issuer.jwks_file).resolve())
        return UriKeys(issuer.jwks_uri, session=self._session)


def check_uri(uri: str) -> None:
    """https, or http on this machine. Raises ConfigFault."""
    parts = urlsplit(uri)
    if parts.scheme == "https" and parts.hostname:
        return
    if parts.scheme != "http" or not _is_loopback(parts.hostname or ""):
        raise ConfigFault(
            f"jwks_uri '{uri}': keys are fetched over https only (http on loopback); give an https:// address"
        )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
