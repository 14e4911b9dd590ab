"""Compares what a store holds of a leaf's records with the leaf, and names every record that is wrong. Pure.

A leaf commits to the hash of each of its records without listing them. The list is put together from what the store
claims (its column of hashes, and what each record says of the one before) and believed only if its tree is the leaf's;
then each record is judged by itself. Where nothing adds up to the tree, the chain is walked back from its head, which
the leaf does list. Counterparts: `runs.py` (how leaves come about), `roots.py` (why a leaf is believed).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from tidegate.audit.merkle import root_of
from tidegate.events import Leaf, Repeatable

WRONG_MAX = 1_000  # of one leaf

Kind = Literal[
    "missing", "altered", "rewritten", "fork", "misplaced", "gap", "broken-link", "unsealed", "unchained", "rewrite"
]
Numbered = Mapping[int, Sequence["Held"]]


class Held(NamedTuple):
    """A record as a store holds it. `seq` and `id` are what the store says, `hash` and `prev` come from the bytes."""

    seq: int
    id: str
    hash: str
    prev: str
    claimed: str = ""  # the store's own column of hashes, where it has one
    odd: str = ""  # what the store says of the record and its bytes do not


class Wrong(NamedTuple):
    """One record that is not what the roots say. `id` is empty where there is no record."""

    kind: Kind
    writer: str
    seq: int
    id: str
    sentence: str


class Compared(NamedTuple):
    """`proven` counts the records that are what was sealed; of the rest some may be right, where too much is gone to
    tell.
    """

    wrong: list[Wrong]
    proven: int
    stood_for: list[Repeatable]  # absent: whether another record with its id stands for it, is for the caller to see


def compare(leaf: Leaf, held: Iterable[Held]) -> Compared:
    """`held` are the store's records with the leaf's writer and numbers, in any order."""
    numbered: dict[int, list[Held]] = {}
    for one in held:
        numbered.setdefault(one.seq, []).append(one)
    hashes = _believable(leaf, numbered)
    found = _judged(leaf, numbered, hashes) if hashes else _walked(leaf, numbered)
    named = {(one.seq, one.id) for one in found.wrong}
    odd = [
        Wrong("misplaced", leaf.writer, one.seq, one.id, f"event {one.id}: {one.odd}")
        for same in numbered.values()
        for one in same
        if one.odd and (one.seq, one.id) not in named
    ]
    wrong = sorted((*found.wrong, *odd), key=lambda one: one.seq)
    return Compared(wrong[:WRONG_MAX], found.proven, found.stood_for)


def _believable(leaf: Leaf, numbered: Numbered) -> list[str] | None:
    """The hashes that the leaf was made of; None where no claim adds up to its tree."""
    for claim in (_by_bytes, _by_successor, _by_column):
        hashes = claim(leaf, numbered)
        if hashes and hashes[-1] == leaf.head and _tree(hashes) == leaf.tree:
            return hashes
    return None


def _by_bytes(leaf: Leaf, numbered: Numbered) -> list[str] | None:
    """Each record's own hash; the common case, in which nothing is wrong."""
    hashes = [numbered[seq][0].hash for seq in range(leaf.first, leaf.last + 1) if seq in numbered]
    return hashes if len(hashes) == leaf.last - leaf.first + 1 else None


def _by_successor(leaf: Leaf, numbered: Numbered) -> list[str] | None:
    """What each record says of the one before: right also where a record and its column were changed together."""
    return _claimed(leaf, numbered, lambda after, one: after or one)


def _by_column(leaf: Leaf, numbered: Numbered) -> list[str] | None:
    """The store's own column: right also where what a record says of the one before was changed."""
    return _claimed(leaf, numbered, lambda after, one: one or after)


def _claimed(leaf: Leaf, numbered: Numbered, choose: Callable[[str, str], str]) -> list[str] | None:
    repeatable = {one.seq: one.hash for one in leaf.repeatable}
    hashes = []
    for seq in range(leaf.first, leaf.last + 1):
        after = leaf.head if seq == leaf.last else numbered[seq + 1][0].prev if seq + 1 in numbered else ""
        column = numbered[seq][0].claimed or numbered[seq][0].hash if seq in numbered else ""
        found = repeatable.get(seq) or choose(after, column)
        if len(found) != 64:
            return None
        hashes.append(found)
    return hashes


def _tree(hashes: Iterable[str]) -> str:
    try:
        return root_of(map(bytes.fromhex, hashes)).hex()
    except ValueError:  # a claim that is no hash
        return ""


def _judged(leaf: Leaf, numbered: Numbered, hashes: Sequence[str]) -> Compared:
    wrong: list[Wrong] = []
    stood_for: list[Repeatable] = []
    repeatable = {one.seq: one for one in leaf.repeatable}
    proven = 0
    for seq, expected in enumerate(hashes, leaf.first):
        same = numbered.get(seq, ())
        right = [one for one in same if one.hash == expected]
        strays = [one for one in same if one.hash != expected]
        if not same and seq in repeatable:
            stood_for.append(repeatable[seq])
        elif not same:
            wrong.append(_missing(leaf, seq, seq, numbered))
        elif right:
            proven += 1
            wrong += [_fork(leaf, right[0], stray) for stray in (*right[1:], *strays)]
        else:
            wrong.append(_altered(leaf, same[0], f"its bytes have the SHA-256 {same[0].hash}, sealed was {expected}"))
            wrong += [_fork(leaf, same[0], stray) for stray in same[1:]]
        if len(wrong) >= WRONG_MAX:
            break
    return Compared(wrong, proven, stood_for)


def _walked(leaf: Leaf, numbered: Numbered) -> Compared:
    """From the head down as far as each record is the one that its successor names; what is below is compared with its
    neighbours alone.
    """
    wrong: list[Wrong] = []
    seq, expected = leaf.last, leaf.head
    while seq >= leaf.first:
        right = [one for one in numbered.get(seq, ()) if one.hash == expected]
        if not right:
            break
        wrong += [_fork(leaf, right[0], one) for one in numbered[seq] if one is not right[0]]
        seq, expected = seq - 1, right[0].prev
    if seq == leaf.last and len(numbered) == leaf.last - leaf.first + 1 and _is_linked(leaf, numbered):
        first = numbered[leaf.first][0]
        return Compared([*wrong, _rewritten(leaf, first)], 0, [])
    if seq in numbered:
        wrong.append(_altered(leaf, numbered[seq][0], f"sealed was a record with the SHA-256 {expected}"))
    wrong += _missing_runs(leaf, numbered)
    for at in range(leaf.first, seq - 1):
        if at in numbered and at + 1 in numbered and numbered[at + 1][0].prev != numbered[at][0].hash:
            wrong.append(_altered(leaf, numbered[at][0], f"record {at + 1} names another one before it"))
        if len(wrong) >= WRONG_MAX:
            break
    return Compared(wrong, leaf.last - seq, [])


def _missing_runs(leaf: Leaf, numbered: Numbered) -> list[Wrong]:
    """One for each stretch of absent numbers."""
    wrong: list[Wrong] = []
    seq = leaf.first
    for there in [*sorted(number for number in numbered if leaf.first <= number <= leaf.last), leaf.last + 1]:
        if there > seq:
            wrong.append(_missing(leaf, seq, there - 1, numbered))
        seq = there + 1
        if len(wrong) >= WRONG_MAX:
            break
    return wrong


def _is_linked(leaf: Leaf, numbered: Numbered) -> bool:
    return all(
        numbered[seq + 1][0].prev == numbered[seq][0].hash for seq in range(leaf.first, leaf.last) if seq in numbered
    )


def _missing(leaf: Leaf, first: int, last: int, numbered: Numbered) -> Wrong:
    what = f"record {first} is missing" if first == last else f"records {first} to {last} are missing"
    before, after = numbered.get(first - 1), numbered.get(last + 1)
    places = [f"after event {before[0].id}"] if before else []
    places += [f"before event {after[0].id}"] if after else []
    return Wrong("missing", leaf.writer, first, "", f"{what} {' and '.join(places)}".rstrip())


def _altered(leaf: Leaf, one: Held, why: str) -> Wrong:
    return Wrong("altered", leaf.writer, one.seq, one.id, f"event {one.id} is not what was sealed: {why}")


def _fork(leaf: Leaf, right: Held, stray: Held) -> Wrong:
    sentence = f"event {stray.id} claims the number {stray.seq}, which event {right.id} has"
    return Wrong("fork", leaf.writer, stray.seq, stray.id, sentence)


def _rewritten(leaf: Leaf, first: Held) -> Wrong:
    sentence = (
        f"records {leaf.first} to {leaf.last} fit each other and not what was sealed: history was rewritten "
        f"between event {first.id} and the last of them"
    )
    return Wrong("rewritten", leaf.writer, leaf.first, first.id, sentence)


def as_rewrites(judged: Sequence[tuple[Leaf, Sequence[Wrong]]]) -> list[tuple[Leaf, Wrong]]:
    """What is wrong in leaves of one writer. A record that another leaf has as well, and rightly, was a second one of
    its number on the log: nothing is lost, and it is a rewrite.
    """
    told: list[tuple[Leaf, Wrong]] = []
    for leaf, wrong in judged:
        others = [(other, {one.seq for one in bad}) for other, bad in judged if other is not leaf]
        told += [(leaf, _rewrite(one) if _is_right_in(one.seq, others) else one) for one in wrong]
    return told


def _is_right_in(seq: int, leaves: Sequence[tuple[Leaf, set[int]]]) -> bool:
    return any(leaf.first <= seq <= leaf.last and seq not in bad for leaf, bad in leaves)


def _rewrite(wrong: Wrong) -> Wrong:
    if wrong.kind not in ("missing", "altered", "rewritten"):
        return wrong
    sentence = f"the log held another record {wrong.seq} of this writer as well; the first one is kept"
    return wrong._replace(kind="rewrite", sentence=sentence)
