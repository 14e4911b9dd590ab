"""Rows that `tidegate verify` asks for come in pieces that one answer can hold, and none is left out."""

from hypothesis import given
from hypothesis import strategies as st

from tidegate_cli.held_sources import PAGE_BYTES, _pieces


@given(st.lists(st.integers(0, PAGE_BYTES * 2), max_size=40))
def test_every_row_is_in_one_piece_and_only_a_lone_row_passes_the_bound(sizes: list[int]) -> None:
    rest = list(sizes)
    for count in _pieces(sizes):
        piece, rest = rest[:count], rest[count:]
        assert count >= 1
        assert count == 1 or sum(piece) <= PAGE_BYTES
    assert rest == []
