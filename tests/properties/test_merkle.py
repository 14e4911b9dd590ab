"""Laws of the trees: the definition of RFC 6962 itself, paths that prove, and paths that do not."""

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from tidegate.audit.merkle import Tree, path_to, root_from_path, root_of

entries = st.lists(st.binary(max_size=40), min_size=1, max_size=70)


def defined(given: list[bytes]) -> bytes:
    """RFC 6962 §2.1, word for word: split at the largest power of two smaller than n."""
    if len(given) == 1:
        return hashlib.sha256(b"\x00" + given[0]).digest()
    split = 1 << (len(given) - 1).bit_length() - 1
    return hashlib.sha256(b"\x01" + defined(given[:split]) + defined(given[split:])).digest()


@given(entries)
def test_the_root_is_the_one_that_the_definition_gives(given: list[bytes]) -> None:
    assert root_of(given) == defined(given)


@given(entries, st.data())
def test_a_path_proves_its_entry_and_no_other(given: list[bytes], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(given) - 1))
    path, root = path_to(index, given), root_of(given)
    assert root_from_path(given[index], index, len(given), path) == root
    other = data.draw(st.binary(max_size=40).filter(lambda entry: entry != given[index]))
    assert root_from_path(other, index, len(given), path) != root


@given(entries, st.data())
def test_a_path_with_one_bit_changed_proves_nothing(given: list[bytes], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(given) - 1))
    path = list(path_to(index, given))
    if not path:
        return
    at, bit = data.draw(st.integers(0, len(path) - 1)), data.draw(st.integers(0, 255))
    path[at] = (int.from_bytes(path[at], "big") ^ 1 << bit).to_bytes(32, "big")
    assert root_from_path(given[index], index, len(given), path) != root_of(given)


@given(entries, st.data())
def test_a_tree_that_grows_has_the_root_of_its_entries_at_every_moment(given: list[bytes], data: st.DataObject) -> None:
    tree = Tree()
    stop = data.draw(st.integers(1, len(given)))
    for entry in given[:stop]:
        tree.add(entry)
    assert (tree.size, tree.root) == (stop, root_of(given[:stop]))


@given(entries, st.data())
def test_any_change_of_the_entries_changes_the_root(given: list[bytes], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(given) - 1))
    without = given[:index] + given[index + 1 :]
    assert root_of(without) != root_of(given)
    swapped = data.draw(st.integers(0, len(given) - 1))
    changed = list(given)
    changed[index], changed[swapped] = changed[swapped], changed[index]
    assert (root_of(changed) == root_of(given)) == (changed == given)
