"""The row that a call's records make: of one tenant's call, whatever other records name its id."""

from tests.parts.audit_events import completed, delivered, requested
from tests.parts.sealed_calls import key_for, sealed_records

from tidegate.chain import Chain
from tidegate_audit_consumer.rows import CALL_TYPES
from tidegate_cli.derived_calls import NAMES, RECORDS_PER_CALL_MAX, expected_rows, judge


def test_every_column_of_calls_is_compared() -> None:
    assert set(NAMES) == set(CALL_TYPES)


def test_a_foreign_tenants_record_with_a_calls_id_is_no_part_of_its_row() -> None:
    own, foreign = Chain("edge.1.1"), Chain("other.1.1")
    request = requested()
    honest = [own.seal(request), own.seal(completed(request))]
    theirs = foreign.seal(requested(request.call_id, tenant="other", server="zzz"))
    alone = expected_rows(delivered(honest))
    both = expected_rows(delivered([*honest, theirs]))
    key = ("acme", request.call_id)
    assert both[key] == alone[key]
    assert both["other", request.call_id]["server"] == "zzz"


def test_a_box_and_its_key_are_part_of_the_row() -> None:
    (row,) = expected_rows(delivered(sealed_records(key_for(), "c1"))).values()
    (other,) = expected_rows(delivered(sealed_records(key_for(), "c1"))).values()
    assert row["request_kid"] != other["request_kid"]
    assert len(row["request_box"]) == len(row["completion_box"]) == 64
    wrong = judge({**row, "request_box": other["request_box"]}, row)
    assert wrong is not None
    assert wrong.sentence.endswith("does not say what its records say: request_box")


def test_a_call_of_more_records_than_are_read_is_never_taken_for_whole() -> None:
    chain = Chain("edge.1.1")
    records = [chain.seal(requested("c1", 1_700_000_000_000_000)) for _ in range(RECORDS_PER_CALL_MAX + 1)]
    (row,) = expected_rows(delivered(records[:-1])).values()
    assert judge(row, row) is None
    (crowded,) = expected_rows(delivered(records)).values()
    wrong = judge(row, crowded)
    assert wrong is not None
    assert "more than 16 records" in wrong.sentence
