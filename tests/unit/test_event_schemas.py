"""The published schemas are those of today's code, and say of stored events what the code that reads them says."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.inspect import LiteralType, StructType, VarTupleType, type_info
from tests.parts.audit_events import abandoned, completed, finding, requested
from tools import event_schemas

from tidegate.chain import Chain
from tidegate.events import AnyEvent, CallCompleted, Event, FindingRaised, type_of
from tidegate.ids import now_us
from tidegate.ocsf.finding import detection_finding, open_finding
from tidegate.upcast import STEPS, open_any

REPLAYS = Path(__file__).resolve().parents[1] / "replay"
RUN = "run python -m tools.event_schemas"
STORED = [kind for kind in event_schemas.KINDS if kind is not FindingRaised]


@cache
def published(name: str) -> jsonschema.Draft202012Validator:
    schema = json.loads((event_schemas.SCHEMAS / f"{name}.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def problems(stored: bytes) -> list[str]:
    value = json.loads(stored)
    name = "finding.raised.v1" if "class_uid" in value else value["type"]
    return [f"{error.json_path}: {error.message}" for error in published(name).iter_errors(value)]


def can_be_read(stored: bytes) -> bool:
    try:
        open_any(stored)
    except msgspec.DecodeError:
        return False
    return True


def test_the_published_files_are_those_of_this_code() -> None:
    for name, text in event_schemas.files().items():
        assert (event_schemas.SCHEMAS / name).read_text() == text, f"{name}: {RUN}"
    before = event_schemas.PAGE.read_text()
    assert event_schemas.page(before) == before, RUN


def test_every_version_that_can_be_read_has_a_schema() -> None:
    names = {type_of(kind) for kind in event_schemas.KINDS} | set(STEPS)
    assert {f"{name}.json" for name in names} <= {path.name for path in event_schemas.SCHEMAS.iterdir()}


def test_every_event_and_field_is_explained() -> None:
    assert event_schemas.unexplained() == []


def test_the_head_of_the_page_shows_the_key_in_terms_of_fields() -> None:
    assert event_schemas.key_text(CallCompleted) == "{tenant}|{subject_id}|{agent}"


@pytest.mark.parametrize("file", sorted(REPLAYS.glob("*.jsonl")), ids=lambda file: file.stem)
def test_recorded_events_are_valid(file: Path) -> None:
    lines = file.read_bytes().splitlines()
    assert len(lines) >= 20
    assert {problem for line in lines for problem in problems(line)} == set()
    kinds = {json.loads(line)["type"] for line in lines}
    assert {"call.requested.v1", "call.completed.v1", "tool.defined.v1", "bundle.activated.v1"} <= kinds


def test_events_of_calls_and_findings_are_valid() -> None:
    chain, request = Chain("edge-1.spool.1"), requested()
    for event in (request, completed(request), abandoned(request)):
        assert problems(chain.seal(event).value or b"") == []
    assert problems(finding()) == []


def value_of(info: msgspec.inspect.Type) -> st.SearchStrategy[Any]:
    match info:
        case LiteralType():
            return st.sampled_from(info.values)
        case VarTupleType():
            return st.lists(value_of(info.item_type), max_size=2).map(tuple)
        case msgspec.inspect.DictType():
            return st.dictionaries(st.text(max_size=5), value_of(info.value_type), max_size=2)
        case StructType():
            return st.builds(info.cls, **{field.name: value_of(field.type) for field in info.fields})
        case msgspec.inspect.RawType():
            values = st.recursive(st.none() | st.booleans() | st.text(max_size=5), lambda inner: st.lists(inner))
            return values.map(msgspec.json.encode).map(msgspec.Raw)
        case msgspec.inspect.StrType():
            return st.text(max_size=10)
        case msgspec.inspect.BoolType():
            return st.booleans()
        case msgspec.inspect.FloatType():
            return st.floats(allow_nan=False, allow_infinity=False)
    return st.integers(-(2**63), 2**63 - 1)


UNCHAINED = {"writer": st.just(""), "seq": st.just(0), "prev": st.just("")}


def events_of(kind: type[Event]) -> st.SearchStrategy[AnyEvent]:
    info = type_info(kind)
    assert isinstance(info, StructType)
    return st.builds(kind, **({field.name: value_of(field.type) for field in info.fields} | UNCHAINED))


@pytest.mark.parametrize("kind", STORED, ids=type_of)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_the_schema_admits_what_is_stored_and_agrees_with_the_reader_on_what_lacks_something(
    kind: type[Event], data: st.DataObject
) -> None:
    stored = Chain("w").seal(data.draw(events_of(kind))).value or b""
    assert problems(stored) == []
    members = json.loads(stored)
    name = data.draw(st.sampled_from(sorted(members.keys() - {"type"})))
    without = json.dumps({key: value for key, value in members.items() if key != name}).encode()
    assert (problems(without) == []) is can_be_read(without), name
    emptied = json.dumps(members | {name: None}).encode()
    assert (problems(emptied) == []) is can_be_read(emptied), name
    assert problems(json.dumps(members | {"a later field": 1}).encode()) == []


def test_a_finding_is_valid_as_it_is_published_and_not_without_its_id() -> None:
    raised = FindingRaised(
        id="f", time_us=now_us(), tenant="acme", region="eu", rule="burst", severity="high", title="t", message="m",
        subject_id="s", agent="a", session_id="x", call_ids=("c1",),
    )  # fmt: skip
    value: dict[str, Any] = json.loads(msgspec.json.encode(detection_finding(raised, "detector.1", 1, "")))
    assert problems(json.dumps(value).encode()) == []
    assert open_finding(json.dumps(value).encode()).id == "f"
    del value["metadata"]["uid"]
    assert len(problems(json.dumps(value).encode())) == 1
