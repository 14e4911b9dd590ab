"""docs/rings.md keeps its word: its commands are typed while the canary example runs, and show what it says."""

import contextlib
import itertools
import json
import os
import re
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.e2e.first_example import ROOT, TIDEGATE, House, serving_example
from tests.e2e.test_examples import BLOCK
from tests.e2e.test_policy_examples import typed
from tests.parts.asking import until

PAGE = ROOT / "docs" / "rings.md"


@contextlib.contextmanager
def watching(house: House) -> Iterator[list[Any]]:
    """What `bundle status --watch` says from now on."""
    command = [str(TIDEGATE), "bundle", "status", "--ring", "main", "--watch", "--json"]
    process = subprocess.Popen(
        command, cwd=house.root, env={**os.environ, **house.environment}, stdout=subprocess.PIPE, text=True
    )
    seen: list[Any] = []
    reading = threading.Thread(target=lambda: seen.extend(map(json.loads, process.stdout or ())))
    reading.start()
    try:
        until(lambda: bool(seen), "the first status")
        yield seen
    finally:
        process.terminate()
        reading.join(10)
        process.wait(10)


def rules(status: Any, number: int) -> bool:
    return bool(status["rings"][0]["ruling"]["release"]["number"] == number)


def test_what_the_page_says_to_type_works_and_shows_what_it_says(tmp_path: Path) -> None:
    with serving_example(tmp_path, "05-canary") as house, watching(house) as seen:
        shown = typed(PAGE, house)
        until(lambda: any(rules(line, 7) for line in seen), "the watched status shows what rules at the end")
    assert rules(seen[0], 1)
    assert all(one["rings"] != two["rings"] for one, two in itertools.pairwise(seen)), "a line for each change"
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
