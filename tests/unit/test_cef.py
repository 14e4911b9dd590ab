"""CEF lines: one line whatever the fields hold, and what was written can be read back."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.parts.audit_events import completed, requested

from tidegate.cef import cef, cef_line
from tidegate.ocsf.activity import activity_of

FIELD = re.compile(r"(?:^| )([A-Za-z][A-Za-z0-9]*)=")


def read(line: str) -> tuple[list[str], dict[str, str]]:
    """As a SIEM's parser reads it: seven header fields, then `key=value`, where a value holds no bare '='."""
    parts = re.split(r"(?<!\\)((?:\\\\)*)\|", line, maxsplit=7)
    header = [part + slashes for part, slashes in zip(parts[0:14:2], parts[1:14:2], strict=True)]
    extension = parts[14]
    marks = list(FIELD.finditer(extension))
    ends = [*(mark.start() for mark in marks[1:]), len(extension)][: len(marks)]
    values = {mark[1]: extension[mark.end() : end] for mark, end in zip(marks, ends, strict=True)}
    return [re.sub(r"\\(.)", r"\1", part) for part in header], {key: unescaped(value) for key, value in values.items()}


def unescaped(value: str) -> str:
    return re.sub(r"\\(.)", lambda match: {"n": "\n", "r": "\r"}.get(match[1], match[1]), value)


HEADER = ("Tidegate", "Tidegate", "1", "call:ok", "tools/call ok", "1")
printable = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=40)
lines = st.text(st.one_of(st.sampled_from("\\=|\n\r "), st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"])))


@given(st.dictionaries(st.sampled_from(["msg", "suser", "cs1", "act", "reason"]), lines.filter(bool)))
@example({"msg": "a\\", "act": "b"})
@example({"msg": "first\nCEF:0|x|y|z|1|forged|10|act=Allowed"})
@example({"msg": "x suser=root"})
def test_extensions_are_read_back_as_they_were(told: dict[str, str]) -> None:
    line = cef(HEADER, told)
    assert len(line.splitlines()) == 1
    assert read(line) == (["CEF:0", *HEADER], told)


@given(printable)
@example("a|b\\|c\\")
def test_a_header_is_read_back_as_it_was(name: str) -> None:
    header = ("Tidegate", "Tidegate", "1", "call:ok", name, "1")
    assert read(cef(header, {"act": "Allowed"})) == (["CEF:0", *header], {"act": "Allowed"})


@given(st.text())
def test_no_text_ends_the_line_or_adds_a_field(text: str) -> None:
    line = cef(("Tidegate", "Tidegate", "1", text, text, "1"), {"msg": text, "act": "Blocked"})
    assert len(line.splitlines()) == 1
    line.encode()
    header, told = read(line)
    assert len(header) == 7
    assert told["act"] == "Blocked"
    assert told.keys() <= {"msg", "act"}


def test_a_call_says_who_what_and_how_it_ended() -> None:
    activity = activity_of(completed(requested("c1")))
    assert activity is not None
    header, told = read(cef_line(activity))
    assert header[:3] == ["CEF:0", "Tidegate", "Tidegate"]
    assert header[4:] == ["call:ok", "tools/call ok", "5"]
    assert told["act"] == "Corrected"
    assert (told["destinationServiceName"], told["fname"], told["suid"]) == ("git", "git_log", "5ub")
    assert (told["cs1"], told["cs1Label"], told["cn2"], told["cn2Label"]) == ("c1", "call", "1", "masked")


@pytest.mark.parametrize(("decision", "act"), [("deny", "Blocked"), ("ask", "Asked"), ("limited", "Rejected")])
def test_a_call_that_was_not_forwarded_says_so(decision: str, act: str) -> None:
    activity = activity_of(requested(decision=decision))
    assert activity is not None
    assert read(cef_line(activity))[1]["act"] == act
