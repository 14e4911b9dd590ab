"""The trees of Certificate Transparency: the published vectors, and paths that must not be believed."""

import pytest

from tidegate.audit.merkle import EMPTY, Tree, path_to, root_from_path, root_of

# The entries and roots that Certificate Transparency's own implementations are tested with.
ENTRIES = [
    bytes.fromhex(text)
    for text in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


@pytest.mark.parametrize("size", range(1, 9))
def test_roots_are_those_of_certificate_transparency(size: int) -> None:
    assert root_of(ENTRIES[:size]).hex() == ROOTS[size - 1]


def test_a_tree_without_entries_has_the_hash_of_nothing() -> None:
    assert root_of([]) == EMPTY == Tree().root
    assert EMPTY.hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@pytest.mark.parametrize("size", range(1, 9))
def test_every_path_leads_to_the_root(size: int) -> None:
    entries = ENTRIES[:size]
    for index, entry in enumerate(entries):
        assert root_from_path(entry, index, size, path_to(index, entries)) == root_of(entries)


def test_a_path_of_another_length_or_place_is_not_believed() -> None:
    path = path_to(2, ENTRIES[:5])
    root = root_of(ENTRIES[:5])
    assert root_from_path(ENTRIES[2], 2, 5, path) == root
    assert root_from_path(ENTRIES[2], 2, 5, path[:-1]) is None
    assert root_from_path(ENTRIES[2], 2, 5, (*path, path[0])) is None
    assert root_from_path(ENTRIES[2], 3, 5, path) != root
    assert root_from_path(ENTRIES[2], 5, 5, path) is None
    assert root_from_path(ENTRIES[2], -1, 5, path) is None
    with pytest.raises(IndexError):
        path_to(5, ENTRIES[:5])


def test_an_inner_node_does_not_pass_for_an_entry() -> None:
    left, right = root_of(ENTRIES[:1]), root_of(ENTRIES[1:2])
    assert root_of([left + right]) != root_of(ENTRIES[:2])
