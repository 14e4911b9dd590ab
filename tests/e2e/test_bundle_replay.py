"""`tidegate bundle replay` against a real `up`: recorded calls decided again, by what ruled and by candidates."""

import json
import shutil
import time
from collections.abc import Iterator
from typing import Any

import pytest
from tests.e2e.first_example import EXAMPLE, House, serving

CALLS = (
    ("alice@example.com", "time__get_current_time", "timezone=Europe/Paris"),
    ("alice@example.com", "git__git_log", "repo_path=data/shop"),
    ("bob@example.com", "git__git_log", "repo_path=data/shop"),
    ("bob@example.com", "git__git_log", "repo_path=/srv/payroll"),
    ("bob@example.com", "notes__list_notes", ""),
)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with serving(tmp_path_factory.mktemp("house")) as running:
        until(lambda: "git__git_log" in running.run("tools", "--groups", "eng").stdout)
        for user, tool, argument in CALLS:
            running.run("call", tool, *([argument] if argument else []), "--user", user, "--groups", "eng")
        for tool in ("git__git_reset", "git__git_nothing"):  # hidden from its caller, and not there
            running.run("call", tool, "repo_path=data/shop", "--groups", "eng")
        until(lambda: replay(running, "1")["calls"] >= len(CALLS) + 2)
        yield running


def until(fact: Any, deadline_s: float = 40.0) -> None:
    late = time.monotonic() + deadline_s
    while not fact():
        assert time.monotonic() < late
        time.sleep(0.1)


def replay(house: House, candidate: str, *words: str) -> Any:
    done = house.run("bundle", "replay", candidate, "--since", "1h", *words, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def candidate(house: House, name: str, text: str) -> str:
    """The example's policy with further rules."""
    made = house.root / "candidates" / name
    if not made.exists():
        shutil.copytree(house.root / EXAMPLE / "policy", made)
        rules = made / "policies" / "engineering.cedar"
        rules.write_text(rules.read_text() + text)
    return str(made)


@pytest.mark.parametrize("store", ["clickhouse", "log"])
def test_what_rules_already_changes_nothing(house: House, store: str) -> None:
    found = replay(house, "1", "--from", store, "--fail-on-change")
    assert (found["changed"], found["other_rules"], found["changes"]) == (0, 0, [])
    assert found["same"] >= len(CALLS)
    assert found["calls"] == found["same"] + found["elsewhere"] + found["not_kept"] + found["erased"]


@pytest.mark.parametrize("store", ["clickhouse", "log"])
def test_what_a_candidate_newly_denies_is_told_by_tool_person_and_rule(house: House, store: str) -> None:
    rule = """
@id("no-log-for-bob")
forbid (principal == User::"bob@example.com", action == Action::"git/git_log", resource);
"""
    found = replay(house, candidate(house, "stricter", rule), "--from", store)
    (change,) = found["changes"]
    assert (change["kind"], change["server"], change["tool"]) == ("newly-denied", "git", "git_log")
    assert (change["calls"], change["rules_after"]) == (1, ["no-log-for-bob"])
    assert change["people"] == [["bob@example.com", 1]]
    told = house.run("why", change["examples"][0]["decision_id"]).stdout
    assert "bob@example.com" in told


def test_what_a_candidate_newly_asks_is_told_and_can_fail_a_script(house: House) -> None:
    rule = """
@id("ask-for-notes") @effect("ask")
forbid (principal, action == Action::"notes/list_notes", resource);
"""
    directory = candidate(house, "asking", rule)
    assert [one["kind"] for one in replay(house, directory)["changes"]] == ["newly-asked"]
    assert replay(house, directory, "--server", "git")["changed"] == 0
    assert replay(house, directory, "--tool", "list_notes")["calls"] == 1
    done = house.run("bundle", "replay", directory, "--since", "1h", "--fail-on-change")
    assert done.returncode == 1
    for words in ("newly asked", "notes/list_notes", "ask-for-notes", "1 would change", "bob@example.com"):
        assert words in done.stdout, words


def test_an_open_candidate_allows_what_was_hidden_and_what_is_not_there_is_counted_apart(house: House) -> None:
    found = replay(house, candidate(house, "open", '@id("open") permit (principal, action, resource);'))
    assert found["elsewhere"] == 1
    assert [(one["kind"], one["tool"]) for one in found["changes"]] == [("newly-allowed", "git_reset")]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("nowhere",), "neither a directory nor a release"),
        (("77",), "has no release 77"),
        (("1", "--since", "soon"), "give an age like"),
        (("1", "--since", "1h", "--until", "2h"), "--until is not after --since"),
    ],
)
def test_a_slip_is_told_with_what_to_do(house: House, words: tuple[str, ...], told: str) -> None:
    done = house.run("bundle", "replay", *words)
    assert done.returncode != 0
    assert told in " ".join(done.stderr.split())


def test_no_call_of_that_time_is_said(house: House) -> None:
    done = house.run("bundle", "replay", "1", "--since", "2001-01-01", "--until", "2001-02-01")
    assert (done.returncode, "no call was recorded then" in done.stdout) == (0, True)


def test_every_recorded_decision_agrees_with_itself(house: House) -> None:
    lines = house.run("log", "tail", "--no-follow", "--last", "0", "--since", "1h", "--json").stdout.splitlines()
    asked = [json.loads(line) for line in lines if '"type":"call.requested.' in line]
    assert len(asked) >= len(CALLS) + 2
    told = {one["call_id"]: json.loads(house.run("why", one["call_id"], "--json").stdout)["again"] for one in asked}
    by_rule = [one for one in asked if one["reason"] != "unknown-tool"]
    assert {told[one["call_id"]] for one in by_rule} == {"agrees"}
    assert "agrees" in house.run("why", by_rule[0]["call_id"]).stdout
    (unknown,) = [one for one in asked if one["reason"] == "unknown-tool"]
    assert "not by a rule" in told[unknown["call_id"]]
