"""Releases: signing, chunks, and the fold that an edge obeys."""

import base64
import random
import stat
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.chain import Chain, open_event
from tidegate.errors import BundleFault, ConfigFault
from tidegate.events import BundleReleased
from tidegate.limits import BUNDLE_CHUNK_BYTES
from tidegate.log.port import Record
from tidegate.policy.bundle import Bundle, bundle_of
from tidegate.policy.release import (
    Activation,
    Chunks,
    Outcome,
    PolicyState,
    Rejection,
    chunk_records,
    pointer_key,
    records_for_release,
)
from tidegate.policy.signing import (
    Release,
    SignedRelease,
    SigningKey,
    ensure_signing_key,
    load_signing_key,
    open_release,
    trusted_keys,
)

NOW = 1_700_000_000_000_000


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> SigningKey:
    return ensure_signing_key(tmp_path_factory.mktemp("keys") / "bundle.pem")


def bundle(name: str = "one", padding: int = 0) -> Bundle:
    files = {
        "manifest.json": msgspec.json.encode({"v": 1, "name": name}),
        "policies/p.cedar": b'@id("a") permit (principal, action, resource);' + b"/" * 2 + b"x" * padding,
    }
    return bundle_of(files)


def release(content: Bundle, number: int = 1, **changed: object) -> Release:
    fields: dict[str, object] = {
        "tenant": "acme",
        "ring": "main",
        "number": number,
        "digest": content.digest,
        "previous": "",
    }
    return msgspec.convert({**fields, **changed}, Release)


def records(key: SigningKey, content: Bundle, number: int = 1, **changed: object) -> list[Record]:
    """The state records of a release: chunks, then the pointer."""
    signed = key.sign(release(content, number, **changed))
    return [*chunk_records("acme", content), Record("policy-state", pointer_key("acme", "main"), signed)]


def state(key: SigningKey) -> PolicyState:
    return PolicyState("acme", "main", trusted_keys([key.public]))


def fold(folded: PolicyState, log: list[Record], now_us: int = NOW) -> list[Activation | Rejection]:
    outcomes: list[Outcome] = [folded.apply(record, now_us) for record in log]
    return [outcome for outcome in outcomes if outcome is not None]


def test_a_made_key_is_readable_by_its_owner_alone_and_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "bundle.pem"
    made = ensure_signing_key(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert ensure_signing_key(path).public == made.public
    assert made.public not in repr(made)
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("content", [b"", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_a_file_without_a_key_is_refused_with_its_path(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "k.pem").write_bytes(content)
    with pytest.raises(ConfigFault, match=r"k\.pem"):
        load_signing_key(tmp_path / "k.pem")


@pytest.mark.parametrize("text", ["", "not base64!", base64.b64encode(b"short").decode()])
def test_a_malformed_trusted_key_is_refused(text: str) -> None:
    with pytest.raises(ConfigFault, match=r"trust\.bundle_keys"):
        trusted_keys([text])


def test_a_signed_release_opens_with_the_trusted_key(key: SigningKey) -> None:
    sealed = key.sign(release(bundle()))
    assert open_release(sealed, trusted_keys([key.public]), "acme") == release(bundle())


def test_releases_that_may_not_be_obeyed_are_refused_with_a_code(key: SigningKey, tmp_path: Path) -> None:
    trust = trusted_keys([key.public])
    other = ensure_signing_key(tmp_path / "other.pem")
    good = key.sign(release(bundle()))
    outer = msgspec.json.decode(good, type=SignedRelease)
    renumbered = msgspec.Raw(bytes(outer.release).replace(b'"number":1', b'"number":9'))
    unsigned = msgspec.structs.replace(outer, signature="")
    borrowed = msgspec.structs.replace(
        msgspec.json.decode(other.sign(release(bundle())), type=SignedRelease), key_id=key.key_id
    )
    refused = {
        "release-malformed": [b"", b"{}", b"x" * 10_000, b"\xff", good[:-1]],
        "signature-invalid": [
            msgspec.json.encode(msgspec.structs.replace(outer, release=renumbered)),
            msgspec.json.encode(unsigned),
            msgspec.json.encode(borrowed),
        ],
        "key-unknown": [other.sign(release(bundle()))],
        "tenant-foreign": [key.sign(release(bundle(), tenant="evil"))],
    }
    for code, values in refused.items():
        for value in values:
            with pytest.raises(BundleFault) as fault:
                open_release(value, trust, "acme")
            assert fault.value.code == code


def test_a_complete_release_becomes_the_ruling_one(key: SigningKey) -> None:
    folded = state(key)
    [outcome] = fold(folded, records(key, bundle()))
    assert isinstance(outcome, Activation)
    assert outcome.bundle == bundle()
    assert folded.ruling is outcome


def test_a_large_bundle_travels_in_chunks(key: SigningKey) -> None:
    large = bundle(padding=3 * BUNDLE_CHUNK_BYTES)
    log = records(key, large)
    assert len(log) == 5
    assert all(len(record.value or b"") <= BUNDLE_CHUNK_BYTES for record in log)
    assert len({record.key for record in log}) == 5
    random.Random(1).shuffle(log)
    [outcome] = fold(state(key), log)
    assert isinstance(outcome, Activation)
    assert outcome.bundle == large


def test_a_missing_chunk_leaves_the_old_bundle_ruling_until_it_comes(key: SigningKey) -> None:
    folded = state(key)
    fold(folded, records(key, bundle("old")))
    large = bundle("new", padding=BUNDLE_CHUNK_BYTES)
    missing, *rest = records(key, large, 2)
    assert fold(folded, rest) == []
    assert folded.ruling is not None
    assert folded.ruling.bundle == bundle("old")
    assert folded.awaited is not None
    assert folded.awaited.number == 2
    [outcome] = fold(folded, [missing])
    assert isinstance(outcome, Activation)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_number_that_is_not_higher_is_refused(key: SigningKey, number: int) -> None:
    folded = state(key)
    fold(folded, records(key, bundle("two"), 2))
    [outcome] = fold(folded, records(key, bundle("other"), number))
    assert isinstance(outcome, Rejection)
    assert (outcome.reason, outcome.number) == ("number-not-higher", number)
    assert folded.ruling is not None
    assert folded.ruling.bundle == bundle("two")


def test_a_roll_back_is_a_higher_number_on_an_old_digest(key: SigningKey) -> None:
    folded = state(key)
    fold(folded, records(key, bundle("one"), 1) + records(key, bundle("two"), 2))
    [outcome] = fold(folded, records(key, bundle("one"), 3))
    assert isinstance(outcome, Activation)
    assert outcome.bundle == bundle("one")


def test_bytes_that_do_not_have_the_digest_are_refused(key: SigningKey) -> None:
    forged = [
        record._replace(key=record.key.replace(bundle("bad").digest.encode(), bundle("good").digest.encode()))
        for record in chunk_records("acme", bundle("bad"))
    ]
    pointer = records(key, bundle("good"))[-1]
    folded = state(key)
    [outcome] = fold(folded, [*forged, pointer])
    assert isinstance(outcome, Rejection)
    assert outcome.reason == "digest-mismatch"
    assert folded.ruling is None
    garbage = [record._replace(value=b"garbage") for record in forged]
    [outcome] = fold(state(key), [*garbage, pointer])
    assert isinstance(outcome, Rejection)
    assert outcome.reason == "bad-bundle"


def test_a_release_for_later_is_held_back_said_once_and_activated_in_time(key: SigningKey) -> None:
    folded = state(key)
    [outcome] = fold(folded, records(key, bundle(), not_before_us=NOW + 10))
    assert isinstance(outcome, Rejection)
    assert outcome.reason == "not-yet-valid"
    assert folded.advance(NOW + 9) is None
    assert isinstance(folded.advance(NOW + 10), Activation)


def test_records_of_other_tenants_rings_and_topics_change_nothing(key: SigningKey) -> None:
    folded = state(key)
    log = records(key, bundle())
    foreign = [record._replace(key=record.key.replace(b"acme|", b"evil|")) for record in log]
    nested = [record._replace(key=b"acme|" + record.key) for record in log]
    topics = [record._replace(topic="control-state") for record in log]
    deleted = [record._replace(value=None) for record in log]
    assert fold(folded, [*foreign, *nested, *topics, *deleted]) == []
    canary = log[-1]._replace(key=pointer_key("acme", "canary"))
    assert fold(folded, [canary]) == []
    moved = Record("policy-state", pointer_key("acme", "main"), key.sign(release(bundle(), ring="canary")))
    [outcome] = fold(folded, [moved])
    assert isinstance(outcome, Rejection)
    assert outcome.reason == "ring-foreign"
    assert folded.ruling is None


def test_what_was_kept_on_disk_rules_again_and_is_checked_again(key: SigningKey, tmp_path: Path) -> None:
    kept = state(key)
    [activation] = fold(kept, records(key, bundle(), 4))
    assert isinstance(activation, Activation)
    restored = state(key).restore(activation.signed, activation.bundle.canonical, NOW)
    assert restored == activation
    tampered = state(key).restore(activation.signed, bundle("other").canonical, NOW)
    assert isinstance(tampered, Rejection)
    untrusted = PolicyState("acme", "main", trusted_keys([ensure_signing_key(tmp_path / "k").public]))
    assert isinstance(untrusted.restore(activation.signed, activation.bundle.canonical, NOW), Rejection)


def test_a_restored_edge_refuses_an_older_release(key: SigningKey) -> None:
    folded = state(key)
    folded.restore(key.sign(release(bundle("new"), 7)), bundle("new").canonical, NOW)
    [outcome] = fold(folded, records(key, bundle("old"), 6))
    assert isinstance(outcome, Rejection)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_folding_twice_or_in_any_order_rules_the_same(key: SigningKey, data: st.DataObject) -> None:
    contents = [bundle(name, padding) for name, padding in (("a", 0), ("b", BUNDLE_CHUNK_BYTES), ("c", 5))]
    log = [
        record
        for number in range(1, data.draw(st.integers(1, 4)) + 1)
        for record in records(key, contents[number % 3], number)
    ]
    straight = state(key)
    fold(straight, log)
    assert straight.ruling is not None
    twice = state(key)
    fold(twice, log)
    assert fold(twice, log) == []
    mixed = state(key)
    fold(mixed, data.draw(st.permutations(log)))
    cut = data.draw(st.integers(0, len(log)))
    halves = state(key)
    fold(halves, log[:cut])
    fold(halves, log[cut:])
    for folded in (twice, mixed, halves):
        assert folded.ruling is not None
        assert folded.ruling.release == straight.ruling.release
        assert folded.ruling.bundle == straight.ruling.bundle


def test_the_memory_of_chunks_is_bounded_but_never_loses_what_is_wanted() -> None:
    chunks = Chunks(bytes_max=100)
    wanted = "a" * 64
    chunks.add(wanted, 0, 2, b"x" * 40, wanted)
    for number in range(20):
        chunks.add(f"{number:064x}", 0, 2, b"y" * 40, wanted)
    assert chunks._bytes <= 120
    chunks.add(wanted, 1, 2, b"z" * 40, wanted)
    assert chunks.whole(wanted) == b"x" * 40 + b"z" * 40
    chunks.add(wanted, 5, 2, b"out of range", wanted)
    chunks.add("b" * 64, 0, 1_000_000, b"too many", wanted)
    assert chunks.whole("b" * 64) is None


def test_one_append_holds_the_event_the_bytes_and_the_pointer(key: SigningKey) -> None:
    signed = key.sign(release(bundle(), 3, previous="p"))
    written = records_for_release(
        Chain("policy.main.1"), signed, bundle(), region="eu", actor="someone", cause="published", now_us=NOW
    )
    assert [record.topic for record in written] == ["policy", "policy-state", "policy-state"]
    event = open_event(written[0].value or b"")
    assert isinstance(event, BundleReleased)
    assert (event.number, event.previous, event.cause, bytes(event.release)) == (3, "p", "published", signed)
    [outcome] = fold(state(key), written)
    assert isinstance(outcome, Activation)
