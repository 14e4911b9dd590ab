"""Bundles: canonical bytes, digest, and what the check says of a wrong one."""

from pathlib import Path

import pytest

from tidegate.errors import BundleFault
from tidegate.limits import BUNDLE_BYTES_MAX
from tidegate.policy.bundle import Bundle, bundle_of, load_bundle
from tidegate.policy.cases import run_cases
from tidegate.policy.check import check_bundle
from tidegate.policy.engine import ToolFacts

BANK = Path(__file__).parent.parent / "cases" / "bank"
MINIMAL = {
    "manifest.json": b'{"v": 1, "name": "minimal"}',
    "policies/all.cedar": b'@id("all") permit (principal, action, resource);',
}


def problems_with(**changed: bytes | None) -> list[str]:
    """The check's sentences for the bank bundle with some files changed ("__" stands for "/" and "_dot_" for ".")."""
    files: dict[str, bytes] = dict(load_bundle(BANK).files)
    for name, content in changed.items():
        path = name.replace("__", "/").replace("_dot_", ".")
        if content is None:
            del files[path]
        else:
            files[path] = content
    return [str(problem) for problem in check_bundle(bundle_of(files))]


def test_the_example_bundle_passes_its_check() -> None:
    assert check_bundle(load_bundle(BANK)) == []


def test_canonical_bytes_do_not_depend_on_the_order_of_files_or_on_times(tmp_path: Path) -> None:
    for path, content in reversed(MINIMAL.items()):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(content)
    (tmp_path / ".hidden").write_text("left out")
    (tmp_path / "README.md").write_text("left out")
    assert load_bundle(tmp_path) == bundle_of(MINIMAL)
    assert bundle_of(dict(reversed(MINIMAL.items()))).digest == bundle_of(MINIMAL).digest


def test_canonical_bytes_read_back_to_the_same_bundle() -> None:
    bundle = load_bundle(BANK)
    assert Bundle.from_bytes(bundle.canonical) == bundle


def test_any_changed_byte_changes_the_digest() -> None:
    changed = {**MINIMAL, "policies/all.cedar": MINIMAL["policies/all.cedar"] + b"\n"}
    assert bundle_of(changed).digest != bundle_of(MINIMAL).digest


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b'{"v":2,"files":{}}',
        b'{"v":1,"files":{"a":1}}',
        b'{"v":1,"files":{"../../etc/passwd":"x"}}',
        b'\xff{"v":1}',
        b" " + bundle_of(MINIMAL).canonical,
        bundle_of(MINIMAL).canonical.replace(b'{"v":1,', b'{"v":1, '),
    ],
)
def test_bytes_that_are_not_a_canonical_bundle_are_refused(raw: bytes) -> None:
    with pytest.raises(BundleFault):
        Bundle.from_bytes(raw)


def test_a_bundle_over_the_size_bound_is_refused() -> None:
    with pytest.raises(BundleFault, match="at most"):
        bundle_of({**MINIMAL, "entities.json": b" " * BUNDLE_BYTES_MAX})


def test_a_misspelled_file_is_refused_by_name(tmp_path: Path) -> None:
    for path, content in {**MINIMAL, "policies/more.cedr": b""}.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(content)
    with pytest.raises(BundleFault, match=r"policies/more\.cedr: is not a file of a bundle"):
        load_bundle(tmp_path)


def test_a_link_out_of_the_bundle_is_refused(tmp_path: Path) -> None:
    outside = tmp_path / "secret.json"
    outside.write_text("[]")
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "entities.json").symlink_to(outside)
    with pytest.raises(BundleFault, match="leads out"):
        load_bundle(tmp_path / "bundle")


def test_a_parse_error_names_file_line_and_rule() -> None:
    [problem] = problems_with(
        policies__files_dot_cedar=b'@id("fine") permit (principal, action, resource);\n\n// next\n'
        b'@id("odd")\npermit (principal;'
    )
    assert problem.startswith("policies/files.cedar:4: does not parse")


def test_a_rule_without_an_id_and_an_id_used_twice_are_problems() -> None:
    found = problems_with(
        policies__files_dot_cedar=b"permit (principal, action, resource);\n"
        b'@id("pay-small") forbid (principal, action, resource);'
    )
    assert any("files.cedar:1: the rule has no @id" in problem for problem in found)
    assert any('@id("pay-small") is taken by policies/files.cedar:2' in problem for problem in found)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b'@id("a b") permit (principal, action, resource);', "is not 1 to 128"),
        (b'@id("a") @effect("ask") permit (principal, action, resource);', "@effect takes only"),
        (b'@id("a") @effect("warn") forbid (principal, action, resource);', "@effect takes only"),
        (b'@id("a") permit (principal == ?principal, action, resource);', "templates"),
    ],
)
def test_rules_that_cannot_be_used_are_problems(text: bytes, words: str) -> None:
    assert any(words in problem for problem in problems_with(policies__files_dot_cedar=text))


@pytest.mark.parametrize(
    "condition",
    [
        "(" * 3_000 + "true" + ")" * 3_000,
        "[" * 3_000 + "1" + "]" * 3_000 + " == 1",
        " && ".join(["true"] * 30_000),
        "if true then " * 10_000 + "true" + " else false" * 10_000,
        "context has " + ".".join(["a"] * 10_000),
        " + ".join(["1"] * 1_900) + " == 1",
    ],
)
def test_a_rule_that_nests_too_deep_for_the_parser_is_a_problem_not_a_crash(condition: str) -> None:
    policy = f'@id("deep") permit (principal, action, resource) when {{ {condition} }};'
    [problem] = problems_with(policies__files_dot_cedar=policy.encode(), cases_dot_yaml=None)
    assert problem.startswith("policies/files.cedar:1:")


@pytest.mark.parametrize(("opening", "closing"), [("{a: ", "}"), ("Set<", ">")])
def test_a_schema_that_nests_too_deep_is_a_problem_not_a_crash(opening: str, closing: str) -> None:
    schema = "entity A = {a: " + opening * 20_000 + "Long" + closing * 20_000 + "};"
    [problem] = problems_with(schema_dot_cedarschema=schema.encode())
    assert "schema.cedarschema: brackets nest" in problem


def test_a_rule_with_hundreds_of_alternatives_is_fine() -> None:
    alternatives = " || ".join(f'context.args.path like "/srv/{number}/*"' for number in range(300))
    policy = f'@id("wide") permit (principal, action == Action::"fs/read", resource) when {{ {alternatives} }};'
    names = ", ".join(f'"{number}"' for number in range(5_000))
    condition = f"[{names}].contains(context.args.path)"
    policy += f'@id("set") forbid (principal, action == Action::"fs/read", resource) when {{ {condition} }};'
    assert problems_with(policies__files_dot_cedar=policy.encode(), cases_dot_yaml=None) == []


def test_the_schema_catches_an_argument_that_no_tool_has() -> None:
    policy = b'@id("typo") permit (principal, action == Action::"fs/read", resource) when { context.args.pth == "x" };'
    [problem] = problems_with(policies__files_dot_cedar=policy, cases_dot_yaml=None)
    assert problem.startswith("policies/files.cedar:1: against the schema:")
    assert "args.pth" in problem


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("manifest_dot_json", b'{"v": 1}', "manifest.json: Object missing required field `name`"),
        ("manifest_dot_json", b'{"v": 1, "name": " "}', "`name` is empty"),
        ("schema_dot_cedarschema", b"entity User in", "schema.cedarschema"),
        ("entities_dot_json", b'{"uid": 1}', "entities.json: does not hold Cedar entities"),
        ("entities_dot_json", b'[{"uid": {"type": "Dog", "id": "x"}, "attrs": {}, "parents": []}]', "does not fit"),
        ("inspection_dot_yaml", b"patterns: 3", "inspection.yaml"),
        ("cases_dot_yaml", b"- note: x\n- 3", "cases.yaml:1: is not a case"),
        ("cases_dot_yaml", b"a: [", "is not YAML"),
        ("cases_dot_yaml", b"a: 1", "must be a list"),
    ],
)
def test_each_file_is_checked_and_named(file: str, content: bytes, words: str) -> None:
    assert any(words in problem for problem in problems_with(**{file: content}))


def test_a_failing_case_names_its_line_and_what_came_instead() -> None:
    case = b"\n- {note: a stranger reads, user: eve, server: fs, tool: read, labels: [read], expect: allow}\n"
    [problem] = problems_with(cases_dot_yaml=case)
    assert problem == "cases.yaml:2: 'a stranger reads': deny (tool-not-granted), expected allow"


def test_a_rule_for_an_unknown_tool_is_pointed_out_but_not_fatal() -> None:
    found = check_bundle(load_bundle(BANK), [ToolFacts("fs", "read")])
    assert {problem.rule for problem in found} == {"pay-small", "pay-with-care"}
    assert not any(problem.fatal for problem in found)


def test_a_rule_for_a_servers_prompts_or_resources_is_for_no_tool_that_is_unknown() -> None:
    rules = "\n".join(
        f'@id("r{number}") permit (principal, action == Action::"{action}", resource);'
        for number, action in enumerate(("fs/prompts/get", "fs/resources/read", "fs/gone"))
    )
    bundle = bundle_of({"manifest.json": b'{"v": 1, "name": "x"}', "policies/p.cedar": rules.encode()})
    assert [problem.rule for problem in check_bundle(bundle, [ToolFacts("fs", "read")]) if not problem.fatal] == ["r2"]


def test_every_case_of_the_example_is_run() -> None:
    results = run_cases(load_bundle(BANK))
    assert len(results) == 6
    assert all(result.passed for result in results), [result.sentence for result in results]


def test_a_case_of_a_resource_or_a_prompt_has_the_label_that_an_edge_would_give_it() -> None:
    files = {
        "manifest.json": MINIMAL["manifest.json"],
        "policies/r.cedar": b'@id("r") permit (principal, action in Action::"resource", resource);',
        "cases.yaml": b"""
- {note: read, user: u, server: s, tool: resources/read, arguments: {uri: "x://y"}, expect: allow}
- {note: prompt, user: u, server: s, tool: prompts/get, arguments: {name: n}, expect: deny}
""",
    }
    results = run_cases(bundle_of(files))
    assert [result.passed for result in results] == [True, True], [result.sentence for result in results]
