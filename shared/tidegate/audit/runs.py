"""Records of all writers into leaves: runs without a gap, each record linked to the one before. Pure.

What cannot be one run (a fork, a broken link) becomes runs of its own, because a root states what the log held, and is
a breach besides. Counterparts: `roots.py` puts leaves under a signed root, `holdings.py` compares a store with them.
"""

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import msgspec

from tidegate.audit.merkle import root_of
from tidegate.events import Leaf, Repeatable

BREACHES_MAX = 1_000
RUN_RECORDS_MAX = 50_000
RUN_REPEATABLES_MAX = 1_000  # they are listed one by one, and a root must fit into the log
RUN_REPEATABLE_BYTES_MAX = 200_000  # of them, as they are listed

_LISTED_BYTES = 120  # of one that is listed, beside its id: number, hash, names


class Link(NamedTuple):
    """What a chain needs to know of a stored record."""

    writer: str
    seq: int
    prev: str
    hash: str  # SHA-256, hex, of the stored bytes
    id: str
    time_us: int


class Breach(NamedTuple):
    """A chain that is not one. `seq` is the record that does not belong."""

    kind: Literal["gap", "fork", "rewrite", "broken-link"]
    writer: str
    seq: int
    id: str
    sentence: str


class Gathered(NamedTuple):
    leaves: list[Leaf]
    breaches: list[Breach]


def leaves_of(links: Iterable[Link]) -> Gathered:
    """In the order of a root's tree: by writer, then by number. A record that came twice counts once."""
    writers: dict[str, dict[int, list[Link]]] = {}
    for link in links:
        same = writers.setdefault(link.writer, {}).setdefault(link.seq, [])
        if all(link.hash != other.hash for other in same):
            same.append(link)
    leaves: list[Leaf] = []
    breaches: list[Breach] = []
    for writer in sorted(writers):
        runs, found = _runs(writers[writer])
        leaves += sorted((_leaf(run) for run in runs), key=lambda leaf: (leaf.first, leaf.last, leaf.head))
        breaches += found
    return Gathered(leaves, breaches[:BREACHES_MAX])


def _runs(numbered: dict[int, list[Link]]) -> tuple[list[list[Link]], list[Breach]]:
    runs: list[list[Link]] = []
    breaches: list[Breach] = []
    size = 0  # of the last run's repeatables
    for seq in sorted(numbered):
        chosen, *strays = _chosen_first(numbered[seq], numbered.get(seq + 1, ()))
        before = runs[-1][-1] if runs else None
        is_next = before is not None and before.seq == seq - 1
        is_linked = is_next and before is not None and before.hash == chosen.prev
        more = _listed_bytes(chosen)
        if is_linked and size + more <= RUN_REPEATABLE_BYTES_MAX and len(runs[-1]) < _run_max(chosen):
            runs[-1].append(chosen)
            size += more
        else:
            if is_next and not is_linked and before is not None:
                breaches.append(_broken(before, chosen))
            runs.append([chosen])
            size = more
        for stray in strays:
            breaches.append(_stray(stray, chosen))
            runs.insert(-1, [stray])
    return runs, breaches


def _run_max(link: Link) -> int:
    return RUN_RECORDS_MAX if _is_unique(link.id) else RUN_REPEATABLES_MAX


def _listed_bytes(link: Link) -> int:
    """What the record adds to its leaf, as JSON."""
    return 0 if _is_unique(link.id) else len(msgspec.json.encode(link.id)) + _LISTED_BYTES


def _chosen_first(same: Sequence[Link], followers: Sequence[Link]) -> list[Link]:
    """Of records with one number the one that the next record names, else the one that came first."""
    named = {follower.prev for follower in followers}
    return sorted(same, key=lambda link: link.hash not in named)


def _broken(before: Link, link: Link) -> Breach:
    return Breach(
        "broken-link",
        link.writer,
        link.seq,
        link.id,
        f"record {link.seq} of {link.writer} does not name the record {before.seq} that the log holds",
    )


def _stray(stray: Link, chosen: Link) -> Breach:
    if stray.id == chosen.id:
        sentence = (
            f"the log holds record {stray.seq} of {stray.writer} (event {stray.id}) twice, with different content"
        )
        return Breach("rewrite", stray.writer, stray.seq, stray.id, sentence)
    sentence = f"two records of {stray.writer} have the number {stray.seq}: events {chosen.id} and {stray.id}"
    return Breach("fork", stray.writer, stray.seq, stray.id, sentence)


def _leaf(run: Sequence[Link]) -> Leaf:
    return Leaf(
        writer=run[0].writer,
        first=run[0].seq,
        last=run[-1].seq,
        prev=run[0].prev,
        head=run[-1].hash,
        tree=root_of(bytes.fromhex(link.hash) for link in run).hex(),
        first_us=min(link.time_us for link in run),
        last_us=max(link.time_us for link in run),
        repeatable=tuple(Repeatable(seq=one.seq, id=one.id, hash=one.hash) for one in run if not _is_unique(one.id)),
    )


def _is_unique(event_id: str) -> bool:
    """UUIDv7 is made once; any other id is derived from a cause that may come again."""
    return len(event_id) == 36 and event_id[14] == "7"
