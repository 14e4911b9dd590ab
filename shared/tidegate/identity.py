"""Who calls: a bearer token becomes a principal, or a refusal that says why.

Only looking up an issuer's key waits. A verified token is kept by its digest, so that the hot path (`verify_cached`)
is one hash and one look-up. Counterparts: `jwks.py` has the keys, `claims.py` reads what a token says. RFC 9068
(access tokens), RFC 8725 (best practices), RFC 6750 (refusals), RFC 8693 (`act`).
"""

from collections.abc import Callable, Iterable, Mapping
from hashlib import blake2b
from typing import Any, Final

import jwt
import msgspec

from tidegate.claims import Principal, Refused, read_claims, refusal
from tidegate.errors import ConfigFault
from tidegate.ids import now_us
from tidegate.jwks import ALGORITHMS_OF, IssuerKeys, KeySource, KeysUnavailable
from tidegate.limits import TOKEN_BYTES_MAX, TOKENS_CACHED_MAX
from tidegate.secrets import ClusterSecrets
from tidegate.settings import Issuer, Settings

__all__ = ["Principal", "Refused", "TokenVerifier", "open_verifier", "www_authenticate"]

ALGORITHMS: Final = frozenset(name for names in ALGORITHMS_OF.values() for name in names)
_TYPES: Final = frozenset({"", "jwt", "at+jwt", "application/at+jwt"})
_CACHED_US_MAX: Final = 300 * 1_000_000  # then the signature is checked again, so that a withdrawn key stops counting
_jws = jwt.PyJWS(algorithms=sorted(ALGORITHMS))


class _Header(msgspec.Struct):
    """The header's members that count. `jku`, `x5u`, `x5c` and `jwk` do not: a token never names its own key."""

    alg: str
    typ: str = ""
    kid: str = ""
    crit: Any = msgspec.UNSET
    b64: Any = msgspec.UNSET


class TokenVerifier:
    """Verifies access tokens of the configured issuers for one set of audiences."""

    def __init__(
        self,
        issuers: Iterable[Issuer],
        keys: Mapping[str, KeySource],
        secrets: ClusterSecrets,
        *,
        audiences: Iterable[str],
        tenant: str,
        leeway_s: float = 30.0,
        clock: Callable[[], int] = now_us,
        tokens_cached_max: int = TOKENS_CACHED_MAX,
    ) -> None:
        """`tenant` is that of issuers which name none. Raises ConfigFault."""
        listed = list(issuers)
        self._issuers = {issuer.issuer: _checked(issuer, tenant) for issuer in listed}
        if len(self._issuers) != len(listed):
            raise ConfigFault("$.identity.issuers: two entries have the same issuer; a token could belong to either")
        self._keys = keys
        self._peppers = {issuer.tenant: secrets.pepper(issuer.tenant) for issuer in self._issuers.values()}
        self._audiences = frozenset(audiences)
        self._leeway_us = int(leeway_s * 1_000_000)
        self._clock = clock
        self._generation_max = max(1, tokens_cached_max // 2)
        self._young: dict[bytes, tuple[int, Principal]] = {}
        self._old: dict[bytes, tuple[int, Principal]] = {}

    def verify_cached(self, token: bytes, at_us: int) -> Principal | None:
        """The principal of a token that was verified not long ago and has not expired; None: ask `verify`."""
        digest = blake2b(token, digest_size=16).digest()
        kept = self._young.get(digest)
        if kept is None:
            kept = self._old.get(digest)
            if kept is None:
                return None
            self._keep(digest, kept)
        if at_us >= kept[0]:
            self._young.pop(digest, None)
            self._old.pop(digest, None)
            return None
        return kept[1]

    async def verify(self, token: str) -> Principal | Refused:
        """The principal, or why not. Total: whatever bytes the token holds, nothing is raised."""
        try:
            raw = token.encode("ascii")
        except UnicodeEncodeError:
            return refusal("token-malformed", "the token is not a JWT: it holds characters outside ASCII")
        if len(raw) > TOKEN_BYTES_MAX:
            return refusal("token-too-large", f"the token is larger than {TOKEN_BYTES_MAX} bytes")
        if (cached := self.verify_cached(raw, self._clock())) is not None:
            return cached
        try:
            verified = await self._verified_claims(raw)
        except KeysUnavailable as fault:
            return Refused(fault.code, "the issuer's keys cannot be had now; try again shortly", 503, "")
        if isinstance(verified, Refused):
            return verified
        claims, issuer = verified
        at_us = self._clock()
        principal = read_claims(claims, issuer, self._audiences, self._peppers[issuer.tenant], at_us, self._leeway_us)
        if isinstance(principal, Principal):
            until_us = min(principal.expires_us + self._leeway_us, at_us + _CACHED_US_MAX)
            self._keep(blake2b(raw, digest_size=16).digest(), (until_us, principal))
        return principal

    async def _verified_claims(self, raw: bytes) -> tuple[dict[str, Any], Issuer] | Refused:
        """The claims under a good signature, and whose they are. Before that only alg, kid, typ, iss are looked at."""
        try:
            unverified = _jws.decode_complete(raw, options={"verify_signature": False})
            header = msgspec.convert(unverified["header"], _Header)
            named = _claims_object(unverified["payload"]).get("iss")
        except (jwt.PyJWTError, msgspec.ValidationError, ValueError, RecursionError):
            return refusal("token-malformed", "the token is not a signed JWT")
        if header.crit is not msgspec.UNSET or header.b64 is not msgspec.UNSET:
            return refusal(
                "token-extension-unknown", "the token's header demands an extension (crit) that is not served"
            )
        if header.typ.lower() not in _TYPES:
            return refusal("token-type-wrong", "the token is not an access token (typ must be at+jwt or JWT)")
        issuer = self._issuers.get(named) if isinstance(named, str) else None
        if issuer is None:
            return refusal("token-issuer-unknown", "the token's issuer is not trusted here")
        if header.alg not in issuer.algorithms:
            return refusal(
                "token-algorithm-refused", "the token is signed with an algorithm that its issuer may not use here"
            )
        key = await self._keys[issuer.issuer].find(header.kid, header.alg)
        if key is None:
            return refusal("token-key-unknown", "the token is signed with a key that its issuer does not publish")
        try:
            signed = _jws.decode_complete(raw, key.key, algorithms=[header.alg])
            return _claims_object(signed["payload"]), issuer
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
            return refusal("token-signature-wrong", "the token's signature does not verify")

    def _keep(self, digest: bytes, kept: tuple[int, Principal]) -> None:
        """Two generations: what is used moves to the young one; when that is full, the old one is dropped whole."""
        if len(self._young) >= self._generation_max:
            self._young, self._old = {}, self._young
        self._young[digest] = kept


def open_verifier(
    settings: Settings,
    secrets: ClusterSecrets,
    keys: IssuerKeys,
    issuers: Iterable[Issuer],
    *,
    audiences: Iterable[str] = (),
    clock: Callable[[], int] = now_us,
) -> TokenVerifier:
    """`issuers`: the configured ones and, where it is on, the local one. `audiences` default to the MCP endpoints."""
    listed = list(issuers)
    sources = {issuer.issuer: keys.of(issuer.issuer) for issuer in listed}
    return TokenVerifier(
        listed,
        sources,
        secrets,
        audiences=tuple(audiences) or settings.audiences,
        tenant=settings.tenant,
        leeway_s=settings.identity.leeway_s,
        clock=clock,
    )


def www_authenticate(refused: Refused | None, resource_metadata: str, scope: str = "") -> str:
    """The `WWW-Authenticate` value (RFC 6750 §3, RFC 9728 §5.1); None stands for a request without a token."""
    fields = {"resource_metadata": resource_metadata}
    if refused is not None and refused.error:
        fields["error"] = refused.error
        fields["error_description"] = refused.message
    if scope:
        fields["scope"] = scope
    return "Bearer " + ", ".join(f'{name}="{_quotable(value)}"' for name, value in fields.items())


def _quotable(value: str) -> str:
    """RFC 6750 §3: error_description holds %x20-21, %x23-5B, %x5D-7E only."""
    return "".join(character if " " <= character <= "~" and character not in '"\\' else "'" for character in value)


def _checked(issuer: Issuer, tenant: str) -> Issuer:
    if wrong := sorted(set(issuer.algorithms) - ALGORITHMS):
        known = ", ".join(sorted(ALGORITHMS))
        raise ConfigFault(f"$.identity.issuers: '{issuer.issuer}' may not use {wrong[0]}; use some of {known}")
    return msgspec.structs.replace(issuer, tenant=issuer.tenant or tenant)


def _claims_object(payload: bytes) -> dict[str, Any]:
    claims = msgspec.json.decode(payload)
    if not isinstance(claims, dict):
        raise ValueError("the claims are not an object")
    return claims
