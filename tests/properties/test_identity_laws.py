"""Laws of the token parser: whatever bytes come, it answers, and nothing unsigned becomes a principal."""

import asyncio
import base64
from typing import Any

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from tidegate.claims import Principal, Refused, read_claims
from tidegate.identity import TokenVerifier
from tidegate.jwks import Keys, VerifyingKey, parse_jwks
from tidegate.secrets import ClusterSecrets
from tidegate.settings import Issuer

NOW_S = 1_800_000_000
KEY = ec.generate_private_key(ec.SECP256R1())
ISSUER = Issuer(issuer="https://id.example", jwks_file="x", tenant="acme")
AUDIENCE = "https://gate.example/mcp"
GOOD = {"iss": ISSUER.issuer, "sub": "alice", "aud": AUDIENCE, "exp": NOW_S + 60, "client_id": "a", "groups": ["g"]}


class Source:
    keys = Keys([VerifyingKey("k1", frozenset({"ES256"}), KEY.public_key())])

    async def find(self, kid: str, algorithm: str) -> VerifyingKey | None:
        return self.keys.find(kid, algorithm)

    async def close(self) -> None: ...


VERIFIER = TokenVerifier(
    [ISSUER],
    {ISSUER.issuer: Source()},
    ClusterSecrets.generate(),
    audiences=[AUDIENCE],
    tenant="acme",
    clock=lambda: NOW_S * 1_000_000,
)
SIGNED = jwt.encode(GOOD, KEY, "ES256", {"kid": "k1"})
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=8), children, max_size=4),
    max_leaves=10,
)


def verify(text: str) -> Principal | Refused:
    return asyncio.run(VERIFIER.verify(text))


def encoded(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


@given(st.binary(max_size=2000))
def test_arbitrary_bytes_are_refused(raw: bytes) -> None:
    assert isinstance(verify(raw.decode("latin-1")), Refused)


@given(st.binary(max_size=300), st.binary(max_size=600), st.binary(max_size=100))
def test_arbitrary_segments_are_refused(header: bytes, payload: bytes, signature: bytes) -> None:
    assert isinstance(verify(f"{encoded(header)}.{encoded(payload)}.{encoded(signature)}"), Refused)


@given(st.dictionaries(st.sampled_from(["alg", "typ", "kid", "crit", "b64", "jwk", "zip"]), json_values))
def test_an_arbitrary_header_over_good_claims_is_refused(header: dict[str, Any]) -> None:
    _, payload, signature = SIGNED.split(".")
    assert isinstance(verify(f"{encoded(msgspec.json.encode(header))}.{payload}.{signature}"), Refused)


@given(st.data())
def test_a_token_with_one_changed_byte_is_refused(data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(SIGNED) - 1))
    byte = data.draw(st.characters(max_codepoint=255).filter(lambda character: character != SIGNED[at]))
    assert isinstance(verify(SIGNED[:at] + byte + SIGNED[at + 1 :]), Refused)


claim_names = st.sampled_from(
    [*GOOD, "act", "scope", "scp", "nbf", "iat", "sid", "jti", "email", "cnf", "_claim_names"]
)


@given(st.dictionaries(claim_names, json_values, max_size=6))
def test_signed_claims_of_any_shape_give_a_whole_principal_or_a_refusal(changed: dict[str, Any]) -> None:
    claims = {**GOOD, **changed}
    answer = read_claims(claims, ISSUER, frozenset({AUDIENCE}), b"p" * 32, NOW_S * 1_000_000, 0)
    if isinstance(answer, Principal):
        assert answer.subject == claims["sub"]
        assert answer.expires_us > NOW_S * 1_000_000
        assert list(answer.groups) == sorted(set(answer.groups))
        msgspec.json.encode(answer).decode()
    else:
        assert answer.reason


@given(st.binary(max_size=1000) | json_values.map(lambda keys: msgspec.json.encode({"keys": keys})))
def test_a_jwks_of_any_shape_is_parsed_or_refused(content: bytes) -> None:
    try:
        keys = parse_jwks(content, "test")
    except ValueError:
        return
    assert len(keys) > 0
