"""Where keys come from: files that change, and a real HTTP server that rotates, breaks, stalls and comes back."""

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from tidegate.errors import ConfigFault
from tidegate.jwks import FileKeys, IssuerKeys, KeysUnavailable, UriKeys, check_uri, parse_jwks
from tidegate.limits import JWKS_BYTES_MAX
from tidegate.settings import Issuer

RSA = rsa.generate_private_key(65537, 2048)
FIRST, SECOND = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))


def jwk(key: Any, kid: str, **members: Any) -> dict[str, Any]:
    algorithm = jwt.algorithms.RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else jwt.algorithms.ECAlgorithm
    return {**algorithm.to_jwk(key.public_key(), as_dict=True), "kid": kid, **members}


def jwks(*keys: dict[str, Any]) -> bytes:
    return json.dumps({"keys": keys}).encode()


class KeyServer:
    """Serves `content` with `status`; counts what it was asked; `gate` holds answers back."""

    def __init__(self) -> None:
        self.content, self.status, self.asked = jwks(jwk(FIRST, "k1")), 200, 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.headers: dict[str, str] = {}
        self.uri = ""

    async def answer(self, request: web.Request) -> web.Response:
        self.asked += 1
        await self.gate.wait()
        return web.Response(body=self.content, status=self.status, headers=self.headers)

    async def answer_elsewhere(self, request: web.Request) -> web.Response:
        return web.Response(body=jwks(jwk(SECOND, "k2")))


@pytest.fixture
async def server() -> AsyncIterator[KeyServer]:
    keys = KeyServer()
    app = web.Application()
    app.router.add_get("/jwks", keys.answer)
    app.router.add_get("/elsewhere", keys.answer_elsewhere)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    keys.uri = f"http://127.0.0.1:{runner.addresses[0][1]}/jwks"
    yield keys
    keys.gate.set()
    await runner.cleanup()


@pytest.fixture
async def source(server: KeyServer) -> AsyncIterator[UriKeys]:
    """Refreshes as often as it is asked to."""
    keys = UriKeys(server.uri, floor_s=0, retry_s=0, timeout_s=5)
    yield keys
    await keys.close()


async def test_keys_are_fetched_once_and_kept(server: KeyServer, source: UriKeys) -> None:
    for _ in range(5):
        assert await source.find("k1", "ES256") is not None
    assert server.asked == 1


async def test_many_who_wait_for_the_first_keys_cause_one_fetch(server: KeyServer) -> None:
    source = UriKeys(server.uri)
    found = await asyncio.gather(*(source.find("k1", "ES256") for _ in range(50)))
    await source.close()
    assert all(found)
    assert server.asked == 1


async def test_an_unknown_kid_fetches_again_and_finds_the_rotated_key(server: KeyServer, source: UriKeys) -> None:
    assert await source.find("k1", "ES256")
    server.content = jwks(jwk(SECOND, "k2"))
    assert await source.find("k2", "ES256") is not None
    assert await source.find("k1", "ES256") is None, "the withdrawn key is gone"


async def test_made_up_kids_cannot_make_us_hammer_the_issuer(server: KeyServer) -> None:
    source = UriKeys(server.uri, floor_s=60)
    assert await source.find("k1", "ES256")
    assert not any(await asyncio.gather(*(source.find(f"made-up-{n}", "ES256") for n in range(200))))
    await source.close()
    assert server.asked == 1


async def test_after_the_time_to_live_keys_are_fetched_again(server: KeyServer) -> None:
    source = UriKeys(server.uri, ttl_s=0, floor_s=0)
    assert await source.find("k1", "ES256")
    server.content = jwks(jwk(SECOND, "k2"))
    assert await source.find("k1", "ES256") is None
    await source.close()
    assert server.asked == 2


@pytest.mark.parametrize(
    ("status", "content"),
    [
        (500, b"broken"),
        (404, jwks(jwk(SECOND, "k2"))),
        (200, b"<html>"),
        (200, b"{}"),
        (200, jwks()),
        (200, jwks({"kty": "oct", "k": "c2VjcmV0", "kid": "k1"})),
        (200, b'{"keys": [' + b" " * JWKS_BYTES_MAX + b"]}"),
        (302, b""),
    ],
)
async def test_a_bad_answer_leaves_the_last_good_keys(
    server: KeyServer, status: int, content: bytes, source: UriKeys
) -> None:
    assert await source.find("k1", "ES256")
    server.status, server.content, server.headers = status, content, {"Location": "/elsewhere"}
    assert await source.find("k2", "ES256") is None
    assert await source.find("k1", "ES256") is not None


async def test_without_any_keys_it_says_so_and_tries_again(server: KeyServer, source: UriKeys) -> None:
    server.status = 503
    with pytest.raises(KeysUnavailable, match="answered 503"):
        await source.find("k1", "ES256")
    server.status = 200
    assert await source.find("k1", "ES256") is not None


async def test_a_stalled_issuer_costs_no_more_than_the_timeout(server: KeyServer) -> None:
    server.gate.clear()
    source = UriKeys(server.uri, timeout_s=0.2)
    began = time.monotonic()
    with pytest.raises(KeysUnavailable):
        await source.find("k1", "ES256")
    await source.close()
    assert time.monotonic() - began < 3


async def test_nobody_listening_is_keys_unavailable() -> None:
    source = UriKeys("http://127.0.0.1:9/jwks")
    with pytest.raises(KeysUnavailable, match="jwks_uri"):
        await source.find("k1", "ES256")
    await source.close()


@pytest.mark.parametrize(
    "uri", ["http://id.example/jwks", "http://10.0.0.1/jwks", "file:///etc/passwd", "ftp://x/y", "https://", "jwks", ""]
)
def test_keys_come_over_https_only(uri: str) -> None:
    with pytest.raises(ConfigFault, match="https"):
        check_uri(uri)


@pytest.mark.parametrize(
    "uri", ["https://id.example/jwks", "http://localhost:1/", "http://[::1]/", "http://127.0.0.9/x"]
)
def test_https_and_loopback_are_fine(uri: str) -> None:
    check_uri(uri)


async def test_a_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "jwks.json"
    path.write_bytes(jwks(jwk(FIRST, "k1")))
    source = FileKeys(path)
    assert await source.find("k1", "ES256")
    draft = tmp_path / "draft"
    draft.write_bytes(jwks(jwk(SECOND, "k2")))
    os.replace(draft, path)
    assert await source.find("k2", "ES256")
    assert await source.find("k1", "ES256") is None


async def test_a_broken_or_missing_file_leaves_the_last_good_keys(tmp_path: Path) -> None:
    path = tmp_path / "jwks.json"
    path.write_bytes(jwks(jwk(FIRST, "k1")))
    source = FileKeys(path)
    assert await source.find("k1", "ES256")
    path.write_bytes(b"{")
    assert await source.find("k1", "ES256")
    path.unlink()
    assert await source.find("k1", "ES256")


async def test_a_file_that_was_never_there_is_keys_unavailable(tmp_path: Path) -> None:
    source = FileKeys(tmp_path / "jwks.json")
    with pytest.raises(KeysUnavailable, match=r"jwks\.json"):
        await source.find("k1", "ES256")
    (tmp_path / "jwks.json").write_bytes(jwks(jwk(FIRST, "k1")))
    assert await source.find("k1", "ES256")


async def test_issuers_have_their_own_sources(server: KeyServer, tmp_path: Path) -> None:
    (tmp_path / "jwks.json").write_bytes(jwks(jwk(SECOND, "k2")))
    issuers = [Issuer(issuer="https://a", jwks_uri=server.uri), Issuer(issuer="https://b", jwks_file="jwks.json")]
    async with IssuerKeys(issuers, tmp_path) as keys:
        assert await keys.of("https://a").find("k1", "ES256")
        assert await keys.of("https://b").find("k2", "ES256")
        assert await keys.of("https://b").find("k1", "ES256") is None


WEAK = rsa.generate_private_key(65537, 1024)


@pytest.mark.parametrize(
    "member",
    [
        {"kty": "oct", "k": "c2VjcmV0", "kid": "k1"},
        jwk(WEAK, "k1"),
        jwk(RSA, "k1", use="enc"),
        jwk(RSA, "k1", alg="RSA-OAEP"),
        jwk(RSA, "k1", alg="HS256"),
        jwk(RSA, "k1", key_ops=["encrypt"]),
        jwk(FIRST, "k1", alg="RS256"),
        jwk(ec.generate_private_key(ec.SECP256K1()), "k1"),
        {**jwk(FIRST, "k1"), "x": "AA"},
        {**jwk(RSA, "k1"), "n": 7},
        {**jwk(RSA, "k1"), "kid": 7},
        {"kid": "k1"},
        [],
        "k1",
        None,
    ],
)
def test_a_key_that_cannot_verify_signatures_is_skipped(member: Any) -> None:
    good = jwk(SECOND, "good")
    keys = parse_jwks(jwks(member, good), "test")
    assert len(keys) == 1
    assert keys.find("good", "ES256") is not None


def test_private_members_are_left_unread() -> None:
    private = jwt.algorithms.RSAAlgorithm.to_jwk(RSA, as_dict=True)
    found = parse_jwks(jwks({**private, "kid": "k1", "key_ops": ["verify"]}), "test").find("k1", "RS256")
    assert found is not None
    assert isinstance(found.key, rsa.RSAPublicKey)


def test_an_ed25519_key_serves_eddsa() -> None:
    public = jwt.algorithms.OKPAlgorithm.to_jwk(ed25519.Ed25519PrivateKey.generate().public_key(), as_dict=True)
    assert parse_jwks(jwks({**public, "kid": "k1"}), "test").find("k1", "EdDSA")


def test_one_kid_may_name_keys_of_several_kinds() -> None:
    keys = parse_jwks(jwks(jwk(RSA, "k"), jwk(FIRST, "k")), "test")
    assert isinstance(keys.find("k", "RS256").key, rsa.RSAPublicKey)  # type: ignore[union-attr]
    assert isinstance(keys.find("k", "ES256").key, ec.EllipticCurvePublicKey)  # type: ignore[union-attr]
