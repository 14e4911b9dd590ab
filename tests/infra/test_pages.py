"""The pages keep their word: links lead to files, and the tests and paths that ARCHITECTURE.md names exist."""

import re
from pathlib import Path

import pytest
from tests.infra.deployment import ROOT

LINK = re.compile(r"\]\((?!https?://|#|mailto:)([^)#\s]+)(?:#[^)]*)?\)")
TEST = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")
PATH = re.compile(r"`((?:shared|services|cli|tests|infra|docs|bench)/[\w./-]+)`")


def pages() -> list[Path]:
    """Every page of ours: not what is installed, cached or left by runs."""
    folders = ("docs", "services", "shared", "cli", "infra", "bench", "loadtests", "examples")
    below = (path for folder in folders for path in (ROOT / folder).rglob("*.md"))
    return sorted([*ROOT.glob("*.md"), *(path for path in below if "data" not in path.parts)])


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page: Path) -> None:
    assert [link for link in LINK.findall(page.read_text()) if not (page.parent / link).exists()] == []


def test_the_tests_that_guard_invariants_exist() -> None:
    named = TEST.findall((ROOT / "ARCHITECTURE.md").read_text())
    assert len(named) >= 10
    missing = [f"{file}::{test}" for file, test in named if f"def {test}(" not in _text(file)]
    assert missing == []


def test_paths_named_in_the_architecture_exist() -> None:
    text = TEST.sub("", (ROOT / "ARCHITECTURE.md").read_text())
    assert [path for path in PATH.findall(text) if not (ROOT / path).exists()] == []


def test_every_decision_is_listed() -> None:
    listed = (ROOT / "docs" / "adr" / "README.md").read_text()
    decisions = [path.name for path in (ROOT / "docs" / "adr").glob("0*.md")]
    assert [name for name in decisions if f"({name})" not in listed] == []


def _text(file: str) -> str:
    path = ROOT / file
    return path.read_text() if path.is_file() else ""
