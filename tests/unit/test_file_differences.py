"""`bundle diff`, of what is done with changed definitions and what is looked for in arguments and results."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from tidegate.policy.bundle import Bundle, bundle_of
from tidegate.policy.file_differences import file_changes
from tidegate_cli.main import app

RULE = b'@id("p") permit (principal, action == Action::"fs/read", resource);'
MIRRORED = {"more-permissive": "stricter", "stricter": "more-permissive", "other": "other"}


def bundle(definitions: str | None = None, inspection: str | None = None) -> Bundle:
    files = {"manifest.json": b'{"v": 1, "name": "x"}', "policies/x.cedar": RULE}
    given = {"definitions.yaml": definitions, "inspection.yaml": inspection}
    return bundle_of(files | {name: text.encode() for name, text in given.items() if text is not None})


def told(old: Bundle, new: Bundle) -> list[tuple[str, str]]:
    return [(change.direction, change.sentence) for change in file_changes(old, new)]


@pytest.mark.parametrize(
    ("before", "after", "wanted"),
    [
        ("v: 1", "v: 1\nnew: hold", [("stricter", "tools that come later of every server: alert → hold")]),
        (
            "v: 1\nfirst: hold",
            "v: 1",
            [("more-permissive", "tools of a server's first list of every server: hold → trust")],
        ),
        (
            "v: 1\nchanged: {widened: hold}\nservers: {git: {new: hold}}",
            "v: 1\nchanged: {widened: alert}\nservers: {git: {changed: {widened: hold}}}",
            [
                ("more-permissive", "tools that come later of git: hold → alert"),
                ("more-permissive", "widened definitions of every other server: hold → alert"),
            ],
        ),
        (
            "v: 1\nservers: {a: {changed: {described: hold}}, b: {changed: {described: hold}}}",
            "v: 1\nchanged: {described: allow}",
            [
                ("more-permissive", "changed descriptions of every other server: alert → allow"),
                ("more-permissive", "changed descriptions of a, b: hold → allow"),
            ],
        ),
    ],
)
def test_definitions_are_compared_by_server_and_rank(before: str, after: str, wanted: list[tuple[str, str]]) -> None:
    assert told(bundle(before), bundle(after)) == wanted
    assert [change.file for change in file_changes(bundle(before), bundle(after))] == ["definitions.yaml"] * len(wanted)


def test_a_bundle_that_loses_its_definitions_file_holds_nothing_any_more() -> None:
    found = {sentence: direction for direction, sentence in told(bundle("v: 1"), bundle())}
    assert found["widened definitions of every server: hold → alert"] == "more-permissive"
    assert found["definitions that begin to instruct of every server: hold → alert"] == "more-permissive"
    assert set(found.values()) == {"more-permissive"}


TICKET = "patterns: [{id: ticket, pattern: 'TCK-[0-9]{6}', arguments: block, result: mask%s}]"


@pytest.mark.parametrize(
    ("before", "after", "wanted"),
    [
        (None, TICKET % "", [("stricter", "new pattern ticket: block in arguments, mask in results")]),
        (TICKET % "", None, [("more-permissive", "pattern ticket is gone: block in arguments, mask in results")]),
        (
            TICKET % "",
            (TICKET % "").replace("result: mask", "result: alert").replace("arguments: block", "arguments: mask"),
            [
                ("more-permissive", "pattern ticket in arguments: block → mask"),
                ("more-permissive", "pattern ticket in results: mask → alert"),
            ],
        ),
        (
            TICKET % "",
            (TICKET % ", record: keep, severity: high").replace("{6}", "{7}"),
            [
                ("more-permissive", "what pattern ticket finds, in events: mask → keep"),
                ("other", "pattern ticket is high, was medium"),
                ("other", "pattern ticket looks for something else"),
            ],
        ),
    ],
)
def test_patterns_that_come_go_or_do_something_else_are_told(
    before: str | None, after: str | None, wanted: list[tuple[str, str]]
) -> None:
    assert told(bundle(None, before), bundle(None, after)) == wanted


def test_the_patterns_of_a_pack_are_compared_with_what_overrides_them() -> None:
    plain, overridden = "packs: [personal-data]", "packs: [personal-data]\noverrides: {email: {result: block}}"
    [change] = told(bundle(None, plain), bundle(None, overridden))
    assert change[0] == "stricter"
    assert change[1].startswith("pattern email in results: ")


rules = st.fixed_dictionaries(
    {
        "first": st.sampled_from(["trust", "hold"]),
        "new": st.sampled_from(["allow", "alert", "hold"]),
        "changed": st.dictionaries(
            st.sampled_from(["described", "widened"]), st.sampled_from(["allow", "alert", "hold"])
        ),
    }
)
files = st.tuples(rules, st.dictionaries(st.sampled_from(["git", "web"]), rules)).map(
    lambda found: str({"v": 1, **found[0], "servers": found[1]})
)


@given(files, files)
def test_the_way_back_is_the_mirror_image(one: str, other: str) -> None:
    there, back = (told(bundle(old), bundle(new)) for old, new in ((one, other), (other, one)))
    assert sorted(MIRRORED[direction] for direction, _ in there) == sorted(direction for direction, _ in back)
    assert told(bundle(one), bundle(one)) == []


def test_the_command_shows_them(tmp_path: Path) -> None:
    for name, made in (("old", bundle("v: 1")), ("new", bundle(None, TICKET % ""))):
        for path, content in made.files.items():
            (tmp_path / name / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / path).write_bytes(content)
    shown = CliRunner().invoke(app, ["bundle", "diff", str(tmp_path / "old"), str(tmp_path / "new")])
    lines = " ".join(shown.stdout.split())
    assert "more permissive definitions.yaml widened definitions of every server: hold → alert" in lines
    assert "stricter inspection.yaml new pattern ticket: block in arguments, mask in results" in lines
