"""Subject ids become logins where recorded calls show them, and never in the way of a command."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tidegate.analytics.port import Answer
from tidegate.errors import AnalyticsUnavailable, ConfigFault
from tidegate.ids import subject_id
from tidegate.local_issuer import issuer_name
from tidegate.secrets import create_secrets, secrets_path
from tidegate.settings import Settings
from tidegate_cli import cataloguing, people, seeing, status
from tidegate_cli.approving import Asker
from tidegate_cli.matching import Seen, open_seen
from tidegate_cli.people import Known, logins, person, with_logins
from tidegate_cli.quarantining import scope_named
from tidegate_cli.serving import _check_free

ALICE, BOB = "a" * 32, "b" * 32


class Calls:
    """Recorded calls; `None`: ClickHouse is away."""

    def __init__(self, rows: list[tuple[Any, ...]] | None) -> None:
        self.rows = rows
        self.asked: list[Mapping[str, Any]] = []

    async def query(self, _: str, parameters: Mapping[str, Any]) -> Answer:
        self.asked.append(parameters)
        if self.rows is None:
            raise AnalyticsUnavailable("nobody answers")
        return Answer((), self.rows)

    @asynccontextmanager
    async def reaching(self, _: Settings) -> AsyncIterator["Calls"]:
        yield self


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(root=str(tmp_path), tenant="acme")


def recorded(patch: pytest.MonkeyPatch, rows: list[tuple[Any, ...]] | None) -> Calls:
    made = Calls(rows)
    patch.setattr(people, "reaching", made.reaching)
    patch.setattr(seeing, "reaching", made.reaching)
    return made


def event(**fields: Any) -> Seen:
    found = open_seen(msgspec.json.encode({"time_us": 5_000_000, "tenant": "acme", **fields}))
    assert found is not None
    return found


def test_an_id_is_its_login_and_one_that_no_call_shows_its_beginning(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recorded(monkeypatch, [(ALICE, "alice@example.com")])
    names = logins(settings, [ALICE, BOB, ALICE, "guard"])
    assert made.asked == [{"tenant": "acme", "ids": [ALICE, BOB]}]
    assert [person(names, who) for who in (ALICE, BOB, "guard")] == ["alice@example.com", "b" * 12, "guard"]
    assert with_logins(settings, f"granted already by {ALICE}, not {BOB}") == (
        f"granted already by alice@example.com, not {BOB}"
    )


def test_without_clickhouse_ids_stay_and_nothing_fails(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded(monkeypatch, None)
    assert logins(settings, [ALICE]) == {}
    assert with_logins(settings, f"by {ALICE}") == f"by {ALICE}"
    assert seeing.is_recorded(settings, "agent", "bot") is None
    assert seeing.alike(settings, "bot") == ""


def test_nobody_is_asked_about_where_no_person_is_named(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    made = recorded(monkeypatch, [])
    assert logins(settings, ["guard", "", "rogue"]) == {}
    assert made.asked == []


def test_the_command_s_own_tokens_name_it_though_no_call_does(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recorded(monkeypatch, None)
    secrets_path(settings).parent.mkdir(parents=True, exist_ok=True)
    pepper = create_secrets(secrets_path(settings)).pepper("acme")
    own = str(subject_id(pepper, issuer_name(settings.url), "tidegate-cli"))
    assert logins(settings, [own]) == {own: "tidegate-cli"}
    assert made.asked == []


def test_an_event_names_who_did_it_and_whom_it_stops_once_their_calls_were_seen() -> None:
    known = Known({})
    known.note(event(type="call.requested.v1", subject_id=ALICE, sealed={"login": "alice@example.com"}))
    stop = known.named(event(type="quarantine.imposed.v1", scope="subject", value=ALICE, actor=BOB))
    assert (stop.text("value"), stop.text("actor")) == ("alice@example.com", BOB)
    agent = event(type="quarantine.imposed.v1", scope="agent", value=ALICE, actor=BOB)
    assert known.named(agent) is agent


@pytest.mark.parametrize(
    ("word", "told"), [("agnet", "did you mean 'agent'"), ("person", "did you mean 'user'"), ("xyz", "say one of")]
)
def test_what_is_no_scope_is_told_with_those_that_there_are(word: str, told: str) -> None:
    with pytest.raises(ConfigFault, match="session, user, agent, server, tool") as fault:
        scope_named(word)
    assert told in fault.value.sentence


def test_who_sees_no_call_waiting_is_told_for_whom_none_does() -> None:
    bob = Asker(Path("x"), "", "bob@example.com", ("finance-lead", "eng"))
    assert bob.nothing == "No call waits that bob@example.com (groups finance-lead, eng) may decide."
    assert Asker(Path("x"), "", "", ()).nothing == "No call waits for a person."


def test_a_port_that_nobody_could_be_told_is_refused() -> None:
    with pytest.raises(ConfigFault, match=r"name one, for example --listen 127\.0\.0\.1:8080"):
        _check_free("127.0.0.1:0")


def test_status_tells_of_held_tools_and_of_people_by_their_logins(capsys: pytest.CaptureFixture[str]) -> None:
    stop = {"scope": "subject", "value": ALICE, "reason": "odd", "expires_us": 0, "quarantine_id": "q1"}
    found: dict[str, Any] = {"services": {}, "backlog": {}, "quarantines": [stop], "held_tools": 2}
    status._show(found, {ALICE: "alice@example.com"})
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "quarantine person alice@example.com odd until lifted, id q1",
        "2 tools are held: tidegate catalog list --pending",
    ]
    status._show(found | {"quarantines": [], "held_tools": 0}, {})
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("trusted", "approved_us", "told"),
    [
        ("d" * 64, 0, "compared with dddddddddddd; that one is trusted since it was first seen"),
        ("", 0, "compared with nothing; approved by nobody"),
        ("d" * 64, 5_000_000, "compared with dddddddddddd; approved 1970-01-"),
    ],
)
def test_a_changed_definition_says_who_trusted_what_it_is_compared_with(
    trusted: str, approved_us: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tool = {
        "server": "git", "tool": "log", "state": "held", "rank": "widened", "since_us": 5_000_000, "trusted": trusted,
        "approved_by": "bob" if approved_us else "", "approved_us": approved_us, "differences": [], "digest": "e" * 64,
    }  # fmt: skip
    cataloguing._show_definition(tool)
    assert told in capsys.readouterr().out
