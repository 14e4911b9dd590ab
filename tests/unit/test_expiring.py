"""The bounded map under the session caches."""

from tidegate.sessions.expiring import Expiring


def test_an_entry_ends_at_its_moment() -> None:
    entries: Expiring[str, int] = Expiring(4)
    entries.put("a", 1, until=10.0)
    assert entries.get("a", 9.999) == 1
    assert entries.get("a", 10.0) is None
    assert len(entries) == 0


def test_a_full_map_lets_the_oldest_writing_go() -> None:
    entries: Expiring[str, int] = Expiring(2)
    for name in ("a", "b", "a", "c"):
        entries.put(name, 1, until=10.0)
    assert [name for name in "abc" if entries.get(name, 0.0)] == ["a", "c"]


def test_sweeping_lets_go_of_what_has_ended_and_nothing_else() -> None:
    entries: Expiring[str, int] = Expiring(4)
    entries.put("a", 1, until=1.0)
    entries.put("b", 1, until=3.0)
    entries.sweep(2.0)
    assert len(entries) == 1
    assert entries.get("b", 2.0) == 1
