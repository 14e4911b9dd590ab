"""`tidegate erase` against a real `tidegate up`: what is shown, what is asked, what ClickHouse can read afterwards."""

import json
import os
import pty
from collections.abc import Iterator
from typing import Any

import pytest
from tests.e2e.first_example import EXAMPLE, House, serving
from tests.e2e.test_cli import wait_for
from tests.parts.books import clickhouse_rows

ALICE, BOB = "alice@example.com", "bob@example.com"
SEALED = "privacy:\n  sealing: on\n"


def with_sealing(settings: str) -> str:
    return settings.replace("audit:\n", "audit:\n  roots: {every_s: 1}\n", 1) + SEALED


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with serving(tmp_path_factory.mktemp("erase"), with_sealing) as running:
        call(running, ALICE)
        call(running, BOB)
        wait_for(lambda: len(calls_of(running, ALICE)) == len(calls_of(running, BOB)) == 1, running)
        yield running


def call(house: House, user: str) -> None:
    made = house.run("call", "time__get_current_time", "timezone=Europe/Paris", "--user", user, "--groups", "eng")
    assert made.returncode == 0, made.stdout + made.stderr


def rows(house: House, query: str) -> list[dict[str, Any]]:
    return clickhouse_rows(house.root / EXAMPLE / "data", query)


def calls_of(house: House, login: str) -> list[dict[str, Any]]:
    """Those that can be read and have ended."""
    query = f"SELECT issuer, subject_id, arguments, result, is_erased FROM tidegate.calls WHERE login = '{login}'"
    return [row for row in rows(house, query) if row["result"]]


def test_a_dry_run_shows_what_would_go_and_destroys_nothing(house: House) -> None:
    shown = house.run("erase", ALICE, "--dry-run")
    assert shown.returncode == 0, shown.stderr
    assert "1 key on the log" in shown.stdout
    assert "1 calls" in shown.stdout
    planned = json.loads(house.run("erase", BOB, "--reason", "asked to", "--dry-run", "--json").stdout)
    assert (planned["dry_run"], planned["keys"], planned["calls"]["readable"]) == (True, 1, 1)
    assert "names" not in planned["calls"]
    assert len(calls_of(house, ALICE)) == 1


def test_where_nobody_can_be_asked_nothing_is_destroyed_without_a_yes(house: House) -> None:
    asked = house.run("erase", ALICE, "--reason", "asked to")
    assert asked.returncode == 2
    assert "give --yes" in asked.stderr
    assert len(calls_of(house, ALICE)) == 1


def test_on_a_terminal_it_asks_and_a_no_destroys_nothing(house: House) -> None:
    ours, theirs = pty.openpty()
    try:
        os.write(ours, b"n\n")
        asked = house.run_apart("erase", ALICE, "--reason", "asked to", stdin=theirs)
    finally:
        os.close(ours)
        os.close(theirs)
    assert asked.returncode == 1
    assert "Destroy them?" in asked.stderr
    assert len(calls_of(house, ALICE)) == 1


@pytest.mark.parametrize("reason", ["", f"{ALICE} asked to", "asked by Alice@Example.com, in writing"])
@pytest.mark.parametrize("name", ["login", "subject id", "issuer|subject"])
def test_a_reason_that_is_missing_or_names_the_person_destroys_nothing(house: House, name: str, reason: str) -> None:
    (call,) = calls_of(house, ALICE)
    given = {"login": ALICE, "subject id": call["subject_id"], "issuer|subject": f"{call['issuer']}|{ALICE}"}[name]
    refused = house.run("erase", given, "--reason", reason, "--yes")
    assert refused.returncode == 2, refused.stdout
    assert ("names the person" if reason else "give --reason") in refused.stderr
    assert len(calls_of(house, ALICE)) == 1


def test_of_a_subject_that_nothing_is_recorded_of_that_is_told(house: House) -> None:
    (call,) = calls_of(house, ALICE)
    for unknown in (f"{call['issuer']}|alcie@example.com", "0" * 32):
        told = house.run("erase", unknown, "--dry-run")
        assert told.returncode == 0, told.stderr
        assert "nothing is known of the subject" in told.stderr
    assert "nothing is known" not in house.run("erase", call["subject_id"], "--dry-run").stderr


def test_a_login_that_no_call_shows_is_told(house: House) -> None:
    made = house.run("erase", "alcie@example.com", "--reason", "asked to", "--yes")
    assert made.returncode == 1
    assert "no recorded call shows the login" in made.stderr


def test_a_person_is_erased_and_another_is_not_and_the_proof_holds(house: House) -> None:
    (before,) = calls_of(house, ALICE)
    assert "Europe/Paris" in before["arguments"]
    done = house.run("erase", ALICE, "--reason", "asked to", "--yes", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["keys"], told["subject_id"]) == (1, before["subject_id"])
    assert (told["left"]["calls"], told["left"]["readable"], told["left"]["plain_events"]) == (1, 0, 0)
    (row,) = rows(house, f"SELECT * FROM tidegate.calls WHERE subject_id = '{before['subject_id']}'")
    assert (row["login"], row["arguments"], row["result"], row["is_erased"]) == ("", "", "", 1)
    assert (row["target"], row["status"]) == ("get_current_time", "ok")
    (other,) = calls_of(house, BOB)
    assert (other["is_erased"], "Europe/Paris" in other["arguments"]) == (0, True)

    call(house, ALICE)
    wait_for(lambda: len(calls_of(house, ALICE)) == 1, house)
    assert calls_of(house, ALICE)[0]["subject_id"] == before["subject_id"]
    again = house.run("erase", before["subject_id"], "--reason", "asked to again", "--yes")
    assert again.returncode == 0, again.stderr
    assert "1 key destroyed" in again.stdout
    assert "2 calls in" in again.stdout
    for more in ((), ("--groups", "eng")):
        could = house.run("can", "--user", before["subject_id"], *more)
        assert (could.returncode, could.stdout) == (1, "")
        assert "no longer shows whose it is" in could.stderr
    tail = house.run("log", "tail", "--no-follow", "--last", "500").stdout
    assert f"subject {before['subject_id']}  1 key: asked to again" in tail
    wait_for(lambda: house.run("verify", "--from", "1h").returncode == 0, house)
    erased = rows(house, "SELECT type FROM tidegate.events WHERE type = 'subject.erased.v1'")
    assert len(erased) == 2
