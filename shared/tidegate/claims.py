"""What a verified token says: the principal, from its claims. Pure: no keys, no clock.

Counterpart: `identity.TokenVerifier`, which has checked the signature before. A claim that decisions depend on is
never dropped silently: what cannot be taken whole refuses the token, because a rule that forbids could otherwise be
slipped past.
"""

from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import Any, Final, Literal

import msgspec

from tidegate.ids import SubjectId, subject_id
from tidegate.limits import ACTORS_PER_TOKEN_MAX, CLAIM_CHARS_MAX, GROUPS_PER_TOKEN_MAX, SCOPES_PER_TOKEN_MAX
from tidegate.settings import Issuer

UNKNOWN_AGENT: Final = "unknown"
_TIME_S_MAX: Final = 253_402_300_800  # the year 10000
_CLIENT_CLAIMS: Final = ("client_id", "cid", "azp", "appid")
_NOT_ACCESS: Final = frozenset({"ID", "Refresh", "Offline", "Logout"})  # Keycloak's `typ` claim


class Principal(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Who calls, verified. `key` digests everything that decisions may depend on: equal keys, equal decisions."""

    tenant: str
    issuer: str
    subject: str
    subject_id: SubjectId
    user: str  # Cedar's User id: the issuer's user_prefix and the subject
    login: str
    agent: str
    agent_source: str  # the claim that named the agent: "act.sub", "client_id", …; "" when none did
    actors: tuple[str, ...]  # the `act` chain, current actor first, and the client where another claim names one
    groups: tuple[str, ...]  # sorted, each once
    scopes: tuple[str, ...]  # sorted, each once
    audiences: tuple[str, ...] = ()  # those of the token that are served here
    token_id: str  # jti
    sid: str
    issued_us: int  # 0 where the token does not say
    expires_us: int
    key: str
    kind: Literal["user", "service"] = "user"  # a service account acts for itself: nobody logged in


class Refused(msgspec.Struct, frozen=True, gc=False):
    """Why a token does not serve. `error` is the challenge's OAuth code (RFC 6750 §3.1), "" where there is none."""

    reason: str
    message: str
    status: Literal[401, 403, 503] = 401
    error: Literal["invalid_token", "insufficient_scope", ""] = "invalid_token"


class _Unfit(Exception):
    """A claim cannot be taken; its argument is the refusal."""

    def __init__(self, refused: Refused) -> None:
        super().__init__(refused.reason)
        self.refused = refused


def refusal(reason: str, message: str) -> Refused:
    return Refused(reason, message)


def read_claims(
    claims: dict[str, Any], issuer: Issuer, audiences: frozenset[str], pepper: bytes, at_us: int, leeway_us: int
) -> Principal | Refused:
    """The principal of verified claims at a moment. `issuer.tenant` must be filled in."""
    try:
        if claims.get("iss") != issuer.issuer:
            raise _unfit("token-issuer-unknown", "the token's issuer is not trusted here")
        _check_kind(claims)
        meant = _check_audience(claims.get("aud"), audiences)
        expires_us, issued_us = _check_times(claims, at_us, leeway_us)
        principal = _principal(claims, issuer, pepper, expires_us, issued_us)
        return msgspec.structs.replace(principal, audiences=meant)
    except _Unfit as unfit:
        return unfit.refused


def _principal(claims: dict[str, Any], issuer: Issuer, pepper: bytes, expires_us: int, issued_us: int) -> Principal:
    subject = _text(claims, "sub")
    if not subject:
        raise _unfit("token-subject-missing", "the token names no subject (sub)")
    agent, source, actors = _agent(claims, issuer)
    groups = _groups(claims, issuer)
    scopes = _words(claims.get("scope", claims.get("scp")), "scope", SCOPES_PER_TOKEN_MAX)
    login = next((text for name in issuer.login_claims if (text := _text(claims, name))), "")
    user = issuer.user_prefix + subject
    kind = _kind(claims, issuer, subject)
    decides: list[object] = [issuer.tenant, issuer.issuer, subject, user, login, agent, source, actors, groups, scopes]
    decides += [kind] if kind == "service" else []
    return Principal(
        tenant=issuer.tenant,
        issuer=issuer.issuer,
        subject=subject,
        subject_id=subject_id(pepper, issuer.issuer, subject),
        user=user,
        login=login,
        agent=agent,
        agent_source=source,
        actors=actors,
        groups=groups,
        scopes=scopes,
        token_id=_text(claims, "jti") or _text(claims, "uti"),
        sid=_text(claims, "sid"),
        issued_us=issued_us,
        expires_us=expires_us,
        key=blake2b(msgspec.json.encode(decides), digest_size=16).hexdigest(),
        kind=kind,
    )


def _kind(claims: dict[str, Any], issuer: Issuer, subject: str) -> Literal["user", "service"]:
    """By the issuer's `service_claim`, or by what issuers are known to write where no person logged in."""
    name, equals, wanted = issuer.service_claim.partition("=")
    if not name:
        return "service" if any(_service_marks(claims, subject)) else "user"
    given = claims.get(name)
    if not equals:
        return "service" if given not in (None, False, "", [], "false") else "user"
    held = given if isinstance(given, list) else [given]
    return "service" if wanted in held or (wanted == "true" and True in held) else "user"


def _service_marks(claims: dict[str, Any], subject: str) -> Iterator[bool]:
    clients = {text for name in _CLIENT_CLAIMS if (text := _text(claims, name))}
    yield claims.get("idtyp") == "app"  # Entra ID
    yield claims.get("gty") in ("client-credentials", "client_credentials")  # Auth0 and others
    yield subject in clients  # RFC 9068 §2.2: no resource owner, so the client is the subject; Okta's `cid`
    client = _text(claims, "client_id")  # Keycloak writes it for service accounts alone, whose `sub` is its own id
    yield bool(client) and claims.get("preferred_username") == f"service-account-{client}"


def _check_kind(claims: dict[str, Any]) -> None:
    """An ID token says who logged in to a client; it grants no access here (OpenID Connect Core §2, §3.1.3.6)."""
    if "at_hash" in claims or "c_hash" in claims or claims.get("typ") in tuple(_NOT_ACCESS):
        raise _unfit("token-type-wrong", "the token is not an access token; send the access token, not the ID token")
    if claims.get("cnf") is not None:
        # RFC 9449 §7.1, RFC 8705 §3: bound to a key whose proof is not checked here, so it may be in a thief's hands.
        raise _unfit("token-bound-to-key", "the token is bound to a key (cnf); ask the issuer for a plain bearer token")


def _check_audience(given: Any, audiences: frozenset[str]) -> tuple[str, ...]:
    named = [given] if isinstance(given, str) else given if isinstance(given, list) else []
    meant = tuple(name for name in named if isinstance(name, str) and name in audiences)
    if not meant:
        raise _unfit(
            "token-audience-wrong",
            "the token was made for another resource (aud); ask the issuer for one for this resource",
        )
    return meant


def _check_times(claims: dict[str, Any], at_us: int, leeway_us: int) -> tuple[int, int]:
    expires_us = _time(claims, "exp")
    if expires_us is None:
        raise _unfit("token-malformed", "the token does not say when it expires (exp)")
    if at_us >= expires_us + leeway_us:
        raise _unfit("token-expired", "the token has expired; get a new one")
    if at_us < (_time(claims, "nbf") or 0) - leeway_us:
        raise _unfit("token-not-yet-valid", "the token is not valid yet (nbf); check the clocks")
    issued_us = _time(claims, "iat") or 0
    if at_us < issued_us - leeway_us:
        raise _unfit("token-not-yet-valid", "the token was issued in the future (iat); check the clocks")
    return expires_us, issued_us


def _agent(claims: dict[str, Any], issuer: Issuer) -> tuple[str, str, tuple[str, ...]]:
    """(agent, the claim that names it, the whole chain). RFC 8693 §4.1: the outermost `act` is who acts now."""
    actors: list[str] = []
    actor = claims.get("act")
    while actor is not None:
        name = _text(actor, "sub") if isinstance(actor, dict) else ""
        if not name or len(actors) == ACTORS_PER_TOKEN_MAX:
            raise _unfit(
                "token-actor-malformed", f"the token's act chain is malformed or longer than {ACTORS_PER_TOKEN_MAX}"
            )
        actors.append(name)
        actor = actor.get("act")
    claim = next((name for name in issuer.agent_claims if _text(claims, name)), "")
    client = _text(claims, claim) if claim else ""
    if not actors:
        return client or UNKNOWN_AGENT, claim, ((client,) if client else ())
    if client and client not in actors:
        actors.append(client)
    return actors[0], "act.sub", tuple(actors)


def _groups(claims: dict[str, Any], issuer: Issuer) -> tuple[str, ...]:
    elsewhere = claims.get("_claim_names")
    if isinstance(elsewhere, dict) and issuer.groups_claim in elsewhere:  # Entra ID leaves groups out past 200 of them
        message = (
            "the token leaves out the subject's groups (too many); let the issuer send only this application's groups"
        )
        raise _Unfit(Refused("groups-not-in-token", message, 403, ""))
    return _words(claims.get(issuer.groups_claim), "group", GROUPS_PER_TOKEN_MAX)


def _words(given: Any, what: str, count_max: int) -> tuple[str, ...]:
    """A list of strings or one string of words between spaces; members that are not strings do not count."""
    words: Iterable[Any] = given.split(" ") if isinstance(given, str) else given if isinstance(given, list) else ()
    found = sorted({word for word in words if isinstance(word, str) and word})
    if len(found) > count_max:
        raise _Unfit(Refused(f"{what}s-too-many", f"the token carries more than {count_max} {what}s", 403, ""))
    if not all(_is_plain(word) for word in found):
        raise _unfit(
            "token-malformed",
            f"a {what} in the token is longer than {CLAIM_CHARS_MAX} characters or holds control characters",
        )
    return tuple(found)


def _text(claims: dict[str, Any], name: str) -> str:
    """A claim's text, "" where it is absent or not a string."""
    value = claims.get(name)
    if not isinstance(value, str):
        return ""
    if not _is_plain(value):
        raise _unfit(
            "token-malformed",
            f"the token's '{name}' is longer than {CLAIM_CHARS_MAX} characters or holds control characters",
        )
    return value


def _is_plain(text: str) -> bool:
    return len(text) <= CLAIM_CHARS_MAX and not any(c < " " or c == "\x7f" or "\ud800" <= c <= "\udfff" for c in text)


def _time(claims: dict[str, Any], name: str) -> int | None:
    """A NumericDate (RFC 7519 §2) in microseconds; None where it is absent."""
    value = claims.get(name)
    if value is None:
        return None
    # Not-a-number and the infinities fail the comparison.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < _TIME_S_MAX:
        raise _unfit("token-malformed", f"the token's '{name}' is not a time in seconds")
    return int(value * 1_000_000)


def _unfit(reason: str, message: str) -> _Unfit:
    return _Unfit(refusal(reason, message))
