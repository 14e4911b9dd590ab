"""Outlets without a wire: events as text, ids, and what a member of a batch may say."""

import json
import re
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tidegate.sessions.memory import MemorySessions
from tidegate_edge.event_stream import event
from tidegate_edge.outlet import Outlet, Outlets, ResumableOutlet, StreamOutlet, event_id_of, read_event_id
from tidegate_edge.visit import MUTE

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
SPACE = st.text(" \t\r\n", max_size=4)


def data_of(raw: bytes) -> list[str]:
    """The data of every event in the text, as the standard has a client read it (WHATWG HTML §9.2.6)."""
    found: list[str] = []
    lines: list[str] = []
    for line in re.split(r"\r\n|\r|\n", raw.decode()):
        if line.startswith("data: "):
            lines.append(line[len("data: ") :])
        elif not line and lines:
            found.append("\n".join(lines))
            lines = []
    return found


@given(VALUES, SPACE, SPACE, st.sampled_from([None, 1, "\t"]), st.sampled_from(["", "s.1-0"]))
def test_any_json_text_is_one_event_with_the_same_meaning(
    value: Any, before: str, after: str, indent: Any, event_id: str
) -> None:
    message = (before + json.dumps(value, indent=indent, ensure_ascii=False) + after).encode("utf-8", "surrogatepass")
    try:
        message.decode()
    except UnicodeDecodeError:
        return  # lone surrogates are refused long before
    (data,) = data_of(event(message, event_id))
    assert json.loads(data) == value


@given(st.binary(max_size=40))
def test_a_message_without_line_breaks_is_byte_for_byte(message: bytes) -> None:
    if b"\r" not in message and b"\n" not in message:
        assert event(message) == b"data: " + message + b"\n\n"


@given(
    st.from_regex(r"[A-Za-z0-9]{1,32}_[A-Za-z0-9_-]{22}", fullmatch=True),
    st.from_regex(r"[0-9]{1,18}-[0-9]{1,18}", fullmatch=True),
)
def test_an_event_id_is_read_as_it_was_made(stream: str, number: str) -> None:
    assert read_event_id(event_id_of(stream, number)) == (stream, number)


@given(st.text())
def test_whatever_a_client_sends_as_an_id_is_read_or_refused(given_id: str) -> None:
    found = read_event_id(given_id)
    assert found is None or event_id_of(*found) == given_id


def test_only_sessions_of_2025_11_25_have_resumable_outlets() -> None:
    outlets = Outlets(MemorySessions(per_subject_max=1), 60.0)

    def made(session: str, version: str) -> StreamOutlet:
        return outlets.make(object(), "acme", session, version, 1)  # type: ignore[arg-type]

    assert isinstance(made("s-1", "2025-11-25"), ResumableOutlet)
    for session, version in (("s-1", "2025-06-18"), ("s-1", "2025-03-26"), ("", "2025-11-25"), ("", "2026-07-28")):
        assert not made(session, version).resumable
    assert not Outlets().make(object(), "acme", "s-1", "2025-11-25", 1).resumable  # type: ignore[arg-type]


def test_a_member_of_a_batch_says_nothing() -> None:
    mute: Outlet = MUTE
    mute.send(b"{}")
    mute.rest(1)
    assert (mute.is_open, mute.resumable) == (False, False)
