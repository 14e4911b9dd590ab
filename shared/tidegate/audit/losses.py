"""Gaps that an edge told of itself: its spool's disk lost what was there. Pure.

It explains a gap and never excuses it: the records are gone all the same. Counterparts: `history.py` finds gaps,
`SpoolDamaged` tells of losses.
"""

from collections.abc import Iterable, Sequence

from tidegate.audit.holdings import Wrong
from tidegate.events import SpoolDamaged


def explained(wrong: Iterable[Wrong], losses: Sequence[SpoolDamaged]) -> list[Wrong]:
    """The same, and with each gap what the edge said of it."""
    return [_explained(one, losses) if one.kind == "gap" else one for one in wrong]


def _explained(wrong: Wrong, losses: Sequence[SpoolDamaged]) -> Wrong:
    for loss in losses:
        if loss.of_writer == wrong.writer and loss.first_seq <= wrong.seq <= (loss.last_seq or wrong.seq):
            sentence = f"{wrong.sentence}; edge {loss.edge} told of it in event {loss.id}: {loss.message}"
            return wrong._replace(sentence=sentence)
    return wrong
