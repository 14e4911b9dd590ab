"""Of whom `tidegate can` tells: of one person, never of whoever called last under the same name."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tidegate.analytics.port import Answer
from tidegate.errors import AnalyticsUnavailable, CallerFault
from tidegate.policy.history import Can
from tidegate.settings import Settings
from tidegate_cli import abilities, subjects

ALICE, BOB = "a" * 32, "b" * 32


class Table:
    """People of recorded calls; `None`: ClickHouse is away."""

    def __init__(self, people: list[tuple[Any, ...]] | None) -> None:
        self.people = people
        self.asked: list[str] = []

    async def query(self, sql: str, parameters: Mapping[str, Any]) -> Answer:
        if self.people is None:
            raise AnalyticsUnavailable("nobody answers")
        if "GROUP BY subject_id" in sql:
            return Answer((), self.people)
        self.asked.append(parameters["name"])
        return Answer((), [])

    @asynccontextmanager
    async def reaching(self, _: Settings) -> AsyncIterator["Table"]:
        yield self


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(root=str(tmp_path), tenant="acme")


def table(patch: pytest.MonkeyPatch, people: list[tuple[Any, ...]] | None) -> Table:
    made = Table(people)
    patch.setattr(subjects, "reaching", made.reaching)
    patch.setattr(abilities, "reaching", made.reaching)
    return made


def test_a_name_of_several_people_is_refused(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    table(monkeypatch, [(ALICE, "https://a", 2), (BOB, "https://b", 1)])
    with pytest.raises(CallerFault, match="login of several subjects"):
        abilities._meant(settings, "sam")


async def test_one_person_s_calls_are_asked_for_by_their_subject_id(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = table(monkeypatch, [])
    who = await abilities._who(settings, "sam", ALICE, "cc", ("eng",), 1)
    assert made.asked == [ALICE]
    assert (who.user, who.subject_id) == ("sam", ALICE)


def test_without_clickhouse_given_groups_suffice_and_quarantines_are_said_to_be_unknown(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table(monkeypatch, None)
    assert abilities._meant(settings, "sam") == "sam"
    who = abilities.Who(user="sam", agent="", groups=("eng",))
    abilities._show(abilities.Abilities(1, who, "main", 0, "", []))
    assert "in quarantine is not known" in capsys.readouterr().out


def test_what_depends_on_arguments_says_on_what_by_which_rules_and_whether_it_asks(
    capsys: pytest.CaptureFixture[str],
) -> None:
    told = "It depends on the arguments."
    can = [
        Can("git", "log", (), "by-arguments", "depends-on-arguments", tuple(f"r{n}" for n in range(8)), told),
        Can("git", "push", (), "by-arguments", "depends-on-arguments", ("big",), told, "all"),
        Can("git", "tag", (), "ask", "approval-required", ("tags",), "Ask Bob.", "all"),
    ]
    abilities._show(abilities.Abilities(1, abilities.Who("sam", "", ()), "main", 3, "d" * 64, can))
    shown = {line.split("git/")[1].split()[0]: " ".join(line.split()) for line in _rows(capsys.readouterr().out)}
    assert shown["log"] == f"some calls git/log r0, r1, r2, r3, r4, r5, 2 more rules {told}"
    assert shown["push"] == f"some calls, asks first git/push big {told}"
    assert shown["tag"] == "asks first git/tag tags Ask Bob."


def _rows(text: str) -> list[str]:
    return [line for line in text.splitlines() if "git/" in line]
