"""Laws of inspection: masking keeps the shape, leaves nothing to mask, never raises; escapes make no odds."""

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.inspection.rules import load_inspection
from tidegate.inspection.scanner import EMPTY, Scanner

RULES = r"""
packs: [secrets, personal-data, injection]
overrides: {email: {result: mask}, phone: {result: mask}}
patterns:
  - {id: x-run, pattern: 'x+y', result: mask}
  - {id: any-two, pattern: 'q.', result: mask}
  - {id: word, pattern: '\bzed\b', flags: [ignore-case], result: block}
  - {id: greek, pattern: 'α[βγ]', result: mask}
  - {id: digits, pattern: '77\d', result: mask}
"""
SCANNER = Scanner(load_inspection(RULES.encode()))
SECRETS = st.sampled_from(
    [
        "AKIAIOSFODNN7EXAMPLE",
        "xxy",
        "q\u00e9",
        "zed",
        "ZED",
        "αβγ",
        "771",
        "4111 1111 1111 1111",
        "bob@example.com",
        "xx",
        "y",
    ]
)
TEXTS = st.lists(st.one_of(SECRETS, st.text(st.characters(exclude_categories=["Cs"]), max_size=8)), max_size=5).map(
    "".join
)
NUMBERS = st.one_of(st.integers(-(10**20), 10**20), st.sampled_from([771, 4111111111111111, 1.5]))
DOCUMENTS = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=5), st.dictionaries(TEXTS, inner, max_size=5)),
    max_leaves=40,
)


def shape(node: Any) -> Any:
    """The document without its texts and numbers; a masked number is a text."""
    if isinstance(node, dict):
        return [shape(value) for value in node.values()]
    if isinstance(node, list):
        return tuple(shape(value) for value in node)
    return node if node is None or isinstance(node, bool) else "value"


@settings(deadline=None)
@given(document=DOCUMENTS, ascii_only=st.booleans())
def test_masking_leaves_valid_json_of_the_same_shape(document: Any, ascii_only: bool) -> None:
    scan = SCANNER.scan(json.dumps(document, ensure_ascii=ascii_only).encode(), "result")
    if scan.masked is not None:
        assert shape(json.loads(scan.masked)) == shape(document)


@settings(deadline=None)
@given(document=DOCUMENTS, ascii_only=st.booleans())
def test_nothing_that_must_be_hidden_is_left(document: Any, ascii_only: bool) -> None:
    scan = SCANNER.scan(json.dumps(document, ensure_ascii=ascii_only).encode(), "result")
    assert (scan.masked is not None) == any(finding.action in ("mask", "block") for finding in scan.findings)
    if scan.masked is not None:
        again = SCANNER.scan(scan.masked, "result")
        assert [finding for finding in again.findings if finding.action != "alert"] == []


@settings(deadline=None)
@given(document=DOCUMENTS, data=st.data())
def test_escapes_make_no_difference(document: Any, data: st.DataObject) -> None:
    plain = SCANNER.scan(json.dumps(document, ensure_ascii=False).encode(), "result")
    escaped = SCANNER.scan(all_escaped(document, data).encode(), "result")
    assert plain.findings == escaped.findings
    assert plain.masks == escaped.masks
    assert (plain.masked is None) == (escaped.masked is None)
    if plain.masked is not None and escaped.masked is not None:
        assert list_pairs(plain.masked) == list_pairs(escaped.masked)


@settings(deadline=None)
@given(text=TEXTS)
def test_a_text_is_judged_alike_alone_and_inside_a_document(text: str) -> None:
    alone = SCANNER.scan_text(text)
    inside = SCANNER.scan(json.dumps({"content": [{"text": text}]}).encode(), "result")
    assert alone.findings == inside.findings
    if alone.masked is not None and inside.masked is not None:
        assert json.loads(inside.masked)["content"][0]["text"] == alone.masked.decode()


@settings(deadline=None)
@given(raw=st.one_of(st.binary(max_size=200), st.text('{}[]":\\u0041q1, ', max_size=60).map(str.encode)))
def test_scanning_never_raises(raw: bytes) -> None:
    SCANNER.scan(raw, "result")


@settings(deadline=None)
@given(document=DOCUMENTS)
def test_without_a_match_the_answer_is_the_shared_empty_one(document: Any) -> None:
    scan = SCANNER.scan(json.dumps(document).encode(), "result")
    assert bool(scan.findings) == (scan is not EMPTY)


def all_escaped(node: Any, data: st.DataObject) -> str:
    """JSON in which some characters are written as \\uXXXX although they need not be."""
    if isinstance(node, dict):
        return (
            "{" + ",".join(f"{escaped_text(key, data)}:{all_escaped(value, data)}" for key, value in node.items()) + "}"
        )
    if isinstance(node, list):
        return "[" + ",".join(all_escaped(value, data) for value in node) + "]"
    return escaped_text(node, data) if isinstance(node, str) else json.dumps(node)


def escaped_text(text: str, data: st.DataObject) -> str:
    every = data.draw(st.integers(1, 4))
    units = [f"\\u{ord(char):04x}" if ord(char) < 0x10000 else json.dumps(char)[1:-1] for char in text]
    plain = [json.dumps(char, ensure_ascii=False)[1:-1] for char in text]
    return '"' + "".join(units[n] if n % every == 0 else plain[n] for n in range(len(text))) + '"'


def list_pairs(raw: bytes) -> Any:
    """Decoded, with the numbers behind keys that were masked alike left out of the comparison."""
    return json.loads(raw, object_pairs_hook=lambda pairs: [(key.split("] (")[0], value) for key, value in pairs])
