"""Merkle trees as Certificate Transparency has them (RFC 6962 §2.1): roots, audit paths, and their check. Pure.

An entry is hashed with 0x00 in front and a node with 0x01, so that neither can pass for the other. A tree of n entries
splits at the largest power of two below n, which is the same as pairing from the left and lifting what is left over.
"""

import hashlib
from collections.abc import Iterable, Sequence

EMPTY = hashlib.sha256(b"").digest()
"""The root of a tree without entries."""


def entry_hash(entry: bytes) -> bytes:
    return hashlib.sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def root_of(entries: Iterable[bytes]) -> bytes:
    """The tree's root. Holds one hash a level, whatever the number of entries."""
    tree = Tree()
    for entry in entries:
        tree.add(entry)
    return tree.root


class Tree:
    """A tree that grows at its right end."""

    __slots__ = ("_peaks", "size")

    def __init__(self) -> None:
        self.size = 0
        self._peaks: list[bytes] = []  # roots of the full subtrees, the largest first: one for each bit of `size`

    def add(self, entry: bytes) -> None:
        node, rest = entry_hash(entry), self.size
        while rest & 1:
            node = node_hash(self._peaks.pop(), node)
            rest >>= 1
        self._peaks.append(node)
        self.size += 1

    @property
    def root(self) -> bytes:
        if not self._peaks:
            return EMPTY
        node = self._peaks[-1]
        for peak in reversed(self._peaks[:-1]):
            node = node_hash(peak, node)
        return node


def path_to(index: int, entries: Sequence[bytes]) -> tuple[bytes, ...]:
    """The audit path of one entry: the sibling hashes from the entry up to the root. Raises IndexError."""
    if not 0 <= index < len(entries):
        raise IndexError(f"no entry {index} in a tree of {len(entries)}")
    level = [entry_hash(entry) for entry in entries]
    path: list[bytes] = []
    while len(level) > 1:
        sibling = index ^ 1
        if sibling < len(level):
            path.append(level[sibling])
        level = [node_hash(*pair) if len(pair) == 2 else pair[0] for pair in _pairs(level)]
        index >>= 1
    return tuple(path)


def root_from_path(entry: bytes, index: int, size: int, path: Sequence[bytes]) -> bytes | None:
    """The root that this path leads to; None where no tree of `size` has such a one (RFC 9162 §2.1.3.2)."""
    if not 0 <= index < size:
        return None
    node, last, at = entry_hash(entry), size - 1, index
    for sibling in path:
        if last == 0:
            return None
        if at & 1 or at == last:
            node = node_hash(sibling, node)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            node = node_hash(node, sibling)
        at, last = at >> 1, last >> 1
    return node if last == 0 else None


def _pairs(level: list[bytes]) -> list[list[bytes]]:
    return [level[at : at + 2] for at in range(0, len(level), 2)]
