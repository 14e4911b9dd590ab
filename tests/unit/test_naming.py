"""Names at a door of several servers, by the three prefix modes and the operator's own."""

import pytest

from tidegate.settings import Naming
from tidegate_edge.naming import fit, name_all

LONG = "a" * 100
TWO = [("docs", "search"), ("wiki", "search"), ("wiki", "edit")]


def shown(naming: Naming, items: list[tuple[str, str]], order: tuple[str, ...] = ("wiki", "docs")) -> dict[str, str]:
    return {"/".join(item): name for item, name in name_all(naming, items, order).shown.items()}


def test_every_name_has_its_servers_in_front() -> None:
    assert shown(Naming(), TWO) == {
        "docs/search": "docs__search",
        "wiki/search": "wiki__search",
        "wiki/edit": "wiki__edit",
    }


def test_the_separator_is_the_operators() -> None:
    assert shown(Naming(separator="."), [("wiki", "edit")]) == {"wiki/edit": "wiki.edit"}


def test_on_collision_both_are_prefixed_and_no_other() -> None:
    assert shown(Naming(prefix="collision"), TWO) == {
        "docs/search": "docs__search",
        "wiki/search": "wiki__search",
        "wiki/edit": "edit",
    }


def test_a_tool_named_as_another_would_be_prefixed_is_prefixed_too() -> None:
    items = [*TWO, ("git", "wiki__search")]
    assert shown(Naming(prefix="collision"), items)["git/wiki__search"] == "git__wiki__search"


def test_without_prefixes_the_first_server_of_the_file_keeps_the_name_and_the_other_is_named() -> None:
    names = name_all(Naming(prefix="none"), TWO, ("wiki", "docs"))
    assert names.shown == {("wiki", "search"): "search", ("wiki", "edit"): "edit"}
    assert names.lost == (("docs", "search"),)


@pytest.mark.parametrize("prefix", ["always", "collision", "none"])
def test_a_given_name_wins(prefix: str) -> None:
    naming = Naming(prefix=prefix, names={"docs/search": "find", "wiki/edit": "docs__search"})  # type: ignore[arg-type]
    found = shown(naming, TWO)
    assert (found["docs/search"], found["wiki/edit"]) == ("find", "docs__search")


def test_a_name_that_was_given_away_is_not_taken_by_its_own_tool() -> None:
    names = name_all(Naming(names={"wiki/edit": "docs__search"}), TWO, ())
    assert names.shown["docs", "search"] not in ("docs__search", "")
    assert not names.lost


def test_a_long_name_keeps_its_beginning_and_a_stable_hash() -> None:
    cut = shown(Naming(), [("up", LONG)])["up/" + LONG]
    assert len(cut) == 64
    assert cut.startswith("up__aaaa")
    assert cut == "up__" + "a" * 51 + "_" + cut[-8:]
    assert cut != shown(Naming(), [("up", LONG + "a")])["up/" + LONG + "a"]


def test_a_whole_name_never_meets_a_cut_one() -> None:
    cut = fit(LONG, 64)
    assert len(fit(cut, 64)) == 64
    assert fit(cut, 64) != cut


def test_names_keep_their_characters() -> None:
    assert shown(Naming(), [("up", "Read.File-2_x")]) == {"up/Read.File-2_x": "up__Read.File-2_x"}
