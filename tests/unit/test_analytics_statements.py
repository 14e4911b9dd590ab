"""One statement in a request, and of a reader one that reads: judged by what is code, in linear time."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.analytics.statements import fault_of_reading, is_single


@pytest.mark.parametrize(
    ("sql", "single"),
    [
        ("SELECT 1", True),
        ("SELECT 1 ; -- end;\n /* ; */ ;", True),
        ("SELECT 'a;b', \"c;d\", `e;f`, $x$ ; $x$", True),
        ("SELECT '\\';' , 'it''s;'", True),
        ("SELECT 1; SELECT 2", False),
        ("SELECT ''; SELECT 2", False),
        ("SELECT '--'; SELECT 2", False),
        ("/* ' */ SELECT 1; SELECT '", False),
    ],
)
def test_statements_are_counted_by_what_is_code(sql: str, single: bool) -> None:
    assert is_single(sql) is single


@given(st.text(alphabet="/*- \n(#!';\"`$aS", max_size=60))
def test_no_text_takes_long_to_judge(piece: str) -> None:
    begin = time.process_time()
    for sql in (piece * 300, "/*" + "*/ /*" * 2_000, "(" * 20_000, "/**/" * 5_000 + "X", "--\n" * 5_000):
        fault_of_reading(sql)
    assert time.process_time() - begin < 2.0
