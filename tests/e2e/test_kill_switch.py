"""`tidegate quarantine` against a real `up`: what is stopped is refused with its reason, until it is lifted or over."""

import json
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.e2e.first_example import House, serving

TIME = ("call", "time__get_current_time", "timezone=UTC", "--groups", "eng")


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with serving(tmp_path_factory.mktemp("house")) as running:
        until(lambda: called(running)[0])
        yield running


def until(fact: Callable[[], bool], deadline_s: float = 40.0) -> None:
    late = time.monotonic() + deadline_s
    while not fact():
        assert time.monotonic() < late
        time.sleep(0.05)


def called(house: House, *words: str) -> tuple[bool, str]:
    done = house.run(*TIME, *words)
    return done.returncode == 0, done.stdout


def imposed(house: House, scope: str, value: str, *words: str) -> Any:
    done = house.run("quarantine", "impose", scope, value, "--reason", f"stop {scope}", *words, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


SCOPES = [
    ("agent", "rogue", ("--agent", "rogue"), ()),
    ("server", "time", (), None),
    ("tool", "time/get_current_time", (), None),
]


@pytest.mark.parametrize(("scope", "value", "words", "others"), SCOPES)
def test_what_is_stopped_is_refused_with_its_reason_until_it_is_lifted(
    house: House, scope: str, value: str, words: tuple[str, ...], others: tuple[str, ...] | None
) -> None:
    assert called(house, *words)[0]
    made = imposed(house, scope, value)
    until(lambda: not called(house, *words)[0])
    assert f"stop {scope}" in called(house, *words)[1]
    if others is not None:
        assert called(house, *others)[0]
    assert value in house.run("quarantine", "list").stdout
    assert house.run("quarantine", "lift", made["quarantine_id"], "--reason", "cleared").returncode == 0
    until(lambda: called(house, *words)[0])


@pytest.mark.parametrize("name", ["login", "issuer|subject", "subject id"])
def test_a_person_is_stopped_by_any_of_their_names(house: House, name: str) -> None:
    who = ("--user", f"{name.split('|')[0].replace(' ', '-')}@example.com")
    assert called(house, *who)[0]
    row = found(house, who[1])
    value = {"login": who[1], "issuer|subject": f"{row['issuer']}|{who[1]}", "subject id": row["subject_id"]}[name]
    made = imposed(house, "user", value, "--for", "2h")
    assert made["value"] == row["subject_id"]
    assert made["expires_us"] > made["imposed_us"]
    until(lambda: not called(house, *who)[0])
    assert called(house)[0]
    assert "This person is in quarantine: stop user" in called(house, *who)[1]
    assert f"person {who[1]} stop user" in " ".join(house.run("quarantine", "list").stdout.split())
    assert f"person {who[1]} stop user" in " ".join(house.run("status").stdout.split())
    tail = " ".join(house.run("log", "tail", "--no-follow", "--last", "200").stdout.split())
    assert f"quarantine of person {who[1]}: stop user until " in tail
    assert f"by tidegate-cli {made['quarantine_id']}" in tail


def test_a_misspelt_agent_is_told_with_the_one_that_was_meant_and_a_known_one_is_not(house: House) -> None:
    assert called(house, "--agent", "invoice-bot")[0]
    known = house.run("quarantine", "impose", "agent", "invoice-bot", "--reason", "x", "--for", "1s")
    assert known.returncode == 0
    assert "no recorded call" not in known.stdout
    misspelt = house.run("quarantine", "impose", "agent", "invoice-bto", "--reason", "x", "--for", "1s")
    assert "no recorded call names this agent (did you mean 'invoice-bot'?)" in " ".join(misspelt.stdout.split())


def found(house: House, login: str) -> Any:
    """The person's row in ClickHouse, once it is there."""
    sql = f"SELECT issuer, subject_id FROM tidegate.calls WHERE login = '{login}' LIMIT 1"
    rows: list[Any] = []

    def is_there() -> bool:
        rows[:] = json.loads(house.run("sql", sql, "--format", "json").stdout or "[]")
        return bool(rows)

    until(is_there)
    return rows[0]


def test_it_ends_by_itself_when_its_time_is_over(house: House) -> None:
    imposed(house, "agent", "brief", "--for", "2s")
    until(lambda: called(house, "--agent", "brief")[0])


def test_who_never_called_is_stopped_by_issuer_and_subject_and_not_by_login(house: House) -> None:
    login = "newguy@example.com"
    unknown = house.run("quarantine", "impose", "user", login, "--reason", "left us")
    assert unknown.returncode == 1
    told = " ".join(unknown.stderr.split())
    assert "name the person as ISSUER|SUBJECT" in told
    (beginning,) = re.findall(r"\(here '(\S+)\|…'\)", told)
    made = imposed(house, "user", f"{beginning}|{login}")
    until(lambda: not called(house, "--user", login)[0])
    assert "This person is in quarantine: stop user" in called(house, "--user", login)[1]
    assert called(house)[0]
    assert house.run("quarantine", "lift", made["quarantine_id"]).returncode == 0
    until(lambda: called(house, "--user", login)[0])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("tool", "get_current_time"), "server/tool"),
        (("user", "nobody@example.com"), "no recorded call shows the login"),
        (("agnet", "x"), "did you mean 'agent'?"),
        (("agent", "x", "--for", "soon"), "give a duration like 15m"),
    ],
)
def test_a_slip_stops_nothing_and_is_told(house: House, words: tuple[str, ...], told: str) -> None:
    done = house.run("quarantine", "impose", *words, "--reason", "x")
    assert done.returncode != 0
    assert told in " ".join(done.stderr.split())
    assert called(house)[0]


@pytest.mark.parametrize(
    ("scope", "value", "known"),
    [
        ("server", "time", True),
        ("server", "nosuch", False),
        ("tool", "time/get_current_time", True),
        ("tool", "time/nosuch", False),
        ("session", "abc", None),
        ("agent", "nobody", None),
    ],
)
def test_a_name_that_nobody_bears_is_stopped_and_told_as_unknown(
    house: House, scope: str, value: str, known: bool | None
) -> None:
    made = imposed(house, scope, value)
    assert made["known"] is known
    assert house.run("quarantine", "lift", made["quarantine_id"]).returncode == 0
    done = house.run("quarantine", "impose", scope, value, "--reason", "x", "--for", "1s")
    assert done.returncode == 0
    assert ("is called" in done.stdout) == (known is False)
    assert (f"no recorded call names this {scope}" in done.stdout) == (known is None)
    until(lambda: f"{scope} {value}" not in house.run("quarantine", "list").stdout)
