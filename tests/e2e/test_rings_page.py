"""docs/rings.md keeps its word: its commands are typed while the canary example runs, and show what it says."""

import re
from pathlib import Path

from tests.e2e.first_example import ROOT, serving_example
from tests.e2e.test_examples import BLOCK
from tests.e2e.test_policy_examples import typed

PAGE = ROOT / "docs" / "rings.md"


def test_what_the_page_says_to_type_works_and_shows_what_it_says(tmp_path: Path) -> None:
    with serving_example(tmp_path, "05-canary") as house:
        shown = typed(PAGE, house)
    lines = [
        line for language, text in BLOCK.findall(PAGE.read_text()) if language == "text" for line in text.splitlines()
    ]
    assert lines
    for line in lines:
        pieces = [re.escape(" ".join(piece.split())) for piece in line.split("…")]
        assert re.search(".*".join(pieces), shown), f"{line}\n\nis not in\n\n{shown}"


def test_links_of_the_page_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", PAGE.read_text())
    assert [link for link in links if "://" not in link and not (PAGE.parent / link).exists()] == []
