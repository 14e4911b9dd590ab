"""The commands against a real `tidegate up` on the first example: what a person sees, and what a script can rely on."""

import json
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.first_example import EXAMPLE, House, serving

ALL_GRANTED = {
    *("git__git_log", "git__git_show", "git__git_status"),
    *("notes__add_note", "notes__list_notes", "time__convert_time", "time__get_current_time"),
}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with serving(tmp_path_factory.mktemp("house")) as running:
        wait_for(lambda: {tool["name"] for tool in answer(running, "tools", "--groups", "eng")} == ALL_GRANTED, running)
        yield running


def answer(house: House, *words: str) -> Any:
    """The JSON document that a command printed."""
    return json.loads(house.run(*words, "--json").stdout)


def wait_for(fact: Callable[[], bool], house: House, deadline_s: float = 30.0) -> None:
    until = time.monotonic() + deadline_s
    while not fact():
        assert time.monotonic() < until, house.log.read_text()[-3_000:]
        time.sleep(0.1)


def denial(house: House) -> str:
    """The id of a decision that refused a call."""
    refused = answer(house, "call", "git__git_log", "repo_path=/srv/payroll", "--groups", "eng")
    return str(refused["_meta"]["tidegate/decision"]["id"])


def test_tools_are_those_that_the_groups_are_granted(house: House) -> None:
    assert "time__get_current_time" in house.run("tools", "--groups", "oncall").stdout
    assert answer(house, "tools", "--groups", "sales") == []
    assert "No tool is granted" in house.run("tools", "--groups", "sales").stdout


def test_a_call_that_is_granted_shows_the_servers_answer(house: House) -> None:
    made = house.run("call", "time__get_current_time", "timezone=Europe/Paris", "--groups", "eng")
    assert made.returncode == 0
    assert "Europe/Paris" in made.stdout


def test_arguments_have_the_types_of_the_tools_schema(house: House) -> None:
    made = house.run("call", "git__git_log", "repo_path=data/shop", "max_count=1", "--groups", "eng")
    assert made.returncode == 0
    assert made.stdout.count("Commit: ") == 1


def test_a_call_refused_for_its_arguments_names_rule_and_reason_and_exits_1(house: House) -> None:
    made = house.run("call", "git__git_log", "--args", '{"repo_path": "/srv/payroll"}', "--groups", "eng")
    assert made.returncode == 1
    for part in ("may read the repository data/shop", "forbidden-by-rule", "demo-repository-only", "tidegate why "):
        assert part in made.stdout, part


def test_a_tool_that_is_not_granted_answers_like_one_that_does_not_exist(house: House) -> None:
    hidden = house.run("call", "git__git_reset", "repo_path=data/shop", "--groups", "eng")
    missing = house.run("call", "git__git_nothing", "repo_path=data/shop", "--groups", "eng")
    assert (hidden.returncode, missing.returncode) == (1, 1)
    assert hidden.stdout.replace("git_reset", "X") == missing.stdout.replace("git_nothing", "X")


@pytest.mark.parametrize("slip", ["git__git_lgo", "gti__git_log", "git_log"])
def test_a_slip_in_a_tools_name_is_told_with_the_granted_name_that_is_near(slip: str, house: House) -> None:
    made = house.run("call", slip, "repo_path=data/shop", "--groups", "eng")
    assert made.returncode == 1
    assert "did you mean git__git_log?" in made.stdout
    assert "did you mean" not in house.run("call", slip, "repo_path=data/shop", "--groups", "sales").stdout


def test_a_masked_value_is_told_and_not_shown(house: House) -> None:
    made = house.run("call", "git__git_show", "repo_path=data/shop", "revision=HEAD", "--groups", "eng")
    assert made.returncode == 0
    assert "AKIA" not in made.stdout
    assert "1 value kept from you by aws-access-key" in made.stdout


def test_a_secret_in_arguments_is_not_sent_and_stands_in_no_file_of_the_log(house: House) -> None:
    secret = "AKIAZ7EXAMPLEFAKEKEY"
    made = house.run("call", "notes__add_note", "title=keys", f"text={secret}", "--groups", "eng")
    assert made.returncode == 1
    assert "aws-access-key" in made.stdout
    kept = [path for path in (house.root / EXAMPLE / "data").glob("log.db*") if secret.encode() in path.read_bytes()]
    assert kept == []
    assert secret not in house.run("log", "tail", "--no-follow", "--json").stdout, "nor in what the master opens"


def test_a_token_of_the_caller_is_used_instead_of_a_made_one(house: House) -> None:
    token = house.run("token", "--user", "bob@example.com", "--agent", "cursor", "--groups", "eng").stdout.strip()
    made = house.run("call", "time__get_current_time", "timezone=UTC", environment={"TIDEGATE_TOKEN": token})
    assert made.returncode == 0
    last = house.run("log", "tail", "--no-follow", "--user", "bob@example.com", "--json").stdout.splitlines()
    assert {json.loads(line)["agent"] for line in last} == {"cursor"}


def test_whom_the_command_line_names_wins_over_a_token_in_the_environment(house: House) -> None:
    token = house.run("token", "--user", "alice@example.com", "--agent", "mine", "--groups", "eng").stdout.strip()
    environment = {"TIDEGATE_TOKEN": token}
    assert "git__git_log" in house.run("tools", environment=environment).stdout
    assert "No tool is granted" in house.run("tools", "--groups", "sales", environment=environment).stdout
    both = house.run("tools", "--groups", "sales", "--token", token)
    assert (both.returncode, both.stdout) == (2, "")
    assert "leave one of them out" in both.stderr


def test_a_wrong_address_is_told_apart_from_nobody_there(house: House) -> None:
    assert "the endpoint ends in /mcp" in house.run("tools", "--url", house.url).stderr
    assert "is not an http:// or https:// address" in house.run("tools", "--url", f"127.0.0.1:{house.port}/mcp").stderr


def test_a_bad_token_is_refused_with_what_to_check(house: House) -> None:
    refused = house.run("call", "time__get_current_time", "--args", "{}", "--token", "nonsense")
    assert refused.returncode == 1
    assert "`tidegate token` makes another" in refused.stdout


def test_why_explains_a_refusal_with_the_rules_own_words(house: House) -> None:
    story = house.run("why", denial(house))
    assert story.returncode == 0
    for part in ("alice@example.com", "tidegate-cli", "/srv/payroll", "not forwarded", 'repo_path == "data/shop"'):
        assert part in story.stdout, part
    assert re.search(r"^ +says  .*may read the repository data/shop", story.stdout, re.MULTILINE)


def test_why_takes_the_beginning_of_an_id_that_no_other_call_has(house: House) -> None:
    whole, other = denial(house), denial(house)
    if whole[:8] != other[:8]:  # they begin with their minute
        whole = denial(house)
    assert answer(house, "why", whole[:-1])["decision_id"] == whole
    several = house.run("why", whole[:8])
    assert several.returncode == 1
    assert f"calls' ids begin with {whole[:8]}" in " ".join(several.stderr.split())
    short = house.run("why", whole[:7])
    assert (short.returncode, "at least the first 8 characters" in " ".join(short.stderr.split())) == (1, True)


def test_why_explains_a_call_that_was_carried_out(house: House) -> None:
    house.run("call", "git__git_show", "repo_path=data/shop", "revision=HEAD", "--groups", "eng")
    tail = house.run("log", "tail", "--no-follow", "--tool", "git__git_show", "--json").stdout.splitlines()
    story = answer(house, "why", json.loads(tail[-1])["call_id"])
    assert story["ended"]["outcome"] == "ok"
    assert story["ended"]["masked"] == 1
    assert "AKIA" not in json.dumps(story)


def test_tail_follows_and_shows_a_call_as_it_comes(house: House) -> None:
    seen = house.root / "tail.jsonl"
    from tests.e2e.first_example import TIDEGATE
    from tests.parts.processes import spawn, stop

    words = [str(TIDEGATE), "log", "tail", "--decision", "deny", "--last", "0", "--json"]
    tail = spawn(words, cwd=house.root, log=seen, environment=house.environment)
    try:
        ids: list[str] = []

        def shown() -> bool:  # each turn makes a call: the first one that the follower was there for is shown
            ids.append(denial(house))
            lines = seen.read_text().splitlines()
            return any(json.loads(line)["call_id"] in ids for line in lines)

        wait_for(shown, house)
    finally:
        stop(tail)


def test_status_names_services_edges_and_releases(house: House) -> None:
    found = answer(house, "status")
    assert found["services"]["up"]["ready"] is True
    assert [edge["behind"] for edge in found["edges"]] == [False]
    assert found["backlog"]["pending_records"] == 0
    shown = house.run("status")
    assert shown.returncode == 0
    assert "ready" in shown.stdout


def test_a_published_bundle_rules_and_a_rollback_undoes_it(house: House) -> None:
    policy = house.root / EXAMPLE / "policy"
    rules = policy / "policies" / "engineering.cedar"
    closing = '\n@id("time-is-over")\nforbid (principal, action == Action::"time/get_current_time", resource);\n'
    before = rules.read_text()
    cases = (policy / "cases.yaml").read_text()
    call = ("call", "time__get_current_time", "timezone=UTC", "--groups", "eng")
    rules.write_text(before + closing)
    refused = house.run("bundle", "publish", str(policy))
    assert refused.returncode == 1
    assert "an engineer asks for the time" in refused.stdout
    (policy / "cases.yaml").write_text("[]\n")
    try:
        assert answer(house, "bundle", "publish", str(policy))["number"] == 2
        wait_for(lambda: house.run(*call).returncode == 1, house)
        shown = answer(house, "bundle", "show", "--current")
        assert "time-is-over" in shown["files"]["policies/engineering.cedar"]
        assert house.run("bundle", "rollback", "1").returncode == 0
        wait_for(lambda: house.run(*call).returncode == 0, house)
        releases = answer(house, "bundle", "list")
        assert [(release["number"], release["current"]) for release in releases] == [(3, True), (2, False), (1, False)]
        assert releases[0]["digest"] == releases[2]["digest"]
    finally:
        rules.write_text(before)
        (policy / "cases.yaml").write_text(cases)


def test_what_rules_can_be_compared_with_and_why_shows_the_text_of_a_rule_that_only_watches(house: House) -> None:
    policy = house.root / EXAMPLE / "policy"
    rules = policy / "policies" / "engineering.cedar"
    before = rules.read_text()
    watching = """
@id("trial") @mode("shadow") @reason("The clock is on the wall.")
forbid (principal, action == Action::"time/get_current_time", resource);
"""
    call = ("call", "time__get_current_time", "timezone=UTC", "--groups", "eng")
    words = ("bundle", "check", str(policy), "--against", "ruling", "--fail-on-more-permissive")
    rules.write_text(before + watching)
    try:
        checked = house.run(*words)
        assert (checked.returncode, "no decision differs" in checked.stdout) == (0, True), checked.stderr
        number = answer(house, "bundle", "publish", str(policy))["number"]
        wait_for(lambda: f"release {number}" in why_of_latest(house, call), house)
        story = why_of_latest(house, call)
    finally:
        rules.write_text(before)
    assert "rule trial, which did not rule" in story
    assert '@reason("The clock is on the wall.")' in story


def why_of_latest(house: House, call: tuple[str, ...]) -> str:
    """What `why` tells of a call that is made now."""
    assert house.run(*call).returncode == 0
    tail = house.run("log", "tail", "--no-follow", "--tool", call[1], "--json").stdout.splitlines()
    return " ".join(house.run("why", json.loads(tail[-1])["call_id"]).stdout.split())


def test_a_release_that_never_was_is_a_failure_that_says_where_to_look(house: House) -> None:
    failed = house.run("bundle", "rollback", "99")
    assert failed.returncode == 1
    assert failed.stdout == ""
    assert "99" in failed.stderr


def test_sigterm_ends_it_with_code_0_and_everything_recorded(tmp_path: Path) -> None:
    with serving(tmp_path) as house:
        refused = denial(house)
        assert house.process is not None
        house.process.send_signal(signal.SIGTERM)
        assert house.process.wait(30) == 0
        assert "forbidden-by-rule" in house.run("why", refused).stdout
        stopped = house.run("tools", "--groups", "eng")
        assert stopped.returncode == 1
        assert "tidegate up" in stopped.stderr
