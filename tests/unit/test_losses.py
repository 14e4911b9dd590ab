"""A gap that an edge told of is explained, and stays a gap."""

import pytest

from tidegate.audit.holdings import Wrong
from tidegate.audit.losses import explained
from tidegate.events import SpoolDamaged


def told(writer: str, first: int, last: int) -> SpoolDamaged:
    return SpoolDamaged(
        id="e1",
        time_us=1,
        tenant="acme",
        region="r",
        edge="edge-1",
        spool="s",
        file="f",
        damage="damaged",
        of_writer=writer,
        first_seq=first,
        last_seq=last,
        message="a checksum does not match",
    )


@pytest.mark.parametrize(
    ("loss", "known"),
    [
        (told("w", 5, 7), True),
        (told("w", 4, 0), True),
        (told("w", 6, 7), False),
        (told("w", 2, 4), False),
        (told("v", 5, 7), False),
    ],
)
def test_a_gap_is_explained_by_a_loss_of_its_own_numbers_alone(loss: SpoolDamaged, known: bool) -> None:
    gap = Wrong("gap", "w", 5, "", "the log never held the number 5 of this writer")
    (one,) = explained([gap], [loss])
    assert one.kind == "gap"
    assert one.sentence.startswith(gap.sentence)
    assert ("edge edge-1 told of it in event e1" in one.sentence) is known


def test_nothing_but_a_gap_is_explained() -> None:
    missing = Wrong("missing", "w", 5, "x", "record 5 is missing")
    assert explained([missing], [told("w", 1, 9)]) == [missing]
