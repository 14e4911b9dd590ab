"""What edges say they have counted: added up once, in any order that their log allows, whatever they say."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from tidegate.events import BundleActivated, BundleObserved
from tidegate.policy.signing import Guard
from tidegate_policy.guard import Counts, judge
from tidegate_policy.observed import Observations

SAID = st.tuples(
    st.sampled_from(["e1", "e2", "e3"]),
    st.sampled_from(["ruling", "canary"]),
    st.integers(1, 3),  # which start
    st.integers(0, 500),  # decided
    st.integers(0, 500),  # denied
)
Said = tuple[str, str, int, int, int]


def observed(said: Said, number: int = 0) -> BundleObserved:
    edge, role, start, decided, denied = said
    return BundleObserved(
        id="i",
        time_us=1,
        tenant="t",
        region="r",
        edge=edge,
        ring="main",
        role=role,  # type: ignore[arg-type]
        number=number or (2 if role == "canary" else 1),
        digest="d",
        since_us=start,
        decided=decided,
        denied=denied,
    )


def canary_came(edge: str, number: int = 2) -> BundleActivated:
    return BundleActivated(
        id="i", time_us=1, tenant="t", region="r", edge=edge, ring="main", role="canary", number=number, digest="d"
    )


def folded(saids: list[Said]) -> Observations:
    found = Observations()
    for said in saids:
        found.observed(observed(said))
    return found


@given(st.lists(SAID, max_size=40))
def test_folding_twice_is_folding_once(saids: list[Said]) -> None:
    once, twice = folded(saids), folded([*saids, *saids])
    for role, number in (("ruling", 1), ("canary", 2)):
        assert once.total("main", role, number) == twice.total("main", role, number)  # type: ignore[arg-type]


@given(st.lists(SAID, max_size=40), st.randoms())
def test_the_order_in_which_edges_are_heard_changes_nothing(saids: list[Said], dice: object) -> None:
    unique = list({said[:4]: said for said in saids}.values())  # an edge does not say two things of one moment
    mixed = list(unique)
    dice.shuffle(mixed)  # type: ignore[attr-defined]
    for role, number in (("ruling", 1), ("canary", 2)):
        assert folded(unique).total("main", role, number) == folded(mixed).total("main", role, number)  # type: ignore[arg-type]


@given(st.lists(SAID, max_size=40))
def test_the_total_is_the_sum_over_edges_and_starts_of_the_most_each_has_said(saids: list[Said]) -> None:
    most: dict[tuple[str, int], int] = {}
    for edge, role, start, decided, _ in saids:
        if role == "ruling":
            most[edge, start] = max(most.get((edge, start), 0), decided)
    assert folded(saids).total("main", "ruling", 1).decided == sum(most.values())


@given(st.lists(st.integers(0, 300), min_size=1, max_size=10), st.lists(st.integers(0, 300), min_size=1, max_size=10))
def test_what_ruled_before_a_canary_came_is_left_out(before: list[int], after: list[int]) -> None:
    found, total = Observations(), 0
    for part in before:
        found.observed(observed(("e1", "ruling", 1, total := total + part, 0)))
    found.activated(canary_came("e1"))
    found.observed(observed(("e1", "ruling", 1, total, 0)))  # as it stands when the canary comes
    for part in after:
        found.observed(observed(("e1", "ruling", 1, total := total + part, 0)))
    assert found.beside("main", 2, 1).decided == sum(after)
    assert found.beside("main", 3, 1) == Counts(), "another canary's edges"


@given(st.lists(SAID, max_size=20), st.builds(Guard, denials=st.floats(0, 1), calls_min=st.integers(1, 50)))
def test_no_nonsense_of_an_edge_upsets_the_guard(saids: list[Said], guard: Guard) -> None:
    found = Observations()
    for said in saids:
        found.observed(observed(said))
        found.activated(canary_came(said[0]))
    own, other = found.total("main", "canary", 2), found.beside("main", 2, 1)
    assert own.denied <= own.decided
    assert other.denied <= other.decided
    assert isinstance(judge(guard, own, other), str)


def test_of_many_releases_the_newest_are_remembered() -> None:
    found = Observations()
    for number in range(1, 50):
        found.observed(observed(("e1", "ruling", 1, 10, 0), number))
    assert found.total("main", "ruling", 49).decided == 10
    assert found.total("main", "ruling", 48).decided == 10
    assert found.total("main", "ruling", 1).decided == 0


@given(st.lists(st.tuples(st.integers(0, 50), st.lists(st.integers(-5, 500), max_size=4)), min_size=1, max_size=6))
def test_two_callers_have_no_more_than_their_most_at_each_edge_together(said: list[tuple[int, list[int]]]) -> None:
    found = Observations()
    for number, (callers, most) in enumerate(said):
        event = observed((f"e{number}", "canary", 1, 500, 500))
        found.observed(msgspec.structs.replace(event, callers=callers, most_denied=tuple(most)))
    own = found.total("main", "canary", 2)
    real = [sorted((max(0, count) for count in most), reverse=True)[:2] for _, most in said]
    assert own.denied_one == sum(sum(most[:1]) for most in real)
    assert own.denied_two == sum(min(sum(most), 500) for most in real)
    assert own.callers == max(callers for callers, _ in said), "who calls at one edge may be who calls at another"
