"""A seal opens for its purpose, its owner and its ring, and for nothing else."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.errors import ConfigFault
from tidegate.limits import SEALED_CHARS_MAX
from tidegate.sealing import Sealer, SealingKey

OLD, NEW = SealingKey.generate(), SealingKey.generate()
SEALER = Sealer([NEW, OLD])
TOKEN = SEALER.seal("cursor", b"page 2", b"alice")


@given(purpose=st.text(max_size=20), payload=st.binary(max_size=300), owner=st.binary(max_size=40))
def test_what_was_sealed_opens_again(purpose: str, payload: bytes, owner: bytes) -> None:
    token = SEALER.seal(purpose, payload, owner)
    assert SEALER.unseal(purpose, token, owner) == payload
    assert re.fullmatch(r"[A-Za-z0-9_-]+", token)


@given(st.text(max_size=200))
def test_no_invented_text_opens(token: str) -> None:
    assert SEALER.unseal("cursor", token, b"alice") is None


@given(st.data())
def test_one_changed_character_opens_nothing(data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(TOKEN) - 1))  # one seal for all examples: each is another text
    other = data.draw(st.sampled_from("ABCabc019_-=+/ \n\x00é").filter(lambda character: character != TOKEN[at]))
    assert SEALER.unseal("cursor", TOKEN[:at] + other + TOKEN[at + 1 :], b"alice") is None


@pytest.mark.parametrize("suffix", ["=", "==", "A", "\n", "AAAA", "."])
def test_a_seal_has_one_spelling(suffix: str) -> None:
    token = SEALER.seal("cursor", b"page 2", b"alice")
    assert SEALER.unseal("cursor", token + suffix, b"alice") is None


def test_another_purpose_or_owner_opens_nothing() -> None:
    token = SEALER.seal("session", b"s-1", b"alice")
    assert SEALER.unseal("cursor", token, b"alice") is None
    assert SEALER.unseal("session", token, b"bob") is None


def test_purpose_and_owner_cannot_be_shifted_into_each_other() -> None:
    token = SEALER.seal("ab", b"x", b"c")
    assert SEALER.unseal("a", token, b"bc") is None
    assert SEALER.unseal("abc", token, b"") is None


def test_the_first_key_seals_and_every_key_opens() -> None:
    before = Sealer([OLD]).seal("cursor", b"x", b"alice")
    assert SEALER.unseal("cursor", before, b"alice") == b"x"
    after = SEALER.seal("cursor", b"x", b"alice")
    assert Sealer([NEW]).unseal("cursor", after, b"alice") == b"x"
    assert Sealer([OLD]).unseal("cursor", after, b"alice") is None


def test_a_key_with_a_known_kid_but_other_bytes_opens_nothing() -> None:
    token = SEALER.seal("cursor", b"x", b"alice")
    impostor = Sealer([SealingKey(NEW.kid, OLD.key)])
    assert impostor.unseal("cursor", token, b"alice") is None


def test_the_payload_cannot_be_read_and_never_seals_alike() -> None:
    first, second = (SEALER.seal("cursor", b"A" * 64, b"alice") for _ in range(2))
    assert first != second
    assert "QUFBQUFB" not in first


def test_a_seal_is_bounded_both_ways() -> None:
    with pytest.raises(ValueError, match="longer than"):
        SEALER.seal("cursor", b"x" * SEALED_CHARS_MAX, b"alice")
    assert SEALER.unseal("cursor", "A" * (SEALED_CHARS_MAX + 4), b"alice") is None


@pytest.mark.parametrize(
    "ring",
    [
        [],
        [SealingKey(b"kid", b"k" * 32)],
        [SealingKey(b"kid1", b"k" * 16)],
        [SealingKey(b"kid1", b"a" * 32), SealingKey(b"kid1", b"b" * 32)],
        [SealingKey.generate() for _ in range(17)],
    ],
)
def test_a_malformed_ring_is_refused(ring: list[SealingKey]) -> None:
    with pytest.raises(ConfigFault):
        Sealer(ring)
