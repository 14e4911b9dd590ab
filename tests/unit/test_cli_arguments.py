"""What the command line makes of words: tool arguments by schema, ages, names, filters. Tables and laws."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from tidegate.errors import ConfigFault
from tidegate.settings import Settings
from tidegate_cli import approving
from tidegate_cli.calling import read_arguments, typed_arguments
from tidegate_cli.main import app
from tidegate_cli.matching import Seen, Wanted, age_us, open_seen
from tidegate_cli.options import names_of
from tidegate_cli.output import console, lines, plain, say
from tidegate_cli.quarantining import quarantine_line
from tidegate_cli.tailing import Past
from tidegate_cli.telling import line_of

SCHEMA: dict[str, Any] = {
    "properties": {
        "text": {"type": "string"},
        "count": {"type": "integer"},
        "deep": {"type": "boolean"},
        "tags": {"type": "array"},
        "since": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "place": {"type": ["object", "null"]},
    }
}


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("text=42", "42"),
        ("text=a=b", "a=b"),
        ("text=", ""),
        ("count=42", 42),
        ("deep=true", True),
        ('tags=["a"]', ["a"]),
        ("since=null", "null"),
        ("place=null", None),
        ("unknown=7", "7"),
    ],
)
def test_an_argument_has_the_type_that_the_tool_gives_it(word: str, value: Any) -> None:
    assert typed_arguments([word], SCHEMA) == {word.partition("=")[0]: value}


@pytest.mark.parametrize(("word", "told"), [("count=many", "integer"), ("nothing", "KEY=VALUE"), ("=1", "KEY=VALUE")])
def test_an_argument_that_cannot_be_one_says_what_is_expected(word: str, told: str) -> None:
    with pytest.raises(ConfigFault, match=told):
        typed_arguments([word], SCHEMA)


@given(st.dictionaries(st.text("abc", min_size=1), st.text()))
def test_text_arguments_come_through_unchanged(values: dict[str, str]) -> None:
    schema = {"properties": {key: {"type": "string"} for key in values}}
    assert typed_arguments([f"{key}={value}" for key, value in values.items()], schema) == values


@pytest.mark.parametrize("text", ["[1]", "{", "1", "nope"])
def test_args_must_be_an_object(text: str) -> None:
    with pytest.raises(ConfigFault, match="--args"):
        read_arguments(text)


def test_groups_are_split_and_each_counts_once() -> None:
    assert names_of(["eng,oncall", " sales ,eng", ""]) == ("eng", "oncall", "sales")


@pytest.mark.parametrize(
    ("text", "us"),
    [
        ("90s", 910_000_000),
        ("15m", 100_000_000),
        ("", 0),
        ("1970-01-01T00:10:00Z", 600_000_000),
        ("1970-01-01T01:10:00+01:00", 600_000_000),
        ("1970-01-01T00:10:00", 600_000_000),
    ],
)
def test_since_is_an_age_or_a_time(text: str, us: int) -> None:
    assert age_us(text, at_us=1_000_000_000) == us


def test_since_something_else_names_the_forms() -> None:
    with pytest.raises(ConfigFault, match="90s, 15m, 2h, 7d"):
        age_us("yesterday")


CALL = {
    "type": "call.requested.v1",
    "time_us": 5_000_000,
    "agent": "claude-code",
    "subject_id": "ab12",
    "server": "git",
    "target": "git_log",
    "decision": "deny",
    "sealed": {"login": "alice@example.com", "subject": "u-1"},
}


def seen(**changes: Any) -> Seen:
    found = open_seen(msgspec.json.encode(CALL | changes))
    assert found is not None
    return found


def test_a_name_that_leads_to_no_server_is_told_as_the_caller_wrote_it() -> None:
    assert "git__git_log[" in line_of(seen())
    assert "[cyan]git__git_lgo[" in line_of(seen(server="", target="git__git_lgo"))


@pytest.mark.parametrize(
    "body", ['{"jsonrpc":"2.0","id":null,"error":{"code":-32600,"message":"no session"}}', "no session"]
)
def test_a_refused_request_is_told_by_its_sentence_alone(body: str) -> None:
    refused = {"type": "request.refused.v1", "method": "", "status": 400, "message": body}
    assert line_of(seen(**refused)).endswith("claude-code  HTTP 400: no session")


@pytest.mark.parametrize(
    ("wanted", "admitted"),
    [
        (Wanted(), True),
        (Wanted(user="alice@example.com"), True),
        (Wanted(user="u-1"), True),
        (Wanted(user="ab12"), True),
        (Wanted(user="bob@example.com"), False),
        (Wanted(agent="claude-code", server="git", decision="deny"), True),
        (Wanted(agent="cursor"), False),
        (Wanted(tool="git_log"), True),
        (Wanted(tool="git__git_log"), True),
        (Wanted(tool="time__git_log"), False),
        (Wanted(decision="allow"), False),
        (Wanted(since_us=5_000_000), True),
        (Wanted(since_us=5_000_001), False),
    ],
)
def test_a_filter_admits_what_it_names(wanted: Wanted, admitted: bool) -> None:
    assert wanted.admits(seen()) is admitted


def test_a_finding_of_the_detections_topic_is_read_from_its_ocsf_object() -> None:
    ocsf = {
        "class_uid": 2004,
        "time": 5_000,
        "message": "Text left the house",
        "finding_info": {"title": "Exfiltration"},
        "unmapped": {"tidegate": {"time_us": 5_000_001, "severity": "high", "agent": "courier", "call_ids": ["c1"]}},
    }
    found = open_seen(msgspec.json.encode(ocsf))
    assert found is not None
    assert (found.time_us, found.text("agent"), found.text("severity")) == (5_000_001, "courier", "high")
    assert "Exfiltration: Text left the house" in line_of(found)


@given(st.binary())
def test_bytes_that_are_no_event_are_passed_over(raw: bytes) -> None:
    assert open_seen(raw) is None


@given(st.text())
def test_foreign_text_neither_styles_nor_steers_the_terminal(text: str) -> None:
    from rich.text import Text

    shown = Text.from_markup(plain(text))
    assert not shown.spans
    assert shown.plain.isprintable()
    of_lines = Text.from_markup(lines(text))
    assert not of_lines.spans
    assert all(char.isprintable() or char in "\n\t" for char in of_lines.plain)
    assert of_lines.plain.count("\n") == text.count("\n")


def test_what_a_caller_made_up_forges_no_line_before_an_approver(capsys: pytest.CaptureFixture[str]) -> None:
    forged = "handbook  for bob\n  why       approved already\r\n\x1b[2J\u2028  decides   you\u202e\u0085\t"
    one = {
        "approval_id": "a1", "state": "pending", "subject_id": "s", "login": forged, "agent": forged, "server": "docs",
        "target": forged, "rules": [forged], "message": forged, "approver": forged, "who_decides": forged,
        "call_id": "c1", "requested_us": 0, "expires_us": 0, "decision": None, "used_by": "", "shut": "",
        "masked": False, "arguments": {forged: forged},
    }  # fmt: skip
    say(approving._line(one))
    assert len(capsys.readouterr().out.splitlines()) == 1
    console().print(approving._table([one]))
    _, first, *folded = capsys.readouterr().out.splitlines()
    assert first.startswith("a1  waits")
    assert all(line.startswith(" " * 25) for line in folded), "what is folded stays in its column"
    approving._show(msgspec.json.encode(one), Settings())
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in shown[1:8]] == [
        "why",
        "rules",
        "decides",
        "asked",
        "until",
        "call",
        "arguments",
    ]
    assert len(shown) == 11
    assert "\x1b" not in "".join(shown)
    stopped = {"scope": "agent", "value": forged, "reason": forged, "expires_us": 0, "quarantine_id": "q1"}
    say(quarantine_line(stopped, {}))
    assert len(capsys.readouterr().out.splitlines()) == 1


@given(st.lists(st.integers(0, 1_000)), st.integers(0, 20))
def test_the_past_is_the_youngest_events_in_order_of_time(times: list[int], events_max: int) -> None:
    past = Past(events_max)
    for time_us in times:
        past.add(Seen("x.y.v1", time_us, {}, b""))
    shown = [kept.time_us for kept in past.in_order()]
    assert shown == sorted(times)[len(times) - min(events_max, len(times)) :]
    assert past.left_out == len(times) - len(shown)


def test_an_erasure_is_told_with_whose_keys_how_many_and_why() -> None:
    told = line_of(seen(type="subject.erased.v1", keys=["k1", "k2"], reason="asked to"))
    for words in ("erased", "ab12", "2 keys", "asked to"):
        assert words in told, words


@pytest.mark.parametrize("decision", ["nonsense", "Deny", "denied"])
def test_a_decision_that_there_is_not_is_refused_with_those_that_there_are(decision: str) -> None:
    refused = CliRunner().invoke(app, ["log", "tail", "--decision", decision])
    assert refused.exit_code == 2
    for word in ("allow", "deny", "ask", "limited"):
        assert f"'{word}'" in refused.output, word
