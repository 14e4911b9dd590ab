"""Proof that one record is under a signed root, checked with the audit key's public half and nothing else. Pure.

Two audit paths: from the record to its leaf (the run of its writer), from the leaf to the root. A proof shows no other
record, only hashes of some.
"""

import hashlib
from collections.abc import Sequence
from typing import Literal

import msgspec

from tidegate.audit.links import link_of
from tidegate.audit.merkle import path_to, root_from_path
from tidegate.audit.roots import Root, RootFault, Signed, Trust, entry_of, open_signed
from tidegate.events import Leaf, RootSealed


class Proof(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of one record. `record` is its stored bytes, as text; hashes are hex."""

    v: Literal[1] = 1
    record: str
    path: tuple[str, ...]
    leaf: Leaf
    leaf_index: int
    leaf_path: tuple[str, ...]
    root: str
    signature: str
    key_id: str


def prove(value: bytes, hashes: Sequence[str], leaf: Leaf, sealed: RootSealed) -> Proof:
    """`hashes` are those of all records of the leaf. Raises RootFault where they are not the leaf's."""
    link = link_of(value)
    index = -1 if link is None else link.seq - leaf.first
    if not 0 <= index < len(hashes) or link is None or hashes[index] != link.hash:
        raise RootFault("the record is not among those of the leaf", code="proof-impossible")
    place = sealed.leaves.index(leaf)
    proof = Proof(
        record=value.decode(),
        path=_hex(path_to(index, [bytes.fromhex(one) for one in hashes])),
        leaf=leaf,
        leaf_index=place,
        leaf_path=_hex(path_to(place, [entry_of(one) for one in sealed.leaves])),
        root=bytes(sealed.root).decode(),
        signature=sealed.signature,
        key_id=sealed.key_id,
    )
    if _leads_to(proof, link.seq) != leaf.tree:
        raise RootFault("the records of the leaf are not those that were sealed", code="proof-impossible")
    return proof


def check_proof(proof: Proof, trust: Trust) -> Root:
    """The root that the record is under. Raises RootFault."""
    root = open_signed(Signed(proof.root.encode(), proof.signature, proof.key_id), trust)
    link, leaf = link_of(proof.record.encode()), proof.leaf
    if link is None or link.writer != leaf.writer or not leaf.first <= link.seq <= leaf.last:
        raise RootFault("the record does not belong to the leaf", code="proof-wrong")
    try:
        is_under_leaf = _leads_to(proof, link.seq) == leaf.tree
        path = [bytes.fromhex(one) for one in proof.leaf_path]
        top = root_from_path(entry_of(leaf), proof.leaf_index, root.leaves, path)
    except ValueError as error:
        raise RootFault(f"a hash of the path is not hex ({error})", code="proof-wrong") from None
    if not is_under_leaf:
        raise RootFault("the record is not the one that was sealed", code="proof-wrong")
    if top is None or top.hex() != root.tree:
        raise RootFault("the leaf is not one of the root's", code="proof-wrong")
    return root


def _leads_to(proof: Proof, seq: int) -> str:
    leaf = proof.leaf
    entry = hashlib.sha256(proof.record.encode()).digest()
    path = [bytes.fromhex(one) for one in proof.path]
    found = root_from_path(entry, seq - leaf.first, leaf.last - leaf.first + 1, path)
    return "" if found is None else found.hex()


def _hex(path: Sequence[bytes]) -> tuple[str, ...]:
    return tuple(one.hex() for one in path)
