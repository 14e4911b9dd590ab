"""Laws of runs, of comparing a store with them, and of proofs: whatever is changed is found, and nothing else is."""

import hashlib
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.parts.audit_events import requested

from tidegate.audit.history import merged, open_history, seams
from tidegate.audit.holdings import Held, compare
from tidegate.audit.links import link_of
from tidegate.audit.proofs import Proof, check_proof, prove
from tidegate.audit.roots import AuditKey, Root, RootFault, digest_of, tree_of, trusted_audit_keys
from tidegate.audit.runs import Link, leaves_of
from tidegate.chain import Chain
from tidegate.events import Leaf, RootSealed

KEY = AuditKey(Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
TRUST = trusted_audit_keys([KEY.public])


def chain_of(writer: str, count: int) -> list[bytes]:
    chain = Chain(writer)
    return [chain.seal(requested(at_us=1_800_000_000_000_000 + at)).value or b"" for at in range(count)]


def links_of(values: list[bytes]) -> list[Link]:
    return [link for value in values if (link := link_of(value)) is not None]


RECORDS = chain_of("w", 24)
LINKS = links_of(RECORDS)
(LEAF,) = leaves_of(LINKS).leaves


def sealed(leaves: list[Leaf], number: int = 1, previous: str = "") -> RootSealed:
    root = Root(
        sealer="eu",
        number=number,
        previous=previous,
        tree=tree_of(leaves),
        leaves=len(leaves),
        events=0,
        sealed_us=1,
        positions={},
    )
    signed = KEY.sign(root)
    return RootSealed(
        id=str(number),
        time_us=1,
        tenant="t",
        region="eu",
        sealer="eu",
        number=number,
        root=msgspec.Raw(signed.root),
        signature=signed.signature,
        key_id=signed.key_id,
        leaves=tuple(leaves),
    )


def held(link: Link, **others: Any) -> Held:
    return Held(link.seq, link.id, link.hash, link.prev, link.hash)._replace(**others)


def another(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@given(st.permutations(LINKS), st.sets(st.integers(0, 23), max_size=6))
def test_runs_do_not_depend_on_the_order_of_arrival_and_cover_every_record_once(
    order: list[Link], absent: set[int]
) -> None:
    present = [link for link in order if link.seq - 1 not in absent]
    gathered = leaves_of([*present, *present[:5]])
    covered = [seq for leaf in gathered.leaves for seq in range(leaf.first, leaf.last + 1)]
    assert covered == sorted(link.seq for link in present)
    assert gathered.breaches == []
    gaps = {seq for one in seams(gathered.leaves) for seq in range(one.seq, one.seq + 1)}
    expected = merged((link.seq, link.seq) for link in present)
    assert gaps == {last + 1 for _, last in expected[:-1]}


@given(st.sets(st.integers(1, 24)), st.sets(st.integers(1, 24)), st.booleans())
def test_what_was_deleted_or_altered_is_named_and_never_proven(
    deleted: set[int], altered: set[int], keeps_column: bool
) -> None:
    altered -= deleted
    store = [
        held(link, hash=another(link.id)) if link.seq in altered else held(link)
        for link in LINKS
        if link.seq not in deleted
    ]
    if not keeps_column:
        store = [one._replace(claimed=one.hash) for one in store]
    found = compare(LEAF, store)
    assert bool(found.wrong) == bool(deleted or altered)
    assert {one.kind for one in found.wrong} <= {"missing", "altered"}
    assert found.proven <= 24 - len(deleted | altered), "what was touched is never proven"
    if not deleted:
        assert {one.seq for one in found.wrong} == altered, "what is altered, and nothing else"
        assert found.proven == 24 - len(altered)


@given(st.integers(1, 24), st.sampled_from(["hash", "prev", "both"]), st.booleans())
def test_a_record_that_was_changed_in_any_part_is_the_one_that_is_named(seq: int, part: str, column: bool) -> None:
    change = {"hash": {"hash": another("h")}, "prev": {"prev": another("p")}, "both": {}}[part]
    change = change or {"hash": another("h"), "prev": another("p")}
    if "prev" in change:
        change["hash"] = another("h")  # the bytes changed, so their hash did
    if column:
        change["claimed"] = change["hash"]
    store = [held(link, **change) if link.seq == seq else held(link) for link in LINKS]
    wrong = compare(LEAF, store).wrong
    assert wrong
    if not (column and "prev" in change):
        assert [(one.kind, one.seq) for one in wrong] == [("altered", seq)]
    else:
        assert seq in {one.seq for one in wrong}
        assert {one.seq for one in wrong} <= {seq - 1, seq}, "neither it nor what it says of the one before is known"


@given(st.integers(1, 24))
def test_a_history_rewritten_from_anywhere_is_not_the_one_that_was_sealed(begin: int) -> None:
    chain = Chain("w", seq=begin - 1, prev=LINKS[begin - 2].hash if begin > 1 else "")
    forged = links_of([chain.seal(requested(at_us=1)).value or b"" for _ in range(25 - begin)])
    wrong = compare(LEAF, map(held, [*LINKS[: begin - 1], *forged])).wrong
    assert wrong
    assert wrong[0].seq <= begin


@given(st.integers(1, 24), st.integers(1, 20), st.data())
@settings(deadline=None)
def test_a_proof_proves_its_record_and_a_changed_one_nothing(seq: int, others: int, data: st.DataObject) -> None:
    more = [leaves_of(links_of(chain_of(f"x{at}", 1))).leaves[0] for at in range(others)]
    root = sealed([LEAF, *more])
    proof = prove(RECORDS[seq - 1], [link.hash for link in LINKS], LEAF, root)
    assert check_proof(proof, TRUST).number == 1
    assert msgspec.json.decode(msgspec.json.encode(proof), type=Proof) == proof
    field = data.draw(st.sampled_from(["record", "path", "leaf", "leaf_path", "leaf_index", "root", "signature"]))
    value = getattr(proof, field)
    changed: Any = {
        "record": lambda: RECORDS[seq % 24].decode(),
        "path": lambda: (*value[:-1], another("path")),
        "leaf": lambda: msgspec.structs.replace(value, last=value.last + 1),
        "leaf_path": lambda: (*value[:-1], another("path")),
        "leaf_index": lambda: value + 1,
        "root": lambda: value.replace('"number":1', '"number":2'),
        "signature": lambda: "A" + value[1:] if value[0] != "A" else "B" + value[1:],
    }[field]()
    with pytest.raises(RootFault):
        check_proof(msgspec.structs.replace(proof, **{field: changed}), TRUST)


@given(st.integers(2, 8), st.data())
def test_a_series_of_roots_is_whole_or_says_where_it_is_not(count: int, data: st.DataObject) -> None:
    roots, previous = [], ""
    for number in range(1, count + 1):
        roots.append(sealed([LEAF], number, previous))
        previous = digest_of(bytes(roots[-1].root))
    assert open_history(data.draw(st.permutations(roots)), TRUST).problems == []
    absent = data.draw(st.integers(2, count))
    problems = open_history([root for root in roots if root.number != absent], TRUST).problems
    assert [one.number for one in problems] == ([absent + 1] if absent < count else []), "the last one nobody can miss"
