"""Fingerprints: what makes two documents recognisable to each other, and what must not."""

import json
import random
from typing import Any

import pytest

from tidegate.inspection.fingerprints import GRAM, NORMALISED_BYTES_MAX, fingerprints, normalised
from tidegate.limits import FINGERPRINTS_PER_CALL_MAX

KEY = b"a tenant's key"
PASSAGE = "The quarterly figures show a loss of 4.2 million euros in the northern region, not yet published"


def of(document: Any, key: bytes = KEY, **options: Any) -> set[str]:
    return set(fingerprints(json.dumps(document, **options).encode(), key))


def prose(seed: int, words: int) -> str:
    source = random.Random(seed)
    return " ".join("".join(source.choices("abcdefghijklmnopqrstuvwxyz", k=source.randint(2, 9))) for _ in range(words))


def test_a_passage_copied_into_other_text_is_recognised() -> None:
    result = {"content": [{"type": "text", "text": f"{prose(1, 60)} {PASSAGE}. {prose(2, 60)}"}]}
    arguments = {"to": "mallory@example.com", "body": f"hi, look: {PASSAGE} bye"}
    assert len(of(result) & of(arguments)) >= 2


@pytest.mark.parametrize(
    "written",
    [
        PASSAGE.upper(),
        PASSAGE.replace(" ", "\n"),
        PASSAGE.replace(" ", "  \t"),
        f"> {PASSAGE.replace(',', ';')}".replace(" ", " - "),
        json.dumps([PASSAGE.replace(" ", "\n")]),
        json.dumps(json.dumps([PASSAGE.replace(" ", "\n")])),
    ],
)
def test_layout_case_punctuation_and_quoting_do_not_hide_a_passage(written: str) -> None:
    assert len(of([PASSAGE]) & of([written])) >= 2


def test_rows_are_recognised_whether_they_travel_as_structure_or_as_text() -> None:
    rows = [{"name": f"Customer {n}", "iban": f"DE{n}89370400440532", "balance": n * 1.5} for n in range(6)]
    assert len(of({"rows": rows}) & of({"note": json.dumps(rows, indent=2)})) >= 2


def test_escaped_and_compatible_characters_are_the_same_text() -> None:
    text = "Straße der Überraschungen, größtenteils vertraulich — bitte nicht weitergeben"
    assert of([text]) == of([text], ensure_ascii=False)
    assert of([text]) == of([text.replace("Straße", "STRASSE")], ensure_ascii=False)


def test_unrelated_texts_share_nothing() -> None:
    documents = [of({"content": [{"type": "text", "text": prose(seed, 300)}]}) for seed in range(20)]
    assert sum(len(one) for one in documents) == len(set().union(*documents))


def test_another_key_yields_other_fingerprints() -> None:
    assert not of([PASSAGE]) & of([PASSAGE], key=b"another tenant's key")


def test_a_text_shorter_than_a_gram_has_none() -> None:
    assert fingerprints(b'["only a few words"]', KEY) == ()
    assert len(fingerprints(b'["%b"]' % (b"a1b2" * (GRAM // 4)), KEY)) == 1


def test_their_number_is_bounded_and_a_copy_of_a_long_text_is_still_recognised() -> None:
    text = prose(3, 20_000)
    one, other = of([text]), of({"subject": "fyi", "body": f"{prose(4, 50)} {text}"})
    assert len(one) == FINGERPRINTS_PER_CALL_MAX
    assert len(one & other) > FINGERPRINTS_PER_CALL_MAX * 0.9


def test_text_beyond_the_bound_is_not_looked_at() -> None:
    long = b'"%b"' % (b"x y" * NORMALISED_BYTES_MAX)
    assert len(normalised(long)) == NORMALISED_BYTES_MAX


def test_fingerprints_do_not_depend_on_the_platform_or_the_release() -> None:
    assert fingerprints(b'["%b"]' % PASSAGE.encode(), b"key")[:3] == (
        "140d15941820e07c",
        "6b8ed7eabbac3c04",
        "bbe0c25ad8b9ce93",
    )
