"""Laws of shown names: no two alike, within the budget, and each leads back."""

from hypothesis import given
from hypothesis import strategies as st

from tidegate.settings import Naming
from tidegate_edge.naming import name_all

servers = st.sampled_from(["a", "ab", "a-", "a-b", "files", "twelve-chars"])
# Names that are apt to meet: separators within, each other's prefixes, cut forms, and plain long ones.
pieces = st.sampled_from(["a", "b", "_", "__", "-", ".", "a__b", "files__", "x" * 30, "_0123abcd", "é"])
tool_names = st.lists(pieces, min_size=1, max_size=4).map("".join)
items = st.sets(st.tuples(servers, tool_names), max_size=12)
rules = st.builds(
    Naming,
    prefix=st.sampled_from(["always", "collision", "none"]),
    separator=st.sampled_from(["__", "_", ".", "-_", "_-", "X"]),
    length_max=st.sampled_from([32, 40, 64]),
    names=st.one_of(
        st.just({}),
        st.dictionaries(
            st.builds("{}/{}".format, servers, tool_names),
            st.sampled_from(["a__b", "one", "a", "files__a"]),
            max_size=3,
        ).map(lambda names: {key: shown for shown, key in {shown: key for key, shown in names.items()}.items()}),
    ),
)
ORDER = ("files", "a-b", "ab", "a", "a-", "twelve-chars")


@given(rules, items)
def test_names_differ_and_each_is_shown_or_said_to_be_lost(naming: Naming, items: set[tuple[str, str]]) -> None:
    names = name_all(naming, items, ORDER)
    assert len(set(names.shown.values())) == len(names.shown)
    assert set(names.shown) | set(names.lost) == items
    assert not set(names.shown) & set(names.lost)


@given(rules, items)
def test_names_are_within_the_budget(naming: Naming, items: set[tuple[str, str]]) -> None:
    assert all(len(shown) <= naming.length_max for shown in name_all(naming, items, ORDER).shown.values())


@given(rules, items)
def test_given_names_are_shown_as_given(naming: Naming, items: set[tuple[str, str]]) -> None:
    shown = name_all(naming, items, ORDER).shown
    for item in items:
        given_name = naming.names.get("/".join(item))
        if given_name is not None:
            assert shown[item] == given_name
        elif item in shown:
            assert shown[item] not in naming.names.values()


@given(rules, items, items)
def test_with_a_prefix_always_other_tools_change_no_name(
    naming: Naming, some: set[tuple[str, str]], others: set[tuple[str, str]]
) -> None:
    naming = Naming(separator=naming.separator, length_max=naming.length_max, names=naming.names)
    alone = name_all(naming, some, ORDER)
    together = name_all(naming, some | others, ORDER)
    assert not alone.lost
    assert alone.shown == {item: together.shown[item] for item in some}


@given(rules, items)
def test_names_depend_on_the_catalogue_and_on_no_order(naming: Naming, items: set[tuple[str, str]]) -> None:
    forwards, backwards = sorted(items), sorted(items, reverse=True)
    assert name_all(naming, forwards, ORDER) == name_all(naming, backwards, ORDER)
