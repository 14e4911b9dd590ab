"""The promise of winnowing: a shared run that is long enough leaves a shared fingerprint, wherever it stands."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.inspection.fingerprints import SHARED_RUN, fingerprints, normalised

KEY = b"a tenant's key"
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
SURROUNDINGS = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)


@settings(deadline=None)
@given(
    run=st.text(LETTERS, min_size=SHARED_RUN, max_size=3 * SHARED_RUN),
    around=st.tuples(SURROUNDINGS, SURROUNDINGS, SURROUNDINGS, SURROUNDINGS),
    every=st.integers(1, 20),
)
def test_a_shared_run_yields_a_shared_fingerprint(run: str, around: tuple[str, str, str, str], every: int) -> None:
    spaced = "".join(char + (", " if n % every == 0 else "") for n, char in enumerate(run)).title()
    one = {"content": [{"type": "text", "text": f"{around[0]} {run} {around[1]}"}]}
    other = {"body": around[2], "text": [f"{around[3]} {spaced}"]}
    assert set(prints(one)) & set(prints(other))


@settings(deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=300))
def test_how_a_text_is_escaped_makes_no_difference(text: str) -> None:
    assert fingerprints(json.dumps([text]).encode(), KEY) == fingerprints(
        json.dumps([text], ensure_ascii=False).encode(), KEY
    )


@settings(deadline=None)
@given(raw=st.binary(max_size=300))
def test_fingerprinting_never_raises_and_is_sorted_without_twins(raw: bytes) -> None:
    found = fingerprints(raw, KEY)
    assert list(found) == sorted(set(found))
    assert len(normalised(raw)) <= len(raw) * 20


def prints(document: object) -> tuple[str, ...]:
    return fingerprints(json.dumps(document).encode(), KEY)
