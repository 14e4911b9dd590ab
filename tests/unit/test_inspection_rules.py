"""inspection.yaml: what is understood, and what is refused with which sentence."""

import pytest

from tidegate.errors import BundleFault
from tidegate.inspection.packs import PACKS
from tidegate.inspection.rules import load_inspection


def test_an_empty_file_asks_for_nothing() -> None:
    assert load_inspection(b"").patterns == ()


def test_packs_bring_their_patterns_and_overrides_change_their_actions() -> None:
    rules = load_inspection(b"packs: [secrets, personal-data]\noverrides: {email: {result: mask, severity: high}}")
    by_id = {pattern.id: pattern for pattern in rules.patterns}
    assert len(by_id) == len(PACKS["secrets"]) + len(PACKS["personal-data"])
    assert (by_id["email"].arguments, by_id["email"].result, by_id["email"].severity) == ("alert", "mask", "high")
    assert by_id["aws-access-key"].result == "mask"


def test_a_pattern_of_ones_own_is_taken_as_written() -> None:
    text = rb"patterns: [{id: ticket, pattern: 'TCK-\d{6}', flags: [ignore-case], severity: low, arguments: block}]"
    (pattern,) = load_inspection(text).patterns
    assert (pattern.id, pattern.pattern, pattern.ignore_case) == ("ticket", r"TCK-\d{6}", True)
    assert (pattern.severity, pattern.arguments, pattern.result) == ("low", "block", "alert")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b"packs: [secret]", "$.packs[0]: no pack 'secret'; did you mean 'secrets'?"),
        (
            b"packs: [secrets]\noverrides: {email: {result: mask}}",
            "$.overrides.email: no such pattern in the chosen packs",
        ),
        (b"patterns: [{id: a1, patern: x}]", "$.patterns[0]: Object contains unknown field `patern`"),
        (b"patterns: [{id: a1, pattern: x, result: hide}]", "$.patterns[0].result: Invalid enum value 'hide'"),
        (b"patterns: [{id: a1, pattern: 'x('}]", "$.patterns[0].pattern: 'a1' does not compile: Missing close paren"),
        (
            b"patterns: [{id: ok, pattern: 'zz'}, {id: a1, pattern: 'q*'}]",
            "$.patterns[1].pattern: 'a1' does not compile",
        ),
        (b"patterns: [{id: a1, pattern: 'x(?=y)'}]", "Zero-width assertions are not supported"),
        (b"patterns: [{id: a1, pattern: '^x'}]", "$.patterns[0].pattern: the anchor ^ is not supported"),
        (b"patterns: [{id: a1, pattern: 'x$'}]", "the anchor $ is not supported"),
        (rb"patterns: [{id: a1, pattern: 'x\z'}]", r"the anchor \z is not supported"),
        (b"patterns: [{id: A1, pattern: 'x'}]", "$.patterns[0].id: 'A1' is not 1 to 64 of a-z"),
        (b"patterns: [{id: a1, pattern: x, validator: lun}]", "no validator 'lun'; did you mean 'luhn'?"),
        (b"patterns: [{id: a1, pattern: x}, {id: a1, pattern: y}]", "$.patterns[1].id: 'a1' is taken ($.patterns[0])"),
        (b"packs: [secrets]\npatterns: [{id: jwt, pattern: y}]", "'jwt' is taken (built in); use overrides"),
        (b"patterns: [{id: a1, pattern: 'masked', result: mask}]", "matches the text that replaces masked values"),
        (b"patterns: [{id: a1, pattern: ''}]", "expected 1 to 2048 characters, got 0"),
        (b"patterns: {", "is not valid YAML"),
        (b"\xff\xfe\x00", "is not valid YAML"),
        (b"- 1", "Expected `object`, got `array`"),
        (b"patterns: [" + b",".join(b"{id: p%d, pattern: p%d}" % (n, n) for n in range(513)) + b"]", "the most is 512"),
        (b"#" * (512 * 1024 + 1), "the most is 524288"),
    ],
)
def test_what_is_wrong_is_refused_with_its_place_and_a_sentence(text: bytes, sentence: str) -> None:
    with pytest.raises(BundleFault) as caught:
        load_inspection(text)
    assert sentence in caught.value.sentence
    assert caught.value.sentence.startswith("inspection.yaml: ")


@pytest.mark.parametrize("pattern", [r"[^a]b", r"a\$", r"\^a", r"[$^]x", r"\Q^$\Ex", r"[]^]x", r"x[\]$]"])
def test_a_character_that_only_looks_like_an_anchor_is_accepted(pattern: str) -> None:
    assert load_inspection(f"patterns: [{{id: a1, pattern: '{pattern}'}}]".encode()).patterns


def test_a_file_that_nests_deep_is_refused_before_anything_is_built_of_it() -> None:
    with pytest.raises(BundleFault, match="nests too deep: more than 32 levels"):
        load_inspection(b"packs: " + b"[" * 60_000)


def test_512_patterns_are_accepted() -> None:
    text = b"patterns: [" + b",".join(b"{id: p%d, pattern: p%d}" % (n, n) for n in range(512)) + b"]"
    assert len(load_inspection(text).patterns) == 512
