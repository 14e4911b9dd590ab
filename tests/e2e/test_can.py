"""`tidegate can` against a real `up`: what a person and an agent may call agrees with what is listed, now and then."""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from tests.e2e.first_example import EXAMPLE, House, serving

GRANTED = {"time/get_current_time", "time/convert_time", "notes/add_note", "notes/list_notes"}
BY_ARGUMENTS = {"git/git_log", "git/git_show", "git/git_status"}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with serving(tmp_path_factory.mktemp("house")) as running:
        until(lambda: "git__git_log" in running.run("tools", "--groups", "eng").stdout)
        yield running


def until(fact: Callable[[], bool], deadline_s: float = 40.0) -> None:
    late = time.monotonic() + deadline_s
    while not fact():
        assert time.monotonic() < late
        time.sleep(0.1)


def can(house: House, *words: str) -> Any:
    done = house.run("can", *words, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def answers(found: Any, *wanted: str) -> set[str]:
    return {f"{one['server']}/{one['action']}" for one in found["can"] if one["answer"] in wanted}


def now() -> str:
    return datetime.now(UTC).isoformat()


def test_what_a_group_may_call_is_what_it_is_shown(house: House) -> None:
    found = can(house, "--user", "zoe@example.com", "--groups", "eng", "--agent", "claude-code")
    assert answers(found, "allow") == GRANTED
    assert answers(found, "by-arguments") == BY_ARGUMENTS
    listed = json.loads(house.run("tools", "--groups", "eng", "--json").stdout)
    assert {tool["name"].replace("__", "/") for tool in listed} == GRANTED | BY_ARGUMENTS
    refused = next(one for one in found["can"] if one["action"] == "git_reset")
    assert (refused["answer"], refused["reason"]) == ("deny", "tool-not-granted")


def test_what_nobody_granted_is_told_as_the_call_is_however_rules_look_at_arguments(house: House) -> None:
    found = can(house, "--user", "zoe@example.com", "--groups", "sales")
    assert {(one["answer"], one["reason"]) for one in found["can"]} == {("deny", "tool-not-granted")}


@pytest.mark.parametrize("more", [(), ("--groups", "eng")])
def test_a_subject_id_that_no_call_shows_is_refused(house: House, more: tuple[str, ...]) -> None:
    done = house.run("can", "--user", "0" * 32, *more)
    assert (done.returncode, done.stdout) == (1, "")
    assert "nothing is known of that person" in done.stderr
    assert "--groups" in done.stderr


def test_without_a_person_it_is_told_of_anybody_in_the_groups_and_what_was_assumed(house: House) -> None:
    found = can(house, "--agent", "claude-code", "--groups", "eng")
    assert (found["who"]["user"], found["ring"]) == ("", "main")
    assert answers(found, "allow") == GRANTED
    assert found["assumed"] == [
        "ring main",
        "somebody whom no rule names, in eng alone; --user says who",
    ]
    shown = " ".join(house.run("can", "--agent", "claude-code").stdout.split())
    assert "somebody through claude-code, groups none" in shown
    assert "assumed somebody whom no rule names, in no group; --groups says of which" in shown
    assert "of ring main, bundle" in shown
    everything = ("--user", "zoe@example.com", "--groups", "eng", "--agent", "cc", "--person", "--ring", "main")
    assert can(house, *everything)["assumed"] == []


def test_a_person_s_groups_are_those_of_their_latest_call(house: House) -> None:
    assert house.run("can", "--user", "yan@example.com").returncode != 0
    house.run("call", "time__get_current_time", "timezone=UTC", "--user", "yan@example.com", "--groups", "eng")
    until(lambda: house.run("can", "--user", "yan@example.com").returncode == 0)
    found = can(house, "--user", "yan@example.com")
    assert found["who"]["groups"] == ["eng"]
    assert answers(found, "allow") == GRANTED
    shown = house.run("can", "--user", "yan@example.com", "--server", "time").stdout
    for words in ("yan@example.com", "groups eng", "time/convert_time", "eng-time", "yes"):
        assert words in shown, words
    assert "git_log" not in shown


def test_then_is_told_as_it_was_then(house: House) -> None:
    before = now()
    directory = house.root / "narrower"
    shutil.copytree(house.root / EXAMPLE / "policy", directory)
    rules = directory / "policies" / "engineering.cedar"
    rules.write_text(rules.read_text() + '@id("no-notes") forbid (principal, action, resource == Server::"notes");')
    (directory / "cases.yaml").unlink()
    assert house.run("bundle", "publish", str(directory)).returncode == 0
    stop = ("quarantine", "impose", "tool", "time/convert_time", "--reason", "looked at")
    assert house.run(*stop).returncode == 0
    who = ("--user", "zoe@example.com", "--groups", "eng")
    today = can(house, *who)
    assert answers(today, "allow") == {"time/get_current_time"}
    reasons = {one["action"]: one["reason"] for one in today["can"]}
    assert (reasons["convert_time"], reasons["add_note"]) == ("quarantined", "forbidden-by-rule")
    then = can(house, *who, "--at", before)
    assert answers(then, "allow") == GRANTED
    assert then["release"] < today["release"]
    earliest = can(house, *who, "--at", "2001-01-01")
    assert (earliest["release"], earliest["can"]) == (0, [])


def test_whom_a_canary_decides_for_is_answered_by_it(house: House) -> None:
    directory = house.root / "without-notes"
    shutil.copytree(house.root / EXAMPLE / "policy", directory)
    rules = directory / "policies" / "engineering.cedar"
    rules.write_text(rules.read_text() + '@id("off") forbid (principal, action, resource == Server::"notes");')
    (directory / "cases.yaml").unlink()
    done = house.run("bundle", "publish", str(directory), "--canary", "100%", "--group", "eng", "--region", "moon")
    assert done.returncode == 0, done.stderr
    who = ("--user", "zoe@example.com", "--groups", "eng", "--server", "notes")
    elsewhere = can(house, *who)
    assert elsewhere["role"] == "ruling"
    assert "decides for them at edges in moon alone" in elsewhere["note"]
    there = can(house, *who, "--region", "moon")
    assert (there["role"], there["note"], answers(there, "allow")) == ("canary", "", set())
    shown = house.run("can", *who, "--region", "moon").stdout
    assert f"canary release {there['release']}" in shown
    others = can(house, "--user", "zoe@example.com", "--groups", "sales", "--region", "moon")
    assert (others["role"], others["note"]) == ("ruling", "")


def test_a_service_account_is_told_from_a_person_by_its_latest_call(house: House) -> None:
    directory = house.root / "robots"
    shutil.copytree(house.root / EXAMPLE / "policy", directory)
    rules = directory / "policies" / "engineering.cedar"
    robots = '@id("no-robots") forbid (principal, action, resource == Server::"notes") unless { principal is User };'
    rules.write_text(rules.read_text() + robots)
    (directory / "cases.yaml").unlink()
    assert house.run("bundle", "publish", str(directory)).returncode == 0
    for user, agent in (("nightly", "nightly"), ("wim@example.com", "nightly")):  # the client is the subject, or not
        house.run("call", "time__get_current_time", "timezone=UTC", "--user", user, "--agent", agent, "--groups", "eng")
        until(lambda user=user: house.run("can", "--user", user).returncode == 0)  # type: ignore[misc]
    notes = {"notes/add_note", "notes/list_notes"}
    robot, person = (can(house, "--user", user, "--server", "notes") for user in ("nightly", "wim@example.com"))
    assert (robot["who"]["kind"], person["who"]["kind"]) == ("service", "user")
    assert {(one["answer"], *one["rules"]) for one in robot["can"]} == {("deny", "no-robots")}
    assert answers(person, "allow") == notes
    assert "the service account nightly" in house.run("can", "--user", "nightly").stdout
    assert answers(can(house, "--user", "nightly", "--person"), "allow") >= notes
    assert not answers(can(house, "--user", "wim@example.com", "--service"), "allow") & notes
    unseen = house.run("can", "--user", "nobody", "--groups", "eng").stdout
    assert "assumed  a person: no recorded call shows what it is" in unseen
    assert "a person: no" not in house.run("can", "--user", "nobody", "--groups", "eng", "--service").stdout
