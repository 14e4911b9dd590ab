"""`bundle test` and the options of a staged release: what is told, what is refused, with which exit code."""

import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner, Result

from tidegate.errors import ConfigFault
from tidegate_cli.bundle_status import ring_lines
from tidegate_cli.main import app
from tidegate_cli.ring_options import guard_query, stage_query

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "02-grants" / "policy"
MORE = """
- note: on call looks, too
  user: olga@example.com
  groups: [oncall]
  server: git
  tool: git_status
  arguments: {repo_path: data/shop}
  expect: allow
- note: and may reset <everything>
  user: olga@example.com
  groups: [oncall]
  server: git
  tool: git_reset
  expect: allow
"""


def run(*words: object) -> Result:
    return CliRunner().invoke(app, ["bundle", "test", *map(str, words)])


def test_each_case_is_shown_with_its_verdict_and_rules() -> None:
    shown = run(EXAMPLE, "--only", "other")
    assert shown.exit_code == 0
    assert "but no other" in shown.stdout
    assert "deny by eng-reads/git:limits (forbidden-by-rule)" in shown.stdout
    assert "Agents may read the repository data/shop and no other." in shown.stdout
    assert "2 cases passed" in shown.stdout


def test_a_failing_case_of_a_further_file_is_named_and_fails_the_run(tmp_path: Path) -> None:
    (tmp_path / "more.yaml").write_text(MORE)
    shown = run(EXAMPLE, tmp_path / "more.yaml")
    assert shown.exit_code == 1
    assert f"failed  {tmp_path}/more.yaml:9  and may reset" in shown.stdout
    assert "1 of 9 cases failed" in shown.stdout
    told = json.loads(run(EXAMPLE, tmp_path / "more.yaml", "--json").stdout)
    assert told["passed"] is False
    assert [(case["note"], case["decision"], case["reason"]) for case in told["cases"] if not case["passed"]] == [
        ("and may reset <everything>", "deny", "tool-not-granted")
    ]


def test_no_file_of_cases_is_tried_twice(tmp_path: Path) -> None:
    (tmp_path / "more.yaml").write_text(MORE)
    again = tmp_path / "." / "more.yaml"
    shown = run(EXAMPLE, EXAMPLE / "cases.yaml", tmp_path / "more.yaml", again)
    assert "1 of 9 cases failed" in shown.stdout


def test_the_results_are_written_for_a_build_server(tmp_path: Path) -> None:
    (tmp_path / "more.yaml").write_text(MORE)
    assert run(EXAMPLE, tmp_path / "more.yaml", "--junit", tmp_path / "out.xml").exit_code == 1
    own, more = ElementTree.parse(tmp_path / "out.xml").getroot()
    assert (own.get("tests"), own.get("failures")) == ("7", "0")
    assert (more.get("tests"), more.get("failures")) == ("2", "1")
    (failure,) = more.iter("failure")
    assert "expected allow" in (failure.get("message") or "")


def test_what_rules_in_shadow_mode_would_decide_is_shown(tmp_path: Path) -> None:
    (tmp_path / "policies").mkdir()
    (tmp_path / "manifest.json").write_text('{"v": 1, "name": "x"}')
    (tmp_path / "policies" / "x.cedar").write_text(
        '@id("p") permit (principal, action, resource);\n'
        '@id("f") @mode("shadow") forbid (principal, action, resource);\n'
    )
    (tmp_path / "cases.yaml").write_text(
        "- {note: n, user: u, server: s, tool: t, expect: allow, shadow: deny}\n"
        "- {note: m, user: u, server: s, tool: t, expect: allow, shadow: allow}\n"
    )
    shown = run(tmp_path)
    assert shown.exit_code == 1
    assert "with the rules in shadow mode → deny by f" in shown.stdout
    assert "1 of 2 cases failed" in shown.stdout


def test_nothing_tried_is_no_success(tmp_path: Path) -> None:
    assert run(EXAMPLE, "--only", "no such note").exit_code == 1
    missing = run(EXAMPLE, tmp_path / "missing.yaml")
    assert isinstance(missing.exception, ConfigFault)
    (tmp_path / "wrong.yaml").write_text("- note: x\n  user: y\n")
    broken = run(EXAMPLE, tmp_path / "wrong.yaml")
    assert isinstance(broken.exception, ConfigFault)
    assert f"{tmp_path}/wrong.yaml:1: is not a case" in str(broken.exception)


def test_a_canary_is_named_by_its_share_or_by_whom_alone() -> None:
    assert stage_query("10%", False, [], ["eng"], []) == {
        "role": "canary",
        "percent": 10,
        "region": [],
        "group": ["eng"],
        "edge_label": [],
    }
    assert stage_query("", False, ["eu"], [], [])["role"] == "canary"
    assert "percent" not in stage_query("", False, ["eu"], [], [])
    assert stage_query("", True, [], [], []) == {"role": "shadow"}
    assert stage_query("", False, [], [], []) == {}


def test_a_guard_is_read_with_its_units() -> None:
    assert guard_query("5%", "0%", "1%@2.5ms", 20, "10m") == {
        "denials": 0.05,
        "errors": 0.0,
        "slow": 0.01,
        "slow_ms": 2.5,
        "calls": 20,
        "watch": 600,
    }
    assert guard_query("", "", "", None, "") == {}


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: stage_query("0%", False, [], [], []), ("--canary takes a share above 0%", "--shadow")),
        (lambda: stage_query("", False, [], [], ["lab"]), ("--edge-label takes KEY=VALUE", "'lab'")),
        (lambda: stage_query("", False, [], [], ["lab="]), ("--edge-label takes KEY=VALUE",)),
        (lambda: stage_query("", False, [], [], ["a=b", "a=c"]), ("--edge-label: one value for each key",)),
        (lambda: guard_query("", "", "", None, "10"), ("--watch takes a time such as", "a guard needs a bound")),
        (lambda: guard_query("", "", "", None, "10m"), ("a guard needs a bound",)),
        (lambda: guard_query("5%", "", "", None, "8d"), ("--watch takes a time of 1s to 7d",)),
        (lambda: guard_query("5%", "", "", None, "0s"), ("--watch takes a time of 1s to 7d",)),
        (lambda: guard_query("", "", "1%@2m", None, ""), ("--guard-slow takes a time of above 0 to 1m",)),
    ],
)
def test_a_slip_in_an_option_names_the_option_and_all_that_is_wrong(
    wrong: Callable[[], object], words: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigFault) as fault:
        wrong()
    assert all(word in fault.value.sentence for word in words), fault.value.sentence


def test_the_help_says_what_holds_where_an_option_is_left_out() -> None:
    shown = CliRunner().invoke(app, ["bundle", "publish", "--help"], env={"COLUMNS": "200"}).stdout
    assert "fewer calls. [default: (50)]" in " ".join(shown.split())
    assert "[default: 0]" not in shown


COUNTS = {"decided": 294, "denied": 0, "asked": 0, "errors": 0, "slow": 78, "differed": 0}
GUARD = {"denials": 0.05, "errors": None, "slow": None, "slow_us": 5000, "calls_min": 50}


def told(guard: dict[str, object] | None, **counts: int) -> str:
    release = {
        "number": 5, "ring": "main", "digest": "d" * 64, "released_us": 1, "cause": "promoted", "stage": None,
        "reason": "It was release 4, the canary.", "guard": guard,
    }  # fmt: skip
    held = {
        "release": release, "counts": COUNTS | counts, "compared_with": COUNTS, "watching": "watching", "reason": "",
        "watched_until_us": 0, "edges": [],
    }  # fmt: skip
    ring = {"ring": "main", "ruling": held, "canary": None, "shadow": None, "ended": []}
    return "\n".join(ring_lines(ring, {}))


def test_slow_decisions_are_told_where_a_guard_has_said_what_is_slow() -> None:
    assert "294 calls decided\n" in told(None)
    assert "slow" not in told(None) + told(GUARD)
    assert "294 calls decided, 78 slower than 2.5 ms (26.5%)\n" in told(GUARD | {"slow": 0.01, "slow_us": 2500})


def test_what_is_told_reads_as_sentences_do() -> None:
    assert "1 call decided\n" in told(None, decided=1, slow=0)
    assert "promoted: it was release 4, the canary\n" in told(None)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: stage_query("10", False, [], [], []),
        lambda: stage_query("101%", False, [], [], []),
        lambda: stage_query("10%", True, [], [], []),
        lambda: guard_query("5", "", "", None, ""),
        lambda: guard_query("", "", "1%@5", None, ""),
        lambda: guard_query("", "", "", 20, ""),
        lambda: guard_query("5%", "", "", None, "soon"),
    ],
)
def test_a_slip_in_an_option_is_refused_with_a_sentence(wrong: object) -> None:
    with pytest.raises(ConfigFault):
        wrong()  # type: ignore[operator]


def test_a_pipeline_can_fail_on_a_bundle_that_lets_more_pass(tmp_path: Path) -> None:
    for name, limit in (("old", 10), ("new", 20)):
        (tmp_path / name / "policies").mkdir(parents=True)
        (tmp_path / name / "manifest.json").write_text('{"v": 1, "name": "x"}')
        (tmp_path / name / "policies" / "x.cedar").write_text(
            '@id("some") permit (principal, action == Action::"shop/buy", resource)\n'
            f"when {{ context.args has count && context.args.count < {limit} }};\n"
        )
    old, new = tmp_path / "old", tmp_path / "new"
    for candidate, other, code in ((new, old, 1), (old, new, 0), (new, new, 0)):
        words = ["bundle", "check", str(candidate), "--against", str(other)]
        assert CliRunner().invoke(app, [*words, "--fail-on-more-permissive"]).exit_code == code
        assert CliRunner().invoke(app, words).exit_code == 0
    alone = CliRunner().invoke(app, ["bundle", "check", str(new), "--fail-on-more-permissive"])
    assert isinstance(alone.exception, ConfigFault)
