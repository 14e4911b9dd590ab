"""The local issuer: its tokens pass the verifier that every other issuer's tokens pass."""

import json
import stat
from pathlib import Path

import jwt
import pytest

from tidegate.claims import Principal, Refused
from tidegate.errors import ConfigFault
from tidegate.identity import open_verifier
from tidegate.jwks import IssuerKeys
from tidegate.local_issuer import LocalIssuer, open_local_issuer, settings_issuer
from tidegate.secrets import ClusterSecrets
from tidegate.settings import Settings

NOW_S = 1_800_000_000
URL = "http://127.0.0.1:8080"
AUDIENCES = (f"{URL}/mcp",)


async def verified(settings: Settings, token: str, audiences: tuple[str, ...] = ()) -> Principal | Refused:
    issuer = settings_issuer(settings)
    async with IssuerKeys([issuer], settings.path(".")) as keys:
        secrets = ClusterSecrets.generate()
        verifier = open_verifier(
            settings, secrets, keys, [issuer], audiences=audiences, clock=lambda: NOW_S * 1_000_000
        )
        return await verifier.verify(token)


async def test_a_minted_token_verifies_and_says_who_it_is(tmp_path: Path) -> None:
    settings = Settings(root=str(tmp_path), tenant="acme")
    token = open_local_issuer(settings).mint(
        "alice@example.com", "claude-code", ["oncall", "eng"], 3600, settings.audiences, NOW_S, scopes=["mcp:tools"]
    )
    principal = await verified(settings, token)
    assert isinstance(principal, Principal)
    assert (principal.tenant, principal.issuer) == ("acme", f"{URL}/local")
    assert (principal.subject, principal.login) == ("alice@example.com", "alice@example.com")
    assert (principal.agent, principal.groups, principal.scopes) == ("claude-code", ("eng", "oncall"), ("mcp:tools",))
    assert principal.expires_us == (NOW_S + 3600) * 1_000_000
    assert principal.sid
    assert principal.token_id


async def test_a_token_for_the_management_api_does_not_open_the_endpoint(tmp_path: Path) -> None:
    settings = Settings(root=str(tmp_path))
    token = open_local_issuer(settings).mint("alice", "cli", [], 60, [f"{URL}/api/v1"], NOW_S)
    assert isinstance(await verified(settings, token), Refused)
    principal = await verified(settings, token, audiences=(f"{URL}/api/v1",))
    assert isinstance(principal, Principal)
    assert principal.login == "", "what does not look like an address is not one"


async def test_a_token_of_another_installation_is_refused(tmp_path: Path) -> None:
    ours, theirs = Settings(root=str(tmp_path / "a")), Settings(root=str(tmp_path / "b"))
    open_local_issuer(ours)
    token = open_local_issuer(theirs).mint("alice", "cli", [], 60, theirs.audiences, NOW_S)
    answer = await verified(ours, token)
    assert isinstance(answer, Refused)
    assert answer.reason == "token-key-unknown"


def test_the_key_is_private_and_survives_a_restart(tmp_path: Path) -> None:
    first = LocalIssuer.open(tmp_path, URL)
    key = tmp_path / "keys" / "local-issuer.pem"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    second = LocalIssuer.open(tmp_path, URL)
    assert first.jwks() == second.jwks()
    assert "PRIVATE" not in repr(first)


def test_the_published_keys_hold_nothing_private(tmp_path: Path) -> None:
    issuer = LocalIssuer.open(tmp_path, URL)
    published = json.loads(issuer.jwks_file.read_bytes())
    assert published == issuer.jwks()
    assert set(published["keys"][0]) == {"e", "kty", "n", "kid", "alg", "use"}


def test_a_removed_jwks_file_is_written_again(tmp_path: Path) -> None:
    LocalIssuer.open(tmp_path, URL).jwks_file.unlink()
    assert LocalIssuer.open(tmp_path, URL).jwks_file.is_file()


def test_the_token_is_shaped_as_rfc_9068_asks(tmp_path: Path) -> None:
    token = LocalIssuer.open(tmp_path, URL).mint("alice", "cli", [], 60, AUDIENCES, NOW_S)
    assert jwt.get_unverified_header(token)["typ"] == "at+jwt"
    claims = jwt.decode(token, options={"verify_signature": False})
    assert {"iss", "exp", "aud", "sub", "client_id", "iat", "jti"} <= set(claims)
    assert "email" not in claims


@pytest.mark.parametrize(("user", "agent", "ttl_s"), [("", "a", 60), ("u", "", 60), ("u", "a", 0), ("u", "a", 10**9)])
def test_a_token_that_makes_no_sense_is_not_minted(tmp_path: Path, user: str, agent: str, ttl_s: int) -> None:
    with pytest.raises(ConfigFault):
        LocalIssuer.open(tmp_path, URL).mint(user, agent, [], ttl_s, AUDIENCES, NOW_S)


def test_a_key_open_to_others_or_broken_is_refused(tmp_path: Path) -> None:
    LocalIssuer.open(tmp_path, URL)
    key = tmp_path / "keys" / "local-issuer.pem"
    key.chmod(0o640)
    with pytest.raises(ConfigFault, match="chmod 600"):
        LocalIssuer.open(tmp_path, URL)
    key.chmod(0o600)
    key.write_bytes(b"broken")
    with pytest.raises(ConfigFault, match="cannot be read"):
        LocalIssuer.open(tmp_path, URL)
