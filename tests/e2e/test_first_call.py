"""The demo, as `make run` starts it: its story is true, Ctrl-C ends it whole, the next run goes on with the data."""

import re
import signal
import time
from pathlib import Path

import psutil
import pytest
from tests.e2e.first_example import EXAMPLE, House, new_house
from tests.parts.processes import Process, stop

DEADLINE_S = 90.0
ENDS_WITH = "Tidegate stays up; Ctrl-C drains and stops."


class Told:
    """One run of the demo: what it printed, and what it left behind when it was interrupted."""

    def __init__(self, house: House) -> None:
        house.log.unlink(missing_ok=True)
        process = house.start("demo", is_cold=True)
        try:
            self.text = _told(house, process)
            children = psutil.Process(process.pid).children(recursive=True)
            self.served_by = {child.name() for child in children}
            process.send_signal(signal.SIGINT)
            self.code = process.wait(30)
            _, alive = psutil.wait_procs(children, timeout=10)
            self.left_alive = [child.pid for child in alive]
            self.ending = house.log.read_text()[len(self.text) :]
        finally:
            stop(process)

    def after(self, heading: str) -> str:
        """What was told below a heading."""
        return self.text.split(heading, 1)[1].split("\n── ", 1)[0]


def _told(house: House, process: Process) -> str:
    until = time.monotonic() + DEADLINE_S
    while ENDS_WITH not in (text := house.log.read_text() if house.log.exists() else ""):
        assert process.poll() is None, text
        assert time.monotonic() < until, text
        time.sleep(0.1)
    return text


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> House:
    return new_house(tmp_path_factory.mktemp("house"))


@pytest.fixture(scope="module")
def first(house: House) -> Told:
    return Told(house)


def test_it_tells_only_the_tools_that_are_granted(first: Told) -> None:
    shown = first.after("asks which tools it has")
    assert "time__get_current_time" in shown
    assert "git__git_reset" not in shown


def test_it_shows_a_call_that_is_allowed(first: Told) -> None:
    assert re.search(r"allowed\s+\{\s+\"timezone\": \"Europe/Paris\"", first.after("A call that the policy allows"))


def test_it_shows_a_refusal_for_arguments_with_reason_and_rule(first: Told) -> None:
    shown = first.after("A call refused because of its arguments")
    assert (
        "refused  Agents may read the repository data/shop and no other. Call again with repo_path data/shop." in shown
    )
    assert "reason forbidden-by-rule · rule demo-repository-only" in shown


def test_it_shows_a_result_whose_secret_is_masked_and_never_the_secret(first: Told) -> None:
    assert "[masked:aws-access-key]" in first.after("masked before the agent sees it")
    assert "AKIA" not in first.text


def test_it_shows_the_detectors_finding_and_the_quarantine_that_follows(first: Told) -> None:
    assert re.search(r"finding high\s+\w", first.after("pins it to the public board"))
    assert "reason quarantined" in first.after("this session is refused everything")


def test_it_shows_the_rows_that_clickhouse_holds_for_each_call(first: Told) -> None:
    rows = first.after("What ClickHouse now holds").splitlines()
    told = [line.split() for line in rows if "-agent" in line]
    assert [(row[2], row[3]) for row in told[:6]] == [
        ("time__get_current_time", "ok"),
        ("git__git_log", "denied"),
        ("git__git_reset", "denied"),
        ("git__git_show", "ok"),
        ("git__git_show", "ok"),
        ("notes__add_note", "ok"),
    ]
    assert {(row[2], row[3]) for row in told[6:]} <= {
        ("time__get_current_time", "denied"),
        ("time__get_current_time", "ok"),
    }
    assert told[-1][3] == "denied"


def test_it_ends_with_the_ways_in(first: Told, house: House) -> None:
    ways = first.text.split("Now with your own agent", 1)[1]
    assert f"claude mcp add --transport http tidegate {house.url}/mcp --header 'Authorization: Bearer ey" in ways
    assert ".cursor/mcp.json" in ways
    assert ".vscode/mcp.json" in ways


def test_an_interrupt_ends_it_with_code_0_and_nothing_left_running(first: Told) -> None:
    assert first.code == 0, first.ending
    assert len(first.served_by) > 0
    assert first.left_alive == []
    assert "Traceback" not in first.text + first.ending


def test_the_next_run_goes_on_with_what_was_recorded(first: Told, house: House) -> None:
    assert "It holds 0 recorded calls from before." in first.text
    made = sum("-agent" in line for line in first.after("What ClickHouse now holds").splitlines())
    again = Told(house)
    assert f"It holds {made} recorded calls from before." in again.text
    assert "reason quarantined" in again.text
    assert again.code == 0


def test_under_rules_that_forbid_the_note_it_tells_that_and_waits_for_no_finding(tmp_path: Path) -> None:
    house = new_house(tmp_path)
    policy = house.root / EXAMPLE / "policy"
    rules = policy / "policies" / "engineering.cedar"
    rules.write_text(rules.read_text().split('@id("eng-notes")')[0])
    cases = policy / "cases.yaml"
    cases.write_text(cases.read_text().split("- note: an engineer writes a note")[0])
    told = Told(house)
    assert "refused  Unknown tool: notes__add_note" in told.after("pins it to the public board")
    assert "no longer those of the example" in told.text
    assert "Each call was permitted by itself" not in told.text
    assert "broke off" not in told.text
    assert "notes__add_note" in told.after("What ClickHouse now holds")
