"""Examples that run a gateway of their own: what their pages tell people to type works, and shows what they say.

A line of a `text` block must appear in the output, spaces aside; `…` in it stands for anything.
"""

import os
import re
import subprocess
from pathlib import Path

import pytest
from tests.e2e.first_example import ROOT, House, serving_example
from tests.e2e.test_examples import DONE_BY_THE_FIXTURE, OWN, blocks
from tests.parts.warm import prelude


@pytest.mark.parametrize("example", OWN, ids=lambda path: path.name)
def test_what_the_page_says_to_type_works_and_shows_what_it_says(example: Path, tmp_path: Path) -> None:
    with serving_example(tmp_path, example.name) as house:
        shown = typed(example / "README.md", house)
    for line in "\n".join(blocks(example / "README.md", "text")).splitlines():
        pieces = [re.escape(" ".join(piece.split())) for piece in line.split("…")]
        assert re.search(".*".join(pieces), shown), f"{line}\n\nis not in\n\n{shown}"


def typed(page: Path, house: House) -> str:
    """All that the page's commands print, each run of spaces as one."""
    lines = [line for block in blocks(page, "sh") for line in block.splitlines()]
    script = [line for line in lines if not line.startswith(DONE_BY_THE_FIXTURE)]
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", prelude() + "\n".join(script).replace("http://127.0.0.1:8080", house.url)],
        cwd=house.root,
        env={key: value for key, value in os.environ.items() if not key.startswith("TIDEGATE_")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return "\n".join(" ".join(line.split()) for line in done.stdout.splitlines())


def test_every_example_that_runs_by_itself_is_tried_here() -> None:
    assert {path.name for path in OWN} >= {"03-argument-rule", "04-approval", "06-kill-switch"}
    assert all((ROOT / "examples" / path.name / "tidegate.yaml").is_file() for path in OWN)
