"""Laws of sealing personal parts, of wrapping their keys and of folding the published ones."""

import contextlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.errors import KeyFault
from tidegate.events import Sealed
from tidegate.log.port import Delivered
from tidegate.privacy.keys import SubjectKey, Wrapping, named_by, open_sealed, seal, tenant_key, topic_key
from tidegate.privacy.ring import TOPIC, Added, KeyRing, Removed

texts = st.text(max_size=30)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
).map(lambda value: msgspec.Raw(msgspec.json.encode(value)))
plains = st.builds(
    Sealed,
    issuer=texts,
    subject=texts,
    login=texts,
    claimed_client=texts,
    arguments=values,
    result=values,
    inputs=values,
)
names = st.text(st.characters(blacklist_characters="|", blacklist_categories=["Cs"]), min_size=1, max_size=12)
secrets = st.binary(min_size=32, max_size=32)
keys = st.builds(
    SubjectKey,
    kid=st.binary(min_size=16, max_size=16).map(bytes.hex),
    tenant=names,
    subject_id=names,
    created_us=st.integers(0, 2**53),
    key=secrets,
)
NOTHING = Sealed()


@given(plains, keys)
def test_what_was_sealed_opens_and_shows_nothing_until_then(plain: Sealed, key: SubjectKey) -> None:
    sealed = seal(plain, key)
    assert open_sealed(sealed, key) == plain
    if plain != NOTHING:
        assert sealed == Sealed(kid=key.kid, box=sealed.box)
        assert seal(sealed, key) is sealed, "sealed once"
        assert seal(plain, key).box != sealed.box, "no two boxes tell that they hold the same"


@given(plains, keys, keys, st.integers(0), st.integers(1, 255))
def test_a_box_opens_under_its_own_key_and_unaltered_or_not_at_all(
    plain: Sealed, key: SubjectKey, other: SubjectKey, at: int, flip: int
) -> None:
    sealed = seal(plain, key)
    if not sealed.kid:
        return
    renamed = msgspec.structs.replace(sealed, kid=other.kid)
    raw = bytearray(sealed.box.encode())
    raw[at % len(raw)] ^= flip
    altered = msgspec.structs.replace(sealed, box=raw.decode("latin-1"))
    for box, with_key in ((renamed, key), (msgspec.structs.replace(sealed, box=""), key), (sealed, other)):
        if (box.kid, with_key.kid) != (key.kid, key.kid) or not box.box:
            with pytest.raises(KeyFault, match="does not open") as fault:
                open_sealed(box, with_key)
            assert fault.value.code == "box-altered"
    content = plain
    with contextlib.suppress(KeyFault):
        content = open_sealed(altered, key)
    assert content == plain, "unused bits of base64 may differ, the content never"


@given(keys, st.lists(secrets, min_size=1, max_size=4, unique=True), secrets)
def test_a_key_survives_wrapping_and_rotation_of_the_master_and_shows_nowhere(
    key: SubjectKey, masters: list[bytes], newest: bytes
) -> None:
    wrapping = Wrapping(masters)
    value = wrapping.wrap(key)
    assert wrapping.unwrap(value) == key
    assert key.key not in value
    assert key.key.hex() not in f"{key!r}{wrapping!r}"
    rotated = Wrapping([newest, *masters] if newest not in masters else masters)
    assert rotated.unwrap(value) == key
    assert rotated.unwrap(rotated.wrap(key)) == key
    assert rotated.is_current(rotated.wrap(key))


@given(keys, secrets, secrets, names, st.integers(-(2**63), 2**63 - 1))
def test_a_wrapped_key_is_bound_to_its_tenant_subject_kid_time_and_master(
    key: SubjectKey, master: bytes, other: bytes, name: str, made_us: int
) -> None:
    wrapping = Wrapping([master])
    value = msgspec.json.decode(wrapping.wrap(key))
    for field, forged in (("tenant", name), ("subject_id", name), ("kid", name), ("created_us", made_us)):
        if value[field] != forged:
            with pytest.raises(KeyFault) as altered:
                wrapping.unwrap(msgspec.json.encode(value | {field: forged}))
            assert altered.value.code == "key-altered"
    if other != master:
        with pytest.raises(KeyFault, match=r"privacy\.key_file") as unknown:
            Wrapping([other]).unwrap(wrapping.wrap(key))
        assert unknown.value.code == "wrapping-unknown"
        assert tenant_key(master, key.tenant) != tenant_key(other, key.tenant)
    if name != key.tenant:
        assert tenant_key(master, key.tenant) != tenant_key(master, name)


@given(st.binary(max_size=80) | st.text(max_size=40).map(str.encode))
def test_what_is_no_wrapped_key_is_a_fault_of_a_known_kind(value: bytes) -> None:
    with pytest.raises(KeyFault) as fault:
        Wrapping([b"m" * 32]).unwrap(value)
    assert fault.value.code == "key-malformed"


@given(names, names, names)
def test_a_log_key_names_its_parts(tenant: str, subject_id: str, kid: str) -> None:
    assert named_by(topic_key(tenant, subject_id, kid)) == (tenant, subject_id, kid)


WRAPPING = Wrapping([b"m" * 32])


def record(key: SubjectKey, offset: int, *, gone: bool = False) -> Delivered:
    value = None if gone else WRAPPING.wrap(key)
    return Delivered(TOPIC, 0, offset, topic_key(key.tenant, key.subject_id, key.kid), value, (), 0)


@given(st.lists(st.tuples(keys, st.booleans()), max_size=12), st.data())
def test_a_ring_holds_what_is_published_and_not_destroyed_however_often_it_is_folded(
    history: list[tuple[SubjectKey, bool]], data: st.DataObject
) -> None:
    records = [record(key, at, gone=gone) for at, (key, gone) in enumerate(history)]
    again = data.draw(st.integers(0, len(records)))
    ring, twice = KeyRing(WRAPPING), KeyRing(WRAPPING)
    for one in records:
        told = ring.apply(one)
        assert isinstance(told, Removed if one.value is None else Added)
    for one in records[:again] + records:
        twice.apply(one)
    last: dict[str, bool] = {key.kid: gone for key, gone in history}
    for key, _ in history:
        assert (ring.find(key.kid) is None) == last[key.kid] == (twice.find(key.kid) is None)


@given(st.lists(keys, min_size=2, max_size=20, unique_by=lambda key: key.kid), st.integers(1, 5))
def test_a_ring_is_bounded_and_asks_for_what_had_to_leave(found: list[SubjectKey], keys_max: int) -> None:
    by_kid = {key.kid: key for key in found}
    ring = KeyRing(WRAPPING, by_kid.get, keys_max)
    forgetful = KeyRing(WRAPPING, keys_max=keys_max)
    for at, key in enumerate(found):
        ring.apply(record(key, at))
        forgetful.apply(record(key, at))
        assert len(ring) <= keys_max
    assert all(ring.find(key.kid) == key for key in found)
    assert forgetful.is_whole == (len(found) <= keys_max)
    assert forgetful.find(found[-1].kid) == found[-1]


@given(keys, keys)
def test_a_key_under_another_key_s_name_is_left_out(key: SubjectKey, other: SubjectKey) -> None:
    if key.kid == other.kid:
        return
    ring = KeyRing(WRAPPING)
    with pytest.raises(KeyFault):
        ring.apply(record(key, 0)._replace(key=topic_key(other.tenant, other.subject_id, other.kid)))
    assert ring.find(key.kid) is None
    assert ring.find(other.kid) is None
