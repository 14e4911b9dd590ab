"""Who is let in: every refusal with real keys, and what a principal is made of."""

import base64
import json
from collections.abc import Iterable
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from tidegate.claims import Principal, Refused, read_claims
from tidegate.errors import ConfigFault
from tidegate.identity import TokenVerifier, www_authenticate
from tidegate.jwks import Keys, KeysUnavailable, VerifyingKey, parse_jwks
from tidegate.secrets import ClusterSecrets
from tidegate.settings import Issuer

NOW_S = 1_800_000_000
ISSUER = "https://id.example/acme"
AUDIENCE = "https://gate.example/mcp"
SECRETS = ClusterSecrets.generate()
RSA = rsa.generate_private_key(65537, 2048)
OTHER_RSA = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()


def jwk(key: Any, kid: str, **members: Any) -> dict[str, Any]:
    if isinstance(key, rsa.RSAPrivateKey):
        public = jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)
    elif isinstance(key, ec.EllipticCurvePrivateKey):
        public = jwt.algorithms.ECAlgorithm.to_jwk(key.public_key(), as_dict=True)
    else:
        public = jwt.algorithms.OKPAlgorithm.to_jwk(key.public_key(), as_dict=True)
    return {**public, "kid": kid, **members}


class Published:
    """The keys that an issuer publishes; a test may change them."""

    def __init__(self, *keys: dict[str, Any]) -> None:
        self.publish(*keys)

    def publish(self, *keys: dict[str, Any]) -> None:
        self.keys: Keys | None = parse_jwks(json.dumps({"keys": keys}).encode(), "test")

    async def find(self, kid: str, algorithm: str) -> VerifyingKey | None:
        if self.keys is None:
            raise KeysUnavailable("the issuer is away; check jwks_uri")
        return self.keys.find(kid, algorithm)

    async def close(self) -> None: ...


class Clock:
    def __init__(self) -> None:
        self.us = NOW_S * 1_000_000

    def __call__(self) -> int:
        return self.us

    def move(self, seconds: float) -> None:
        self.us += int(seconds * 1_000_000)


def verifier(
    *issuers: Issuer, keys: dict[str, Published] | None = None, clock: Clock | None = None, **more: Any
) -> TokenVerifier:
    issuers = issuers or (Issuer(issuer=ISSUER, jwks_file="x"),)
    published = Published(jwk(RSA, "k1"), jwk(EC, "k2"), jwk(ED, "k3"))
    sources = keys or {issuer.issuer: published for issuer in issuers}
    return TokenVerifier(issuers, sources, SECRETS, audiences=[AUDIENCE], tenant="acme", clock=clock or Clock(), **more)


def token(
    key: Any = RSA,
    algorithm: str = "RS256",
    kid: str | None = "k1",
    header: dict[str, Any] | None = None,
    **claims: Any,
) -> str:
    body = {
        "iss": ISSUER,
        "sub": "alice",
        "aud": AUDIENCE,
        "exp": NOW_S + 600,
        "iat": NOW_S,
        "client_id": "claude-code",
        **claims,
    }
    headers = {"typ": "at+jwt", **({"kid": kid} if kid is not None else {}), **(header or {})}
    return jwt.encode({name: value for name, value in body.items() if value is not None}, key, algorithm, headers)


def segment(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


async def refused(text: str, verify: TokenVerifier | None = None) -> str:
    answer = await (verify or verifier()).verify(text)
    assert isinstance(answer, Refused), answer
    assert answer.message
    return answer.reason


async def accepted(text: str, verify: TokenVerifier | None = None) -> Principal:
    answer = await (verify or verifier()).verify(text)
    assert isinstance(answer, Principal), answer
    return answer


@pytest.mark.parametrize(
    ("key", "algorithm", "kid"), [(RSA, "RS256", "k1"), (RSA, "PS256", "k1"), (EC, "ES256", "k2"), (ED, "EdDSA", "k3")]
)
async def test_a_token_of_each_allowed_algorithm_is_accepted(key: Any, algorithm: str, kid: str) -> None:
    principal = await accepted(token(key, algorithm, kid, jti="t-1", sid="s-1", email="alice@acme.example"))
    assert (principal.tenant, principal.issuer, principal.subject) == ("acme", ISSUER, "alice")
    assert (principal.user, principal.login, principal.agent) == ("alice", "alice@acme.example", "claude-code")
    assert (principal.agent_source, principal.token_id, principal.sid) == ("client_id", "t-1", "s-1")
    assert (principal.issued_us, principal.expires_us) == (NOW_S * 1_000_000, (NOW_S + 600) * 1_000_000)


async def test_the_public_key_does_not_serve_as_a_shared_secret() -> None:
    """RFC 8725 §2.1: HS256 over the RSA public key's PEM, as an attacker would make it by hand."""
    pem = RSA.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    signed = f"{segment({'alg': 'HS256', 'typ': 'JWT', 'kid': 'k1'})}.{token().split('.')[1]}"
    mac = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256)
    forged = f"{signed}.{base64.urlsafe_b64encode(mac.sign(signed.encode(), pem)).rstrip(b'=').decode()}"
    assert await refused(forged) == "token-algorithm-refused"


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "HS256", "HS512", "RS512", "ES256K", "", "RS256 "])
async def test_an_algorithm_outside_the_issuers_list_is_refused(algorithm: str) -> None:
    payload = token().split(".")[1]
    for signature in ("", token().split(".")[2]):
        reason = await refused(f"{segment({'alg': algorithm, 'kid': 'k1'})}.{payload}.{signature}")
        assert reason == "token-algorithm-refused"


async def test_an_algorithm_that_only_another_issuer_may_use_is_refused() -> None:
    narrow = verifier(Issuer(issuer=ISSUER, jwks_file="x", algorithms=("ES256",)))
    assert await refused(token(RSA, "RS256"), narrow) == "token-algorithm-refused"
    assert await accepted(token(EC, "ES256", "k2"), narrow)


async def test_a_key_serves_only_the_algorithms_of_its_kind() -> None:
    assert await refused(token(EC, "ES256", "k1")) == "token-key-unknown"
    pinned = {ISSUER: Published(jwk(RSA, "k1", alg="RS256"))}
    assert await refused(token(RSA, "PS256", "k1"), verifier(keys=pinned)) == "token-key-unknown"


async def test_a_signature_by_another_key_is_refused() -> None:
    assert await refused(token(OTHER_RSA)) == "token-signature-wrong"


async def test_changed_claims_are_refused() -> None:
    header, payload, signature = token().split(".")
    claims = json.loads(base64.urlsafe_b64decode(payload + "=="))
    assert await refused(f"{header}.{segment({**claims, 'groups': ['admin']})}.{signature}") == "token-signature-wrong"


async def test_a_token_cannot_bring_its_own_key() -> None:
    own = {"jwk": jwk(OTHER_RSA, "k1"), "jku": "https://evil.example/jwks", "x5u": "https://evil.example/x"}
    assert await refused(token(OTHER_RSA, header=own)) == "token-signature-wrong"
    assert await refused(token(OTHER_RSA, kid="evil", header=own)) == "token-key-unknown"
    assert await accepted(token(RSA, header={"jku": "https://evil.example/jwks"})), "and is not refused for naming one"


@pytest.mark.parametrize(
    "kid", ["../../etc/passwd", "k1\x00", "k1'--", "K1", "/dev/null", "k1 ", "https://evil.example/k", "k" * 9000]
)
async def test_a_kid_is_a_name_and_nothing_else(kid: str) -> None:
    assert await refused(token(OTHER_RSA, kid=kid)) == "token-key-unknown"
    assert await refused(token(RSA, kid=kid)) == "token-key-unknown"


async def test_without_a_kid_the_only_fitting_key_is_used() -> None:
    assert await accepted(token(kid=None))
    two = {ISSUER: Published(jwk(RSA, "k1"), jwk(OTHER_RSA, "k9"))}
    assert await refused(token(kid=None), verifier(keys=two)) == "token-key-unknown"


@pytest.mark.parametrize("header", [{"crit": ["exp"]}, {"crit": []}, {"crit": None}, {"b64": True}, {"b64": "x"}])
async def test_a_header_that_demands_an_extension_is_refused(header: dict[str, Any]) -> None:
    signed = f"{segment({'alg': 'RS256', 'kid': 'k1', **header})}.{token().split('.')[1]}"
    signature = jwt.algorithms.RSAAlgorithm(jwt.algorithms.RSAAlgorithm.SHA256).sign(signed.encode(), RSA)
    text = f"{signed}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"
    assert await refused(text) in ("token-extension-unknown", "token-malformed")


@pytest.mark.parametrize("typ", ["dpop+jwt", "logout+jwt", "secevent+jwt", "oauth-id-jag+jwt", "JWE"])
async def test_a_token_of_another_type_is_refused(typ: str) -> None:
    assert await refused(token(header={"typ": typ})) == "token-type-wrong"


@pytest.mark.parametrize("typ", ["JWT", "jwt", "at+jwt", "AT+JWT", "application/at+jwt", None])
async def test_the_types_of_access_tokens_are_accepted(typ: str | None) -> None:
    assert await accepted(token(header={"typ": typ}))


@pytest.mark.parametrize("claims", [{"at_hash": "x"}, {"c_hash": "x"}, {"typ": "ID"}, {"typ": "Refresh"}])
async def test_an_id_or_refresh_token_is_refused(claims: dict[str, Any]) -> None:
    assert await refused(token(**claims)) == "token-type-wrong"


async def test_a_token_bound_to_a_key_is_not_taken_as_a_plain_one() -> None:
    assert await refused(token(cnf={"jkt": "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"})) == "token-bound-to-key"


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        ({"exp": NOW_S - 31}, "token-expired"),
        ({"exp": None}, "token-malformed"),
        ({"exp": "1900000000"}, "token-malformed"),
        ({"exp": True}, "token-malformed"),
        ({"exp": 1e300}, "token-malformed"),
        ({"exp": 10**400}, "token-malformed"),
        ({"exp": -1}, "token-malformed"),
        ({"nbf": NOW_S + 31}, "token-not-yet-valid"),
        ({"nbf": []}, "token-malformed"),
        ({"iat": NOW_S + 31}, "token-not-yet-valid"),
        ({"iat": "now"}, "token-malformed"),
        ({"aud": "https://other.example/mcp"}, "token-audience-wrong"),
        ({"aud": AUDIENCE + "/"}, "token-audience-wrong"),
        ({"aud": None}, "token-audience-wrong"),
        ({"aud": []}, "token-audience-wrong"),
        ({"aud": {AUDIENCE: 1}}, "token-audience-wrong"),
        ({"aud": [["x"], 1, None]}, "token-audience-wrong"),
        ({"iss": ISSUER + "/"}, "token-issuer-unknown"),
        ({"iss": ISSUER.upper()}, "token-issuer-unknown"),
        ({"iss": None}, "token-issuer-unknown"),
        ({"sub": None}, "token-subject-missing"),
        ({"sub": ""}, "token-subject-missing"),
        ({"sub": "a" * 513}, "token-malformed"),
        ({"sub": "a\nb"}, "token-malformed"),
        ({"sub": "a\ud800"}, "token-malformed"),
        ({"client_id": "x\x00"}, "token-malformed"),
        ({"act": "bot"}, "token-actor-malformed"),
        ({"act": {"sub": ""}}, "token-actor-malformed"),
        ({"act": {"sub": "a", "act": {}}}, "token-actor-malformed"),
        ({"groups": ["a" * 513]}, "token-malformed"),
        ({"groups": [f"g{n}" for n in range(1001)]}, "groups-too-many"),
        ({"scope": " ".join(f"s{n}" for n in range(257))}, "scopes-too-many"),
        ({"_claim_names": {"groups": "src1"}}, "groups-not-in-token"),
    ],
)
async def test_claims_that_do_not_serve_are_refused_with_their_reason(claims: dict[str, Any], reason: str) -> None:
    assert await refused(token(**claims)) == reason


@pytest.mark.parametrize(
    "claims",
    [
        {"exp": NOW_S - 29},
        {"nbf": NOW_S + 29, "iat": NOW_S + 29},
        {"iat": None},
        {"exp": NOW_S + 0.5},
        {"aud": ["https://other.example", AUDIENCE]},
    ],
)
async def test_clock_skew_within_the_leeway_and_several_audiences_are_fine(claims: dict[str, Any]) -> None:
    assert await accepted(token(**claims))


@pytest.mark.parametrize("text", ["", ".", "..", "a.b", "a.b.c.d", "e30.e30.", "Bearer x", "é.é.é", "x" * 100])
async def test_what_is_not_a_jwt_is_refused(text: str) -> None:
    assert await refused(text) == "token-malformed"


async def test_a_deeply_nested_or_oversized_token_is_refused() -> None:
    nested = base64.urlsafe_b64encode(b"[" * 5000 + b"]" * 5000).rstrip(b"=").decode()
    header, _, signature = token().split(".")
    assert await refused(f"{header}.{nested}.{signature}") == "token-malformed"
    assert await refused(token(pad="x" * 20_000)) == "token-too-large"


async def test_the_current_actor_is_the_agent_and_the_chain_is_kept() -> None:
    chain = {"sub": "agent-2", "act": {"sub": "agent-1", "act": {"sub": "initiator"}}}
    principal = await accepted(token(act=chain))
    assert (principal.agent, principal.agent_source) == ("agent-2", "act.sub")
    assert principal.actors == ("agent-2", "agent-1", "initiator", "claude-code")


@pytest.mark.parametrize(
    ("claims", "agent", "source"),
    [
        ({"cid": "0oa4", "azp": "x"}, "0oa4", "cid"),
        ({"azp": "app-1"}, "app-1", "azp"),
        ({"appid": "app-2", "azp": ""}, "app-2", "appid"),
        ({"azp": 7}, "unknown", ""),
        ({"clientInfo": {"name": "cursor"}, "agent": "cursor"}, "unknown", ""),
    ],
)
async def test_the_agent_comes_from_the_tokens_client_alone(claims: dict[str, Any], agent: str, source: str) -> None:
    principal = await accepted(token(client_id=None, **claims))
    assert (principal.agent, principal.agent_source) == (agent, source)


@pytest.mark.parametrize(
    ("given", "groups"),
    [
        (["ops", "eng", "ops"], ("eng", "ops")),
        ("ops  eng ops", ("eng", "ops")),
        (["eng", 7, None, {"a": 1}, ""], ("eng",)),
        ({"eng": True}, ()),
        (None, ()),
    ],
)
async def test_groups_are_a_set_of_strings(given: Any, groups: Iterable[str]) -> None:
    assert (await accepted(token(groups=given))).groups == groups


async def test_the_groups_claim_and_login_are_configurable() -> None:
    issuer = Issuer(issuer=ISSUER, jwks_file="x", groups_claim="acme/roles", login_claims=("upn",), user_prefix="okta:")
    principal = await accepted(
        token(**{"acme/roles": ["a"], "groups": ["b"], "email": "e", "upn": "u"}), verifier(issuer)
    )
    assert (principal.groups, principal.login, principal.user, principal.subject) == (
        ("a",),
        "u",
        "okta:alice",
        "alice",
    )


@pytest.mark.parametrize("claims", [{"scope": "b a b"}, {"scp": ["a", "b"]}, {"scp": "a b"}])
async def test_scopes_are_read_in_every_usual_form(claims: dict[str, Any]) -> None:
    assert (await accepted(token(**claims))).scopes == ("a", "b")


def test_claims_are_read_for_the_issuer_they_name_alone() -> None:
    claims = {"iss": "https://id.two", "sub": "alice", "aud": AUDIENCE, "exp": NOW_S + 60}
    for name, wanted in [("https://id.two", Principal), ("https://id.one", Refused)]:
        issuer = Issuer(issuer=name, jwks_file="x", tenant="acme")
        answer = read_claims(claims, issuer, frozenset({AUDIENCE}), b"p" * 32, NOW_S * 1_000_000, 0)
        assert isinstance(answer, wanted)


async def test_equal_subjects_of_two_tenants_never_meet() -> None:
    one, two = "https://id.one", "https://id.two"
    both = verifier(Issuer(issuer=one, jwks_file="x", tenant="one"), Issuer(issuer=two, jwks_file="x", tenant="two"))
    first, second = await accepted(token(iss=one), both), await accepted(token(iss=two), both)
    assert (first.subject, first.user, first.agent) == (second.subject, second.user, second.agent)
    assert (first.tenant, second.tenant) == ("one", "two")
    assert first.subject_id != second.subject_id
    assert first.key != second.key


async def test_one_issuers_key_does_not_sign_for_another() -> None:
    one, two = "https://id.one", "https://id.two"
    keys = {one: Published(jwk(RSA, "k1")), two: Published(jwk(OTHER_RSA, "k1"))}
    both = verifier(Issuer(issuer=one, jwks_file="x"), Issuer(issuer=two, jwks_file="x", user_prefix="2"), keys=keys)
    assert await refused(token(RSA, iss=two), both) == "token-signature-wrong"
    assert (await accepted(token(OTHER_RSA, iss=two), both)).user == "2alice"


async def test_the_key_covers_what_decisions_depend_on_and_not_the_token() -> None:
    base = await accepted(token(groups=["a", "b"]))
    same = await accepted(token(groups=["b", "a"], jti="t-2", sid="s-2", exp=NOW_S + 900))
    assert same.key == base.key
    others = [
        {"sub": "bob"},
        {"client_id": "x"},
        {"groups": ["a"]},
        {"scope": "x"},
        {"email": "x"},
        {"act": {"sub": "x"}},
    ]
    keys = {(await accepted(token(**{"groups": ["a", "b"], **other}))).key for other in others}
    assert len(keys | {base.key}) == 7


async def test_a_verified_token_is_known_until_it_expires() -> None:
    clock = Clock()
    verify = verifier(clock=clock)
    text = token(exp=NOW_S + 100)
    assert verify.verify_cached(text.encode(), clock()) is None
    principal = await accepted(text, verify)
    assert verify.verify_cached(text.encode(), clock()) is principal
    clock.move(129)
    assert verify.verify_cached(text.encode(), clock()) is principal
    clock.move(1)
    assert verify.verify_cached(text.encode(), clock()) is None
    assert await refused(text, verify) == "token-expired"


async def test_a_refused_token_is_never_known() -> None:
    verify = verifier()
    text = token(OTHER_RSA)
    assert await refused(text, verify) == "token-signature-wrong"
    assert verify.verify_cached(text.encode(), NOW_S * 1_000_000) is None


async def test_a_withdrawn_key_stops_counting_within_five_minutes() -> None:
    clock, published = Clock(), Published(jwk(RSA, "k1"))
    verify = verifier(keys={ISSUER: published}, clock=clock)
    text = token(exp=NOW_S + 3600)
    await accepted(text, verify)
    published.publish(jwk(OTHER_RSA, "k9"))
    clock.move(299)
    assert verify.verify_cached(text.encode(), clock()) is not None
    clock.move(1)
    assert await refused(text, verify) == "token-key-unknown"
    assert await accepted(token(OTHER_RSA, kid="k9"), verify)


async def test_the_number_of_known_tokens_is_bounded_and_the_used_ones_stay() -> None:
    verify = verifier(tokens_cached_max=8)
    used = token(jti="used")
    await accepted(used, verify)
    for number in range(40):
        await accepted(token(EC, "ES256", "k2", jti=str(number)), verify)
        assert verify.verify_cached(used.encode(), NOW_S * 1_000_000) is not None
    assert len(verify._young) + len(verify._old) <= 8


async def test_keys_that_cannot_be_had_are_not_the_callers_fault() -> None:
    published = Published(jwk(RSA, "k1"))
    published.keys = None
    answer = await verifier(keys={ISSUER: published}).verify(token())
    assert isinstance(answer, Refused)
    assert (answer.reason, answer.status, answer.error) == ("issuer-keys-unavailable", 503, "")


@pytest.mark.parametrize("algorithms", [("HS256",), ("none",), ("RS256", "ES256K"), ("rs256",)])
def test_an_issuer_may_not_be_given_a_weak_algorithm(algorithms: tuple[str, ...]) -> None:
    with pytest.raises(ConfigFault, match=ISSUER):
        verifier(Issuer(issuer=ISSUER, jwks_file="x", algorithms=algorithms))


def test_the_same_issuer_twice_is_refused() -> None:
    with pytest.raises(ConfigFault, match="same issuer"):
        verifier(
            Issuer(issuer=ISSUER, jwks_file="x", tenant="a"),
            Issuer(issuer=ISSUER, jwks_file="x", tenant="b"),
            keys={ISSUER: Published(jwk(RSA, "k1"))},
        )


def test_the_challenge_names_the_metadata_and_cannot_be_broken_out_of() -> None:
    url = "https://gate.example/.well-known/oauth-protected-resource/mcp"
    assert www_authenticate(None, url) == f'Bearer resource_metadata="{url}"'
    challenge = www_authenticate(Refused("token-x", 'a "b"\r\nSet-Cookie: \\x é'), url, scope="mcp:tools")
    assert challenge.count('"') == 8
    assert "\n" not in challenge
    assert 'error="invalid_token"' in challenge
    assert challenge.endswith('scope="mcp:tools"')


@pytest.mark.parametrize(
    ("claims", "kind"),
    [
        ({}, "user"),
        ({"idtyp": "user", "azp": "portal"}, "user"),
        ({"idtyp": "app", "sub": "0b1c-object-id"}, "service"),  # Entra ID
        ({"sub": "claude-code"}, "service"),  # RFC 9068 §2.2: the client is the subject
        ({"sub": "0oa1", "cid": "0oa1", "client_id": None}, "service"),  # Okta
        ({"sub": "abc@clients", "azp": "abc", "gty": "client-credentials"}, "service"),  # Auth0
        ({"sub": "5f-uuid", "preferred_username": "service-account-claude-code"}, "service"),  # Keycloak
        ({"sub": "5f-uuid", "preferred_username": "service-account-other"}, "user"),
        ({"sub": "5f-uuid", "client_id": None, "azp": "x", "preferred_username": "service-account-x"}, "user"),
    ],
)
async def test_a_token_that_nobody_logged_in_for_is_a_service_accounts(claims: dict[str, Any], kind: str) -> None:
    assert (await accepted(token(**claims))).kind == kind


@pytest.mark.parametrize(
    ("named", "claims", "kind"),
    [
        ("robot", {"robot": True}, "service"),
        ("robot", {"robot": False}, "user"),
        ("robot", {"sub": "claude-code"}, "user"),  # where it is named, nothing else marks one
        ("robot=true", {"robot": True}, "service"),
        ("roles=machine", {"roles": ["reader", "machine"]}, "service"),
        ("roles=machine", {"roles": ["machinery"]}, "user"),
        ("roles=machine", {}, "user"),
    ],
)
async def test_an_issuer_may_name_the_claim_that_marks_service_accounts(
    named: str, claims: dict[str, Any], kind: str
) -> None:
    verify = verifier(Issuer(issuer=ISSUER, jwks_file="x", service_claim=named))
    assert (await accepted(token(**claims), verify)).kind == kind


async def test_a_user_and_a_service_account_of_one_subject_are_decided_apart() -> None:
    verify = verifier(Issuer(issuer=ISSUER, jwks_file="x", service_claim="robot"))
    person, robot = await accepted(token(), verify), await accepted(token(robot=1), verify)
    assert (person.user, person.kind) == (robot.user, "user")
    assert person.key != robot.key
