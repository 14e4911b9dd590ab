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
from tidegate.events import BundleReleased, Role
from tidegate.limits import BUNDLE_CHUNK_BYTES
from tidegate.log.port import Record
from tidegate.policy.bundle import Bundle, bundle_of
from tidegate.policy.release import (
    ROLES,
    Activation,
    Chunks,
    Outcome,
    PolicyState,
    Rejection,
    Withdrawal,
    chunk_records,
    pointer_key,
    records_for_release,
)
from tidegate.policy.signing import (
    Release,
    SignedRelease,
    SigningKey,
    Stage,
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
    signed = key.sign(made := release(content, number, **changed))
    pointer = Record("policy-state", pointer_key("acme", "main", made.role), signed)
    return [*chunk_records("acme", content), pointer] if made.digest else [pointer]


def state(key: SigningKey) -> PolicyState:
    return PolicyState("acme", "main", trusted_keys([key.public]))


def fold(folded: PolicyState, log: list[Record], now_us: int = NOW) -> list[Activation | Withdrawal | Rejection]:
    """All outcomes, those included that one record has several of."""
    outcomes = []
    for record in log:
        outcome: Outcome = folded.apply(record, now_us)
        while outcome is not None:
            outcomes.append(outcome)
            outcome = folded.advance(now_us)
    return outcomes


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
    good = records(key, bundle("good"), 2)
    for value in (forged[0].value, b"garbage"):
        folded = state(key)
        fold(folded, records(key, bundle("old")))
        [outcome] = fold(folded, [forged[0]._replace(value=value), good[-1]])
        assert isinstance(outcome, Activation)
        with pytest.raises(BundleFault) as fault:
            _ = outcome.bundle
        assert fault.value.code == "digest-mismatch"
        rejection = folded.doubt(outcome)
        assert isinstance(rejection, Rejection)
        assert (rejection.reason, rejection.number) == ("digest-mismatch", 2)
        assert folded.ruling is not None
        assert folded.ruling.bundle == bundle("old")
        assert folded.doubt(outcome) is None, "it is said once"
        [outcome] = fold(folded, good)
        assert isinstance(outcome, Activation)
        assert outcome.bundle == bundle("good"), "the right bytes came after all"


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


def role_record(key: SigningKey, role: Role, number: int, **changed: object) -> Record:
    """The end of a role."""
    return records(key, bundle(), number, role=role, digest="", **changed)[-1]


@pytest.mark.parametrize("role", ["canary", "shadow"])
def test_another_role_is_held_beside_the_ruling_one_and_ends_by_a_release_of_nothing(
    key: SigningKey, role: Role
) -> None:
    folded = state(key)
    fold(folded, records(key, bundle("one"), 1))
    [outcome] = fold(folded, records(key, bundle("two"), 2, role=role, stage=Stage(percent=5)))
    assert isinstance(outcome, Activation)
    assert (outcome.release.role, outcome.release.stage) == (role, Stage(percent=5))
    assert folded.holding(role) is outcome
    assert folded.ruling is not None
    assert folded.ruling.bundle == bundle("one")
    [ended] = fold(folded, [role_record(key, role, 3)])
    assert isinstance(ended, Withdrawal)
    assert folded.holding(role) is None
    assert folded.ruling.bundle == bundle("one")
    assert fold(folded, records(key, bundle("two"), 2, role=role)) == []
    assert folded.holding(role) is None, "what was withdrawn does not come back"


@pytest.mark.parametrize("role", ROLES)
def test_each_role_refuses_a_number_that_is_not_higher_and_says_for_which(key: SigningKey, role: Role) -> None:
    folded = state(key)
    fold(folded, records(key, bundle("new"), 7, role=role))
    [outcome] = fold(folded, records(key, bundle("old"), 6, role=role))
    assert isinstance(outcome, Rejection)
    assert (outcome.reason, outcome.number, outcome.role) == ("number-not-higher", 6, role)
    others = [other for other in ROLES if other != role]
    for other in others:  # they come from other partitions, perhaps later
        [outcome] = fold(folded, records(key, bundle("old"), 5, role=other))
        assert isinstance(outcome, Activation)


@pytest.mark.parametrize("role", ROLES)
def test_a_release_rules_in_no_role_but_the_one_that_was_signed(key: SigningKey, role: Role) -> None:
    signed = records(key, bundle(), 4, role=role)
    for other in ROLES:
        if other != role:
            folded = state(key)
            moved = signed[-1]._replace(key=pointer_key("acme", "main", other))
            [outcome] = fold(folded, [*signed[:-1], moved])
            assert isinstance(outcome, Rejection)
            assert outcome.reason == "role-foreign"
            assert folded.holding(other) is None


def test_a_ruling_release_of_nothing_is_refused(key: SigningKey) -> None:
    folded = state(key)
    fold(folded, records(key, bundle(), 1))
    [outcome] = fold(folded, [role_record(key, "ruling", 2)])
    assert isinstance(outcome, Rejection)
    assert outcome.reason == "release-malformed"
    assert folded.ruling is not None


@pytest.mark.parametrize("role", ROLES)
def test_every_role_is_restored_from_what_was_kept_and_refuses_what_is_older(
    key: SigningKey, tmp_path: Path, role: Role
) -> None:
    signed = key.sign(release(bundle("kept"), 7, role=role))
    restored = state(key)
    outcome = restored.restore(signed, bundle("kept").canonical, NOW, role)
    assert isinstance(outcome, Activation)
    assert restored.holding(role) == outcome
    assert isinstance(fold(restored, records(key, bundle("old"), 6, role=role))[0], Rejection)
    untrusted = PolicyState("acme", "main", trusted_keys([ensure_signing_key(tmp_path / "k").public]))
    assert isinstance(untrusted.restore(signed, bundle("kept").canonical, NOW, role), Rejection)
    if role != "ruling":
        ended = state(key)
        gone = ended.restore(key.sign(release(bundle(), 8, role=role, digest="")), b"", NOW, role)
        assert isinstance(gone, Withdrawal)
        assert isinstance(fold(ended, records(key, bundle("kept"), 7, role=role))[0], Rejection)


def test_two_roles_that_wait_for_the_same_bytes_both_get_them(key: SigningKey) -> None:
    large = bundle("both", padding=BUNDLE_CHUNK_BYTES)
    *chunks, ruling = records(key, large, 2)
    canary = records(key, large, 1, role="canary")[-1]
    folded = state(key)
    assert fold(folded, [ruling, canary, *chunks[:-1]]) == []
    outcomes = fold(folded, chunks[-1:])
    assert {outcome.release.role for outcome in outcomes if isinstance(outcome, Activation)} == {"ruling", "canary"}


def test_a_reader_that_knows_no_roles_sees_a_plain_release_alone(key: SigningKey) -> None:
    """Byte for byte what was signed before there were roles, and keys that such a reader passes over."""
    plain = msgspec.json.decode(key.sign(release(bundle(), 3, previous="p")), type=SignedRelease)
    digest = bundle().digest
    assert bytes(plain.release) == (
        b'{"v":1,"tenant":"acme","ring":"main","number":3,"digest":"%b","previous":"p","not_before_us":0}'
        % digest.encode()
    )
    assert pointer_key("acme", "main") == b"acme|main"
    for role in ("canary", "shadow"):
        assert pointer_key("acme", "main", role).count(b"|") == 2, "neither a pointer nor a chunk to it"


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[Role, str]]:
    """(role, name of the bundle) by number from 1; "" ends a canary or shadow."""
    drawn = draw(st.lists(st.tuples(st.sampled_from(ROLES), st.sampled_from(["", "a", "b"])), max_size=6))
    return [("ruling", "a"), *((role, name or ("a" if role == "ruling" else "")) for role, name in drawn)]


@settings(max_examples=100, deadline=None)
@given(history=histories(), data=st.data())
def test_in_any_order_and_twice_each_role_has_its_highest_release(
    key: SigningKey, history: list[tuple[Role, str]], data: st.DataObject
) -> None:
    paddings = {"a": 0, "b": BUNDLE_CHUNK_BYTES}
    log = [
        record
        for number, (role, name) in enumerate(history, 1)
        for record in (
            records(key, bundle(name, paddings[name]), number, role=role) if name else [role_record(key, role, number)]
        )
    ]
    wanted = {role: (number, name) for number, (role, name) in enumerate(history, 1)}
    folded = state(key)
    fold(folded, data.draw(st.permutations(log)))
    again = data.draw(st.permutations(log))
    for round_of in (log, again):
        for role in ROLES:
            number, name = wanted.get(role, (0, ""))
            held = folded.holding(role)
            assert (held.release.number if held else 0) == (number if name else 0)
            assert held is None or held.bundle == bundle(name, paddings[name])
        assert not [one for one in fold(folded, round_of) if not isinstance(one, Rejection)], "twice is once"


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


def test_a_release_whose_bytes_passed_before_it_was_known_is_complete_when_the_log_is_read_again(
    key: SigningKey,
) -> None:
    folded = state(key)
    folded._chunks = Chunks(bytes_max=1_000)
    *chunks, pointer = records(key, bundle("wanted", 500), 9)
    others = [record for number in range(9) for record in chunk_records("acme", bundle(f"other {number}", 500))]
    log = [*chunks, *others, pointer]
    assert fold(folded, log) == []
    assert folded.incomplete == {("ruling", 9)}
    [outcome] = fold(folded, log)
    assert isinstance(outcome, Activation)
    assert outcome.bundle == bundle("wanted", 500)
    assert folded.incomplete == frozenset()


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
