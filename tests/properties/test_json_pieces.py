"""What is read, searched and fingerprinted in parts gives what it gives as a whole, wherever it is cut."""

import json
import re
import time
import unicodedata
from itertools import islice
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.inspection.fingerprints import FOLDED_AT_ONCE, fingerprints, normalised
from tidegate.inspection.rules import load_inspection
from tidegate.inspection.scanner import Scanner
from tidegate.json_pieces import SIZES, Sizes, TooDeep, is_key, parts_of_string, pieces
from tidegate.json_values import decode
from tidegate.limits import JSON_DEPTH_MAX
from tidegate.turns import Turns, at_once
from tidegate_edge import strict_json
from tidegate_edge.strict_json import NotStrictJson

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
LOADED = load_inspection(RULES.encode())
WHOLE = Scanner(LOADED)
CUT = {piece: Scanner(LOADED, Sizes(whole=0, piece=piece, long=40)) for piece in (2, 3, 7, 20)}
"""A string of more than 40 bytes is taken in parts; such a key is refused where it is read."""

SPACE = st.sampled_from(["", "", "", " ", "\n\t "])
PARTS = [
    "a",
    "k",
    "[",
    "]",
    "}",
    ",",
    ":",
    "\\u0061",
    "\\ud800",
    "\\ud83d\\ude00",
    "é",
    "\\n",
    "\\\\",
    '\\"',
    "😀",
    "\x01",
]
STRINGS = st.lists(st.sampled_from(PARTS), max_size=3).map(lambda parts: '"' + "".join(parts) + '"')
NUMBERS = st.sampled_from(
    ["0", "-1", "1.50", "1e5", "1e999", "01", "+1", "NaN", "123456789012345678901234", "true", ""]
)
ODD_BYTES = [
    b"\x80",
    b"\xc3",
    b"\xf0\x9f",
    b"\xed\xa0\x80",
    b"\xff",
    "é".encode(),
    "😀".encode(),
    b"\\ud83d",
    b"\\ude00",
]
ODD_BYTES += [b"\\ud83d\\ude00", b"\\\\", b"\\n", b"\\u00", b"a", b"u", b"d83d"]
SECRETS = ["AKIAIOSFODNN7EXAMPLE", "xxy", "qé", "zed", "αβγ", "771", "4111 1111 1111 1111", "bob@example.com", "x", "y"]
TEXTS = st.lists(
    st.one_of(st.sampled_from(SECRETS), st.text(st.characters(exclude_categories=["Cs"]), max_size=8)), max_size=8
).map("".join)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(10**20), 10**20), st.sampled_from([771, 1.5]), TEXTS),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXTS, inner, max_size=5),
    max_leaves=40,
)


def composed(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Lists and objects, most of them well-formed."""
    commas = st.sampled_from([",", ",", ",", ",", " , ", ",,", ""])
    members = st.tuples(STRINGS, SPACE, inner).map(lambda parts: f"{parts[0]}{parts[1]}:{parts[2]}")
    lists = st.tuples(st.lists(inner, max_size=4), commas).map(lambda parts: f"[{parts[1].join(parts[0])}]")
    return lists | st.tuples(st.lists(members, max_size=4), commas).map(lambda parts: f"{{{parts[1].join(parts[0])}}}")


DOCUMENTS = st.recursive(STRINGS | NUMBERS, composed, max_leaves=16)


def read(raw: bytes) -> tuple[bool, Any]:
    try:
        return True, strict_json.read(raw)
    except NotStrictJson:
        return False, None


def read_in_parts(raw: bytes, sizes: Sizes, *, keep: bool = True) -> tuple[bool, Any]:
    try:
        return True, at_once(strict_json.reading(raw, keep=keep, sizes=sizes))
    except NotStrictJson:
        return False, None


def agree(raw: bytes, piece: int) -> None:
    sizes = Sizes(whole=0, piece=piece, long=40)
    accepted, value = read(raw)
    assert repr(read_in_parts(raw, sizes)) == repr((accepted, value)), raw
    assert read_in_parts(raw, sizes, keep=False) == (accepted, None), raw


@settings(max_examples=500, deadline=None)
@given(st.tuples(SPACE, DOCUMENTS, SPACE).map("".join), st.integers(2, 30))
def test_what_is_read_in_parts_is_read_as_the_whole_is(text: str, piece: int) -> None:
    agree(text.encode("utf-8", "surrogatepass"), piece)


@settings(max_examples=300, deadline=None)
@given(DOCUMENTS, st.one_of(st.binary(max_size=2), st.sampled_from([b",", b"]", b"}", b"\\", b'"'])), st.data())
def test_broken_bytes_are_refused_in_parts_as_well(text: str, broken: bytes, data: st.DataObject) -> None:
    raw = text.encode()
    at = data.draw(st.integers(0, len(raw)))
    agree(raw[:at] + broken + raw[at:], data.draw(st.integers(2, 30)))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([*PARTS, "a" * 20, "\\u00", "\\x", "\xff"]), max_size=30), st.integers(2, 30))
def test_a_long_text_is_refused_for_what_any_of_its_parts_holds(parts: list[str], piece: int) -> None:
    agree(
        '[1,"{}",2]'.replace("{}", "".join(parts)).encode("latin-1" if "\xff" in parts else "utf-8", "replace"), piece
    )


@settings(max_examples=200, deadline=None)
@given(value=VALUES, piece=st.integers(2, 30), ascii_only=st.booleans())
def test_long_strings_are_read_in_parts(value: Any, piece: int, ascii_only: bool) -> None:
    raw = json.dumps([value, "é\\😀" * 40], ensure_ascii=ascii_only).encode()
    sizes = Sizes(whole=0, piece=piece, long=40)
    found = [one for one in pieces(raw, sizes) if one is not None]
    assert any(one.long for one in found)
    if read_in_parts(raw, sizes) == (False, None):
        with pytest.raises(NotStrictJson, match="a key is longer than 40 bytes"):
            at_once(strict_json.reading(raw, keep=True, sizes=sizes))
    else:
        agree(raw, piece)


@settings(max_examples=300, deadline=None)
@given(value=VALUES, piece=st.sampled_from(list(CUT)), ascii_only=st.booleans())
def test_what_is_found_and_masked_in_parts_is_what_is_in_the_whole(value: Any, piece: int, ascii_only: bool) -> None:
    raw = json.dumps(value, ensure_ascii=ascii_only).encode()
    assert CUT[piece].scan(raw, "result") == WHOLE.scan(raw, "result")
    assert CUT[piece].scan(raw, "arguments") == WHOLE.scan(raw, "arguments")


@settings(deadline=None)
@given(raw=st.one_of(st.binary(max_size=200), st.text('{}[]":\\u0041q1, ', max_size=60).map(str.encode)))
def test_searching_in_parts_never_raises(raw: bytes) -> None:
    for scanner in CUT.values():
        scanner.scan(raw, "result")


@settings(deadline=None, max_examples=60)
@given(st.text(min_size=1, max_size=40).filter(lambda text: any(map(str.isalnum, text))), st.integers(1, 300))
def test_letters_are_folded_in_parts_as_in_the_whole(text: str, apart: int) -> None:
    spread = (text + " " * apart) * (1 + 3 * FOLDED_AT_ONCE // (len(text) + apart))
    raw = json.dumps(spread, ensure_ascii=False).encode("utf-8", "replace")
    folded = unicodedata.normalize("NFKC", raw.decode()).casefold()
    letters = "".join(one for one in folded if one.isalnum())
    if "\\" not in folded:
        assert normalised(raw) == letters.encode().lower()


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'[1,{"a":'])
def test_what_is_nested_too_deep_has_no_pieces(opening: bytes) -> None:
    raw = opening * (JSON_DEPTH_MAX + 1)
    with pytest.raises(TooDeep):
        list(pieces(raw))
    with pytest.raises(NotStrictJson, match="nested deeper"):
        at_once(strict_json.reading(raw, keep=False))


def test_a_key_that_comes_twice_is_found_however_far_apart() -> None:
    members = b",".join(b'"k%d":[%d,{"in":%d}]' % (one, one, one) for one in range(20_000))
    for around in (b"{%b}", b'[{"x":{%b,"y":[]}},1]'):
        assert read_in_parts(around % members, SIZES, keep=False) == (True, None)
        with pytest.raises(NotStrictJson, match="the key 'k7' appears twice"):
            at_once(strict_json.reading(around % (members + b',"k7":0'), keep=False))


def test_combining_marks_without_end_cost_time_in_proportion() -> None:
    run = '"a' + "\u0301\u0323" * 200_000 + '"'  # ordered as one run this takes minutes
    assert fingerprints(run.encode(), b"key") is not None


@pytest.mark.parametrize("count", [SIZES.long + 4, 2 * SIZES.long + 7])
@pytest.mark.parametrize("around", [b"%b", b"\\n%b", b"%b\\n", b"a%b", "\u00e9%b".encode(), b"%b\\ud83d\\ude00"])
def test_bytes_that_only_continue_characters_are_refused_and_come_to_an_end(count: int, around: bytes) -> None:
    raw = b'{"k":"%b"}' % (around % (b"\x80" * count))
    for keep in (True, False):
        with pytest.raises(NotStrictJson, match="not valid UTF-8"):
            drive(strict_json.reading(raw, keep=keep))
    assert WHOLE.scan(raw, "result") == WHOLE.scan(b"{}", "result")


def drive(work: Turns[Any]) -> None:
    """In far fewer turns than a reading that goes on for ever takes."""
    for _ in range(10_000):
        try:
            work.send(None)
        except StopIteration:
            return
    raise AssertionError("it does not come to an end")


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([*ODD_BYTES, b"a" * 9]), max_size=60).map(b"".join), st.integers(0, 40))
def test_the_parts_of_a_text_are_what_it_says_or_it_says_nothing(said: bytes, long: int) -> None:
    token = b'"%b"' % said
    try:
        expected = strict_json.read(token)
    except NotStrictJson:
        expected = None
    try:
        parts = [part.encode() for part in islice(parts_of_string(token, 0, len(token), Sizes(0, 2, long)), 1_000)]
    except (msgspec.DecodeError, UnicodeError):
        assert expected is None
    else:
        assert expected is not None
        assert b"".join(parts).decode() == expected


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from([*ODD_BYTES, *map(str.encode, SECRETS)]), max_size=24).map(b"".join), max_size=4),
    st.sampled_from([b"", b" ", b"\n" * 20]),
    st.sampled_from(list(CUT)),
)
def test_secrets_and_odd_bytes_across_borders_are_treated_as_in_the_whole(
    texts: list[bytes], space: bytes, piece: int
) -> None:
    strings = [b'%b"%b"%b' % (space, text, space) for text in texts]
    members = b",".join(b'"%d":[%b]' % pair for pair in enumerate(strings))
    raw = b'{%b,"all":[%b]}' % (members or b'"0":1', b",".join(strings))
    agree(raw, piece)
    if read(raw)[0]:
        for direction in ("result", "arguments"):
            assert CUT[piece].scan(raw, direction) == WHOLE.scan(raw, direction)


def test_white_space_after_a_long_text_is_passed_over_at_compiled_speed() -> None:
    for last in (b":1", b""):
        raw = b'{"%b"%b%b}' % (b"a" * SIZES.long, b" \t\r\n" * 500_000, last)
        begun_s = time.process_time()
        assert is_key(raw, SIZES.long + 3) is bool(last)
        assert time.process_time() - begun_s < 0.2  # byte by byte it takes a second


@pytest.mark.parametrize("number", ["1e308", "-1.5e300", "4e-324", "2.2250738585072011e-308"])
def test_far_exponents_cost_what_other_numbers_cost(number: str) -> None:
    raw = f"[{','.join([number] * 40_000)}]".encode()
    begun_s = time.process_time()
    assert decode(raw) == [float(number)] * 40_000
    assert time.process_time() - begun_s < 0.3  # as msgspec reads them by itself, 0.5


@settings(max_examples=500)
@given(st.from_regex(r"-?[0-9]{1,30}(\.[0-9]{0,30})?([eE][+-]?[0-9]{0,4})?", fullmatch=True))
def test_a_number_is_what_msgspec_takes_it_for(number: str) -> None:
    raw = b"[%b]" % number.encode()
    try:
        expected = msgspec.json.decode(raw)
    except msgspec.DecodeError as error:
        with pytest.raises(msgspec.DecodeError, match=re.escape(str(error))):
            decode(raw)
    else:
        assert repr(decode(raw)) == repr(expected)
